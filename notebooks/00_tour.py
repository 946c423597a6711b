# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A tour of one fully known model
#
# **Question.** A model shows a behaviour. Which of its components produce it, which training documents taught it, and can both be proved?
#
# **Answer.** Yes, for a checkpoint whose training is completely known. Components are found by patching them, and documents are confirmed by retraining without them.
#
# **Needs.** No GPU, no download and no training. About 10 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here, except those of section 6: the retraining was measured when the run was made.

# %%
from functools import partial

import torch

from data_attribution import attribution, counterfactuals, token_index
from interp import behaviours, models, patching, plots, training_dynamics
from interp.heads import (
    best_head,
    copying_loss,
    induction_heads,
    previous_token_heads,
    repeated_tokens,
)
from train import progress, released, trainer


# %% [markdown]
# ## 1. A run with a known training history
#
# The planted corpus is made up. It contains invented facts that are stated 0 to 128 times, sentences about who gives what to whom, and random words that repeat. A truth table says what each document teaches, so every answer can be checked against it. Below: the run, and three documents of its corpus.

# %%
run = released.open("planted")
run

# %%
[run.store.text(document) for document in (0, 12_000, 20_000)]

# %% [markdown]
# **The run passes verification.** Every file has its recorded digest. The first checkpoint equals the initialisation of its seed. Its first ten steps are trained again now and give the losses in the ledger: `bit-exact` on the machine that trained the run, `within tolerance` on another one.

# %%
with progress.bar("verifying") as advance:
    verification = trainer.verify(run, spans=1, progress=advance)
verification

# %% [markdown]
# **Which documents did step 120 read, and when was document 17 read?** The data order is a function of its seed, so both answers are computed exactly and neither had to be stored.

# %%
documents, steps = run.documents_read(step=120), run.steps_reading(document=17)
len(documents), [run.store.text(document) for document in documents[:3]], steps

# %% [markdown]
# ## 2. What the model knows
#
# **The model recalls facts that it read often enough**, also in a wording that it never read. An answer is correct if it is the most likely of the 24 values of the relation. The dotted line shows the share of facts that one gets right by always giving the commonest value. *Limits.* The intervals are over facts; they say nothing about other seeds.

# %%
model, truth = models.load(run), run.store.truth
recall = training_dynamics.recall_by_exposure(model, truth, run.store.tokenizer)
recall.plot()

# %% [markdown]
# ## 3. Components: the indirect object
#
# The prompt "when A and B went to the beach, B gave a key to" continues with A. The pairs of names in these prompts never occur together in training. `behaviours.check` raises an error if the model cannot do this.

# %%
ioi = behaviours.load("ioi", run)
check = behaviours.check(model, ioi)
run.store.tokenizer.decode(ioi.clean[0].tolist()), check

# %% [markdown]
# **One head of the first layer decides which of the two names is predicted.** In a run on corrupt prompts (where the other person acts), the output of one head at a time is replaced by its value on the clean prompts. An effect of 1 restores the whole logit difference between the names, 0 restores nothing.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
heads.to_frame().set_index("place").loc[heads.top(5), ["effect", "low", "high"]]

# %% [markdown]
# *Limits.* The intervals are over prompts, not over seeds. Which head of layer 0 it is, and whether it restores four fifths or all of the difference, varies from run to run. The score also compares two names only. Predicting a name at all (top-1 accuracy over all words) depends on the attention of layer 1: without it the top-1 accuracy is lost, but the preference for the right name stays.


# %%
def averaged(z, point, head=slice(None)):
    """Replace the output of heads by its mean over prompts and positions."""
    z = z.clone()
    z[:, :, head] = z[:, :, head].mean(dim=(0, 1))
    return z


with model.hooks([("blocks.1.attn.hook_z", averaged)]):
    without_layer_1 = behaviours.measure(model, ioi)
without_layer_1

