"""Detectors of induction, previous-token and duplicate-token heads, on repeated random tokens.

A sequence is one end-of-text token, `length` different random tokens, and the same tokens again, so
the second copy can only be predicted from the first. Each head gets three scores. They are mean
attention weights and lie in [0, 1] (Olsson et al. 2022, https://arxiv.org/abs/2209.11895; the
third: Wang et al. 2022, https://arxiv.org/abs/2211.00593):

    induction        from a token of the second copy to the token after its first occurrence
    previous token   from any token to the token before it
    duplicate token  from a token of the second copy to its first occurrence

Identify a head by its score and not by its index, because the index depends on the seed. A score
alone does not prove the function of a head, and a low copying loss does not prove that there is
such a head: one measured run copied at 0.59 nats although no induction score exceeded 0.03. Report
both. `interp.heads.ov_circuits` measures what a head writes where it attends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import tokenizer_of
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError
from interp.heads import result
from interp.heads.result import HeadScores
from interp.results import provenance
from train.errors import nearest
from train.statistics import n_prompts, over_prompts


__all__ = [
    "Copying",
    "attended_positions",
    "best_head",
    "copying_loss",
    "detector_scores",
    "duplicate_token_heads",
    "induction_heads",
    "previous_token_heads",
    "repeated",
    "repeated_tokens",
]

KINDS = ("induction", "previous token", "duplicate token")


@dataclass(frozen=True)
class Copying:
    """Loss on both copies of random tokens, in nats per token.

    Attributes:
        first: Mean loss on the first copy, which cannot be predicted.
        second: Mean loss on the second copy, without its first token, which cannot be predicted
            either.
        top1: Share of the tokens behind `second` that the model ranks first.
        n: Number of sequences.
        material: What they consist of, with the number of different tokens and the size of the
            vocabulary.
    """

    first: float
    second: float
    top1: float
    n: int
    material: str = ""

    @property
    def gap(self) -> float:
        """Reduction of the loss by repetition, `first` - `second`, in nats per token."""
        return self.first - self.second


def repeated_tokens(
    source: object, *, n: int = 64, length: int = 24, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """Draw repeated sequences from the whole vocabulary of a run or model, without end-of-text.

    Raises:
        BehaviourError: There are fewer different tokens than `length`.

    Examples:
        >>> tokens = heads.repeated_tokens(run, n=4, length=8)
        >>> tuple(tokens.shape), torch.equal(tokens[:, 1:9], tokens[:, 9:])
        ((4, 17), True)
    """
    # Of planted runs too, so that the scores of all models are of the same measurement.
    tokenizer = tokenizer_of(source)
    words = [token for token in range(tokenizer.vocab_size) if token != tokenizer.eot]
    return repeated(words, tokenizer.eot, n=n, length=length, seed=seed)


def repeated(
    words: Sequence[int], eot: int, *, n: int = 64, length: int = 24, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """Draw n sequences: an end-of-text token, `length` different tokens, and the same again.

    Raises:
        BehaviourError: There are fewer than `length` tokens in `words`.
    """
    if len(words) < length:
        raise BehaviourError(f"{length} different tokens cannot be drawn from {len(words)}")
    draw = np.random.Generator(np.random.Philox(key=seed))
    run = torch.tensor(np.stack([draw.choice(words, length, replace=False) for _ in range(n)]))
    return torch.cat([torch.full((n, 1), eot), run, run], dim=1)


def detector_scores(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"], kind: str, *, seed: int = 0
) -> HeadScores:
    """Score every head for one kind of attention, with intervals over sequences and a control.

    Costs one forward pass of the model and one of the untrained control.

    Args:
        model: A hooked model.
        tokens: Sequences made by `repeated` or `repeated_tokens`.
        kind: "induction", "previous token" or "duplicate token".
        seed: Seed of the untrained model's initial weights.

    Raises:
        BehaviourError: There is no such kind, or the sequences do not repeat.

    Examples:
        >>> tokens = heads.repeated_tokens(run)
        >>> scores = heads.detector_scores(model, tokens, "induction")
        >>> scores.top(2), scores.n
        ([L1H2 0.846, L1H0 0.799], 64)
    """
    query, key = attended_positions(tokens, kind)
    prompts = n_prompts(tokens)
    found = over_prompts(_attention(model, tokens, query, key).numpy(), prompts)
    control = result.untrained(model, seed)
    return HeadScores(
        kind=kind,
        unit="mean attention",
        values=found.values,
        low=found.low,
        high=found.high,
        control=None if control is None else _attention(control, tokens, query, key).mean(dim=-1),
        n=found.n,
        drawn="sequences",
        provenance=provenance(model, None, seed=seed),
        material=_material(model, tokens),
    )


def induction_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Return the mean attention from the second copy to the token after its first occurrence.

    Examples:
        >>> tokens = heads.repeated_tokens(run)
        >>> heads.best_head(heads.induction_heads(model, tokens))[0]
        'L1H2'
    """
    return _attention(model, tokens, *attended_positions(tokens, "induction")).mean(dim=-1)


