# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # How does a circuit form over training?
#
# **Question.** When does a model begin to copy and to tell two names apart, all at once or little by little, and which heads do it then?
# **Answer.** Each within two or three hundred of 1,900 steps. Copying stands on attention to the token before that is blurred at first and sharpens later; the head that ends up deciding between the names decides from the first checkpoint that tells them apart well.
# **Needs.** No GPU, no download. Half a minute after `make demo`, seconds the second time; alone, it trains the run first (two minutes on two quiet cores). Every number below is computed here.

# %%
from pathlib import Path

from data_attribution import counterfactuals, demo
from interp import behaviours, training_dynamics
from train import progress


run = demo.trained(Path("../data/planted"), Path("../runs/planted"), progress.bar)
len(run.steps), run.steps[:12]

# %% [markdown]
# ## 1. Copying appears between two checkpoints
#
# Random words, said twice. **The gap between the loss on the first and on the second copy is next to nothing for 400 steps, and goes from there to most of what it will ever be within a few hundred.** Any analysis can be asked of every checkpoint; what was computed is kept by the digest of the weights, so a second call computes nothing.

# %%
with progress.bar("detectors") as advance:
    detectors = training_dynamics.over_training(
        run, training_dynamics.analysis("detectors", run, n_prompts=16), progress=advance
    )
detectors.plot(["copying gap"], log=False)

# %% [markdown]
# **The attention that does it rises with it; the attention it stands on is blurred at first.** The highest head at each step: from a word's second occurrence to what followed its first (induction), and to the word before (previous token). *Limits.* Attention is no proof of function, and the intervals are over 16 sequences, not over seeds.

# %%
detectors.plot(["induction", "previous token"], log=False)

# %%
onsets = [detectors.onset(name) for name in ("copying gap", "induction", "previous token")]
sharp = detectors.onset("previous token", share=0.9)
onsets, sharp

# %% [markdown]
# ## 2. No special document did it
#
# **The steps in which copying appeared read the same mixture as all the steps before them.** The order is known, so what was read between two checkpoints is a look-up. *Limits.* This says that no kind of document was read more often just then; it does not say which documents taught it (that takes a retraining without them: the tour, part 6).

# %%
rows = [(kind, *run.store.truth["kinds"][kind]) for kind in run.store.truth["kinds"]]
begin, end = onsets[0].before, onsets[0].step
change, before = (
    training_dynamics.read_between(run, begin, end),
    training_dynamics.read_between(run, 0, begin),
)


def share(frame, first, last):
    """Of the readings, those of documents whose rows lie in [first, last)."""
    inside = [first <= run.store.rows[one] < last for one in frame["document"]]
    return frame["readings"][inside].sum() / frame["readings"].sum()


mixture = {kind: (share(change, *at), share(before, *at)) for kind, *at in rows}
{kind: tuple(round(float(one), 3) for one in both) for kind, both in mixture.items()}

# %% [markdown]
# ## 3. The names, by one head from the start
#
# "when A and B went to the beach, B gave a key to" ... A. **For 400 steps the model prefers neither name; when it can copy, it is soon right nearly every time.**

# %%
with progress.bar("names") as advance:
    ioi = training_dynamics.over_training(
        run, training_dynamics.analysis("score:ioi", run), progress=advance
    )
ioi.plot(["ioi accuracy"], log=False)

# %% [markdown]
# **The head that decides at the end decides at the first checkpoint that does it well.** In a run on corrupt prompts each head is given its clean output: 1 restores the whole difference between the names. A checkpoint that is not above chance has no difference to restore: it gives no number, and says why.

# %%
with progress.bar("heads") as advance:
    heads = training_dynamics.over_training(
        run, training_dynamics.analysis("heads:ioi", run), progress=advance
    )
heads.plot(log=False)

# %%
last = max(heads.names, key=lambda name: heads.curve(name)[-1].value)
last, heads.curve(last)[0], len(heads.refused), heads.refused[0]

# %% [markdown]
# ## 4. A fact, and the steps at which it was read
#
# **A fact is learned while it is being read: the marks are the steps that read one of its 64 documents.** Only a run that knows its order can draw them.

# %%
fact = next(one for one in run.store.truth["facts"] if one["exposures"] == 64)
asked = training_dynamics.score_analysis(behaviours.load(f"fact:{fact['entity']}", run))
recalled = training_dynamics.over_training(run, asked)
recalled = recalled.reading(run, counterfactuals.documents_of(run, [fact]), label="read")
difference = next(name for name in recalled.names if name.endswith("logit difference"))
recalled.plot([difference], log=False)

# %%
learned = recalled.onset(difference)
fact["name"], learned, sum(step < learned.step for step in recalled.readings["read"])

# %% [markdown]
# ## The claims again

# %%
# 1. Copying is nothing at 400 steps and most of itself soon after it began; its attention rises with
#    it, on a previous token that is looked at sharply only later.
gap = {one.step: one.value for one in detectors.curve("copying gap")}
whole = gap[run.recipe.steps]
assert max(gap[step] for step in run.steps if step <= 400) < 0.1 * whole
assert gap[onsets[0].step + 300] > 0.75 * whole
assert abs(onsets[1].step - onsets[0].step) <= 200
assert sharp.before >= onsets[0].before
# 2. What was read meanwhile is what was read before, kind by kind.
assert max(abs(now - then) for now, then in mixture.values()) < 0.03
# 3. Neither name at 400 steps, nearly always right at the end; one head of layer 0 from the beginning.
right = {one.step: one for one in ioi.curve("ioi accuracy")}
assert right[400].low < 0.5 < 0.9 < right[run.recipe.steps].value
able = [one for one in heads.curve(last) if right[one.step].low > 0.75]
assert last.startswith("L0")
assert min(able[0].low, able[-1].low) > 0.5
assert len(heads.refused) >= 5
# 4. The fact had been read before it was known, and was not known at first.
assert sum(step < learned.step for step in recalled.readings["read"]) >= 4
assert recalled.curve(difference)[-1].value > 3 > 1 > recalled.curve(difference)[0].value
# Nothing is computed twice.
again = training_dynamics.over_training(run, training_dynamics.analysis("score:ioi", run))
assert again == ioi