# %% [markdown]
# **The information about the name moves in one step**, from the position of the person who acts, where the prompts differ, to the last position. The figure shows the residual stream entering each layer, patched one position at a time.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %% [markdown]
# ## 4. Components: copying from earlier text
#
# **Some heads of layer 1 attend to the token after the previous occurrence of the current word** (induction heads). They are identified by a score on random words that are repeated once, not by a fixed head number. The score is the mean attention from a word's second occurrence to the word that followed its first occurrence.

# %%
tokens = repeated_tokens(run)
induction, previous_token = induction_heads(model, tokens), previous_token_heads(model, tokens)
plots.heads(induction, title="Induction score", unit="mean attention", from_zero=True)

# %% [markdown]
# **The heads of layer 1 carry the answer together.** Patching all of them restores all of it, as the printed number shows; the figure shows that no single head does. An attention score does not prove that a head has a function. Patching proves it, for this path.

# %%
copying = behaviours.load("induction", run)
head_effects, layer_effects = patching.heads(model, copying), patching.attention(model, copying)
print(f"effect of all heads of layer 1 together: {layer_effects['L1.attn']:.3f}")
head_effects.plot()

# %% [markdown]
# **The two heads with the highest induction scores share the copying, and each makes up for a part of the other's loss.** The figure shows the loss on the second copy when the output of one head is replaced by its mean; the lines above it show the loss of the intact model and of several heads ablated together. Without both induction heads it rises by more than twice what the two cost one by one, nearly to the loss without all heads of the layer; the other two heads of layer 1 cost next to nothing. **Copying also needs layer 0, and there the previous-token head most.** *Limits.* The cost of ablating the previous-token head depends on the seed, because other heads of layer 0 share its work. A loss after ablation also does not prove that a head belongs to this circuit: in most runs another head of layer 0 is as costly to ablate, and it attends to the current word.


# %%
def copy_loss(layer, head):
    """Return the loss on the second copy with one head averaged, in nats per word."""
    with model.hooks([(f"blocks.{layer}.attn.hook_z", partial(averaged, head=head))]):
        return copying_loss(model, tokens).second


both = sorted(induction[1].topk(2).indices.tolist())
intact = copying_loss(model, tokens).second
without_both, without_all = copy_loss(1, both), copy_loss(1, slice(None))
print(f"intact: {intact:.2f} nats per word")
print(f"without L1H{both[0]} and L1H{both[1]}: {without_both:.2f}")
print(f"without all heads of layer 1: {without_all:.2f}")
losses = torch.tensor([[copy_loss(layer, head) for head in range(4)] for layer in range(2)])
title = "Loss on the second copy after ablating one head"
plots.heads(losses, title=title, unit="nats per word", from_zero=True)

# %% [markdown]
# ## 5. Which documents taught it
#
# **Every document that states the fact is among its first 24 sources**, as the line above the table says, each with the matching words and the exact steps that read it. The table shows the first ten. *Limits.* Lexical evidence shows only that the words occur in the document. A distractor (a sentence that names the entity and the value but does not state the fact) ranks among the statements, and the effect of a document on the model is not measured. Such evidence does not show that a document is a cause.

# %%
if not (run.store.path / "index").exists():
    token_index.build(run.store)
(fact,) = training_dynamics.facts_named(truth, counterfactuals.removable_facts(run)[:1])
fact_behaviour = behaviours.load(f"fact:{fact['entity']}", run)
run.store.tokenizer.decode(fact_behaviour.clean[0].tolist()), fact["value"]

# %%
sources = attribution.documents(run, fact_behaviour, methods="lexical", fold=False, limit=24)
stating = set(counterfactuals.documents_of(run, [fact]))
print(f"{len(stating & {*sources.documents})} of {len(stating)} documents that state the fact")
sources.show(10)

