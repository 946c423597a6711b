# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # One model, entirely known: a tour
#
# **Question.** A model does something. Which parts of it do it, which documents taught it, and can both be proved?
# **Answer.** Yes, on a checkpoint of which everything is known: parts by patching them, documents by training again without them.
# **Needs.** No GPU, no download. About a minute after `make demo`; alone, it trains the run first (two minutes on two quiet cores) and later the last third of it twice more. Every number below is computed here.

# %%
from functools import partial
from pathlib import Path

import torch

from data_attribution import attribution, counterfactuals, demo, token_index
from interp import behaviours, models, patching, plots, training_dynamics
from interp.heads import (
    best_head,
    copying_loss,
    induction_heads,
    previous_token_heads,
    repeated_tokens,
)
from train import progress, recipes, trainer
from train.data import build_store, open_corpus, open_store


STORE, RUN = Path("../data/planted"), Path("../runs/planted")

# %% [markdown]
# ## 1. A run of which everything is known
#
# The planted corpus is made up: invented facts stated 0 to 128 times, sentences about who gives what to whom, random words that repeat. So there is a truth table to hold every answer against.

# %%
if not (STORE / "store.json").exists():
    with progress.bar("building the planted corpus") as advance:
        build_store(open_corpus("planted"), out=STORE, progress=advance)
store = open_store(STORE)

# %%
recipe = recipes.resolve(recipes.PLANTED, store)
demo.refuse_other(store, RUN, recipe)  # What lies here must be what this code makes.
begun = (RUN / "manifest.json").exists()
with progress.bar("training") as advance:
    if begun:  # A run that is finished is opened, one that was stopped goes on.
        run = trainer.resume(RUN, store=STORE, progress=advance)
    else:
        run = trainer.train(recipe, store, out=RUN, progress=advance)
run

# %% [markdown]
# **The run is what it says.** Every file has the digest that was written down, the first checkpoint is the initialisation of its seed, and ten random steps, replayed now, give the ledger's numbers: `bit-exact` on the machine that trained it, `within tolerance` on another.

# %%
with progress.bar("verifying") as advance:
    verification = trainer.verify(run, spans=1, progress=advance)
verification

# %% [markdown]
# **Which documents did step 120 read? When was document 17 read?** The order is a function of its seed, so neither answer was stored and neither is a guess.

# %%
read, steps = run.documents_read(step=120), run.steps_reading(document=17)
len(read), [run.store.text(document) for document in read[:3]], steps

# %% [markdown]
# ## 2. What it knows
#
# **It recalls what it read often enough**, also in a wording it never read. Right means likeliest of the 24 values of the relation. Intervals count facts; they say nothing about other seeds. The dotted line is what one gets by always giving the commonest value.

# %%
model, truth = models.load(run), run.store.truth
recall = training_dynamics.recall_by_exposure(model, truth, run.store.tokenizer)
recall.plot()

# %% [markdown]
# ## 3. Which parts do it: the indirect object
#
# "when A and B went to the beach, B gave a key to" ... A. Name pairs were held out of training. A model that cannot do it would be refused here.

# %%
ioi = behaviours.load("ioi", run)
check = behaviours.check(model, ioi)
run.store.tokenizer.decode(ioi.clean[0].tolist()), check

# %% [markdown]
# **One head of the first layer decides which of the two names it is.** In a run on corrupt prompts (the other name acts), each head in turn is given its clean output: 1 restores the whole difference between the names, 0 nothing.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
heads.to_frame().set_index("place").loc[heads.top(5), ["effect", "low", "high"]]

# %% [markdown]
# *Limits.* The intervals are over prompts, not over seeds: which head of layer 0 it is, and whether it restores four fifths or all, differs from run to run. And the score compares two names only; that a name is said at all (top-1 over all words) is the work of layer 1, and without its attention it is gone though the preference stays:


# %%
def averaged(z, point, head=slice(None)):
    """What heads put out, replaced by its mean over prompts and positions."""
    z = z.clone()
    z[:, :, head] = z[:, :, head].mean(dim=(0, 1))
    return z


with model.hooks([("blocks.1.attn.hook_z", averaged)]):
    without_layer_1 = behaviours.measure(model, ioi)
without_layer_1

# %% [markdown]
# **The name moves in one step**, from the one who acts, where the prompts differ, to the last position. The residual stream entering each layer, patched position by position.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %% [markdown]
# ## 4. Which parts do it: copying what came before
#
# **Some heads of layer 1 look behind the previous occurrence.** Found by score on random words said twice, never by number: mean attention from a word's second occurrence to what followed its first.

# %%
tokens = repeated_tokens(run)
induction = induction_heads(model, tokens)
plots.heads(induction, title="Induction score", unit="mean attention")

# %% [markdown]
# **And it is by them that the answer travels: together they restore all of it, none of them does alone.** A score is no proof of function; patching is one, for this path.

# %%
copying = behaviours.load("induction", run)
shares, together = patching.heads(model, copying), patching.attention(model, copying)
shares.plot()

