# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Who receives the key? Activation patching and path patching
#
# **Question.** The prompt "when A and B went to the beach, B gave a key to" continues with A. Which heads compute this, what do they read, and by which paths does the result reach the answer?
#
# **Answer.** One or two heads of layer 0 read who gives, through their values alone. Their output reaches the logits in two ways: without any later head, or through the queries of layer 1, which it tells where to attend. How many heads share the work, and how much goes which way, differs from run to run; in this run one head does it, and nearly all goes the first way. Together the two ways account for the whole effect.
#
# **Needs.** No GPU and no download. About 12 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas as pd

from interp import attribution_patching, behaviours, metrics, models, patching, plots
from train import released


# %%
run = released.open("planted")
model, ioi = models.load(run), behaviours.load("ioi", run, n_prompts=64)
for prompts in (ioi.clean, ioi.corrupt):
    print(run.store.tokenizer.decode(prompts[0].tolist()))
behaviours.check(model, ioi)

# %% [markdown]
# The two prompts differ in one word: the person who gives. Every experiment below exchanges activations between them and measures which share of the logit difference changes. `behaviours.check` raises an error if the model cannot do the behaviour.
#
# ## 1. At which positions is the information?
#
# **The information is at the giver's position until layer 0 has run, and at the last position from then on.** The figure shows the residual stream entering each layer, patched one position at a time. Sites with the same values on both prompts, such as all positions before the prompts differ, cannot show an effect; the notes of the result count them.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %%
residual.notes, residual.top(2)

# %% [markdown]
# ## 2. Which heads?
#
# **One or two heads of layer 0 are sufficient.** Several metrics can be scored in the same forward passes; the probability agrees with the logit difference. Patched together, the heads with an effect above a tenth bring back nine tenths of it or more.

# %%
heads = patching.heads(model, ioi, metric=[metrics.logit_difference(ioi), metrics.probability(ioi)])
heads.plot()

# %%
readers = [name for name in heads.names if heads[name] > 0.1]
best, others = heads.top(1)[0], [name for name in heads.names if name not in readers]
sufficient = patching.together(model, ioi, [readers])
(
    readers,
    float(sufficient.values[0]),
    [(effects.metric, effects.interval(best)) for effects in (heads, *heads.also)],
)

# %% [markdown]
# **Exercise: IOI by hand.** Write the sweep of section 2 yourself, for one head: the strongest one, `best` (a name such as `L0H1`). Run the model on `ioi.corrupt`; while it runs, replace the output of that head (hook point `blocks.0.attn.hook_z`, axes prompt, position, head, d_head) by its value on `ioi.clean`. Which share of the logit difference comes back? The score of a prompt is the logit of `ioi.answer` minus that of `ioi.foil` at the last position.
#
# <details><summary>Solution</summary>
#
# ```python
# def score(logits):
#     answers, foils = ioi.answer[:, None], ioi.foil[:, None]
#     return (logits[:, -1].gather(1, answers) - logits[:, -1].gather(1, foils)).mean().item()
#
#
# layer, head = int(best[1]), int(best[3])
# point = f"blocks.{layer}.attn.hook_z"
# clean_logits, cache = model.run_with_cache(ioi.clean)
#
#
# def patch(z, hook):
#     z = z.clone()
#     z[:, :, head] = cache[point][:, :, head]
#     return z
#
#
# patched_logits = model.run_with_hooks(ioi.corrupt, fwd_hooks=[(point, patch)])
# clean, corrupt, patched = score(clean_logits), score(model(ioi.corrupt)), score(patched_logits)
# by_hand = (patched - corrupt) / (clean - corrupt)
# print(f"{best}: {by_hand:.3f} by hand, {heads[best]:.3f} by the sweep")
# assert abs(by_hand - heads[best]) < 1e-4
# ```
#
# </details>
#
# **These heads are also necessary.** *Noising* tests this in the opposite direction: it patches corrupt values into the clean prompts. *Mean ablation* tests it without other prompts: it replaces the output of a head by its mean.

# %%
noising = patching.together(
    model, ioi, [readers, *([name] for name in others)], direction="noising"
)
ablation = patching.ablate(model, ioi, [readers, *([name] for name in others)], standin="mean")
ablation.plot()

