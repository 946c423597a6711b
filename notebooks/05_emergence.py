# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # How does a circuit form over training?
#
# **Question.** When does a model begin to copy and to tell two names apart, in which order do the parts appear, and which heads do it then?
#
# **Answer.** Both abilities are absent at step 600 of 2,100 and good at step 1,000. Attention to the previous token comes first; attention to the word after an earlier occurrence, and copying with it, come later. The heads that decide between the names at the end already decide at the first checkpoint that tells them apart.
#
# **Needs.** No GPU, no download and no training. About 5 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas

from data_attribution import counterfactuals
from interp import behaviours, training_dynamics
from train import progress, released


run = released.open("planted")
run.steps

# %% [markdown]
# The run comes with five checkpoints: the initial weights, three from the time when circuits form, and the last. *Limits.* A change is therefore known to lie between two of these steps. `make demo` trains the run with a checkpoint every hundred steps, and `openbook emergence runs/planted` draws the same curves from all of them. Notebook 11 shows them for four architectures.
#
# ## 1. When copying appears
#
# The test sequences are random words, repeated once. The *copying gap* is the loss on the first copy minus the loss on the second, in nats: what the model saves by copying. `over_training` computes an analysis at every checkpoint and stores the results by the digest of the weights, so a second call computes nothing.

# %%
analysis = training_dynamics.analysis("detectors", run, n_prompts=16)
with progress.bar("detectors") as advance:
    detectors = training_dynamics.over_training(run, analysis, progress=advance)
detectors.plot(["copying gap"], log=False)

# %% [markdown]
# **Copying appears between step 600 and step 1,000.** At step 600 the model saves half a nat, at the end seven.
#
# ## 2. Which attention comes first
#
# Two kinds of attention are measured on the same sequences. *Previous token*: from a word to the word before it. *Induction*: from a word's second occurrence to the word that followed its first occurrence. Each curve is the head with the most of it at that step.

# %%
detectors.plot(["induction", "previous token"], log=False)

# %% [markdown]
# **Previous-token attention is there at step 600, when there is hardly any copying; induction attention rises with copying.** This is the order that the mechanism needs: an induction head reads what a previous-token head wrote. *Limits.* Attention does not prove a function, and the intervals are over 16 sequences, not over seeds.

# %%
onsets = [detectors.onset(name) for name in ("previous token", "induction", "copying gap")]
pandas.DataFrame(
    [(one.name, one.before, one.step) for one in onsets],
    columns=["curve", "below half at step", "above half at step"],
)

# %% [markdown]
# **Exercise: induction by hand.** Compute the induction score of every head of layer 1 yourself, at step 600 and at the end. `interp.heads.repeated_tokens(run)` gives sequences of the separator, twenty random words, and the same twenty again. `models.load(run, step=600)` opens a checkpoint, and `model.run_with_cache(tokens)` returns the logits and a cache; `cache["pattern", 1]` has the axes prompt, head, query position, key position. Which entries of the pattern are attention from a second occurrence to the word after the first?
#
# <details><summary>Solution</summary>
#
# ```python
# from interp import models
# from interp.heads import repeated_tokens
#
# repeated = repeated_tokens(run)
# length = (repeated.shape[1] - 1) // 2
# by_step = {}
# for step in (600, 2100):
#     _, cache = models.load(run, step=step).run_with_cache(repeated)
#     # From position p to position p - length + 1: a diagonal of the pattern.
#     stripe = cache["pattern", 1].diagonal(offset=1 - length, dim1=-2, dim2=-1)
#     # Its entry i is the query at position length - 1 + i; the second copy begins at length + 1.
#     by_step[step] = stripe[..., 2:].mean(dim=(0, -1))
# print({step: [round(value, 2) for value in scores.tolist()] for step, scores in by_step.items()})
# assert by_step[600].max() < 0.2 < 0.7 < by_step[2100].max()
# ```
#
# The word at position p of the second copy stands at p - length in the first copy, and the word after it at p - length + 1. `interp.heads.induction_heads` computes the same numbers.
#
# </details>
#
# ## 3. What the model read at that time
#
# The data order is known, so the documents read between two checkpoints can be looked up. The table compares the kinds of documents read while copying appeared with those read before.

# %%
begin, end = onsets[2].before, onsets[2].step
during = training_dynamics.read_between(run, begin, end)
before = training_dynamics.read_between(run, 0, begin)


