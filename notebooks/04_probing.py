# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # What a probe shows, and what it does not
#
# **Question.** A linear probe reads a label from a model's activations with 100 % accuracy. What does this show?
#
# **Answer.** Less than it seems. The same probe may read the label from an untrained model, by memorising words. And the model may not use a label that a probe can read. Held-out types, a control task and an untrained model test the first; erasing the label tests the second.
#
# **Needs.** No GPU and no download. About 20 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas

from interp import behaviours, models, probing
from train import progress, released


run = released.open("planted")
model = models.load(run)
COLUMNS = ["accuracy", "unseen", "control", "selectivity", "untrained", "untrained_unseen"]


# %%
def table(probe):
    """Return the values and intervals of a probe, one row per site."""
    rows = [{name: str(getattr(cell, name)) for name in COLUMNS} for cell in probe.cells]
    return pandas.DataFrame(rows, index=[f"{cell.place}, n={probe.n}" for cell in probe.cells])


# %% [markdown]
# ## 1. A label that a probe can memorise
#
# In sentences such as "travellers remember *zemora*", which say nothing about the relation: does the activation at the entity encode whether the entity is known for its capital, its maker or its trade? There are three relations and 156 entities; each entity's fact is stated 16 times or more, and each entity occurs in four sentences.

# %%
relation = probing.load_task("relation", run)
example = run.store.tokenizer.decode(relation.tokens[int(relation.prompt_of[0])].tolist())
example, relation.labels[0], relation.n_types

# %%
with progress.bar("relation") as advance:
    relations = probing.linear(model, relation, progress=advance)
table(relations)

# %% [markdown]
# **A probe reads the relation almost as well from an untrained model, because it can memorise 156 random vectors; but for entities that the probe never saw, the untrained model gives nothing. The trained model encodes the relation of unseen entities too.** In `unseen`, no entity is in both the training set and the test set. The *control task* gives each entity a random relation, so its accuracy measures memorisation; *selectivity* is the accuracy minus that of the control task (Hewitt and Liang 2019).

# %%
relations.plot()

# %% [markdown]
# **The online code states in bits that the trained model encodes the relation.** It is the number of bits needed to send the labels to a receiver who has the activations and learns from the labels as they arrive; without the activations the labels cost log2(3) bits each (Voita and Titov 2020). *Limits.* The intervals are over entities with the run held fixed; they do not include other seeds.

# %%
relations.to_frame().set_index("place")[
    ["n", "bits", "compression", "compression low", "compression high"]
]

# %% [markdown]
# ## 2. A label that the architecture provides
#
# The label is the position of a word in its document of repeated random words, in bins of four positions.

# %%
with progress.bar("position") as advance:
    positions = probing.linear(model, probing.load_task("position", run), progress=advance)
table(positions)

# %% [markdown]
# **Selectivity is high and words unseen by the probe are no problem, yet the model did not learn this label: the probe reads it better from an untrained model.** Positional embeddings are in the stream from initialisation on, and training obscures them. Only the untrained control reveals this.
#
# ## 3. A label that the model does not use
#
# In "when A and B went to the beach, B gave a key to", the label is the name of the person who acts. It is read at every position, before and after that person acts.

# %%
subject_name = probing.load_task("subject-name", run, n_cases=600)
ioi = behaviours.load("ioi", run)
with progress.bar("who acts") as advance:
    by_position = probing.linear(
        model,
        subject_name,
        positions=range(1, ioi.n_pos),
        fit="ridge",
        controls=1,
        progress=advance,
    )
by_position.plot()

# %% [markdown]
# **Before the person acts (position 10) the label cannot be known; from position 10 on it is read at every position and in both layers, including the last position.** At positions 2 to 9 the probe has seen one or both names and is right on about half of the prompts (four to seven of ten). Is a label that is readable at the last position also used to choose the next word? To test this we erase it with LEACE, the smallest change of the stream after which no linear probe does better than always giving the commonest name (Belrose et al. 2023).

# %%
after_layer_0 = probing.erasure_effect(model, ioi, subject_name, layer=0)
after_layer_0.to_frame().set_index("arm").round(3)

# %% [markdown]
# **With the label erased after layer 0, the model guesses between the two names. This does not yet show that it uses the label.** A *placebo* erases the same number of directions, fitted to shuffled names, and costs a large part of the score. But it removes less of the variance (column `removed`). Random directions that carry as much variance as the erasure (`matched`) cost as much as the erasure, although a probe still reads the name after them: little but the name varies at this site, so that erasing the name and erasing what varies are the same to the model.

# %%
after_layer_0.plot()

# %% [markdown]
# **After layer 1 the probe reads the same label nearly as well as before, but erasing it costs no more than a placebo; erasing the name of the other person costs more than either.** By then that name has been fetched to the last position, and the model uses it: its erasure costs several nats beyond directions of equal variance. The name of the person who acts is still readable, and no use of it is shown. *Limits.* One run. Thirty directions, as many as 31 names need, are a large share of the variance here (`removed`), so the cost of the placebos could hide a small use of the label.

# %%
after_layer_1 = probing.erasure_effect(model, ioi, subject_name, layer=1)
receiver_erased = probing.erasure_effect(
    model, ioi, probing.load_task("indirect-name", run, n_cases=600), layer=1
)
after_layer_0, after_layer_1, receiver_erased

# %%
after_layer_1.to_frame().set_index("arm").round(3)

# %%
receiver_erased.to_frame().set_index("arm").round(3)

# %% [markdown]
# ## All claims checked

# %%
# 1. A probe memorises the relation even without training; for unseen entities it needs training.
for cell in relations.cells:
    assert min(cell.accuracy.value, cell.untrained.value) > 0.9
    assert cell.unseen.low > 0.8 > 0.6 > cell.untrained_unseen.high
    assert cell.untrained_unseen.low < relations.baseline < cell.untrained_unseen.high
    assert cell.selectivity.low > 0.15
    assert cell.compression.low > 2
# 2. The position comes from the architecture, not from training.
for cell in positions.cells:
    assert cell.untrained.low > 0.9
    assert cell.untrained_unseen.low > cell.unseen.high
# 3. Who acts is readable from the position where the person acts; before that, the probe can at
#    best guess between two names.
before = [cell.accuracy.value for cell in by_position.cells if cell.pos < ioi.subject[0]]
after = [cell.accuracy.value for cell in by_position.cells if cell.pos >= ioi.subject[0]]
assert max(before) < min(after)
assert by_position[f"L0.resid_post@{ioi.n_pos - 1}"].accuracy.low > 0.8
# 4. Erasing a label breaks the behaviour where the label is used, not where it is only readable.
#    Where little else varies, directions of equal variance break it as well.
assert min(after_layer_0["intact"].probe.low, after_layer_1["intact"].probe.low) > 0.7
assert max(after_layer_0["erased"].probe.value, after_layer_1["erased"].probe.value) < 0.2
assert after_layer_0.loss.low > 1
assert after_layer_0["erased"].accuracy.high < after_layer_0["placebo"].accuracy.low
assert after_layer_0["erased"].removed > 0.9 > after_layer_0["placebo"].removed
assert after_layer_0.loss_matched.high < 0.5
assert max(after_layer_1.loss.high, after_layer_1.loss_matched.high) < 0.5
assert after_layer_1["erased"].accuracy.low > 0.85
assert min(receiver_erased.loss.low, receiver_erased.loss_matched.low) > 3
