# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Words, gradients and replay compared
#
# **Question.** Every attribution method ranks documents. On a run where it is known which documents state a fact, and what retraining without documents changes: which ranking finds the documents, and which predicts the change?
#
# **Answer.** The lexical ranking finds most documents that state a fact; gradients alone find fewer. Words and gradients together find nearly all, and separate statements from sentences that only name the same words. Replay predicts the effect of retraining, and the others do not.
#
# **Needs.** No GPU and no download. About 45 seconds on one core of an Intel Xeon. It trains a small run, and parts of it again. Every number below is computed here.

# %%
from dataclasses import replace

from data_attribution import evaluation, token_index
from data_attribution.evaluation import EvaluationOptions
from interp import plots
from train import numerics, progress, recipes, storage, trainer
from train.data import build_store, open_corpus, open_store


ROOT = storage.project_root()
STORE, RUN = ROOT / "data/methods", ROOT / "runs/methods"

# %% [markdown]
# ## The run
#
# As in notebook 07: the sentences of the planted corpus that state facts, mention their entities, or name the words of a fact without stating it (*distractors*).

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
    token_index.build(open_store(STORE))

# %% [markdown]
# The recipe is that of notebook 07 with a checkpoint every 25 steps: the last 25 steps will be trained again.

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
    checkpoint_every=25,
    optimizer_every=25,
)
with progress.bar("training") as advance:
    if (RUN / "manifest.json").exists():
        run = trainer.resume(RUN, store=STORE, progress=advance)
    else:
        one_thread = numerics.choose(threads=1)
        run = trainer.train(
            recipe, open_store(STORE), out=RUN, numerics=one_thread, progress=advance
        )
run

# %% [markdown]
# ## The questions
#
# Twenty facts, each asked in the first wording of its relation. *Verbatim* facts were stated in that wording, among others. *Paraphrase* facts were stated in other wordings only, so their documents share nothing but two names with the question.

# %%
facts = evaluation.planted_facts(run, n=10)
for fact in (facts[0], facts[-1]):
    print(
        fact.kind, fact.name, len(fact.relevant), "documents,", len(fact.distractors), "distractors"
    )

# %% [markdown]
# Five rankings are compared: *bm25* and *lexical* count words, *gradient* compares the gradient of a document with that of the answer, *localised* does so through a few components only, and *fused* combines words and gradients. *Limits.* Gradients rank only candidates that words preselected.

# %%
table = evaluation.evaluate(run, EvaluationOptions(n=10, patched=0))
frame = table.to_frame()
METHODS = ["bm25", "lexical", "gradient", "localised", "fused"]
frame = frame[frame["method"].isin(METHODS)]


# %%
def bars(measure, **texts):
    """Draw a measure of every method, with its intervals."""
    shown = frame[frame["measure"] == measure]
    axes = {"across": "kind", "by": "method", "value": "value", "low": "low", "high": "high"}
    return plots.grouped_bars(shown, **axes, **texts)


# %% [markdown]
# ## 1. Which method finds the documents?
#
# The measure is *recall* among the first ten: the share of the documents that state the fact which are there, or, for a fact with more than ten, the share of the ten places that hold one.

# %%
bars("recall@10", title="Documents that state the fact, in the first ten", unit="recall@10")

# %% [markdown]
# **The lexical ranking finds most; gradients alone find fewer, and both together nearly all.** BM25, the other count of words, finds fewer still for facts that were stated in other wordings. Gradients also rank documents that *pull in the same direction*: other statements with the same value or in the same form. That is not an error; they answer another question. The intervals are Wilson intervals over ten facts.
#
# ## 2. Which method separates statements from distractors?
#
# A distractor contains the words, so it looks like a paraphrase. A fact with n statements has n places at the top; the measure is the share of them that hold a statement.

# %%
bars("in first n", title="Statements in the first n places", unit="share of n places")

# %% [markdown]
# **Words and gradients together.** The gradient of a distractor does not raise the score of the answer, so it falls behind the statements.
#
# ## 3. Which method predicts the effect of retraining?
#
# To rank statements is one thing, to say what would happen without a document another. The last 25 steps of the run are trained again twelve times, each time without a random part of the documents that they read. The *linear datamodelling score* (LDS) is the rank correlation between the predicted and the actual scores of a fact. The facts are four that are stated 64 times or more, so that these few steps read some statements of each.
#
# *Replay* joins the methods: it differentiates the answer through exactly these steps.

# %%
lds_options = EvaluationOptions(n=2, least=64, patched=0, replayed=2, subsets=12, steps=25)
retraining_table = evaluation.evaluate(run, lds_options)
scores = retraining_table.to_frame()
scores = scores[(scores["measure"] == "LDS") & scores["kind"].str.endswith("replayed")]
scores[["method", "kind", "value"]].round(2)

# %%
means = scores.groupby("method", sort=False)["value"].agg(["mean", "min", "max"])
plots.bars(
    list(means.index),
    means["mean"],
    means["min"],
    means["max"],
    title="Predicting retraining (lines: the two kinds of facts)",
    unit="rank correlation (LDS)",
)

# %% [markdown]
# **Replay predicts what retraining does; words and gradients hardly do.** They were not designed for this: they say nothing about documents that share nothing with the fact, but such documents change it too. *Limits.* Four facts and twelve retrainings; [Results](../docs/results.md) has more.
#
# **Limits of all of it.** One run of a small model on short documents, and facts whose names are rare words: the best case for words. In real text thousands of documents share a name, and a paraphrase may share no word. Replay costs about three trainings of the replayed steps for every question; words cost milliseconds. `openbook attribution evaluate runs/planted` compares the methods on the run of `make demo`, with removal and with tail patches (one more training step on a document); `--help` lists its options.
#
# ## All claims checked

# %%
value = {(row["method"], row["kind"], row["measure"]): row["value"] for row in table.rows}
both = ("verbatim", "paraphrase")
# 1. Words find the documents, gradients alone find fewer, and the fused ranking keeps a high recall.
for kind, least in (("verbatim", 0.85), ("paraphrase", 0.6)):
    assert value["lexical", kind, "recall@10"] > 0.7
    assert value["gradient", kind, "recall@10"] < value["lexical", kind, "recall@10"]
    assert value["fused", kind, "recall@10"] >= least
# 2. Adding gradients ranks fewer distractors above the documents that state the fact.
gains = [value["fused", kind, "in first n"] - value["lexical", kind, "in first n"] for kind in both]
assert sum(gains) > 0
assert all(
    value["fused", kind, "in first n"] > value["gradient", kind, "in first n"] for kind in both
)
# 3. Replay predicts retraining better than all other methods.
replay, others = means.loc["replay"], means.drop(index="replay")
assert replay["min"] > 0.5
assert replay["min"] > others["mean"].max() + 0.1
