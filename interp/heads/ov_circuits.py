"""OV circuits: whether a head copies the token that it attends to, read off its weights.

A head that attends to a position adds x W_V W_O to the residual stream, where x is its normed input
at that position. Two scores describe the logits of that output:

    copying      sum of the eigenvalues divided by the sum of their absolute values, for the map
                 from tokens to logits of the same tokens: 1 raises each token itself, -1 lowers it
                 (Elhage et al. 2021, https://transformer-circuits.pub/2021/framework, "Copying")
    name moving  share of tokens that are among the `top` highest logits of the whole vocabulary
                 when the head writes them (Wang et al. 2022, https://arxiv.org/abs/2211.00593,
                 section 3.4; negated for negative name movers)

Both start from the *effective embedding*: the output of the first block for a single token, without
position embedding and with that block's attention set to zero. (Heads of the first block read the
embedding itself.) Layer norms are applied as in the model. For the eigenvalues the mean over tokens
is removed on both sides of the map, because a part common to all tokens copies nothing.

The interval of the eigenvalue score is a jackknife over groups of tokens (Efron & Tibshirani 1993,
ch. 11). A bootstrap would not work: it draws tokens repeatedly, and would count a repeated token as
copied twice.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.components import HookedModel, device_of, read_weights
from interp.errors import BehaviourError, ModelError
from interp.heads import result
from interp.heads.result import HeadScores
from interp.results import provenance
from train.model import GPT, attachments
from train.statistics import shares


__all__ = ["effective_embedding", "name_moving", "ov_copying"]

GROUPS = 20  # groups of the jackknife
# 97.5 % quantiles of Student's t with 1 to 19 degrees of freedom.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
# Tokens whose logits over the whole vocabulary are computed at a time: 154 MB for the 12 heads of a
# layer of GPT-2.
TOKENS = 64


def ov_copying(model: HookedModel, words: Sequence[int], *, seed: int = 0) -> HeadScores:
    """Score how far each head raises the token that it attends to, in [-1, 1].

    Args:
        model: A GPT.
        words: Ids of the tokens that the score is about. Their order decides the groups of the
            jackknife.
        seed: Seed of the untrained model's initial weights.

    Raises:
        BehaviourError: There are fewer than three different tokens, or one outside the vocabulary.
        ModelError: The model is not a GPT, whose weights can be read.

    Examples:
        >>> scores = heads.ov_copying(model, ioi.answer.unique().tolist())
        >>> scores.kind, tuple(scores.values.shape), scores.drawn
        ('copying', (2, 4), 'tokens')
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
        material=f"{len(tokens)} tokens of a vocabulary of {gpt.cfg.d_vocab}",
    )


