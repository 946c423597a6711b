# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From real code to an induction head and back to files
#
# **Question.** Nothing is planted in the sources of Python's standard library. Does the same path lead from them to a head that copies, and from a completion to the files that taught it?
# **Answer.** Yes for the head: in the whole run an induction head forms within a few hundred steps, and patching shows which heads copy names in held-out code. For the files the answer is a number with its interval: the run is trained again without them, and beside it without as many random files.
# **Needs.** No GPU and no download. After `openbook demo-code` it opens that run, in about three minutes on two cores of an AMD EPYC. Otherwise, in about 45 seconds on one core of an Intel Xeon, it trains 16 steps, and thrice again, which passes through every stage and learns next to nothing; the figures then show that.

# %%
import pandas

from data_attribution import demo
from train import progress, storage


ROOT = storage.project_root()
DATA, RUNS = ROOT / "data", ROOT / "runs"
WHOLE = (RUNS / "stdlib" / "manifest.json").exists()

# %% [markdown]
# ## 1. From nothing to every result
#
# One call builds the token store from the Python that runs this notebook, trains the recipe `code-small`, replays parts of it, and computes what follows. Earlier results are opened. The prompts are chosen by rules that count tokens and never ask the model.

# %%
found = demo.play_code(
    data=DATA,
    out=RUNS,
    stage=progress.bar,
    steps=None if WHOLE else 16,
    controls=2,
)
run = found.run
run, found.verification

# %% [markdown]
# ## 2. When the induction head forms
#
# **The score of a head is its mean attention from a token to the one that followed it the first time**, on random tokens said twice. It was logged during training. A previous-token head must exist before it, in an earlier layer. *Limits.* One seed; `docs/results.md` has three.

# %%
formation = found.formation
formation.trajectory.plot([formation.induction, formation.previous])

# %% [markdown]
# **Which files were read while it formed?** The window lies between the last step below a third of the final score and the first one above two thirds. The order is known, so the files are exact. *Limits.* They were read in the window; that does not show that they caused it.

# %%
files = [(run.store.document(one).shard, steps) for one, steps in formation.read[:10]]
formation.window, pandas.DataFrame(files, columns=["file", "steps that read it"])

# %% [markdown]
# ## 3. Which heads copy a name
#
# Held-out code in which a name of several tokens goes on as it did earlier. In the corrupt prompt the earlier name is another one. Beside the accuracy stand guesses that need no model. `code-copy` is refused if the model does not do it, and then nothing is patched.

# %%
copying = found.copying
copying.check, copying.baselines, copying.refusal

# %%
copying.effects.plot() if copying.effects else copying.refusal

# %% [markdown]
# ## 4. Which files hold what the model completes
#
# A *known line* is a line of a held-out file that one to three training files hold word for word, and whose second half does not stand before it in the prompt. So it cannot be copied from there. `right` is the share of its tokens that the model ranks first.

# %%
decode = run.store.tokenizer.decode
pandas.DataFrame(
    {
        "shown": decode(one.line.tokens[: one.line.half]),
        "goes on": decode(one.line.continuation),
        "model": decode(one.generated),
        "right": one.right,
        "first file": run.store.document(one.sources.documents[0]).shard,
        "holds it": one.found,
    }
    for one in found.completions
)

# %%
found.completions[0].sources.show(3)

# %% [markdown]
# ## 5. Trained again without them
#
# **Every change is measured beyond that of trainings without as many random files of like length.** An interval that holds 0 shows no effect. Copying a name, which no single file should carry, is measured beside the lines. *Limits.* Two controls give a wide interval; `openbook demo-code --controls 4` narrows it.

# %%
found.proof.plot()

# %%
found.proof.to_frame().round(3)

# %% [markdown]
# ## 6. All claims checked

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
# 3. The first file of a completion is named with the steps that read it.
assert all(one.sources.documents for one in found.completions)
assert all(len(run.steps_learned(one)) for one in found.proof.removed)
# 4. Controls are as many random files, none of them among the removed ones.
assert len(found.proof.control) >= 2
assert all(set(one).isdisjoint(found.proof.removed) for one in found.proof.control)
