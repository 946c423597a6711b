"""Heads found by what they attend to, on random tokens that repeat.

A sequence is one end-of-text, `length` different random tokens, and the same tokens again: nothing
but the first copy predicts the second. Three scores per head, all means of attention, so all lie in
[0, 1] (Olsson et al. 2022, https://arxiv.org/abs/2209.11895; the third: Wang et al. 2022,
https://arxiv.org/abs/2211.00593):

    induction        from a token of the second copy to the one after its first occurrence
    previous token   from any token to the one before it
    duplicate token  from a token of the second copy to its first occurrence

A head is found by its score, never by its number: which one it is depends on the seed. And a score
alone is no proof of function, nor is the copy loss proof of a head; one measured run copied at 0.59
nats with no induction score above 0.03. Report both; what a head writes where it attends is asked
by `interp.heads.ov_circuits`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import tokenizer_of, truth_of
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError
from interp.heads import result
from interp.heads.result import HeadScores
from interp.patching import provenance
from interp.statistics import n_prompts, over_prompts
from train.errors import nearest


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
    """Loss on both copies of random tokens, in nats a token.

    Attributes:
        first: Mean over the first copy, which nothing predicts.
        second: Mean over the second copy without its first token, which nothing predicts either.
        top1: Share of those tokens that the model puts first.
        n: Sequences.
    """

    first: float
    second: float
    top1: float
    n: int

    @property
    def gap(self) -> float:
        """What repetition saves, in nats a token."""
        return self.first - self.second


def repeated_tokens(
    source: Any, *, n: int = 64, length: int = 24, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """Sequences in the words of a run or model: the planted ones, or any token."""
    tokenizer, truth = tokenizer_of(source), truth_of(source)
    if truth:
        words = [int(tokenizer.encode(word)[0]) for word in truth["induction"]["words"]]
    else:
        words = [token for token in range(tokenizer.vocab_size) if token != tokenizer.eot]
    return repeated(words, tokenizer.eot, n=n, length=length, seed=seed)


def repeated(
    words: Sequence[int], eot: int, *, n: int = 64, length: int = 24, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """n sequences of an end-of-text, `length` different words, and the same again."""
    if len(words) < length:
        raise BehaviourError(f"{length} different tokens cannot be drawn from {len(words)}")
    draw = np.random.Generator(np.random.Philox(key=seed))
    run = torch.tensor(np.stack([draw.choice(words, length, replace=False) for _ in range(n)]))
    return torch.cat([torch.full((n, 1), eot), run, run], dim=1)


def detector_scores(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"], kind: str, *, seed: int = 0
) -> HeadScores:
    """One kind of attention for every head, with its interval over sequences and its control.

    Args:
        tokens: As `repeated` makes them.
        kind: induction, previous token or duplicate token.
        seed: Of the untrained model's first weights.

    Raises:
        BehaviourError: There is no such kind, or the sequences do not repeat.
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
    )


def induction_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy to the token after the previous occurrence."""
    return _attention(model, tokens, *attended_positions(tokens, "induction")).mean(dim=-1)


def previous_token_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token before, over all positions but the first."""
    return _attention(model, tokens, *attended_positions(tokens, "previous token")).mean(dim=-1)


def duplicate_token_heads(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention from the second copy to the previous occurrence of the same token."""
    return _attention(model, tokens, *attended_positions(tokens, "duplicate token")).mean(dim=-1)


def best_head(scores: Float[Tensor, "layer head"]) -> tuple[str, float]:
    """Name and score of the highest head."""
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return str(Component("head", layer, head)), scores[layer, head].item()


@torch.inference_mode()
def copying_loss(model: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> Copying:
    """Loss on the first and on the second copy. One forward pass."""
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
    )


def attended_positions(
    tokens: Int[Tensor, "prompt pos"], kind: str
) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
    """Positions that attend, and the positions they attend to, by what heads are scored for.

    Raises:
        BehaviourError: There is no such kind, or the sequences do not repeat.
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
    # [prompt head query key]: one attention weight a place, averaged over places.
    means = [cache[name][:, :, query, key].float().mean(dim=2).T for name in names]
    return torch.stack(means).cpu()


def _length(tokens: Int[Tensor, "prompt pos"]) -> int:
    """Length of one copy.

    Raises:
        BehaviourError: The second half is not the first.
    """
    length = (tokens.shape[1] - 1) // 2
    first, second = tokens[:, 1 : 1 + length], tokens[:, 1 + length :]
    if length < 2 or first.shape != second.shape or not torch.equal(first, second):
        raise BehaviourError(
            f"sequences of {tokens.shape[1]} tokens are not an end-of-text and two equal copies; "
            "make them with detecting.repeated_tokens"
        )
    return length
