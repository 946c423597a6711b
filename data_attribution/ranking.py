"""The ranking: documents by the score of one kind of evidence, the result of every method."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from train.short_repr import short_repr


__all__ = ["Ranking", "ranked"]


def _whole(document: int) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True, eq=False)
class Ranking:
    """Documents by falling score; a higher score is stronger evidence for the target.

    Attributes:
        where: Function from a document to the passage that is the evidence: offset and length in
            tokens of the document. The length is 0 if the method names no passage.
        low, high: 95 % interval of each score over the target's prompts, or None.
        signed: Whether a score can be evidence against a document, as a gradient of opposite sign
            is.
        formula: Short description of how scores were computed.
        details: Further entries for the provenance of a result.
    """

    documents: Int64[np.ndarray, " document"]
    scores: Float64[np.ndarray, " document"]
    where: Callable[[int], tuple[int, int]] = _whole
    low: Float64[np.ndarray, " document"] | None = None
    high: Float64[np.ndarray, " document"] | None = None
    signed: bool = False
    formula: str = ""
    details: dict[str, object] = field(default_factory=dict)

    __repr__ = short_repr

    def among(self, documents: Int64[np.ndarray, " candidate"]) -> "Ranking":
        """Return the ranking restricted to some documents."""
        there = np.isin(self.documents, documents)
        low, high = (None if one is None else one[there] for one in (self.low, self.high))
        return replace(
            self, documents=self.documents[there], scores=self.scores[there], low=low, high=high
        )


def ranked(
    documents: Int64[np.ndarray, " document"],
    scores: Float64[np.ndarray, " document"],
    **others: Any,
) -> Ranking:
    """Return a ranking of documents given in any order; ties keep the given order."""
    order = np.argsort(-scores, kind="stable")
    for name in ("low", "high"):
        if others.get(name) is not None:
            others[name] = others[name][order]
    return Ranking(documents[order], scores[order], **others)