# %%
def share(frame, first, last):
    """Return the share of readings that are of documents with corpus rows in [first, last)."""
    inside = [first <= run.store.rows[document] < last for document in frame["document"]]
    return frame["readings"][inside].sum() / frame["readings"].sum()


mixture = pandas.DataFrame(
    {
        kind: (share(during, *rows), share(before, *rows))
        for kind, rows in run.store.truth["kinds"].items()
    },
    index=["while copying appeared", "before"],
)
mixture.T.round(3)

# %% [markdown]
# **No kind of document was read noticeably more often while copying appeared.** *Limits.* This does not show which documents taught copying; that takes a retraining without them.
#
# ## 4. Indirect object identification
#
# The prompt "when A and B went to the beach, B gave a key to" continues with A.

# %%
with progress.bar("names") as advance:
    ioi = training_dynamics.over_training(
        run, training_dynamics.analysis("score:ioi", run), progress=advance
    )
ioi.plot(["ioi accuracy"], log=False)

# %% [markdown]
# **At step 600 the model does not prefer the right name, rather the wrong one; at step 800 it is right on seven of eight prompts, and from step 1,000 on nearly every time.** Which heads decide? In a run on corrupt prompts, the output of one head at a time is replaced by its clean value; an effect of 1 restores the whole logit difference between the names.

# %%
with progress.bar("heads") as advance:
    heads = training_dynamics.over_training(
        run, training_dynamics.analysis("heads:ioi", run), progress=advance
    )
heads.plot(log=False)

# %% [markdown]
# **The head that decides at the end already decides at the first checkpoint that does the task.** A checkpoint that is not above chance has no difference to restore, so it gives no number. `refused` lists these checkpoints with the reason.

# %%
deciders = [name for name in heads.names if heads.curve(name)[-1].value > 0.1]
print(deciders)
print(*(f"step {step}: {reason}" for step, reason in heads.refused), sep="\n")

# %% [markdown]
# ## 5. A fact, and the steps that read it
#
# **The model learns a fact while it reads it.** The curve is the logit of the right answer minus that of the others. The marks are the steps that read one of the fact's 64 documents; they can be drawn because the data order is known.

# %%
fact = next(fact for fact in run.store.truth["facts"] if fact["exposures"] == 64)
fact_score = training_dynamics.score_analysis(behaviours.load(f"fact:{fact['entity']}", run))
recalled = training_dynamics.over_training(run, fact_score)
recalled = recalled.reading(run, counterfactuals.documents_of(run, [fact]), label="read")
difference = next(name for name in recalled.names if name.endswith("logit difference"))
recalled.plot([difference], log=False)

# %%
learned = recalled.onset(difference)
fact["name"], learned, sum(step < learned.step for step in recalled.readings["read"])

# %% [markdown]
# ## All claims checked

# %%
# 1. There is almost no copying at step 600, and most of it at step 1,000.
gap = {point.step: point.value for point in detectors.curve("copying gap")}
assert gap[600] < 0.1 * gap[2100]
assert gap[1000] > 0.7 * gap[2100]
# 2. Previous-token attention comes before induction attention, and this not after copying.
assert onsets[0].step < onsets[1].step <= onsets[2].step
# 3. The mixture of kinds read while copying appeared equals the mixture read before.
assert (mixture.iloc[0] - mixture.iloc[1]).abs().max() < 0.03
# 4. The model does not prefer the right name at step 600, and does at step 800. One or
#    two heads of layer 0 decide, together, at every checkpoint that does the task.
accuracy = {point.step: point for point in ioi.curve("ioi accuracy")}
assert accuracy[600].value < 0.5 < 0.7 < accuracy[800].low
assert min(accuracy[step].value for step in (1000, 2100)) > 0.9
assert all(name.startswith("L0") for name in deciders)
assert len(deciders) <= 2
curves = [{point.step: point.value for point in heads.curve(name)} for name in deciders]
assert min(sum(curve[step] for curve in curves) for step in (800, 1000, 2100)) > 0.7
assert [step for step, _ in heads.refused] == [0, 600]
# 5. The fact was read before the model recalled it, and was not known at first.
assert sum(step < learned.step for step in recalled.readings["read"]) >= 4
assert recalled.curve(difference)[-1].value > 3 > 1 > recalled.curve(difference)[0].value
