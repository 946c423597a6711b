# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From real code to heads and back to files
#
# **Question.** Nothing is planted in the sources of Python's standard library. Does the path of the planted corpus lead there, too: from a line that the model completes to the heads that do it, to the files that hold the line, and to a proof?
#
# **Answer.** Yes up to the files: on held-out lines that training files hold word for word, patching shows which parts carry the answer, and the first files by shared words hold the lines. Whether they taught them is a number with its interval: the run is trained again without them, and beside it without as many random files. Another behaviour, copying a name, has an induction head, which forms within a few hundred steps.
#
# **Needs.** No GPU and no download. After `openbook demo-code` it opens that run, in about three minutes on two cores of an AMD EPYC. Otherwise, in about 45 seconds on one core of an Intel Xeon, it trains 16 steps, and thrice again, which passes through every stage and learns next to nothing; the figures then show that. **Saved without outputs**: they would quote Python's sources, which others wrote.

# %%
import pandas

from data_attribution import demo
from train import numerics, progress, storage


ROOT = storage.project_root()
WHOLE = (ROOT / "runs/stdlib/manifest.json").exists()

# %% [markdown]
# ## 1. From nothing to every result
#
# One call builds the token store from the Python that runs this notebook, trains the recipe `code-small`, replays parts of it, and computes what follows. Earlier results are opened. The prompts are chosen by rules that count tokens and never ask the model.

# %%
found = demo.play_code(
    data=ROOT / "data",
    out=ROOT / "runs",
    stage=progress.bar,
    steps=None if WHOLE else 16,
    controls=2,
    how=None if WHOLE else numerics.choose(threads=1),
)

# %% [markdown]
# Look at `knowledge` and `steps` of the run:

# %%
run = found.run
run

# %% [markdown]
# Is it what it says? `level` says whether the replayed steps gave the same numbers again.

# %%
found.verification

# %% [markdown]
# ## 2. One behaviour: completing a known line
#
# A *known line* is a line of a held-out file that one to three training files hold word for word, and whose second half does not stand in the prompt, so that it cannot be copied from there. The answer is the first token of the second half. In the corrupt prompt the first half is that of another known line, equally long, and the foil is how that one goes on. Compare the accuracy of the model with the guesses below it, which need no model.

# %%
completing = found.completing
completing.check

# %%
completing.baselines

# %% [markdown]
# How does it go on? For the first line of each group, compare `goes on` with `model`: `right` is the share of the second half's tokens that the model ranks first.

# %%
decode = run.store.tokenizer.decode
pandas.DataFrame(
    {
        "lines": len(one.lines),
        "shown": decode(one.line.tokens[: one.line.half]),
        "goes on": decode(one.line.continuation),
        "model": decode(one.generated),
        "right": one.right,
    }
    for one in found.completions
)

# %% [markdown]
# ## 3. Which heads carry it?
#
# One head at a time is patched; 1 restores the whole difference between clean and corrupt. Look for the darkest square. If the model does not tell the prompts apart, nothing is patched, and the cell says why.

# %%
completing.effects.plot() if completing.effects else completing.refusal

# %% [markdown]
# ## 4. Which files hold the lines?
#
# Files are ranked by the words of the lines, and the first ones, as many as hold the lines, are removed in the next part. Look at `lines it holds`, and at the steps that read each file.

# %%
pandas.DataFrame(
    {
        "file": run.store.document(one.document).shard,
        "score": one.score,
        "lines it holds": sum(one.document in line.holders for line in found.lines),
        "first read at step": one.steps[0],
        "steps that read it": len(one.steps),
    }
    for one in found.removed
)

# %% [markdown]
# The first three with the words that they share with the lines:

# %%
found.sources.show(3)

# %% [markdown]
# ## 5. Is it lost without them?
#
# The run is trained again without these files, and twice without as many random files of like length. In a group, the first bar is the change without these files, and the other two are the changes without random ones.

# %%
found.proof.plot()

# %% [markdown]
# The table has every change beyond that of the random files. An interval that holds 0 shows no effect. Copying a name, which no single file should carry, is measured beside the lines.

# %%
pandas.DataFrame(one.row() for one in found.proof.changes).round(3)

# %% [markdown]
# *Limits.* Two controls give a wide interval; `openbook demo-code --controls 4` narrows it.
#
# ## 6. Another behaviour: copying a name
#
# In held-out code a name of several tokens goes on as it did earlier; in the corrupt prompt the earlier name is another one. Again, compare the model with guesses that need none.

# %%
copying = found.copying
copying.check

# %%
copying.baselines

# %% [markdown]
# Which heads carry it? Look for the darkest square, or for the reason why nothing was patched.

# %%
copying.effects.plot() if copying.effects else copying.refusal

# %% [markdown]
# ## 7. When does the induction head form?
#
# The score of a head is its mean attention from a token to the one that followed it the first time, on random tokens said twice. It was logged during training. The figure shows two heads over training steps: look which of the two curves rises first.

# %%
formation = found.formation
formation.trajectory.plot([formation.induction, formation.previous])

# %% [markdown]
# An induction head reads what a previous-token head wrote, so it needs one in an earlier layer. In a run of 16 steps both stay near 0. *Limits.* One seed; `docs/results.md` has three.
#
# **Which files were read while it formed?** The window goes from the last step below a third of the final score to the first one above two thirds. The order of the data is known, so the files are exact.

# %%
print("steps of the window:", formation.window)
files = [(run.store.document(one).shard, steps) for one, steps in formation.read[:10]]
pandas.DataFrame(files, columns=["file", "steps that read it"])

# %% [markdown]
# They were read in the window; that does not show that they caused the head.
#
# ## 8. All claims checked

# %%
# 1. The run is replayed, and its store is of this Python.
assert found.failures == ()
# 2. The whole run has an induction head, with a previous-token head in an earlier layer; before
#    training there is none.
curve = formation.trajectory.curve(formation.induction)
assert curve[0].value < 0.1
if WHOLE:
    assert formation.window
    assert curve[-1].value > 0.4
    assert formation.previous.split()[-1] < formation.induction.split()[-1]
# 3. Behaviour, files and proof are of the same lines, and each removed file was read.
assert completing.behaviour.n_prompts == len(found.lines)
assert completing.check.n == found.proof.effect("known-lines").n <= len(found.lines)
assert {*found.holders} & {*found.proof.removed}
assert all(len(run.steps_learned(one)) for one in found.proof.removed)
# 4. Controls are as many random files, none of them among the removed ones.
assert len(found.proof.control) >= 2
assert all(set(one).isdisjoint(found.proof.removed) for one in found.proof.control)
