# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # When do induction and IOI form in four architectures, and what does tuning change?
#
# **Question.** Four small architectures read the same planted corpus, with three seeds each. When does each begin to copy and to tell two names apart, which heads do it, and do these heads survive instruction tuning (SFT) and preference tuning (DPO)?
# **Answer.** TO FILL
# **Needs.** No GPU and no download. Two minutes. Sections 1 and 2 show the stored numbers of the study (`python benchmarks/circuit_formation.py` measures them anew in about an hour and a half of two cores). Section 3 is computed here, on the trained run that comes with openbook.

# %%
import json
import tempfile
from pathlib import Path

import pandas

from interp import behaviours, patching, plots, training_dynamics
from train import progress, released, trainer
from train.data import tuning


study = json.loads(Path("../docs/circuit-formation.json").read_text(encoding="utf-8"))
runs = pandas.DataFrame(study["runs"])
runs[["name", "seed", "run_id", "loss"]]

# %% [markdown]
# ## 1. Copying
#
# The *copying gap* is the loss that a model saves on the second copy of random words, in nats a token. The figure shows every run at every hundredth step. *Limits.* The checkpoints are a hundred steps apart, so an onset is known as an interval of a hundred steps.

# %%
curves = runs.explode(["steps", "gap", "ioi"]).query("steps % 100 == 0")
curves["run"] = curves["name"] + ", seed " + curves["seed"].astype(str)
gaps = {name: part["gap"].tolist() for name, part in curves.groupby("run", sort=False)}
hundreds = sorted(curves["steps"].unique())
plots.lines(hundreds, gaps, title="Copying", unit="copying gap, nats", across="training step")

# %%
last_gap = runs["gap"].str[-1]
reached = curves[curves["gap"] < curves.index.map(last_gap) / 2]
copying = reached.groupby(["name", "seed"], sort=False)["steps"].max() + 100
copying.unstack()

# %% [markdown]
# **TO FILL (heads).** A head has *induction attention* if it attends, from a word, to the word that followed the word's first occurrence. The table names the head with the most of it at the end of training.

# %%
leaders = [
    max((values[-1], head) for head, values in attention.items()) for attention in runs["attention"]
]
runs.assign(
    head=[head for _, head in leaders], attention=[value for value, _ in leaders], gap=last_gap
)[["name", "seed", "head", "attention", "gap"]]

# %% [markdown]
# ## 2. Indirect object identification
#
# TO FILL. The accuracy is that of 300 prompts whose pairs of names were held out; .5 is chance.

# %%
ioi = {name: part["ioi"].tolist() for name, part in curves.groupby("run", sort=False)}
plots.lines(hundreds, ioi, title="IOI", unit="accuracy", across="training step")

# %% [markdown]
# The output of one head at a time is replaced, in a run on corrupt prompts, by its clean value; an effect of 1 restores the whole logit difference. The table lists the heads with an effect above .1 at the end, for the runs that do IOI at all.

# %%
deciding = [
    {head: round(value, 2) for head, value in effects.get("2100", {}).items() if value > 0.1}
    for effects in runs["effects"]
]
runs.assign(accuracy=runs["ioi"].str[-1], heads=deciding)[["name", "seed", "accuracy", "heads"]]

# %% [markdown]
# ## 3. What SFT and DPO change, computed here
#
# The trained run that comes with openbook is tuned on the planted instructions and then on the planted preferences. Each result is a run of its own, with its own order and ledger.

# %%
base, folder = released.open("planted"), Path(tempfile.mkdtemp())
how = {"batch_size": 16, "checkpoint_every": 30, "optimizer_every": 30}


def tuned(run, kind, objective, **settings):
    examples, out = tuning.open_tuning_set("planted", kind), folder / kind
    words, context = run.known_tokenizer(), run.config.n_ctx
    store = tuning.build_tuning_store(examples, out=out, tokenizer=words, context=context)
    with progress.bar(objective) as advance:
        return trainer.tune(
            run, store, objective, out=folder / objective, progress=advance, **settings, **how
        )


sft = tuned(base, "instructions", "sft", steps=90, lr=3e-4)
dpo = tuned(sft, "preferences", "dpo", steps=60, lr=2e-4, dpo_beta=0.2)
stages = {"pretraining": base, "SFT": sft, "DPO": dpo}
[(name, run.id, trainer.verify(run).level) for name, run in list(stages.items())[1:]]

# %% [markdown]
# **TO FILL.**

# %%
names, copies = (
    behaviours.load("ioi", base, n_prompts=300),
    training_dynamics.analysis("detectors", base),
)
rows, effects = [], {}
for stage, run in stages.items():
    model, step = run.load(), run.steps[-1]
    scores, found = copies.measure(model, step), behaviours.measure(model, names)
    effects[stage] = patching.heads(model, behaviours.load("ioi", base))
    rows.append(
        (stage, scores["copying gap"].value, scores["induction"].value, found.accuracy, found.score)
    )
changed = pandas.DataFrame(
    rows, columns=["stage", "copying gap", "induction head", "IOI accuracy", "IOI difference"]
)
changed.round(2)
