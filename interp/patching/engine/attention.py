"""Attention over new queries and keys that follow old ones.

Rows are patched runs: their positions from `first` on are new, and the keys and values of the
positions before are the base run's. One row of queries at position `first + i` sees keys up to
there; in a bidirectional model `first` is 0 and everything is seen.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


# torch 2.13's fused kernel is made for long sequences. On one thread 192 x 12 heads x 16 positions
# take it 58 ms and the sum written out 9; 48 x 12 x 64 take 33 and 15.
LONGEST_WRITTEN_OUT = 256

__all__ = ["follow", "mix", "pattern", "seen", "to_query_heads"]


def follow(
    before: Float[Tensor, "prompt old head d_head"],
    new: Float[Tensor, "patch prompt pos head d_head"],
) -> Float[Tensor, "patch prompt longer head d_head"]:
    """The base run's keys (or values) and after them those of every patched run."""
    if before.shape[1] == 0:
        return new
    return torch.cat([before.expand(len(new), *before.shape), new], dim=2)


def seen(
    positions: list[int], n_pos: int, *, causal: bool, like: Tensor
) -> Float[Tensor, "query key"]:
    """What is added to the scores: 0 where a query may look, the lowest number where not."""
    query = torch.tensor(positions, device=like.device)[:, None]
    hidden = torch.arange(n_pos, device=like.device) > query
    mask = torch.zeros(len(positions), n_pos, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min) if causal else mask


def mix(
    q: Float[Tensor, "*row query head d_head"],
    k: Float[Tensor, "*row key shared d_head"],
    v: Float[Tensor, "*row key shared d_head"],
    mask: Float[Tensor, "query key"],
) -> Float[Tensor, "*row query head d_head"]:
    """Values averaged by attention, per head."""
    k, v = to_query_heads(k, q.shape[-2]), to_query_heads(v, q.shape[-2])
    rows = q.shape[:-3]
    q, k, v = (one.flatten(0, -4).transpose(1, 2) for one in (q, k, v))
    if q.device.type == "cpu" and len(mask) > 1 and mask.shape[1] <= LONGEST_WRITTEN_OUT:
        z = _written_out(q, k, v, mask)
    else:
        # One query that sees everything, the commonest case at the end of a prompt, needs no mask.
        open_mask = None if len(mask) == 1 and not mask.any() else mask
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=open_mask)
    return z.transpose(1, 2).unflatten(0, rows)


def _written_out(
    q: Float[Tensor, "row head query d_head"],
    k: Float[Tensor, "row head key d_head"],
    v: Float[Tensor, "row head key d_head"],
    mask: Float[Tensor, "query key"],
) -> Float[Tensor, "row head query d_head"]:
    shape, scale = q.shape[:2], q.shape[-1] ** -0.5
    q, k, v = (one.reshape(-1, *one.shape[2:]) for one in (q, k, v))
    scores = torch.baddbmm(mask[None], q, k.transpose(1, 2), alpha=scale)
    return (scores.softmax(dim=-1) @ v).unflatten(0, shape)


def pattern(
    q: Float[Tensor, "*row query head d_head"],
    k: Float[Tensor, "*row key shared d_head"],
    mask: Float[Tensor, "query key"],
) -> Float[Tensor, "*row head query key"]:
    """What every query attends to."""
    k = to_query_heads(k, q.shape[-2])
    scores = q.transpose(-2, -3) @ k.transpose(-2, -3).transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores + mask).softmax(dim=-1)


def to_query_heads(
    x: Float[Tensor, "*row pos shared d_head"], n_heads: int
) -> Float[Tensor, "*row pos head d_head"]:
    """Keys or values once for every query head that reads them."""
    each = n_heads // x.shape[-2]
    return x if each == 1 else x.repeat_interleave(each, dim=-2)
