# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From TransformerLens
#
# **Question.** You have notebooks for TransformerLens. Which of their lines run here as they are, and what do the longer ones become?
#
# **Answer.** Hook names, caches, decompositions and weights are the same, so most lines run unchanged. A loop that patches every head becomes one call with intervals, and gives the same numbers.
#
# **Needs.** No GPU, no download and no training. About 7 seconds on one core of an Intel Xeon. It opens the trained run that comes with openbook; importing TransformerLens takes a third of the time. Every number below is computed here.

# %%
from functools import partial

import torch
from transformer_lens import patching as transformerlens_patching

from interp import behaviours, models, patching, plots
from interp.heads import induction_heads, repeated_tokens
from train import released


torch.set_grad_enabled(False)
run = released.open("planted")

# %% [markdown]
# ## 1. The model
#
# In TransformerLens a model is opened by its name on the hub. Here it is a run, or a local folder. The weights are those of the checkpoint: nothing is folded or centred.

# %%
model = models.load(run)
print(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.W_Q.shape)

# %%
text = "the capital of runethi is"
print(model.to_str_tokens(text))
print(model(text, return_type="loss"))

# %% [markdown]
# ## 2. The cache
#
# `run_with_cache` and the short names (`"pattern", 0`) are the same.

# %%
logits, cache = model.run_with_cache(text)
cache["pattern", 0].shape, cache["resid_post", -1].shape

# %% [markdown]
# **Direct logit attribution runs as it is.** It is computed by TransformerLens's own classes from this model's activations.

# %%
answer = model.to_single_token("koreskul")
stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
shares = cache.logit_attrs(stack, tokens=answer, pos_slice=-1)[:, 0]
plots.bars(labels, shares, shares, shares, title="Share of each part", unit="logit of the answer")

# %% [markdown]
# ## 3. Hooks
#
# A hook function takes the activation and the hook point. The induction score of every head, in the usual lines:

# %%
tokens = repeated_tokens(run)
length = (tokens.shape[1] - 1) // 2
scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)


def keep_score(pattern, hook):
    """Store the mean attention from a second occurrence to the token after the first."""
    stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - length)
    scores[hook.layer()] = stripe[..., 2:].mean(dim=(0, -1))


is_pattern = [(lambda name: name.endswith("pattern"), keep_score)]
model.run_with_hooks(tokens, return_type=None, fwd_hooks=is_pattern)
plots.heads(scores, title="Induction score, by hooks", unit="mean attention", from_zero=True)

# %% [markdown]
# **What it becomes here** is one call:

# %%
detected = induction_heads(model, tokens)
score_difference = (detected - scores).abs().max().item()
score_difference

# %% [markdown]
# ## 4. Activation patching
#
# The loop that everybody writes: run the corrupt prompts, replace the output of one head by its clean value, and see how much of the logit difference comes back.

# %%
ioi = behaviours.load("ioi", run, n_prompts=16)
print(model.to_string(ioi.clean[0]), "|", model.to_string(ioi.corrupt[0]))


# %%
def logit_difference(logits):
    """Return the mean logit of the answer minus that of the foil."""
    last = logits[:, -1]
    return (last.gather(1, ioi.answer[:, None]) - last.gather(1, ioi.foil[:, None])).mean()


def patch_head(z, hook, head):
    """Replace the output of a head by its value on the clean prompts."""
    z[:, :, head] = clean_cache[hook.name][:, :, head]
    return z


clean_logits, clean_cache = model.run_with_cache(ioi.clean)
clean, corrupt = logit_difference(clean_logits), logit_difference(model(ioi.corrupt))
by_hand = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
for layer in range(model.cfg.n_layers):
    for head in range(model.cfg.n_heads):
        hook = (f"blocks.{layer}.attn.hook_z", partial(patch_head, head=head))
        patched = logit_difference(model.run_with_hooks(ioi.corrupt, fwd_hooks=[hook]))
        by_hand[layer, head] = (patched - corrupt) / (clean - corrupt)

# %% [markdown]
# **What it becomes here.** The prompts, the answers and the metric are a *behaviour*; the loop is a *sweep*. Each effect has an interval over prompts, and only the layers behind a patch are computed again.

# %%
heads = patching.heads(model, ioi)
heads.plot()

# %%
patch_difference = (heads.values.reshape(by_hand.shape) - by_hand).abs().max().item()
patch_difference

# %% [markdown]
# **Exercise.** Patch the attention *pattern* of one head instead of its output: does any head of layer 1 bring back some of the logit difference? Write the hook, then find the sweep that does the same.
#
# <details><summary>Solution</summary>
#
# ```python
# def patch_pattern(pattern, hook, head):
#     pattern[:, head] = clean_cache[hook.name][:, head]
#     return pattern
#
#
# patterns = torch.zeros(4)
# for head in range(4):
#     hook = ("blocks.1.attn.hook_pattern", partial(patch_pattern, head=head))
#     patched = logit_difference(model.run_with_hooks(ioi.corrupt, fwd_hooks=[hook]))
#     patterns[head] = (patched - corrupt) / (clean - corrupt)
# print(patterns)
# swept = patching.patterns(model, ioi).values.reshape(2, 4)
# assert (swept[1] - patterns).abs().max() < 1e-5
# ```
#
# </details>
#
# ## 5. TransformerLens itself
#
# Code that insists on a `TransformerBridge` gets one with the same weights. Its logits, its cache and its `patching` functions agree.

# %%
bridge = models.transformer_lens(model)
bridge_difference = (bridge(ioi.clean) - model(ioi.clean)).abs().max().item()
bridge_difference

# %%
sweep = transformerlens_patching.get_act_patch_attn_head_out_all_pos(
    bridge, ioi.corrupt, bridge.run_with_cache(ioi.clean)[1], logit_difference
)
sweep_difference = ((sweep - corrupt) / (clean - corrupt) - by_hand).abs().max().item()
sweep_difference

# %% [markdown]
# **What differs.** A hook that never fires is an error here, and so is text that is longer than the context; `generate` draws with a seed. [Come from TransformerLens](../docs/how-to/come-from-transformerlens.md) lists every call that is answered, and what is left out with the reason. *Limits.* The sweeps of this notebook are on 16 prompts of one run.
#
# ## All claims checked

# %%
assert score_difference < 1e-5
assert patch_difference < 1e-5
assert bridge_difference < 1e-5
assert sweep_difference < 1e-5
