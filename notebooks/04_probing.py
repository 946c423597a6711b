# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # What a probe proves
#
# **Question.** A linear probe reads a label from a model with 100 % accuracy. What has been shown?
# **Answer.** Less than it seems: the same probe may read it from a model that was never trained, by learning words by heart; and a label that is read may be one that the model does not use. Held-out types, a control task and an untrained model tell the first; erasing the label tells the second.
# **Needs.** No GPU, no download. About a minute; it opens the trained run that comes with openbook. Every number below is computed here.

# %%
import pandas

from interp import behaviours, models, probing
from train import progress, released


run = released.open("planted")
model = models.load(run)
COLUMNS = ["accuracy", "unseen", "control", "selectivity", "untrained", "untrained_unseen"]


# %%
def table(probe):
    """Values and intervals of a probe, a row a place."""
    rows = [{name: str(getattr(cell, name)) for name in COLUMNS} for cell in probe.cells]
    return pandas.DataFrame(rows, index=[f"{cell.place}, n={probe.n}" for cell in probe.cells])


# %% [markdown]
# ## 1. Reading by heart
#
# "travellers remember *zemora*": in sentences that say nothing of it, is it written in the entity's vector whether the entity is known for its capital, its maker or its trade? Three relations, 120 entities that were stated 16 times or more, four sentences each.

# %%
relation = probing.load_task("relation", run)
example = run.store.tokenizer.decode(relation.tokens[int(relation.prompt_of[0])].tolist())
example, relation.labels[0], relation.n_types

# %%
with progress.bar("relation") as advance:
    relations = probing.linear(model, relation, progress=advance)
table(relations)

# %% [markdown]
# **An untrained model reads it almost as well, because 120 random vectors are easily learned by heart: of entities that the probe never saw it knows nothing. The trained one knows their relation too.** In `unseen` no entity is in training and test. The *control task* gives each entity a random relation: what a probe reaches there it reaches by heart, and *selectivity* is what is left (Hewitt and Liang 2019).

# %%
relations.plot()

# %% [markdown]
# **The online code says the same in bits**: so many are needed to send the labels to someone who has the vectors and learns as the labels come in, and the labels alone cost log2(3) bits each (Voita and Titov 2020). *Limits.* Intervals count entities, and hold the run fixed: other seeds are not in them.

# %%
relations.to_frame().set_index("place")[
    ["n", "bits", "compression", "compression low", "compression high"]
]

# %% [markdown]
# ## 2. Reading the architecture
#
# Where in its document does a nonce word stand, four positions at a time?

# %%
with progress.bar("position") as advance:
    positions = probing.linear(model, probing.load_task("position", run), progress=advance)
table(positions)

# %% [markdown]
# **Selectivity is high, unseen words are no problem, and yet nothing was learned: an untrained model shows it better.** Positions are added to the stream when the model is built; training covers them. Only the untrained control says so.
#
# ## 3. Reading what is not used
#
# "when A and B went to the beach, B gave a key to": who acts? Read from every position, before and after.

# %%
acts = probing.load_task("subject-name", run, n_cases=600)
ioi = behaviours.load("ioi", run)
with progress.bar("who acts") as advance:
    where = probing.linear(
        model, acts, positions=range(1, ioi.n_pos), fit="ridge", controls=1, progress=advance
    )
where.plot()

# %% [markdown]
# **Until they act (position 10) nobody can know which of the two will; from then on it is read at every position and in both layers, the last one included.** (At positions 2 to 9 the probe has heard one name or both, and is right half of the time or a little more.) Being readable there, is it what the next word is chosen by? Erase it: LEACE is the least change of the stream after which no linear probe does better than the commonest name (Belrose et al. 2023).

# %%
early = probing.erasure_effect(model, ioi, acts, layer=0)
early.to_frame().set_index("arm").round(3)

# %% [markdown]
# **Without it, after layer 0, the model guesses between the two names.** A *placebo*, which erases as many directions fitted to shuffled names, costs a good part too: so many directions are nearly all there are at this place, and only what is lost beyond it counts.

# %%
early.plot()

# %% [markdown]
# **After layer 1 the same label is read as well as before, and erasing it costs no more than a placebo.** By then the name of the other one has been fetched, and that is what is used; who acts is still there, for a probe to find. *Limits.* Two seeds of the initial weights were looked at, with one result; thirty directions, as many as 31 names need, are a large part of what varies here (`removed`), so a small use could hide behind the placebo's cost.

# %%
late = probing.erasure_effect(model, ioi, acts, layer=1)
receives = probing.erasure_effect(
    model, ioi, probing.load_task("indirect-name", run, n_cases=600), layer=1
)
early, late, receives

# %%
late.to_frame().set_index("arm").round(3)

# %%
receives.to_frame().set_index("arm").round(3)

# %% [markdown]
# ## The claims again

# %%
# 1. Read by heart without training; read of unseen entities only with it.
for cell in relations.cells:
    assert min(cell.accuracy.value, cell.untrained.value) > 0.9
    assert cell.unseen.low > 0.8 > 0.6 > cell.untrained_unseen.high
    assert cell.untrained_unseen.low < relations.baseline < cell.untrained_unseen.high
    assert cell.selectivity.low > 0.15
    assert cell.compression.low > 2
# 2. Position is the architecture's.
for cell in positions.cells:
    assert cell.untrained.low > 0.9
    assert cell.untrained_unseen.low > cell.unseen.high
# 3. Who acts is read from the position on where they act; before, it is one of two at best.
before = [cell.accuracy.value for cell in where.cells if cell.pos < ioi.subject[0]]
after = [cell.accuracy.value for cell in where.cells if cell.pos >= ioi.subject[0]]
assert max(before) < min(after)
assert where[f"L0.resid_post@{ioi.n_pos - 1}"].accuracy.low > 0.8
# 4. Erasing it costs the behaviour where it is used, and not where it is only readable.
assert min(early["intact"].probe.low, late["intact"].probe.low) > 0.7
assert max(early["erased"].probe.value, late["erased"].probe.value) < 0.2
assert early.loss.low > 1
assert early["erased"].accuracy.high < early["placebo"].accuracy.low
assert late.loss.high < 0.5
assert late["erased"].accuracy.low > 0.85
assert receives.loss.low > 3
