"""Pairs of base and source prompts, with the answers that a theory predicts.

A theory names a variable and predicts the model's answer when only that variable takes the value it
has on another prompt. A pair is a base prompt, a source prompt, and the answer that the theory
predicts for the base with the source's variable (Geiger et al. 2021,
https://arxiv.org/abs/2106.02997).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from interp.behaviours import Behaviour, refuse_several
from interp.errors import BehaviourError
from train.short_repr import short_repr
from train.statistics import n_prompts


__all__ = ["Pairs", "crossed", "halves", "swaps"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Base prompts, source prompts, and the predicted answer to the base with the source's value.

    Attributes:
        name: Name of the behaviour and the variable.
        base: Prompts that are run.
        source: Prompts whose values are inserted.
        expected: Predicted answer to the base with the variable of the source.
        original: Correct answer to the base prompt.
        of_source: Correct answer to the source prompt.
        candidates: Tokens among which the answer must have the highest logit. None: the logit of
            `expected` only has to exceed that of `original`.
    """

    name: str
    # Each tensor has axis names of its own, so that unequal lengths reach the one-line errors below
    # and not the type checker.
    base: Int[Tensor, "pair pos"]
    source: Int[Tensor, "source source_pos"]
    expected: Int[Tensor, " expected"]
    original: Int[Tensor, " original"]
    of_source: Int[Tensor, " of_source"]
    candidates: tuple[int, ...] | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        asked = f"interchange {self.name!r}"
        if self.base.shape != self.source.shape or self.base.numel() == 0:
            raise BehaviourError(
                f"{asked} has base prompts of shape {tuple(self.base.shape)} and sources of "
                f"{tuple(self.source.shape)}; make them equally many and equally long"
            )
        lengths = [len(one) for one in (self.expected, self.original, self.of_source)]
        if set(lengths) != {len(self)}:
            raise BehaviourError(
                f"{asked} has {len(self)} pairs and {lengths} answers of each kind"
            )
        same = int((self.expected == self.original).sum())
        if same:
            raise BehaviourError(
                f"{asked}: on {same} of {len(self)} pairs the expected answer is that of the base, "
                "so doing nothing would count as right"
            )
        answers = {*self.expected.tolist(), *self.original.tolist(), *self.of_source.tolist()}
        if self.candidates and not answers <= set(self.candidates):
            raise BehaviourError(f"{asked} has an answer that is no candidate")

    def __len__(self) -> int:
        return len(self.base)

    @property
    def n_pos(self) -> int:
        """Number of tokens of each prompt."""
        return self.base.shape[1]

    def of(self, rows: Sequence[int] | Int[Tensor, " row"]) -> "Pairs":
        """Select some of the pairs by index."""
        names = ("base", "source", "expected", "original", "of_source")
        index = torch.as_tensor(rows, dtype=torch.long)
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def swaps(behaviour: Behaviour) -> Pairs:
    """Pair each clean prompt with its corrupt prompt as source, and the other way round.

    The variable is whatever the two prompts differ in. The answer to each is the foil of the other.

    Examples:
        >>> pairs = causal_abstraction.swaps(ioi)
        >>> tuple(pairs.base.shape), torch.equal(pairs.base[:64], ioi.clean)
        ((128, 15), True)
    """
    refuse_several(behaviour, "an interchange of what two prompts differ in")
    clean, corrupt = behaviour.clean, behaviour.corrupt
    answer, foil = behaviour.answer, behaviour.foil
    foils = set(foil.tolist()) <= set(behaviour.candidates or ())
    return Pairs(
        behaviour.name,
        base=torch.cat([clean, corrupt]),
        source=torch.cat([corrupt, clean]),
        expected=torch.cat([foil, answer]),
        original=torch.cat([answer, foil]),
        of_source=torch.cat([foil, answer]),
        candidates=behaviour.candidates if foils else None,
    )


def crossed(behaviour: Behaviour, *, n_pairs: int = 256, seed: int = 0) -> Pairs:
    """Draw pairs of clean prompts whose answers differ.

    This assumes that the variable alone determines the answer: the base with the source's value has
    the source's answer.

    Raises:
        BehaviourError: All answers are the same.

    Examples:
        >>> pairs = causal_abstraction.crossed(ioi, n_pairs=32)
        >>> tuple(pairs.base.shape), torch.equal(pairs.expected, pairs.of_source)
        ((32, 15), True)
    """
    refuse_several(behaviour, "an interchange between prompts")
    answer = behaviour.answer
    one, other = torch.nonzero(answer[:, None] != answer[None, :], as_tuple=True)
    if not len(one):
        raise BehaviourError(
            f"all {behaviour.n_prompts} answers of {behaviour.name!r} are the same, so no source "
            "predicts another one"
        )
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed))[:n_pairs]
    base, source = one[order], other[order]
    return Pairs(
        behaviour.name,
        base=behaviour.clean[base],
        source=behaviour.clean[source],
        expected=answer[source],
        original=answer[base],
        of_source=answer[source],
        candidates=behaviour.candidates,
    )


def halves(behaviour: Behaviour, *, seed: int = 0) -> tuple[Behaviour, Behaviour]:
    """Split a behaviour into two halves that share no clean prompt.

    Raises:
        BehaviourError: There is only one distinct prompt.

    Examples:
        >>> first, second = causal_abstraction.halves(ioi)
        >>> first.n_prompts, second.n_prompts
        (32, 32)
    """
    prompts = torch.from_numpy(n_prompts(behaviour.clean))
    n = int(prompts.max()) + 1
    if n < 2:
        raise BehaviourError(f"{behaviour.name!r} has one prompt, which cannot be halved")
    first = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]
    inside = torch.isin(prompts, first)
    return behaviour.of(inside), behaviour.of(~inside)
