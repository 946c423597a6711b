# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # How does a circuit form over training?
#
# **Question.** When does a model begin to copy and to tell two names apart, abruptly or gradually, and which heads do it then?
# **Answer.** Each ability appears within two or three hundred of 2,100 steps. Copying depends on attention to the previous token, which is diffuse at first and sharpens later. The one or two heads that decide between the names at the end already decide, together, at the first checkpoint that tells them apart well.
# **Needs.** No GPU and no download. Half a minute after `make demo`, and seconds the second time. Without `make demo`, the notebook first trains the run (two minutes on two quiet cores). Every number below is computed here.

# %%
from data_attribution import counterfactuals, demo
from interp import behaviours, training_dynamics
from train import progress, storage


root = storage.project_root()
run = demo.trained(root / "data/planted", root / "runs/planted", progress.bar)
len(run.steps), run.steps[:12]

# %% [markdown]
# ## 1. When copying appears
#
# The test sequences are random words, repeated once. **For 400 steps the loss on the second copy is almost the same as on the first; within a few hundred steps more, the gap grows to most of its final size.** Any analysis can be computed at every checkpoint. Results are stored by the digest of the weights, so a second call computes nothing.

# %%
with progress.bar("detectors") as advance:
    detectors = training_dynamics.over_training(
        run, training_dynamics.analysis("detectors", run, n_prompts=16), progress=advance
    )
detectors.plot(["copying gap"], log=False)

# %% [markdown]
# **The attention of induction heads rises together with copying; the previous-token attention that it depends on is diffuse at first.** The figure shows the highest head at each step: attention from a word's second occurrence to the word that followed its first occurrence (induction), and attention to the previous word (previous token). *Limits.* Attention does not prove a function, and the intervals are over 16 sequences, not over seeds.

# %%
detectors.plot(["induction", "previous token"], log=False)

# %%
onsets = [detectors.onset(name) for name in ("copying gap", "induction", "previous token")]
sharp_onset = detectors.onset("previous token", share=0.9)
onsets, sharp_onset

# %% [markdown]
# ## 2. What the model read at that time
#
# **The steps in which copying appeared read the same mixture of documents as all steps before them.** The data order is known, so the documents read between two checkpoints can be looked up. *Limits.* This shows that no kind of document was read more often at that time. It does not show which documents taught copying; that takes a retraining without them (notebook 00, section 6).

# %%
kinds = [(kind, *run.store.truth["kinds"][kind]) for kind in run.store.truth["kinds"]]
begin, end = onsets[0].before, onsets[0].step
readings_during, readings_before = (
    training_dynamics.read_between(run, begin, end),
    training_dynamics.read_between(run, 0, begin),
)


def share(frame, first, last):
    """Return the share of readings that are of documents with corpus rows in [first, last)."""
    inside = [first <= run.store.rows[document] < last for document in frame["document"]]
    return frame["readings"][inside].sum() / frame["readings"].sum()


mixture = {
    kind: (share(readings_during, *rows), share(readings_before, *rows)) for kind, *rows in kinds
}
{kind: tuple(round(float(value), 3) for value in shares) for kind, shares in mixture.items()}

# %% [markdown]
# ## 3. Indirect object identification
#
# The prompt "when A and B went to the beach, B gave a key to" continues with A. **For 400 steps the model prefers neither name; once it can copy, it is soon right nearly every time.**

# %%
with progress.bar("names") as advance:
    ioi = training_dynamics.over_training(
        run, training_dynamics.analysis("score:ioi", run), progress=advance
    )
ioi.plot(["ioi accuracy"], log=False)

# %% [markdown]
# **The heads that decide at the end already decide, together, at the first checkpoint that does the task well.** How they share the work may still change. In a run on corrupt prompts, the output of one head at a time is replaced by its clean value; an effect of 1 restores the whole logit difference between the names. A checkpoint that is not above chance has no difference to restore, so it gives no number; `refused` lists it with the reason.

# %%
with progress.bar("heads") as advance:
    heads = training_dynamics.over_training(
        run, training_dynamics.analysis("heads:ioi", run), progress=advance
    )
heads.plot(log=False)

# %%
deciders = [name for name in heads.names if heads.curve(name)[-1].value > 0.1]
deciders, heads.curve(deciders[0])[0], len(heads.refused), heads.refused[0]

# %% [markdown]
# ## 4. A fact, and the steps that read it
#
# **The model learns a fact while it reads it.** The marks are the steps that read one of the fact's 64 documents; they can be drawn because the data order is known.

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
# 1. There is almost no copying at 400 steps, and most of it soon after its onset. Induction
#    attention rises with it; previous-token attention becomes sharp only later.
gap = {point.step: point.value for point in detectors.curve("copying gap")}
final_gap = gap[run.recipe.steps]
assert max(gap[step] for step in run.steps if step <= 400) < 0.1 * final_gap
assert gap[onsets[0].step + 300] > 0.75 * final_gap
assert abs(onsets[1].step - onsets[0].step) <= 200
assert sharp_onset.before >= onsets[0].before
# 2. The mixture of kinds read during the onset equals the mixture read before.
assert max(abs(during - before) for during, before in mixture.values()) < 0.03
# 3. The model prefers neither name at 400 steps and is nearly always right at the end. The same
#    one or two heads of layer 0 decide at the first checkpoint that does the task well and at the
#    last.
accuracy = {point.step: point for point in ioi.curve("ioi accuracy")}
assert accuracy[400].low < 0.5 < 0.9 < accuracy[run.recipe.steps].value
able = [point.step for point in heads.curve(deciders[0]) if accuracy[point.step].low > 0.75]
curves = [{point.step: point.value for point in heads.curve(name)} for name in deciders]
assert all(name.startswith("L0") for name in deciders)
assert len(deciders) <= 2
assert min(sum(curve[step] for curve in curves) for step in (able[0], able[-1])) > 0.7
assert len(heads.refused) >= 5
# 4. The fact was read before the model recalled it, and was not known at first.
assert sum(step < learned.step for step in recalled.readings["read"]) >= 4
assert recalled.curve(difference)[-1].value > 3 > 1 > recalled.curve(difference)[0].value
# A second call returns the stored results.
again = training_dynamics.over_training(run, training_dynamics.analysis("score:ioi", run))
assert again == ioi
