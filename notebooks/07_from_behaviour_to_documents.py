# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From a behaviour to its documents, and back by retraining
#
# **Question.** The model knows six capitals. Which heads and MLPs produce them, which documents taught them, and would the model lose them without those documents?
#
# **Answer.** The texts ranked first by words and gradients together include nearly all texts that state the six facts, and most of the ranked documents state one of them. Retrained without these documents, with everything else the same to the bit, the model loses most or all of the six facts and keeps the others. Retrained without as many random documents, it keeps all of them.
#
# **Needs.** No GPU and no download. About 40 seconds on one core of an Intel Xeon. Most of it goes into four trainings of a small run; run again, it opens them. Every number below is computed here.

# %%
from dataclasses import replace

import pandas as pd
import torch

from data_attribution import attribution, counterfactuals, token_index, tracing
from interp import behaviours, models, patching
from interp.behaviours import Behaviour
from train import numerics, progress, recipes, storage, trainer
from train.data import build_store, open_corpus, open_store


ROOT = storage.project_root()
STORE, RUN = ROOT / "data/facts", ROOT / "runs/facts"

# %% [markdown]
# ## The run
#
# The run must be small enough to be trained four times. Its corpus is the part of the planted corpus that states facts, mentions their entities, or contains *distractors*: sentences that name the words of a fact and do not state it.

# %%
planted = open_corpus("planted")
kinds = planted.truth()["kinds"]
kept_rows = {row for kind in ("fact", "mention", "distractor") for row in range(*kinds[kind])}
fact_corpus = replace(
    planted,
    name="planted-facts",
    read=lambda: (document for document in planted.read() if document.row in kept_rows),
    n_documents=len(kept_rows),
)
if not (STORE / "store.json").exists():
    build_store(fact_corpus, out=STORE)
store = open_store(STORE)
store.n_documents, store.text(0)

# %% [markdown]
# The recipe is the planted one with 250 steps instead of 2,100, half the batch and a higher learning rate.

# %%
recipe = replace(
    recipes.PLANTED,
    name="facts",
    batch_size=16,
    steps=250,
    lr=4e-3,
    min_lr=4e-4,
    warmup_steps=20,
    late_batch=0,
)
with progress.bar("training") as advance:
    if (RUN / "manifest.json").exists():
        run = trainer.resume(RUN, store=STORE, progress=advance)
    else:
        one_thread = numerics.choose(threads=1)
        run = trainer.train(recipe, store, out=RUN, numerics=one_thread, progress=advance)
model = models.load(run)
run

# %% [markdown]
# ## The behaviour
#
# Six capitals, each stated by sixteen documents. The corpus is made up, so it is known which documents these are; that knowledge is used only after the documents have been ranked.

# %%
capitals = [fact for fact in run.store.truth["facts"] if fact["relation"] == "capital"]
facts = [fact for fact in capitals if fact["exposures"] == 16][:6]
[fact["name"] for fact in facts]

# %% [markdown]
# Each capital is scored against the capitals of other countries: six prompts with many foils each.

# %%
fact_behaviours = [behaviours.load(f"fact:{fact['entity']}", run) for fact in facts]
rows = [(fact.clean, fact.corrupt, fact.answer, fact.foil) for fact in fact_behaviours]
columns = [torch.cat(column) for column in zip(*rows, strict=True)]
six = Behaviour("six capitals", *columns, candidates=fact_behaviours[0].candidates)
print(run.store.tokenizer.decode(six.clean[0].tolist()))
check = behaviours.check(model, six)
check

# %% [markdown]
# ## 1. Which components produce the capitals?
#
# **Few components do.** The effect of a component is the share of the difference between two prompts that moves when its activation is exchanged.

# %%
heads, mlps = patching.heads(model, six), patching.mlps(model, six)
heads.plot()

# %%
components = [*heads.top(2), *mlps.top(1)]
components

# %% [markdown]
# ## 2. Which documents taught the capitals?
#
# **Words and gradients together rank the statements first.** A *source* is a text with all its copies. `ranks` gives its rank by words alone and by gradients alone. The gradient is that of the behaviour's own logit difference at the last checkpoint.

# %%
if not (STORE / "index").exists():
    token_index.build(store)
sources = attribution.documents(run, six, limit=80)
sources.show(12)[["score", "grade", "ranks", "text", "duplicates"]]

# %% [markdown]
# Now the truth table is opened. *Precision* is the share of the ranked documents that state one of the six facts.