def name_moving(
    model: HookedModel,
    words: Sequence[int],
    *,
    top: int = 5,
    negative: bool = False,
    seed: int = 0,
) -> HeadScores:
    """Score the share of tokens that a head raises into the `top` logits when it attends to them.

    Args:
        model: A GPT.
        words: Token ids, e.g. of names.
        top: Number of highest logits, over the whole vocabulary.
        negative: Negate the output of the head, to find negative name movers.
        seed: Seed of the untrained model's initial weights.

    Raises:
        BehaviourError: There are fewer than three different tokens, one outside the vocabulary, or
            `top` is not between 1 and the size of the vocabulary - 1.
        ModelError: The model is not a GPT, whose weights can be read.

    Examples:
        >>> scores = heads.name_moving(model, ioi.answer.unique().tolist())
        >>> scores.kind, tuple(scores.values.shape), scores.unit
        ('name moving', (2, 4), 'share of tokens among the top 5')
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
        material=f"{len(tokens)} tokens of a vocabulary of {gpt.cfg.d_vocab}",
    )


def effective_embedding(
    model: HookedModel, tokens: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
    """Return the input and the output of the first block for each token on its own.

    The position embedding and the attention output of the first block are set to zero.

    Examples:
        >>> before, after = heads.effective_embedding(model, torch.tensor([5, 6, 7]))
        >>> tuple(before.shape), tuple(after.shape)
        ((3, 128), (3, 128))
    """
    model = read_weights(model, "the effective embedding")
    found: dict[str, Tensor] = {}

    def silence(value: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(value)

    def keep(value: Tensor, hook: object) -> None:
        found[getattr(hook, "name", "")] = value[:, 0]
        if len(found) == 2:
            raise _Enough

    ends = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    silent = [name for name in ("hook_pos_embed",) if name in model.hook_dict]
    hooks = [(name, silence) for name in [*silent, "blocks.0.hook_attn_out"]]
    with suppress(_Enough), model.hooks([*hooks, *((name, keep) for name in ends)]):
        model(tokens[:, None])
    return found[ends[0]], found[ends[1]]


class _Enough(Exception):
    """Signal that stops the forward pass after the first block."""


def _checked(model: HookedModel, words: Sequence[int]) -> tuple[GPT, Int[Tensor, " token"]]:
    model = read_weights(model, "a score of what a head writes")
    if found := attachments(model):
        raise ModelError(f"{found[0]}, which the weights do not show; take the model without it")
    cfg = model.cfg
    names = ("unet", "embed_mix", "embed_norm", "value_residual", "retention")
    parts = [name for name in names if getattr(cfg, name)]
    if cfg.exclusive != "none":
        parts.append(f"exclusive={cfg.exclusive}")
    if parts:
        raise ModelError(
            "what a head writes is not a fixed map of the token that it attends to in a model with "
            f"{', '.join(parts)}; patch the head instead"
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
    """Return the normed input of a layer's heads at the position of each token."""
    stream = effective_embedding(model, tokens)[min(layer, 1)]
    block = model.blocks[layer]
    return block.ln1(stream) if block.pre else stream


@torch.inference_mode()
def _eigenvalue_shares(
    model: GPT, tokens: Int[Tensor, " token"], kept: Sequence[Tensor]
) -> Float[Tensor, "subset layer head"]:
    """Return sum(eigenvalues) / sum(|eigenvalues|) of each head, for several subsets of the tokens.

    With x the inputs and u the unembedding of the tokens, the map from tokens to their logits is
    x W_V W_O u, a [token token] matrix. Its nonzero eigenvalues are those of W_O u x W_V, which is
    only [d_head d_head], since AB and BA have the same nonzero eigenvalues.
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
    # Centring over tokens is a projection C, and eig(A C) = eig(C A C): centring one side suffices
    # to remove the common part on both sides.
    values = values - values.mean(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvals(writes @ values)
    total = eigenvalues.abs().sum(-1)
    # A head that writes zeros has no eigenvalues other than 0 and gets the score 0.
    return torch.where(total > 0, eigenvalues.real.sum(-1) / total.clamp(min=1e-300), 0.0)


def _unembedded(model: GPT, tokens: Int[Tensor, " token"]) -> Float64[Tensor, "d_model token"]:
    """Return the tokens' columns of the unembedding, with the final norm folded in.

    The scale of the norm is left out: it is a positive factor and cancels in the score.
    """
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
    """Return 1 for tokens with fewer than `top` other tokens of at least the same logit, else 0."""
    layers = []
    for layer, (W_V, b_V, W_O) in enumerate(zip(model.W_V, model.b_V, model.W_O, strict=True)):
        values = torch.einsum("td,hde->the", _read_by(model, layer, tokens), W_V) + b_V
        writes = sign * torch.einsum("the,hed->thd", values, W_O)
        right = []
        for some, own in zip(writes.split(TOKENS), tokens.split(TOKENS), strict=True):
            logits = model.to_logits(some)
            mine = logits.gather(-1, own[:, None, None].expand(-1, logits.shape[1], 1))
            # >= and not >, so that tokens with equal logits count as higher: a head that writes
            # nothing raises no token.
            right.append((logits >= mine).sum(-1) <= top)
        layers.append(torch.cat(right).float().T)
    return torch.stack(layers).cpu()
