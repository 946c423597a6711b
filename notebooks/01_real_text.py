# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The pipeline on real text
#
# **Question.** Does the path from a corpus to a traced sentence work on real text, where no truth table gives the right answers?
#
# **Answer.** Yes. A small model learns the text, copies tokens that occurred earlier by attention, and its generated text leads to documents and to the steps that read them. It has no induction head yet: its prediction depends on whether a token occurred, and hardly on which token preceded it.
#
# **Needs.** No GPU and no download. About 50 seconds on one core of an Intel Xeon, or seconds if the run exists. It reads the CIA World Factbook if that file is beside the checkout, and otherwise the help texts that come with every Python. Every number below is computed here. **Saved without outputs**: they would quote these texts, which others wrote.

# %%
from pydoc_data.topics import topics

import pandas
import torch

from data_attribution import attribution, token_index
from interp import behaviours, models, patching, plots
from interp.heads import best_head, copying_loss, induction_heads, repeated_tokens
from train import numerics, progress, recipes, storage, trainer
from train.data import build_store, open_corpus, open_store


ROOT = storage.project_root()
FACTBOOK = ROOT.parent / "shared/data/corpora/factbook.jsonl.gz"
NAME = "factbook" if FACTBOOK.exists() else "pydoc"
STORE, RUN, HELP = ROOT / "data" / NAME, ROOT / "runs" / NAME, ROOT / "data/pydoc-text"

# %% [markdown]
# ## 1. From a file to a run
#
# A *token store* is built from the text. Its tokenizer (2,048 byte pairs) is trained on the text itself; one document in ten is held out, chosen by the hash of its text. Look at the number of documents, the number of tokens, and the beginning of the first document.


# %%
def write_help():
    """Write the help texts of this Python, one file per topic."""
    HELP.mkdir(parents=True, exist_ok=True)
    for topic, text in topics.items():
        storage.write_text(HELP / f"{topic}.txt", text)


if not (STORE / "store.json").exists():
    if NAME == "pydoc":
        write_help()
    corpus = open_corpus(FACTBOOK if NAME == "factbook" else HELP)
    build_store(corpus, out=STORE, tokenizer="bpe", vocab_size=2048, held_out=0.1)
store = open_store(STORE)
store.n_documents, store.n_tokens, store.text(0)[:80]

# %% [markdown]
# The recipe `text-small` is trained for 300 steps. The panel shows how much is known of the run: `full` means every token of every step.

# %%
with progress.bar("training") as advance:
    if (RUN / "manifest.json").exists():
        run = trainer.resume(RUN, store=STORE, progress=advance)
    else:
        # A model this small gains little from a second thread, and loses much if cores are shared.
        one_thread = numerics.choose(threads=1)
        run = trainer.train(
            recipes.TEXT_SMALL, store, out=RUN, numerics=one_thread, steps=300, progress=advance
        )
run

# %% [markdown]
# Does it learn the text? The loss on held-out documents, at three steps: the first bar is a guess among 2,048 tokens.

# %%
steps = [step for step in run.steps if step % 250 == 0 or step == run.recipe.steps]
losses = [trainer.held_out_loss(run.load(step), store, run.recipe, run.numerics) for step in steps]
names = [f"step {step}" for step in steps]
plots.bars(names, losses, losses, losses, title="Held-out loss", unit="nats per token")

# %% [markdown]
# **It falls by more than two and a half nats.** *Limits.* One seed, and a mean without an interval. The help texts are so short that the run reads them five times; trained longer, the model memorises them and this loss rises again.
#
# ## 2. Does it copy?
#
# A clean prompt is a passage of held-out text whose last token occurred earlier; the *answer* followed it there. In the corrupt prompt another token, the *foil*, stands wherever the answer stood. The foil follows the last token about as often in the training text. One prompt, with answer and foil:

# %%
model, induction = models.load(run), behaviours.load("induction", run, n_prompts=128)
decode = store.tokenizer.decode
print(decode(induction.clean[0].tolist()))
print("answer:", decode([int(induction.answer[0])]), "| foil:", decode([int(induction.foil[0])]))

# %% [markdown]
# `accuracy` is the share of prompts on which the answer has a higher logit than the foil. Compare it with that of the initial weights.

