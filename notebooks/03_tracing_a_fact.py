# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where is a fact looked up? Causal tracing
#
# **Question.** "the capital of E is" ... At which layer and position does the model turn the entity into its capital?
# **Answer.** Attention of layer 0 moves the entity to the last position, and the MLPs look it up *there*. There is no early site at the subject, as larger models have it (Meng et al. 2022), and the two ways to damage a prompt agree on that.
# **Needs.** No GPU, no download. Half a minute; it opens the trained run that comes with openbook. Every number below is computed here.

# %%
from interp import behaviours, metrics, models, patching, plots
from train import released


# %%
run = released.open("planted")
model, capital = models.load(run), behaviours.load("capital", run, n_prompts=64)
print(run.store.tokenizer.decode(capital.clean[0].tolist()), "|", capital.subject)
behaviours.check(model, capital)

# %% [markdown]
# Some fifty entities, one prompt each, of a fact that the corpus states often enough. The subject is one token, at position 4; the answer is asked for at position 5.
#
# ## 1. Another subject
#
# **Symmetric token replacement**, the default: the entity is exchanged for another, so the model computes what it computes every day. One state of the intact run is restored at a time.

# %%
replaced = patching.causal_trace(model, capital)
replaced.plot()

# %%
{what: getattr(replaced, what).top(2) for what in ("residual", "mlps", "attention")}

# %% [markdown]
# **Layer 0's attention moves it; both MLPs at the last position do the rest.** Restoring an MLP at the subject brings back nearly nothing.
#
# ## 2. Noise on the subject
#
# The original: noise of three deviations of the subjects' embeddings, ten draws, and the probability of the answer. Noise finds other places than replacement in larger models, and less stably (Zhang & Nanda 2023); here they agree.

# %%
noised = patching.causal_trace(
    model, capital, damage="noised", draws=10, metric=metrics.probability(capital)
)
noised.plot()

# %%
early, late = replaced.curve("mlps"), replaced.curve("mlps", pos=capital.n_pos - 1)
early, late

# %% [markdown]
# ## 3. A window of layers
#
# Meng et al. restore ten layers at once; two are all there are here. **Windows inflate peaks**: the MLPs of both layers together restore more than the larger of the two.

# %%
wide = patching.causal_trace(model, capital, window=2)
plots.bars(
    ["L0 alone", "L1 alone", "both"],
    [late["effect"][0], late["effect"][1], wide.mlps["L1.mlp@5"]],
    [late["low"][0], late["low"][1], wide.mlps.interval("L1.mlp@5")[0]],
    [late["high"][0], late["high"][1], wide.mlps.interval("L1.mlp@5")[1]],
    title="MLPs restored at the last position",
    unit=replaced.mlps.unit,
)

# %% [markdown]
# **Limits.** One relation, one seed, two layers; entities are single tokens that stand right before the answer, so there is little room for an early site. What a trace shows is where a state *suffices*, not where a weight was learned: for that, `openbook trace documents` and retraining.

# %%
assert early["high"].max() < 0.15, "an early site at the subject"
assert late["low"].max() > 0.5, "no late site"
assert set(noised.residual.top(2)) == set(replaced.residual.top(2))
assert wide.mlps["L1.mlp@5"] > late["effect"].max()