# %% [markdown]
# **None of them is missed much, because the others do its work; all of them together are; and below them stands a head of layer 0 that looks one word back.** The loss on the second copy when one head is averaged away. *Limits.* How much the previous-token head is missed depends on the seed, and other heads of layer 0 share its work. And damage is no membership: most runs miss another head of layer 0 as much, and it looks at the current word.


# %%
def copy_loss(layer, head):
    """Nats a word on the second copy, one head averaged away."""
    with model.hooks([(f"blocks.{layer}.attn.hook_z", partial(averaged, head=head))]):
        return copying_loss(model, tokens).second


intact, without_all = copying_loss(model, tokens).second, copy_loss(1, slice(None))
losses = torch.tensor([[copy_loss(layer, head) for head in range(4)] for layer in range(2)])
plots.heads(losses, title="Loss on the second copy without a head", unit="nats a word")

# %%
looking_back = previous_token_heads(model, tokens)
best_head(induction), together, best_head(looking_back), (intact, without_all)

# %% [markdown]
# ## 5. Which documents taught it
#
# **Every document that states a fact is among its first 24 sources**, with the words that speak for it and the exact steps at which it was read. *Limits.* Lexical evidence says that the words were there: a distractor (entity and value in one sentence that states nothing) ranks among the statements, and what a document did to the model is not asked. Evidence is not yet a cause.

# %%
if not (STORE / "index").exists():
    with progress.bar("indexing") as advance:
        token_index.build(run.store, progress=advance)
names = counterfactuals.removable_facts(run)
(fact,) = training_dynamics.facts_named(truth, names[:1])
asked = behaviours.load(f"fact:{fact['entity']}", run)
sources = attribution.documents(run, asked, methods="lexical", fold=False, limit=24)
sources.show(10)

# %% [markdown]
# ## 6. The proof
#
# **Train again without the documents of nine facts, everything else the same to the bit, and only those nine are forgotten.** The control loses all documents of nine other facts instead, stated equally often. They are *late* facts: their documents are read in the last third of training only, so both trainings start from the checkpoint before them. Facts are asked in every form; the intervals are Wilson's, over facts. *Limits.* One seed of the initial weights, and facts stated 16 times each: at 1 to 4 exposures recall differs between seeds by itself, and one retraining would prove little.

# %%
with progress.bar("retraining without documents") as advance:
    forgotten = counterfactuals.forget_facts(run, names, progress=advance)
forgotten.plot()

# %%
forgotten.to_frame().round(2)

# %% [markdown]
# ## 7. Into TransformerLens, and the claims again
#
# **The same weights, the same logits** (to the order of fp32 sums) in a `TransformerBridge`, for code that wants one.

# %%
bridge = models.transformer_lens(model)
difference = (bridge(ioi.clean) - model(ioi.clean)).abs().max().item()
difference

# %%
# 1. The run is what it says, and its order can be asked both ways.
assert verification.level in ("bit-exact", "within tolerance")
assert [17 in run.documents_read(step) for step in steps] == [True] * len(steps) != []
# 2. It recalls what it read often enough, and not what it read once or never.
assert min(recall.at(n).seen.recall for n in (16, 32, 64, 128)) >= 0.95
assert max(recall.at(1).seen.recall, recall.at(0).paraphrase.recall) < 0.35
# 3. One head of layer 0 decides between the names, layer 1 says one, and the name moves once.
first, second = heads.top(2)
assert first.startswith("L0")
assert heads.interval(first)[0] > 0.6 > 0.4 > heads.interval(second)[1]
assert min(check.accuracy, check.top1, without_layer_1.accuracy) >= 0.95
assert without_layer_1.top1 < 0.5
assert residual[f"L0.resid_pre@{ioi.subject[0]}"] > 0.95
assert residual[f"L1.resid_pre@{ioi.n_pos - 1}"] > 0.8
# 4. Copying goes through the heads of layer 1 together, which stand on a previous-token head.
(best, score), (back, back_score) = best_head(induction), best_head(looking_back)
assert (best[:2], back[:2]) == ("L1", "L0")
assert score > 0.7
assert back_score > 0.4
assert shares.interval(best)[0] > 0
assert together["L1.attn"] > 0.95 > 0.8 > max(shares[f"L1H{head}"] for head in range(4))
assert losses[1].max() + 1 < without_all
assert losses[0, int(back[-1])] > intact + 0.5
# 5. Every document that states the fact is among its sources.
assert set(counterfactuals.documents_of(run, [fact])) <= set(sources.documents)
# 6. Only the facts whose documents went are forgotten, in the control only those of the control.
full, gone = (forgotten.of(one, "removed").share for one in ("full run", "documents removed"))
assert gone.high < full.low
assert forgotten.of("control removed", "removed").share.recall >= 0.9
assert forgotten.of("control removed", "control").share.recall < 0.5
assert forgotten.of("documents removed", "kept").share.recall >= 0.9
# 7. TransformerLens sees the same numbers.
assert difference < 1e-4
