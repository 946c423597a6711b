"""Attention of patched runs, whose first keys and values are those of the base run.

A patched run differs from the base run from position `first` on. Its keys and values are therefore

    k = [base k at positions 0 .. first - 1,  patched k at positions first .. n_pos - 1]

and the same for v. The query at position p attends to all keys at positions <= p of this sequence.
In a bidirectional model `first` is 0 and every query attends to every key.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


# Up to this many keys, attention on a CPU is written out as matrix products. The fused kernel of
# torch 2.13 is made for long sequences: on one thread, 192 rows x 12 heads x 16 positions take
# 58 ms fused and 9 ms written out; 48 x 12 x 64 take 33 ms and 15 ms.
LONGEST_WRITTEN_OUT = 256

__all__ = ["attention_mask", "attention_output", "pattern", "prepend_base", "to_query_heads"]


def prepend_base(
    before: Float[Tensor, "prompt old head d_head"],
    new: Float[Tensor, "patch prompt pos head d_head"],
) -> Float[Tensor, "patch prompt longer head d_head"]:
    """Prepend the base run's keys (or values) to those of every patched run."""
    if before.shape[1] == 0:
        return new
    return torch.cat([before.expand(len(new), *before.shape), new], dim=2)


def attention_mask(
    positions: list[int], n_pos: int, *, causal: bool, like: Tensor
) -> Float[Tensor, "query key"]:
    """Return the mask added to attention scores: 0 if a query may attend, else the lowest number.

    Query row i is at `positions[i]`; keys are at positions 0 to `n_pos` - 1.
    """
    query = torch.tensor(positions, device=like.device)[:, None]
    hidden = torch.arange(n_pos, device=like.device) > query
    mask = torch.zeros(len(positions), n_pos, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min) if causal else mask


def attention_output(
    q: Float[Tensor, "*row query head d_head"],
    k: Float[Tensor, "*row key shared d_head"],
    v: Float[Tensor, "*row key shared d_head"],
    mask: Float[Tensor, "query key"],
) -> Float[Tensor, "*row query head d_head"]:
    """Return z: per head, the values weighted by softmax(q k / sqrt(d_head) + mask)."""
    k, v = to_query_heads(k, q.shape[-2]), to_query_heads(v, q.shape[-2])
    rows = q.shape[:-3]
    q, k, v = (one.flatten(0, -4).transpose(1, 2) for one in (q, k, v))
    if q.device.type == "cpu" and len(mask) > 1 and mask.shape[1] <= LONGEST_WRITTEN_OUT:
        shape, scale = q.shape[:2], q.shape[-1] ** -0.5
        q, k, v = (one.reshape(-1, *one.shape[2:]) for one in (q, k, v))
        scores = torch.baddbmm(mask[None], q, k.transpose(1, 2), alpha=scale)
        z = (scores.softmax(dim=-1) @ v).unflatten(0, shape)
    else:
        # A single query that attends to all keys (usually the last position) needs no mask.
        open_mask = None if len(mask) == 1 and not mask.any() else mask
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=open_mask)
    return z.transpose(1, 2).unflatten(0, rows)


def pattern(
    q: Float[Tensor, "*row query head d_head"],
    k: Float[Tensor, "*row key shared d_head"],
    mask: Float[Tensor, "query key"],
) -> Float[Tensor, "*row head query key"]:
    """Return the attention pattern: softmax(q k / sqrt(d_head) + mask)."""
    k = to_query_heads(k, q.shape[-2])
    scores = q.transpose(-2, -3) @ k.transpose(-2, -3).transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores + mask).softmax(dim=-1)


def to_query_heads(
    x: Float[Tensor, "*row pos shared d_head"], n_heads: int
) -> Float[Tensor, "*row pos head d_head"]:
    """Repeat keys or values that query heads share (GQA), once for each query head."""
    each = n_heads // x.shape[-2]
    return x if each == 1 else x.repeat_interleave(each, dim=-2)
