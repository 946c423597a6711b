"""What a head writes of a token that it attends to: whether it copies it. No attention is run.

A head that attends to a token adds W_V W_O of what stands there to the stream. Two scores of what
becomes of it when it is unembedded:

    copying      sum of the eigenvalues over the sum of their sizes, of the map from tokens to
                 logits of the same tokens: 1 raises each token itself, -1 lowers it (Elhage et al.
                 2021, https://transformer-circuits.pub/2021/framework, "Copying")
    name moving  share of tokens that are among the `top` highest of the whole vocabulary when the
                 head writes them (Wang et al. 2022, https://arxiv.org/abs/2211.00593, section 3.4;
                 negated, for the negative name movers)

Both begin at the *effective embedding*: what leaves the first block for a token that stands alone,
without its position and with that block's attention silent (heads of the first block themselves
read the bare embedding). The layer norms are applied as the model has them. For the eigenvalues
what all tokens share is taken away on both sides, since it copies nothing.

The eigenvalues' interval is a jackknife over groups of tokens (Efron & Tibshirani 1993, ch. 11);
a bootstrap would see its repeated tokens as the same token copied twice.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.components import HookedModel, device_of
from interp.errors import BehaviourError, ModelError
from interp.heads import result
from interp.heads.result import HeadScores
from interp.patching import provenance
from interp.statistics import shares
from train.model import GPT


__all__ = ["effective_embedding", "name_moving", "ov_copying"]

GROUPS = 20
# 97.5 % quantiles of Student's t with 1 to 19 degrees of freedom.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
# Tokens whose logits over the vocabulary are held at a time: 154 MB a 12 heads of GPT-2.
TOKENS = 64


def ov_copying(model: HookedModel, words: Sequence[int], *, seed: int = 0) -> HeadScores:
    """How far each head raises the very token that it attends to, in [-1, 1].

    Args:
        words: Token ids, as many as the answer is to hold for; their order decides the groups.
        seed: Of the untrained model's first weights.

    Raises:
        BehaviourError: Fewer than three different tokens, or one that the model does not know.
        ModelError: The model's weights cannot be reached.
    """
    gpt, tokens = _checked(model, words)
    groups = min(GROUPS, len(tokens))
    held = [torch.arange(len(tokens)) % groups != group for group in range(groups)]
    values = _eigenvalue_shares(gpt, tokens, [torch.ones(len(tokens), dtype=torch.bool), *held])
    without = values[1:]
    spread = (groups - 1) / groups * (without - without.mean(0)).pow(2).sum(0)
    half = T[groups - 2] * spread.sqrt()
    control = result.untrained(model, seed)
    everything = torch.ones(len(tokens), dtype=torch.bool)
    return HeadScores(
        kind="copying",
        unit="sum of eigenvalues / sum of their sizes",
        values=values[0],
        low=(values[0] - half).clamp(min=-1.0),
        high=(values[0] + half).clamp(max=1.0),
        control=None if control is None else _eigenvalue_shares(control, tokens, [everything])[0],
        n=len(tokens),
        drawn="tokens",
        provenance=provenance(model, None, seed=seed),
    )


def name_moving(
    model: HookedModel,
    words: Sequence[int],
    *,
    top: int = 5,
    negative: bool = False,
    seed: int = 0,
) -> HeadScores:
    """Share of tokens that a head brings among the `top` of the vocabulary when it attends to them.

    Args:
        words: Token ids, of names say.
        negative: Of what the head writes the negative: for heads that move names away.
        seed: Of the untrained model's first weights.

    Raises:
        BehaviourError: Fewer than three different tokens, or one that the model does not know.
        ModelError: The model's weights cannot be reached.
    """
    gpt, tokens = _checked(model, words)
    if not 0 < top < gpt.cfg.d_vocab:
        raise BehaviourError(f"top={top} of a vocabulary of {gpt.cfg.d_vocab} says nothing")
    sign = -1.0 if negative else 1.0
    found = shares(_raised(gpt, tokens, top, sign).numpy(), np.arange(len(tokens)))
    control = result.untrained(model, seed)
    return HeadScores(
        kind="name moving, negated" if negative else "name moving",
        unit=f"share of tokens among the top {top}",
        values=found.values,
        low=found.low,
        high=found.high,
        control=None if control is None else _raised(control, tokens, top, sign).mean(dim=-1),
        n=len(tokens),
        drawn="tokens",
        provenance=provenance(model, None, seed=seed),
    )


def effective_embedding(
    model: GPT, tokens: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
    """Each token before the first block and after it, alone, where nothing is attended to."""
    found: dict[str, Tensor] = {}

    def silence(value: Tensor, point: object) -> Tensor:
        return torch.zeros_like(value)

    def keep(value: Tensor, point: object) -> None:
        found[getattr(point, "name", "")] = value[:, 0]
        if len(found) == 2:
            raise _Enough

    ends = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    silent = [name for name in ("hook_pos_embed",) if name in model.hook_dict]
    hooks = [(name, silence) for name in [*silent, "blocks.0.hook_attn_out"]]
    with suppress(_Enough), model.hooks([*hooks, *((name, keep) for name in ends)]):
        model(tokens[:, None])
    return found[ends[0]], found[ends[1]]


class _Enough(Exception):
    """The first block is done; what lies above is not computed."""


def _checked(model: HookedModel, words: Sequence[int]) -> tuple[GPT, Int[Tensor, " token"]]:
    if not isinstance(model, GPT):
        raise ModelError(
            f"what a head writes is read off its weights, and a {type(model).__name__} does not "
            "show them by our names; load it with interp.models"
        )
    tokens = list(dict.fromkeys(int(word) for word in words))
    if len(tokens) < 3:
        raise BehaviourError(f"{len(tokens)} different tokens are too few to say what is copied")
    if not 0 <= min(tokens) <= max(tokens) < model.cfg.d_vocab:
        raise BehaviourError(
            f"tokens {min(tokens)} to {max(tokens)} were asked of a vocabulary of "
            f"{model.cfg.d_vocab}"
        )
    return model, torch.tensor(tokens, device=device_of(model))


def _read_by(
    model: GPT, layer: int, tokens: Int[Tensor, " token"]
) -> Float[Tensor, "token d_model"]:
    """What the heads of a layer read where a token stands."""
    stream = effective_embedding(model, tokens)[min(layer, 1)]
    block: Any = model.blocks[layer]
    return block.ln1(stream) if block.pre else stream


@torch.inference_mode()
def _eigenvalue_shares(
    model: GPT, tokens: Int[Tensor, " token"], kept: Sequence[Tensor]
) -> Float[Tensor, "subset layer head"]:
    """Sum over size of the eigenvalues, for several subsets of the tokens.

    tokens -> logits of the tokens is x W_V W_O u, as wide as there are tokens; its eigenvalues that
    are not 0 are those of W_O u x W_V, as wide as a head.
    """
    u = _unembedded(model, tokens)
    shares = []
    for layer, (W_V, W_O) in enumerate(zip(model.W_V, model.W_O, strict=True)):
        x = _read_by(model, layer, tokens).double()
        values = torch.einsum("td,hde->hte", x, W_V.double())
        writes = torch.einsum("hed,dt->het", W_O.double(), u)
        shares.append(torch.stack([_share(values, writes, one) for one in kept]))
    return torch.stack(shares, dim=1).float().cpu()


def _share(
    values: Float64[Tensor, "head token d_head"],
    writes: Float64[Tensor, "head d_head token"],
    kept: Tensor,
) -> Float64[Tensor, " head"]:
    values, writes = values[:, kept], writes[:, :, kept]
    # On one side: centring is a projection, and eig(A C) = eig(C A C).
    values = values - values.mean(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvals(writes @ values)
    total = eigenvalues.abs().sum(-1)
    # A head that writes nothing copies nothing.
    return torch.where(total > 0, eigenvalues.real.sum(-1) / total.clamp(min=1e-300), 0.0)


def _unembedded(model: GPT, tokens: Int[Tensor, " token"]) -> Float64[Tensor, "d_model token"]:
    """Columns of the unembedding as a head's output meets them; what divides it is positive."""
    u = model.W_U[:, tokens].double()
    if model.cfg.norm_placement != "pre":
        return u
    if model.ln_final.weight is not None:
        u = u * model.ln_final.weight.double()[:, None]
    return u - u.mean(dim=0, keepdim=True) if model.ln_final.centred else u


@torch.inference_mode()
def _raised(
    model: GPT, tokens: Int[Tensor, " token"], top: int, sign: float
) -> Float[Tensor, "layer head token"]:
    """1 where fewer than `top` others of the vocabulary are written as high as the token itself."""
    layers = []
    for layer, (W_V, b_V, W_O) in enumerate(zip(model.W_V, model.b_V, model.W_O, strict=True)):
        values = torch.einsum("td,hde->the", _read_by(model, layer, tokens), W_V) + b_V
        writes = sign * torch.einsum("the,hed->thd", values, W_O)
        right = []
        for some, own in zip(writes.split(TOKENS), tokens.split(TOKENS), strict=True):
            logits = model.to_logits(some)
            mine = logits.gather(-1, own[:, None, None].expand(-1, logits.shape[1], 1))
            # As high and not only higher: a head that writes nothing raises no token.
            right.append((logits >= mine).sum(-1) <= top)
        layers.append(torch.cat(right).float().T)
    return torch.stack(layers).cpu()