# %%
truth = {row for fact in facts for row in fact["documents"]}
ranked = [document for group in sources.groups for document in group]
states_fact = [int(run.store.rows[document]) in truth for document in ranked]
precision = sum(states_fact) / len(ranked)
precision

# %% [markdown]
# *Recall* is the share of the stating documents that are ranked. Documents that training never reached are not counted.

# %%
stating = [k for k in range(run.store.n_documents) if int(run.store.rows[k]) in truth]
stating = [k for k in stating if len(run.steps_reading(k))]
recall = len({*ranked} & {*stating}) / len(stating)
recall

# %% [markdown]
# Gradients through the components of section 1 alone answer another question: which documents taught *these components*. `benchmarks/localised.py` tests whether such gradients predict the score of a component better.

# %%
local_sources = attribution.documents(
    run, six, methods=[attribution.Gradient(within=components)], limit=5
)
local_sources.show(5)[["score", "grade", "text", "duplicates"]]

# %% [markdown]
# ## 3. When were they read?
#
# **Each occurrence of the sentence is read once per epoch, at known steps.** None of this is stored: the data order is a function that can be inverted. The second line shows an even spread.

# %%
sentence = run.store.text(sources.items[0].document)
exposure = tracing.exposure_of_text(run, sentence)
exposure.plot()

# %% [markdown]
# ## 4. Tracing a generated text
#
# **The generated text is split into spans, each with the number of times it was read.** Spans are the longest passages that occur in the corpus; for a longer text only the least probable spans would be kept.

# %%
prompt = torch.tensor([[run.store.eot, *run.store.tokenizer.encode(sentence)[:3].tolist()]])
generated = run.load().generate(prompt, 16, temperature=0)[0, 1:].tolist()
generated = run.store.tokenizer.decode(generated).split("<eot>")[0]
print(generated)
traced_text = tracing.trace_text(run, generated)
traced_text.to_frame()

# %% [markdown]
# ## 5. Are these documents the cause?
#
# **Without these documents most or all of the six capitals are lost.** The figure shows the log-probability of the answers; the last cell asserts that fewer than half of the six are still given. The run is retrained without the sources and their copies, and twice without as many random documents of the same lengths that are first read at the same steps. Data order, positions, shapes and divisors stay the same.
#
# Facts of the two other relations (who built a place, and what it trades in) are measured as well: they should stay.

# %%
unrelated = [behaviours.load(name, run, n_prompts=64) for name in ("maker", "trade")]
proof = counterfactuals.without(run, sources, six, unrelated=unrelated, seeds=2)
proof.plot()

# %%
effects = pd.DataFrame(proof.to_dict()["effects"])
effects[["question", "unit", "effect", "low", "high", "n", "within noise"]]

# %% [markdown]
# An *effect* is the change caused by removing these documents minus the change caused by removing random ones. The removed sources now carry the effect and the highest grade. It is the effect of removing all of them together, not of each one.

# %%
marked_sources = counterfactuals.marked_sources(sources, proof)
marked_sources.show(3)[["score", "grade", "text"]]

# %% [markdown]
# **Limits.** One run and one data order. The facts are short sentences without context, and their wording shares words with the query (notebook 08 has facts whose wording does not). There are two controls; on the command line, `--prove K --controls 5` uses more. The same for the planted run of `make demo`, from the repository root:
#
#     openbook trace documents runs/planted capital --prove 12 --page documents.html
#
# ## 6. All claims checked

# %%
assert check.accuracy == 1
# The ranked documents state the facts, and nearly all documents that state them are ranked.
assert precision > 0.5
assert recall > 0.9
# Each occurrence is read about once per epoch.
assert abs(exposure.readings - len(exposure.positions) * run.recipe.steps / exposure.epoch) < 6
assert traced_text.covered > 0.5
# The facts are lost without their documents, more than without random ones; other facts stay.
effect = proof.effect("six capitals")
assert effect.mean < -1
assert effect.high < 0
full, without = proof.before[0], proof.after[0]
assert full.recall.mean() == 1
assert without.recall.mean() < 0.5
assert all(control[0].recall.mean() > 0.8 for control in proof.controls)
others = list(zip(proof.before[1:], proof.after[1:], strict=True))
assert all(after.recall.mean() > before.recall.mean() - 0.1 for before, after in others)
assert {source.grade for source in marked_sources} == {"counterfactual"}