# %% [markdown]
# **Exercise: which document?** Find the documents by hand. A fact has an *entity* (`fact["entity"]`) and a *value* (`fact["value"]`). Find all documents of the store that contain both words (`run.store.text(document)`). `counterfactuals.documents_of(run, [fact])` returns those that state the fact. How many documents contain both words without stating the fact, and what do they say instead?
#
# <details><summary>Solution</summary>
#
# ```python
# with_both = [
#     document
#     for document in range(run.store.n_documents)
#     if {fact["entity"], fact["value"]} <= set(run.store.text(document).split())
# ]
# known = counterfactuals.documents_of(run, [fact])
# others = [document for document in with_both if document not in known]
# for document in others[:4]:
#     print(run.store.text(document))
# assert set(known) <= set(with_both)
# assert others
# ```
#
# All statements contain both words, and so do the distractors. Words alone cannot tell the two apart. Notebook 08 shows that gradients can.
#
# </details>

# %% [markdown]
# ## 6. Proof by retraining
#
# **The run was retrained without the documents of nine facts, with everything else the same to the bit, and only those nine facts are forgotten.** In the control, all documents of nine other facts that are stated equally often were removed instead. These are *late* facts: their documents are read only in the last third of training, so both retrainings started from the checkpoint before that.
#
# Two retrainings take a minute or two, so their results come with the run. `make demo` trains the run and both retrainings on your machine; notebook 07 retrains a smaller run here.
#
# Every form of each fact is tested. The intervals are Wilson intervals over facts. *Limits.* This is one seed of the initial weights, and each fact is stated 16 times. Recall of facts with 1 to 4 exposures already differs between seeds, so for such facts one retraining would prove little.

# %%
forgotten = counterfactuals.Forgetting.from_dict(released.measured("planted", "forgetting"))
forgotten.plot()

# %%
forgotten.to_frame().round(2)

# %% [markdown]
# **Where to go from here.** The same model in TransformerLens: notebook 13. Your own model and text: notebook 12. Which paths a result takes: notebook 02.
#
# ## All claims checked

# %%
# 1. The run passes verification, and its data order can be queried in both directions.
assert verification.level in ("bit-exact", "within tolerance")
assert [17 in run.documents_read(step) for step in steps] == [True] * len(steps) != []
# 2. The model recalls facts that it read often enough, and not those it read once or never.
assert min(recall.at(n).seen.recall for n in (16, 32, 64, 128)) >= 0.95
assert max(recall.at(1).seen.recall, recall.at(0).paraphrase.recall) < 0.35
# 3. One head of layer 0 decides between the names, layer 1 is needed to predict a name at all,
#    and the information moves between positions once.
first, second = heads.top(2)
assert first.startswith("L0")
assert heads.interval(first)[0] > 0.6 > 0.4 > heads.interval(second)[1]
assert min(check.accuracy, check.top1, without_layer_1.accuracy) >= 0.95
assert without_layer_1.top1 < 0.5
assert residual[f"L0.resid_pre@{ioi.subject[0]}"] > 0.95
assert residual[f"L1.resid_pre@{ioi.n_pos - 1}"] > 0.8
# 4. Copying goes through the heads of layer 1 together; they depend on a previous-token head.
(best, score), (back, back_score) = best_head(induction), best_head(previous_token)
assert (best[:2], back[:2]) == ("L1", "L0")
assert score > 0.7
assert back_score > 0.4
assert head_effects.interval(best)[0] > 0
assert layer_effects["L1.attn"] > 0.95 > 0.8 > max(head_effects[f"L1H{head}"] for head in range(4))
cost, others = losses - intact, [head for head in range(4) if head not in both]
assert without_both - intact > 2 * cost[1, both].sum()
assert without_all - without_both < 1
assert cost[1, both].min() > 0.5 > 0.2 > cost[1, others].max()
assert cost[0].min() > 0.2
assert cost[0].argmax() == int(back[-1])
# 5. Every document that states the fact is among its sources.
assert stating <= set(sources.documents)
# 6. Only the facts whose documents were removed are forgotten; the control forgets only its own.
full, removed = (
    forgotten.of(setting, "removed").share for setting in ("full run", "documents removed")
)
assert removed.high < full.low
assert forgotten.of("control removed", "removed").share.recall >= 0.9
assert forgotten.of("control removed", "control").share.recall < 0.5
assert forgotten.of("documents removed", "kept").share.recall >= 0.9