# %% [markdown]
# With these heads replaced by their means, most of the logit difference is gone, and no other head costs a tenth of it. Accuracy is a coarser measure: a head of layer 1 replaced by its mean costs as many answers or more, although the mean difference hardly changes, because it helps on some prompts and hurts on others.

# %%
lost = -ablation.change / ablation.intact
needed, spared = float(noising.values[0]), float(noising.values[1:].max())
needed, spared, lost.round(3), ablation.accuracy.round(3)

# %% [markdown]
# ## 3. What does the head read?
#
# **Their values carry the effect; their queries, keys and attention patterns do not.** The effect comes from the values at the giver's position, where the name changes. Layer 1 is the opposite: its effects, small as they are, are carried by queries, and therefore by attention patterns.

# %%
sweeps = [patching.queries, patching.keys, patching.values, patching.patterns]
parts = {sweep.__name__: sweep(model, ioi) for sweep in sweeps}
pd.DataFrame(
    {name: effects.values.flatten() for name, effects in parts.items()}, index=heads.names
).round(3)

# %%
giver = patching.values(model, ioi, positions="each").top(1)[0]
giver, run.store.tokenizer.tokens(ioi.clean[0].tolist())[10]

# %% [markdown]
# ## 4. By which paths?
#
# Path patching changes the output of the strongest of them for one receiver and keeps the original output for all others. Three receivers are tested: the logits directly, the logits directly or through MLPs, and the queries of layer 1.

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
# **The two parts add up to the whole effect.** The MLPs turn the giver's name into a preference for the other name. The queries of layer 1 can tell its heads where the other name is; in this run that part is small and works against the answer. The next figure shows which head of layer 1 is affected most.

# %%
listeners = patching.receivers(model, ioi, best, part="q", mlps="recomputed")
plots.heads(
    listeners.values, title=f"Effect of {best} through the query of each head", unit=listeners.unit
)

# %% [markdown]
# ## 5. Which neurons? Estimates, and a bound on what they miss
#
# Patching each of the 1,024 neurons is still cheap here; in a large model it is not. Attribution patching estimates all effects from two forward passes and one backward pass, and `verify` patches the 20 largest exactly. *Experimental:* `missed` bounds the rest. It patches 800 random sets of the other neurons, exactly, and returns a value that with 95 % confidence none of them exceeds.

# %%
estimate = attribution_patching.attribution(model, ioi, over="neurons")
agreement = attribution_patching.verify(model, ioi, estimate, top=20)
bound = attribution_patching.missed(model, ioi, estimate, verified=agreement.places)
print(bound)

# %% [markdown]
# **No neuron matters by itself: together they carry most of the effect, in small parts.** Here the bound can be checked, because the sweep over all neurons is affordable: the largest neuron that was not verified is below it. The two totals differ (`together` and what the sum of single effects would be), so neurons do not act additively; the bound allows for pairs that interact, and it fails where very many neurons stand in for each other.

# %%
exact = patching.neurons(model, ioi)
hidden = max(abs(exact[name]) for name in exact.names if name not in agreement.places)
agreement.spearman, max(map(abs, agreement.exact)), hidden, bound.value

# %% [markdown]
# **Limits.** 64 prompts of one template family, and one seed of a two-layer model. The intervals are over prompts and say nothing about other seeds (`benchmarks/planted_acceptance.py` trains thirteen runs). It is a finding that the parts add up here; effects of paths are not additive in general.

# %%
assert all(name.startswith("L0") for name in readers)
assert len(readers) <= 2
assert sufficient.values[0] > 0.9
assert needed > 0.8 > 0.5 > spared
assert lost[0] > 0.7 > 0.1 > max(lost[1:])
assert ablation.accuracy[0] < 0.8
assert ablation.intact_accuracy > 0.95
assert {*parts["values"].top(len(readers))} == {f"{name}.v" for name in readers}
assert parts["values"].values[0].sum() > 0.9
assert max(parts[name].values[0].max() for name in ("queries", "keys", "patterns")) < 0.05
assert through_mlps[best] > 0.1
assert abs(through_mlps[best] + to_queries[best] - heads[best]) < 0.1
assert agreement.spearman > 0.8
assert max(map(abs, agreement.exact)) < 0.1
assert hidden <= bound.value < 0.05
assert bound.together > 0.7
