# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where is a fact looked up? Causal tracing
#
# **Question.** The prompt is "the capital of E is". At which layer and position does the model turn the entity E into its capital?
#
# **Answer.** Attention in layer 0 moves the entity to the last position, and the MLPs look up the capital *there*. There is no early site at the subject, unlike in larger models (Meng et al. 2022). Both ways to damage a prompt agree on this.
#
# **Needs.** No GPU and no download. About 6 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas

from interp import behaviours, metrics, models, patching, plots
from train import released


# %%
run = released.open("planted")
model, capital = models.load(run), behaviours.load("capital", run, n_prompts=64)
print(run.store.tokenizer.decode(capital.clean[0].tolist()), "|", capital.subject)
behaviours.check(model, capital)

# %% [markdown]
# There are some fifty entities with one prompt each; the corpus states each of these facts often enough. The subject is one token at position 4; the answer is predicted at position 5.
#
# ## 1. Damage by another subject
#
# **Symmetric token replacement** is the default: the entity is exchanged for another one, so that the damaged prompt is still in distribution. One state of the intact run at a time is then restored.

# %%
replaced = patching.causal_trace(model, capital)
replaced.plot()

# %%
{site: getattr(replaced, site).top(2) for site in ("residual", "mlps", "attention")}

# %% [markdown]
# **The attention of layer 0 moves the entity, and both MLPs do the rest at the last position.** Restoring an MLP at the subject recovers almost nothing.
#
# ## 2. Damage by noise on the subject
#
# This is the original method: normal noise of three standard deviations of the subjects' embeddings, ten draws, and the probability of the answer as the metric. In larger models noise identifies other sites than replacement, and less stably (Zhang & Nanda 2023); here the two agree.

# %%
noised = patching.causal_trace(
    model, capital, damage="noised", draws=10, metric=metrics.probability(capital)
)
noised.plot()

# %% [markdown]
# The table has the effects of restoring one MLP, with subjects replaced, at the subject and at the last position. A dash: nothing that the MLP of the last layer writes at the subject can reach the last position, so its effect is exactly 0 and has no interval.

# %%
early, late = replaced.curve("mlps"), replaced.curve("mlps", pos=capital.n_pos - 1)
table = pandas.concat({"subject": early, "last position": late}, names=["position", None])
table = table.droplevel(1).set_index("layer", append=True)
table.map(lambda value: "–" if value != value else f"{value:.3f}")

# %% [markdown]
# ## 3. A window of layers
#
# Meng et al. restore ten layers at once; this model has only two. **Windows inflate peaks**: the MLPs of both layers together restore more than the better of the two alone.

# %%
wide = patching.causal_trace(model, capital, window=2)
plots.bars(
    ["L0 alone", "L1 alone", "both"],
    [late["effect"][0], late["effect"][1], wide.mlps["L1.mlp@5"]],
    [late["low"][0], late["low"][1], wide.mlps.interval("L1.mlp@5")[0]],
    [late["high"][0], late["high"][1], wide.mlps.interval("L1.mlp@5")[1]],
    title="Effect of restoring MLPs at the last position",
    unit=replaced.mlps.unit,
)

# %% [markdown]
# **Limits.** One relation, one seed, two layers. The entities are single tokens right before the answer, so there is little room for an early site. A trace shows where a state is *sufficient* for the answer, not which weights learned the fact or from which documents. For the documents use `openbook trace documents` and retraining.

# %%
assert early["high"].max() < 0.15, "an early site at the subject"
assert late["low"].max() > 0.5, "no late site"
assert set(noised.residual.top(2)) == set(replaced.residual.top(2))
assert wide.mlps["L1.mlp@5"] > late["effect"].max()