def previous_token_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Return the mean attention to the previous token, over all positions but the first.

    Examples:
        >>> tokens = heads.repeated_tokens(run)
        >>> heads.best_head(heads.previous_token_heads(model, tokens))[0]
        'L0H1'
    """
    return _attention(model, tokens, *attended_positions(tokens, "previous token")).mean(dim=-1)


def duplicate_token_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Return the mean attention from the second copy to the first occurrence of the same token.

    Examples:
        >>> tokens = heads.repeated_tokens(run)
        >>> scores = heads.duplicate_token_heads(model, tokens)
        >>> tuple(scores.shape), scores.max().item() < 0.1  # this model has no such head
        ((2, 4), True)
    """
    return _attention(model, tokens, *attended_positions(tokens, "duplicate token")).mean(dim=-1)


def best_head(scores: Float[Tensor, "layer head"]) -> tuple[str, float]:
    """Return the name and score of the highest-scoring head.

    Examples:
        >>> heads.best_head(torch.tensor([[0.25, 0.5], [0.75, 0.0]]))
        ('L1H0', 0.75)
    """
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return str(Component("head", layer, head)), scores[layer, head].item()


@torch.inference_mode()
def copying_loss(model: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> Copying:
    """Measure the loss on the first and on the second copy; costs one forward pass.

    Examples:
        >>> loss = heads.copying_loss(model, heads.repeated_tokens(run))
        >>> loss.first - loss.second > 3, loss.n
        (True, 64)
    """
    length = _length(tokens)
    tokens = tokens.to(device_of(model))
    logits = model(tokens)[:, :-1].float()
    targets = tokens[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    right = (logits.argmax(dim=-1) == targets).float()
    return Copying(
        first=losses[:, :length].mean().item(),
        second=losses[:, length + 1 :].mean().item(),
        top1=right[:, length + 1 :].mean().item(),
        n=len(tokens),
        material=_material(model, tokens),
    )


def attended_positions(
    tokens: Int[Tensor, "prompt pos"], kind: str
) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
    """Return the query positions and the key positions whose attention defines a kind of head.

    Raises:
        BehaviourError: There is no such kind, or the sequences do not repeat.

    Examples:
        >>> tokens = torch.tensor([[0, 5, 6, 5, 6]])
        >>> query, key = heads.attended_positions(tokens, "induction")
        >>> query.tolist(), key.tolist()
        ([3, 4], [2, 3])
    """
    if kind not in KINDS:
        raise BehaviourError(f"heads are not scored for {kind!r}{nearest(kind, KINDS)}")
    if kind == "previous token":
        query = torch.arange(1, tokens.shape[1])
        return query, query - 1
    length = _length(tokens)
    query = torch.arange(length + 1, 2 * length + 1)
    return query, query - length + (1 if kind == "induction" else 0)


@torch.inference_mode()
def _attention(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    query: Int[Tensor, " place"],
    key: Int[Tensor, " place"],
) -> Float[Tensor, "layer head prompt"]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=names)
    # A pattern is [prompt head query key]. One weight per (query, key) pair, averaged over pairs.
    means = [cache[name][:, :, query, key].float().mean(dim=2).T for name in names]
    return torch.stack(means).cpu()


def _material(model: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> str:
    """Say how many sequences there are, of how many different tokens, and of how many there are."""
    length = (tokens.shape[1] - 1) // 2
    return (
        f"{len(tokens)} sequences of twice {length} random tokens, "
        f"{len(tokens[:, 1:].unique())} different ones of a vocabulary of {model.cfg.d_vocab}"
    )


def _length(tokens: Int[Tensor, "prompt pos"]) -> int:
    """Return the length of one copy.

    Raises:
        BehaviourError: The second half differs from the first.
    """
    length = (tokens.shape[1] - 1) // 2
    first, second = tokens[:, 1 : 1 + length], tokens[:, 1 + length :]
    if length < 2 or first.shape != second.shape or not torch.equal(first, second):
        raise BehaviourError(
            f"sequences of {tokens.shape[1]} tokens are not an end-of-text and two equal copies; "
            "make them with heads.repeated_tokens"
        )
    return length
