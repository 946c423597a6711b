"""Attention of patched runs, whose first keys and values are those of the base run.

A patched run differs from the base run from position `first` on. Its keys and values are therefore

    k = [base k at positions 0 .. first - 1,  patched k at positions first .. n_pos - 1]

and the same for v. The query at position p attends to all keys at positions <= p of this sequence.
In a bidirectional model `first` is 0 and every query attends to every key.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from train.model import Attention, rotate
from train.short_repr import short_repr


# Up to this many keys, attention on a CPU is written out as matrix products. The fused kernel of
# torch 2.13 is made for long sequences: on one thread, 192 rows x 12 heads x 16 positions take
# 58 ms fused and 9 ms written out; 48 x 12 x 64 take 33 ms and 15 ms.
LONGEST_WRITTEN_OUT = 256

__all__ = ["Sinks", "attention_mask", "attention_output", "final_output", "pattern"]
__all__ += ["normalise_and_rotate", "prepend_base", "sinks_of", "to_query_heads", "weighted_values"]


@dataclass(frozen=True, eq=False)
class Sinks:
    """Sinks of a layer: what its heads can attend to beside the positions (`train.model`).

    Attributes:
        k: Their keys.
        v: Their values.
        added: What is added to the products of queries and these keys.
    """

    k: Float[Tensor, "head sink d_head"]
    v: Float[Tensor, "head sink d_head"]
    added: Float[Tensor, "head sink"]

    __repr__ = short_repr

    def of(self, head: int) -> "Sinks":
        """Return the sinks of one head."""
        one = slice(head, head + 1)
        return Sinks(self.k[one], self.v[one], self.added[one])


def sinks_of(attn: Attention) -> Sinks | None:
    """Return the sinks of a layer; None if it has none."""
    made = attn.sink_kv()
    if made is None or attn.sinks is None:
        return None
    k, v = (to_query_heads(one[0], attn.n_heads).transpose(0, 1) for one in made)
    return Sinks(k, v, attn.sinks.scores(attn.n_heads))


def normalise_and_rotate(
    attn: Attention,
    x: Float[Tensor, "*row pos head d_head"],
    site: str,
    rotation: tuple[Tensor, Tensor] | None,
) -> Float[Tensor, "*row pos head d_head"]:
    """Return queries (site "q") or keys ("k") as attention uses them: normalised and rotated.

    `rotation` holds the cosines and sines of the positions of `x`.
    """
    norm = attn.q_norm if site == "q" else attn.k_norm
    x = x if norm is None else norm.normalise(x)
    if rotation is None:
        return x
    return rotate(x.flatten(0, -4), *rotation).unflatten(0, x.shape[:-3])


def final_output(
    attn: Attention,
    y: Float[Tensor, "*row pos head d_head"],
    v: Float[Tensor, "*row pos head d_head"],
    gates: Float[Tensor, "*row pos head"] | None,
    heads: slice = slice(None),
) -> Float[Tensor, "*row pos head d_head"]:
    """Return z of some heads: y without the part along the own value `v`, times the gates."""
    if attn.exclusive is not None:
        weight = attn.exclusive.weight
        share = y.new_ones(()) if weight is None else weight[heads].tanh()
        y = attn.exclusive.remove(y, v, share.expand(y.shape[:-1]))
    return y if gates is None else y * gates[..., None]


def prepend_base(
    before: Float[Tensor, "prompt old head d_head"],
    new: Float[Tensor, "patch prompt pos head d_head"],
) -> Float[Tensor, "patch prompt longer head d_head"]:
    """Prepend the base run's keys (or values) to those of every patched run."""
    if before.shape[1] == 0:
        return new
    return torch.cat([before.expand(len(new), *before.shape), new], dim=2)


def attention_mask(
    attn: Attention, positions: list[int], n_pos: int, *, like: Tensor
) -> Float[Tensor, "query key"]:
    """Return the mask added to attention scores: 0 if a query may attend, else the lowest number.

    Query row i is at `positions[i]`; keys are at positions 0 to `n_pos` - 1.
    """
    query = torch.tensor(positions, device=like.device)[:, None]
    key = torch.arange(n_pos, device=like.device)
    hidden = key > query
    if attn.window:
        hidden |= key <= query - attn.window
    mask = torch.zeros(len(positions), n_pos, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min) if attn.causal else mask


def attention_output(
    q: Float[Tensor, "*row query head d_head"],
    k: Float[Tensor, "*row key shared d_head"],
    v: Float[Tensor, "*row key shared d_head"],
    mask: Float[Tensor, "query key"],
    sinks: Sinks | None = None,
) -> Float[Tensor, "*row query head d_head"]:
    """Return y: per head, the values weighted by softmax(q k / sqrt(d_head) + mask).

    With sinks, the softmax runs over them too.
    """
    if sinks is not None:
        attended, of_sinks = pattern(q, k, mask, sinks)
        return weighted_values(attended, to_query_heads(v, q.shape[-2]), of_sinks, sinks)
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
    sinks: Sinks | None = None,
) -> tuple[Float[Tensor, "*row head query key"], Float[Tensor, "*row head query sink"]]:
    """Return the attention pattern softmax(q k / sqrt(d_head) + mask), and that of the sinks.

    The softmax runs over both together; without sinks the second has no columns.
    """
    k, q = to_query_heads(k, q.shape[-2]), q.transpose(-2, -3)
    scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-2, -3).transpose(-1, -2) * scale + mask
    if sinks is None:
        return scores.softmax(dim=-1), scores[..., :0]
    of_sinks = q @ sinks.k.transpose(-1, -2) * scale + sinks.added[:, None]
    both = torch.cat([of_sinks, scores], dim=-1).softmax(dim=-1)
    n_sinks = of_sinks.shape[-1]
    return both[..., n_sinks:], both[..., :n_sinks]


def weighted_values(
    attended: Float[Tensor, "*row head query key"],
    v: Float[Tensor, "*row key head d_head"],
    of_sinks: Float[Tensor, "*row head query sink"],
    sinks: Sinks | None,
) -> Float[Tensor, "*row query head d_head"]:
    """Return y of given patterns: the weighted values of positions and of sinks."""
    y = attended @ v.transpose(-2, -3)
    y = y if sinks is None else y + of_sinks @ sinks.v
    return y.transpose(-2, -3)


def to_query_heads(
    x: Float[Tensor, "*row pos shared d_head"], n_heads: int
) -> Float[Tensor, "*row pos head d_head"]:
    """Repeat keys or values that query heads share (GQA), once for each query head."""
    each = n_heads // x.shape[-2]
    return x if each == 1 else x.repeat_interleave(each, dim=-2)
