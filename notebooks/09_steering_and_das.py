# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Which directions hold the answer? Steering, interchange interventions and DAS
#
# **Question.** The prompt "when A and B went to the beach, B gave a key to" continues with A. Notebook 02 finds where the model computes this. In which form is the answer stored there: as a name, or as "the first of the two"? And how many directions does it take?
#
# **Answer.** As a name. A vector that points toward one name makes the model say that name, and random vectors of the same length do not; a vector that points from "the first" to "the second" does nothing. Exchanging the last position before layer 1 exchanges the answer on all prompts, and 8 of its 128 directions do so on about nine of ten unseen prompts.
#
# **Needs.** No GPU and no download. About 20 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook. Every number below is computed here.

# %%
from dataclasses import replace

import pandas

from interp import behaviours, causal_abstraction, models, steering
from train import progress, released


run = released.open("planted")
model, ioi = models.load(run), behaviours.load("ioi", run, n_prompts=300)
fitted, unseen = causal_abstraction.halves(ioi)
behaviours.check(model, ioi)

# %% [markdown]
# The prompts are cut into two halves that share no prompt. Vectors and subspaces are computed from the first half and measured on the second. The two halves share names: what is unseen is the prompt, not the name.
#
# ## 1. Steering toward a name
#
# A *steering vector* is the difference of two means: the mean activation on prompts with a property, minus the mean on prompts without it. Here the property is that the answer is one particular name, the commonest in the first half. The vector is read after the attention of layer 1 at the last position, where the name has arrived, and is added there on other prompts, which have another answer and do not mention the name.

# %%
name = fitted.answer.mode().values
toward, away = fitted.clean[fitted.answer == name], fitted.clean[fitted.answer != name]
vector = steering.difference(model, toward, away, place="L1.resid_mid")
run.store.tokenizer.decode([int(name)]), vector

# %%
rows = (unseen.answer != name) & (unseen.foil != name)
steered_to_name = replace(
    unseen,
    name="one name instead of the receiver",
    clean=unseen.clean[rows],
    corrupt=unseen.corrupt[rows],
    answer=name.expand(int(rows.sum())),
    foil=unseen.answer[rows],
)
capital = behaviours.load("capital", run)
to_name = steering.curve(
    model,
    vector,
    steered_to_name,
    coefficients=(-1, 1, 2),
    positions=(-1,),
    unrelated=capital,
)
to_name.plot()

# %% [markdown]
# **With twice the vector, the model prefers the name to the correct answer; random directions of the same length do not get that far.** The score is the logit of the name minus the logit of the correct answer. It begins far below 0 and ends above. Random directions raise it too, in the mean over 8, because any large vector damages the answer; so an effect counts only beyond the largest of theirs (`control_largest`).
#
# **The vector is not specific.** *Limits.* It also costs an unrelated behaviour, the capitals of planted entities, a large part of its score. One name and one place are shown.

# %%
start = to_name.start.values.item()
print(f"score without steering {start:.2f}, n={to_name.n} prompts")
to_name.to_frame().round(2).set_index("coefficient")[
    ["effect", "effect_low", "effect_high", "control", "control_largest", "unrelated"]
]

# %% [markdown]
# ## 2. A vector for the place does nothing
#
# In the clean prompts the second person gives, in the corrupt ones the first. If the model stored "the first" or "the second", the mean difference between the two kinds of prompt would turn one into the other: at coefficient 1 the score would change its sign. **It hardly moves, so at this place the information is a name.** In the mean over many names, it cancels out.

# %%
role = steering.difference(model, fitted.corrupt, fitted.clean, place="L1.resid_pre")
to_role = steering.curve(model, role, unseen, coefficients=(1, 2), positions=(-1,))
print(f"score without steering {to_role.start.values.item():.2f}, n={to_role.n} prompts")
to_role.to_frame().round(2).set_index("coefficient")[
    ["effect", "effect_low", "effect_high", "control", "control_largest"]
]

