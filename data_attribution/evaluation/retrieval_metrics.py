"""Whether a ranking finds the documents that are known to be behind a question.

* recall@k: relevant documents among the first k, of the min(k, relevant) that could be there.
* reciprocal rank: one over the place of the first relevant document, 0 where none is ranked.
* in the first n: relevant documents among the first n, of the n that there are. Unlike recall@k it
  notices every distractor that comes before one of them.

Intervals are over cases, by Wilson's formula: numbers between 0 and 1 vary at most as shares do,
and a case that is found whole every time is no proof that the next will be.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float64

from data_attribution.evaluation.facts import FactCase
from interp.statistics import wilson


__all__ = ["Found", "Mean", "recall", "reciprocal_rank", "retrieval_measures"]


@dataclass(frozen=True)
class Mean:
    """A mean over cases, between 0 and 1, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Found:
    """How well one ranking a case found what is relevant; numbers stand in the order of `cases`."""

    k: int
    cases: tuple[str, ...]
    recall: Float64[np.ndarray, " case"]
    reciprocal_rank: Float64[np.ndarray, " case"]
    first_n: Float64[np.ndarray, " case"]

    def mean(self, what: str) -> Mean:
        """Mean of `recall`, `reciprocal_rank` or `first_n`."""
        values: Float64[np.ndarray, " case"] = getattr(self, what)
        value = float(values.mean()) if len(values) else 0.0
        return Mean(value, *wilson(value, len(values)), len(values))


def recall(ranked: Iterable[int], relevant: Collection[int], k: int) -> float:
    """Share of what could be found among the first k."""
    top = {*islice(ranked, k)}
    return len(top & {*relevant}) / min(k, len(relevant))


def reciprocal_rank(ranked: Iterable[int], relevant: Collection[int]) -> float:
    """One over the place of the first relevant document, from 1; 0 where none is ranked."""
    for place, document in enumerate(ranked, start=1):
        if document in relevant:
            return 1 / place
    return 0.0


def retrieval_measures(
    ranked: Mapping[str, Sequence[int]], cases: Iterable[FactCase], *, k: int = 10
) -> Found:
    """The three numbers of every case that is ranked and has a relevant document.

    Args:
        ranked: By name of the case, documents best first.
    """
    asked = [case for case in cases if case.name in ranked and case.relevant]
    rows = [
        (
            recall(ranked[case.name], case.relevant, k),
            reciprocal_rank(ranked[case.name], case.relevant),
            recall(ranked[case.name], case.relevant, len(case.relevant)),
        )
        for case in asked
    ]
    columns = np.array(rows, float).reshape(len(rows), 3).T
    return Found(k, tuple(case.name for case in asked), *columns)
