# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Who receives the key? Patching and path patching
#
# **Question.** "when A and B went to the beach, B gave a key to" ... A. Which heads do it, what do they read, and by which paths does it reach the answer?
# **Answer.** One head of layer 0 reads who gives, through its value alone. Its effect reaches the logits without any later head, or by telling the queries of layer 1 where to look: how much goes which way differs from run to run, and together they are all of it.
# **Needs.** No GPU, no download. Half a minute; it opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas as pd

from interp import behaviours, metrics, models, patching, plots
from train import released


# %%
run = released.open("planted")
model, ioi = models.load(run), behaviours.load("ioi", run, n_prompts=64)
for prompts in (ioi.clean, ioi.corrupt):
    print(run.store.tokenizer.decode(prompts[0].tolist()))
behaviours.check(model, ioi)

# %% [markdown]
# The two prompts differ in one word: who gives. Everything below exchanges activations between them and asks how much of the logit difference moves. A model that cannot do it would be refused here.
#
# ## 1. Where does it go?
#
# **It stands at the giver's position until layer 0 has run, and at the last position from then on.** The residual stream entering each layer, one position at a time. Before the prompts differ, nothing can have an effect, and the result says how many places that are.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %%
residual.notes, residual.top(2)

# %% [markdown]
# ## 2. Which heads?
#
# **One head of layer 0 suffices.** Several metrics are scored in the same passes; the probability agrees.

# %%
heads = patching.heads(model, ioi, metric=[metrics.logit_difference(ioi), metrics.probability(ioi)])
heads.plot()

# %%
best = heads.top(1)[0]
{one.metric: (round(one[best], 3), one.interval(best)) for one in (heads, *heads.also)}

# %% [markdown]
# **It is needed, too, and no other head is.** Noising asks the other way round, and ablation without any other prompt: with the head's mean in its place the model is little better than a guess. The MLP of its layer, which reads what the head wrote, is needed as much; which of the two costs more is chance.

# %%
noised = patching.heads(model, ioi, direction="noising")
ablated = patching.ablate(model, ioi, standin="mean")
ablated.plot()

# %%
accuracy = ablated.to_frame().set_index("ablated")["accuracy"]
others = [name for name in heads.names if name != best]
noised[best], ablated.top(3), accuracy[best], accuracy[others].min()

# %% [markdown]
# ## 3. What does the head read?
#
# **Its value, and neither query, key nor pattern.** It always looks at the giver; what varies is who stands there. In layer 1 it is the opposite: queries, hence patterns, carry what there is.

# %%
sweeps = [patching.queries, patching.keys, patching.values, patching.patterns]
parts = {sweep.__name__: sweep(model, ioi) for sweep in sweeps}
pd.DataFrame(
    {name: found.values.flatten() for name, found in parts.items()}, index=heads.names
).round(3)

# %%
giver = patching.values(model, ioi, positions="each").top(1)[0]
giver, run.store.tokenizer.tokens(ioi.clean[0].tolist())[10]

# %% [markdown]
# ## 4. By which paths?
#
# Path patching lets one reader see the head's other value and hides it from all others. Three readers: the logits through nothing at all, the logits through MLPs, and the queries of layer 1.

# %%
queries = [f"L1H{head}.q" for head in range(model.cfg.n_heads)]
direct = patching.senders(model, ioi, "logits")
through_mlps = patching.senders(model, ioi, "logits", mlps="recomputed")
to_queries = patching.senders(model, ioi, queries, mlps="recomputed")

# %%
table = pd.DataFrame(
    [
        ("to the logits, directly", direct[best], *direct.interval(best)),
        (
            "to the logits, directly or through MLPs",
            through_mlps[best],
            *through_mlps.interval(best),
        ),
        (
            "to the queries of layer 1, directly or through MLPs",
            to_queries[best],
            *to_queries.interval(best),
        ),
        ("everything (patching the head)", heads[best], *heads.interval(best)),
    ],
    columns=["path", "share", "low", "high"],
).round(3)
table

# %% [markdown]
# **The two parts add up to the whole.** The MLPs turn the giver's name into "the other one", and the heads of layer 1 are told where the other one stands. Which head of layer 1 listens most:

# %%
listeners = patching.receivers(model, ioi, best, part="q", mlps="recomputed")
plots.heads(listeners.values, title=f"{best} speaks to the queries of", unit=listeners.unit)

# %% [markdown]
# **Limits.** 64 prompts of one template family, one seed of a model of two layers; intervals are over prompts and say nothing about other seeds (`benchmarks/planted_acceptance.py` trains eleven). That the parts add up is a finding, not a law: effects of paths need not be additive.

# %%
assert heads[best] > 0.9
assert best.startswith("L0")
assert noised[best] > 0.8 > 0.5 > max(noised[name] for name in others)
assert accuracy[best] < 0.8 < accuracy[others].min()
assert ablated.intact_accuracy > 0.95
assert parts["values"].top(1) == [f"{best}.v"]
assert parts["values"].values.max() > 0.9
assert max(parts[name].values[0].max() for name in ("queries", "keys", "patterns")) < 0.05
assert through_mlps[best] > 0.2
assert abs(through_mlps[best] + to_queries[best] - heads[best]) < 0.1