# %%
check, untrained = behaviours.check(model, induction), behaviours.measure(run.load(0), induction)
pandas.DataFrame([check, untrained], index=["trained", "untrained"])

# %% [markdown]
# The model prefers the answer, and its initial weights do not.
#
# **Which heads?** In a run on corrupt prompts the output of one head at a time is replaced by its clean value. 1 would restore the whole difference in logits. Look for the darkest square.

# %%
heads = patching.heads(model, induction)
heads.plot()

# %% [markdown]
# One head has the largest effect. All heads of a layer together, with intervals over prompts (not over seeds):

# %%
layers = patching.attention(model, induction)
layers.plot()

# %% [markdown]
# Copying goes through attention. **Is it an induction head?** Such a head attends to the token after an earlier occurrence. The score is that attention, on random tokens that are said twice.

# %%
tokens = repeated_tokens(run)
scores = induction_heads(model, tokens)
plots.heads(scores, title="Induction score", unit="mean attention", from_zero=True)

# %% [markdown]
# **No head does it** (look at the scale). The loss says the same: the second copy of random tokens costs nearly as much as the first.

# %%
random_copy = copying_loss(model, tokens)
random_copy.first, random_copy.second

# %% [markdown]
# A second test: answer and foil change places within a passage, so that both prompts have the same tokens in another order. How much does the score change when the answer is gone, and how much when only the order is another?


# %%
def score_change(behaviour):
    """Return the clean score minus the corrupt score of each prompt, in nats."""
    with torch.inference_mode():
        return behaviour.score(model(behaviour.clean)) - behaviour.score(model(behaviour.corrupt))


template = (behaviours.PACKAGED / "induction.toml").read_text()
storage.write_text(STORE.parent / "order.toml", template.replace("= false", "= true"))
order = behaviours.load(STORE.parent / "order.toml", run, n_prompts=128)
replaced, exchanged = score_change(induction), score_change(order)
print(f"answer gone: {replaced.mean():.2f} nats, other order: {exchanged.mean():.2f} nats")

# %% [markdown]
# Order matters much less: the model knows *that* a token occurred, and hardly after which one. Induction heads need more text than a few minutes of CPU time can read. The planted run (notebook 00) has them.
#
# ## 3. Where does a sentence come from?
#
# The model goes on from the first characters of a document:

# %%
prompt = model.to_tokens(store.text(0)[:24])
written = model.generate(prompt, 48, temperature=0.7, seed=0)
text = model.to_string(written[0, 1:])
print(text)

# %% [markdown]
# Which parts of it stand in the corpus? *Spans* are the longest passages that do. `count` says how often, `held_out` how often in documents that were not trained on.

# %%
index = token_index.open(store) if (STORE / "index").exists() else token_index.build(store)
spans = index.maximal_spans(text, minimum=3)
pandas.DataFrame(spans)[["text", "count", "held_out", "log_probability"]]

# %% [markdown]
# In which documents, and when were they read? Look at `read at steps`.

# %%
sources = attribution.documents(run, text, methods="lexical", limit=8)
sources.show(5)

# %% [markdown]
# Spans lead to documents, and documents to the steps that read them. *Limits.* The evidence is lexical: these documents contain the words; that they caused the model to write them is not shown.
#
# ## 4. All claims checked

# %%
# 1. The loss starts at that of a uniform guess and falls.
assert abs(losses[0] - torch.tensor(2048.0).log()) < 0.5
assert min(losses) < losses[0] - 2.5
# 2. The model copies and the initial weights do not. The effects of the best head and of the best
#    layer are above zero.
assert check.interval[0] > 0.5
assert abs(untrained.score) < 0.3
assert replaced.mean() > 3 * replaced.std() / len(replaced) ** 0.5
(best,), (layer,) = heads.top(1), layers.top(1)
assert min(heads.interval(best)[0], layers.interval(layer)[0]) > 0
# 3. It copies without an induction head.
assert best_head(scores)[1] < 0.3
assert random_copy.gap < 1
assert exchanged.mean() < replaced.mean() / 2
# 4. Every source contains its span, and was read at the listed steps.
assert len(sources)
# (A span may begin or end inside a multi-byte character, which then prints as U+FFFD.)
assert all(source.span.strip("\ufffd") in store.text(source.document) for source in sources)
assert all(
    source.document in run.documents_read(step) for source in sources for step in source.steps
)
