# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From a behaviour to its documents, and back by retraining
#
# **Question.** The model knows six capitals. Which heads and MLPs bring them out, which documents put them in, and would they be gone without those documents?
# **Answer.** Among the texts that come first by words and by gradients are nearly all that state the six facts, and most of those documents state one. Trained again without them, everything else the same to the bit, the model loses most or all of the six and keeps the rest; without as many random documents it keeps them.
# **Needs.** No GPU, no download. About two minutes on two quiet cores, nearly all of it for four trainings of a small run; seconds when it is run again. Every number below is computed here.

# %%
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from data_attribution import attribution, counterfactuals, token_index, tracing
from interp import behaviours, models, patching
from interp.behaviours import Behaviour
from train import numerics, progress, recipes, trainer
from train.data import build_store, open_corpus, open_store


STORE, RUN = Path("../data/facts"), Path("../runs/facts")

# %% [markdown]
# A run small enough to be trained four times: the planted recipe for 500 steps of half a batch, late facts among all others, on those documents of the planted corpus that state facts or speak of what the facts are about. It is its own proof, not that of the planted run: the tour removes documents of nine facts from that one.

# %%
planted = open_corpus("planted")
kinds = planted.truth()["kinds"]
kept = {row for kind in ("fact", "mention", "distractor") for row in range(*kinds[kind])}
part = replace(
    planted,
    name="planted-facts",
    read=lambda: (document for document in planted.read() if document.row in kept),
    n_documents=len(kept),
)
if not (STORE / "store.json").exists():
    build_store(part, out=STORE)
store = open_store(STORE)

# %%
recipe = replace(
    recipes.PLANTED,
    name="facts",
    batch_size=16,
    steps=500,
    lr=2e-3,
    min_lr=2e-4,
    warmup_steps=30,
    late_batch=0,
)
with progress.bar("training") as advance:
    if (RUN / "manifest.json").exists():
        run = trainer.resume(RUN, store=STORE, progress=advance)
    else:
        one = numerics.choose(threads=1)
        run = trainer.train(recipe, store, out=RUN, numerics=one, progress=advance)
run

# %%
index = token_index.open(store) if (STORE / "index").exists() else token_index.build(store)
model = models.load(run)
capitals = [fact for fact in run.store.truth["facts"] if fact["relation"] == "capital"]
facts = [fact for fact in capitals if fact["exposures"] == 16][:6]
[fact["name"] for fact in facts]

# %% [markdown]
# Six facts of the planted corpus, each stated by sixteen documents. The corpus is made up, so it is known which documents these are; nothing below looks at that before the documents have been found.
#
# The behaviour: each capital against the capitals of other countries, six prompts beside many foils.

# %%
asked = [behaviours.load(f"fact:{fact['entity']}", run) for fact in facts]
rows = [(one.clean, one.corrupt, one.answer, one.foil) for one in asked]
parts = [torch.cat(part) for part in zip(*rows, strict=True)]
six = Behaviour("six capitals", *parts, candidates=asked[0].candidates)
print(run.store.tokenizer.decode(six.clean[0].tolist()))
check = behaviours.check(model, six)
check

# %% [markdown]
# ## 1. Which components bring them out?
#
# **Few places do.** The effect of a place is the share of the difference between two prompts that it carries over when it is exchanged.

# %%
heads, mlps = patching.heads(model, six), patching.mlps(model, six)
heads.plot()

# %%
within = [*heads.top(2), *mlps.top(1)]
within

# %% [markdown]
# ## 2. Which documents put them in?
#
# **Words and gradients together name the statements: the six facts were stated in thirty-six texts.** How many of the thirty-six stand in the first 66 rows is counted below; 24 are shown. A row is a text with all its copies; `ranks` are its places by words alone and by gradients alone. The gradient is that of the behaviour's own logit difference, at the last checkpoint.

# %%
sources = attribution.documents(run, six, limit=66)
sources.show(24)[["score", "grade", "ranks", "text", "duplicates"]]