# %% [markdown]
# ## 3. Interchange interventions
#
# The theory names a variable, the person who receives, and predicts the answer if only this variable takes its value from another prompt. The model runs a *base* prompt with one component replaced by its value on a *source* prompt. *Interchange accuracy* is the share of pairs on which the predicted name then has a higher logit than the answer to the base. Two controls: no intervention, and the value of another source, for which the theory predicts another name.

# %%
pairs = causal_abstraction.swaps(unseen)
giver, last = ioi.subject[0], ioi.n_pos - 1
PLACES = [
    f"L0.resid_pre@{giver}",
    f"L1.resid_pre@{giver}",
    f"L1.resid_pre@{last}",
    *(f"L{layer}H{head}" for layer in range(2) for head in range(4)),
]
swapped = causal_abstraction.interchange(model, pairs, PLACES)
swapped.plot()

# %% [markdown]
# **Before layer 0 the variable is at the giver's position, before layer 1 at the last position, and one head of layer 0 moves it.** At the places that hold it, the exchange gives the predicted name on every pair. The head alone does so on nearly every pair. No head of layer 1 does so alone.
#
# ## 4. How many directions? Distributed alignment search
#
# *DAS* learns the directions whose exchange gives the predicted answers. A search finds something almost anywhere, so the subspace is measured on unseen prompts, next to random subspaces of the same rank, and to the same search on shuffled answers.

# %%
train = causal_abstraction.swaps(fitted)
aligned = {}
for rank in (2, 8):
    with progress.bar(f"rank {rank}") as advance:
        aligned[rank] = causal_abstraction.align(
            model,
            train,
            pairs,
            place=f"L1.resid_pre@{last}",
            rank=rank,
            steps=100,
            progress=advance,
        )
aligned[8].plot()

# %% [markdown]
# **Eight of 128 directions exchange the answer on about nine of ten pairs; eight random ones on none.** Two directions are far too few: there are 31 names, and they do not lie in a plane. The placebo is strict: a search on shuffled answers still learns where names are stored, so it gets part of the way. Only what exceeds it is evidence that these directions hold *the right* name. *Limits.* One run, one place, one seed of the search.

# %%
pandas.DataFrame(
    {
        f"rank {rank}, n={found.n}": {arm: one.show(2) for arm, one in found.accuracy.items()}
        for rank, found in aligned.items()
    }
)

# %% [markdown]
# ## All claims checked

# %%
# 1. Twice the vector turns the answer; no random direction of that length does, or comes near.
twice = to_name.coefficients.index(2)
assert start < -5
assert start + to_name.effect.low[twice] > 0
assert start + to_name.control_largest[twice] < 0
assert to_name.effect.low[1] > 1.5 * to_name.control_largest[1]
assert to_name.unrelated.high[twice] < -1  # the vector is not specific
# 2. The difference between the two roles does not change the sign of the score, nor much else.
assert to_role.effect.values.abs().max() < 0.1 * to_role.start.values
# 3. The variable moves from the giver's position to the last position, through one head.
assert swapped.unpatched.values == 0
assert min(swapped[f"L0.resid_pre@{giver}"], swapped[f"L1.resid_pre@{last}"]) > 0.95
assert swapped[f"L1.resid_pre@{giver}"] < 0.05
assert swapped.shuffled.values.max() < 0.7
heads = [place for place in swapped.top(len(PLACES)) if "H" in place]
assert heads[0].startswith("L0")
assert swapped[heads[0]] > 0.9 > 0.25 > swapped[heads[1]]
# 4. Eight directions hold it on unseen prompts, beyond random and shuffled; two do not.
low = {rank: found.accuracy["learned"].low.item() for rank, found in aligned.items()}
assert low[8] > 0.75
assert aligned[8].accuracy["random"].high < 0.1
assert low[8] > aligned[8].accuracy["shuffled"].high + 0.2
assert aligned[2].accuracy["learned"].high < 0.4
