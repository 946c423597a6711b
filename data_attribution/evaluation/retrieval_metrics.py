"""Retrieval metrics: whether a ranking finds the documents known to be behind a query.

* recall@k: relevant documents among the first k, over the min(k, relevant) that are possible.
* reciprocal rank: one over the rank of the first relevant document, 0 if none is ranked.
* in the first n: relevant documents among the first n, over all n relevant documents. Unlike
  recall@k it falls with every distractor that comes before one of them.
* distinct texts: different texts of relevant documents among the first n, over all their different
  texts. Copies of one text count once: of the planted corpus, a fact stated eight times or more has
  six texts, however many documents state it.

Intervals are over cases, by Wilson's formula: numbers between 0 and 1 vary at most as much as
shares do, and finding every document in all cases does not prove that the next case succeeds.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float64

from data_attribution.evaluation.facts import FactCase
from train.short_repr import short_repr
from train.statistics import wilson


__all__ = ["Found", "Mean", "distinct_texts", "recall", "reciprocal_rank", "retrieval_measures"]


@dataclass(frozen=True)
class Mean:
    """A mean over cases, between 0 and 1, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Found:
    """Retrieval metrics of one ranking per case, in the order of `cases`."""

    k: int
    cases: tuple[str, ...]
    recall: Float64[np.ndarray, " case"]
    reciprocal_rank: Float64[np.ndarray, " case"]
    first_n: Float64[np.ndarray, " case"]
    distinct_texts: Float64[np.ndarray, " case"]

    __repr__ = short_repr

    def mean(self, what: str) -> Mean:
        """Return the mean of `recall`, `reciprocal_rank`, `first_n` or `distinct_texts`."""
        values: Float64[np.ndarray, " case"] = getattr(self, what)
        value = float(values.mean()) if len(values) else 0.0
        return Mean(value, *wilson(value, len(values)), len(values))


def recall(ranked: Iterable[int], relevant: Collection[int], k: int) -> float:
    """Return the share of relevant documents among the first k, of those possible."""
    top = {*islice(ranked, k)}
    return len(top & {*relevant}) / min(k, len(relevant))


def reciprocal_rank(ranked: Iterable[int], relevant: Collection[int]) -> float:
    """Return one over the rank of the first relevant document, from 1; 0 if none is ranked."""
    for place, document in enumerate(ranked, start=1):
        if document in relevant:
            return 1 / place
    return 0.0


def distinct_texts(
    ranked: Iterable[int], relevant: Collection[int], texts: Mapping[int, str]
) -> float:
    """Return the share of the different texts of relevant documents that the first n hold.

    `texts` has an identifier of the text of each relevant document; n is their number.
    """
    top = {*islice(ranked, len(relevant))} & {*relevant}
    return len({texts[one] for one in top}) / len({texts[one] for one in relevant})


def retrieval_measures(
    ranked: Mapping[str, Sequence[int]],
    cases: Iterable[FactCase],
    *,
    k: int = 10,
    texts: Mapping[int, str] | None = None,
) -> Found:
    """Return the metrics of every case that is ranked and has a relevant document.

    Args:
        ranked: Documents, best first, by name of the case.
        texts: Identifier of the text of each relevant document, such as its sha256; None: every
            document is a text of its own.
    """
    asked = [case for case in cases if case.name in ranked and case.relevant]
    rows = [
        (
            recall(ranked[case.name], case.relevant, k),
            reciprocal_rank(ranked[case.name], case.relevant),
            recall(ranked[case.name], case.relevant, len(case.relevant)),
            distinct_texts(
                ranked[case.name], case.relevant, texts or {one: str(one) for one in case.relevant}
            ),
        )
        for case in asked
    ]
    columns = np.array(rows, float).reshape(len(rows), 4).T
    return Found(k, tuple(case.name for case in asked), *columns)
