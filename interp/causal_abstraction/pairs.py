"""Base and source prompts, and what a theory says of them.

A theory names a variable and says what the model answers when that variable, and it alone, is taken
from another prompt. So a pair is two prompts and the answer that the theory expects of the first
with the variable of the second (Geiger et al. 2021, https://arxiv.org/abs/2106.02997).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from interp.statistics import n_prompts


__all__ = ["Pairs", "crossed", "halves", "swaps"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Base prompts, source prompts, and what the theory says of the base with the source's value.

    Attributes:
        name: Of the behaviour and the variable.
        base: Prompts that are run.
        source: Prompts whose values are put in.
        expected: Answer to the base with the variable of the source.
        original: Answer to the base as it is.
        of_source: Answer to the source as it is.
        candidates: Tokens among which an answer is sought; None: `expected` against `original`.
    """

    name: str
    # Axes of their own: unequal ones get a line of ours, not the type checker's page.
    base: Int[Tensor, "pair pos"]
    source: Int[Tensor, "source source_pos"]
    expected: Int[Tensor, " expected"]
    original: Int[Tensor, " original"]
    of_source: Int[Tensor, " of_source"]
    candidates: tuple[int, ...] | None = None

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
        """Their length."""
        return self.base.shape[1]

    def of(self, rows: Sequence[int] | Int[Tensor, " row"]) -> "Pairs":
        """Some of the pairs."""
        names = ("base", "source", "expected", "original", "of_source")
        index = torch.as_tensor(rows, dtype=torch.long)
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def swaps(behaviour: Behaviour) -> Pairs:
    """Each clean prompt with its corrupt one as source, and the other way round.

    The variable is whatever the two differ in; the answer of one is the foil of the other.
    """
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
    """Clean prompts with other clean prompts as sources, drawn where the answers differ.

    The variable decides the answer alone: the base with the source's value has the source's answer.

    Raises:
        BehaviourError: All answers are the same.
    """
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
    """The behaviour in two: no clean prompt is in both.

    Raises:
        BehaviourError: There is one distinct prompt only.
    """
    prompts = torch.from_numpy(n_prompts(behaviour.clean))
    n = int(prompts.max()) + 1
    if n < 2:
        raise BehaviourError(f"{behaviour.name!r} has one prompt, which cannot be halved")
    first = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]
    inside = torch.isin(prompts, first)
    names = ("clean", "corrupt", "answer", "foil")
    one, other = (
        replace(behaviour, **{name: getattr(behaviour, name)[rows] for name in names})
        for rows in (inside, ~inside)
    )
    return one, other