# %% [markdown]
# Held against the truth table: how many of the documents in these rows state one of the six, and how many of those that state one stand in these rows.

# %%
truth = {row for fact in facts for row in fact["documents"]}
named = [document for group in sources.groups for document in group]
states = [int(run.store.rows[document]) in truth for document in named]
read = [k for k in range(run.store.n_documents) if int(run.store.rows[k]) in truth]
read = [k for k in read if len(run.steps_reading(k))]
precision, found = sum(states) / len(named), len({*named} & {*read}) / len(read)
precision, found

# %% [markdown]
# Gradients through the components of section 1 alone ask another question: which documents wrote *this part* of the model. `benchmarks/localised.py` asks whether that foretells the part's own score better.

# %%
local = attribution.documents(run, six, methods=[attribution.Gradient(within=within)], limit=5)
local.show(5)[["score", "grade", "text", "duplicates"]]

# %% [markdown]
# ## 3. When were they read?
#
# **Once an epoch each, at steps that are known.** Nothing of this is stored: the order of training is a function that runs backwards. The dashed line is what an even spread would give.

# %%
sentence = run.store.text(sources.items[0].document)
exposure = tracing.exposure_of_text(run, sentence)
exposure.plot()

# %% [markdown]
# ## 4. A text that the model wrote
#
# **Span by span, with how often each was read.** The longest stretches that stand in the corpus; of a longer text only the least probable would be kept.

# %%
prompt = torch.tensor([[run.store.eot, *run.store.tokenizer.encode(sentence)[:3].tolist()]])
written = run.load().generate(prompt, 16, temperature=0)[0, 1:].tolist()
written = run.store.tokenizer.decode(written).split("<eot>")[0]
print(written)
traced = tracing.trace_text(run, written)
traced.to_frame()

# %% [markdown]
# ## 5. And back: are they the cause?
#
# **Without these documents most or all of the six capitals are gone.** The run is trained again without the rows and their copies, and twice without as many random documents of the same lengths, first read at the same steps. Order, positions, shapes and divisors stay as they were. The facts of the two other relations, who built a place and what it lives by, are asked as well.

# %%
unrelated = [behaviours.load(name, run, n_prompts=64) for name in ("maker", "trade")]
proof = counterfactuals.without(run, sources, six, unrelated=unrelated, seeds=2)
proof.plot()

# %%
effects = pd.DataFrame(proof.to_dict()["effects"])
effects[["question", "unit", "effect", "low", "high", "n", "within noise"]]

# %% [markdown]
# An effect is what the documents did beyond what random ones did. The rows that were removed now carry it, and the highest grade: it is the effect of all of them together.

# %%
proved = counterfactuals.marked_sources(sources, proof)
proved.show(3)[["score", "grade", "text"]]

# %% [markdown]
# **Limits.** One run, one order; the facts are short sentences without context, and their wording shares words with the question (`notebooks/08_methods_compared` has those that do not). Two controls; `--prove K --controls 5` at the command line takes more. On the shell, of the planted run that `make demo` trains:
#
#     openbook trace documents runs/planted capital --prove 12 --page documents.html
#
# ## 6. The claims again

# %%
assert check.accuracy == 1
# What comes first states the facts, and what states them is there.
assert precision > 0.6
assert found > 0.9
# Read about once an epoch, wherever it stands.
assert abs(exposure.readings - len(exposure.positions) * run.recipe.steps / exposure.epoch) < 6
assert traced.covered > 0.5
# Gone without its documents, beyond what random ones do; the others stay.
effect = proof.effect("six capitals")
assert effect.mean < -1
assert effect.high < 0
full, without = proof.before[0], proof.after[0]
assert full.recall.mean() == 1
assert without.recall.mean() < 0.5
assert all(one[0].recall.mean() > 0.8 for one in proof.controls)
others = list(zip(proof.before[1:], proof.after[1:], strict=True))
assert all(after.recall.mean() > before.recall.mean() - 0.1 for before, after in others)
assert {one.grade for one in proved} == {"counterfactual"}
