"""Documents in the order of one kind of evidence: what every method of attribution answers with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


__all__ = ["Ranking", "ranked"]


def _whole(document: int) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True, eq=False)
class Ranking:
    """Documents by falling score; a higher score says that the document speaks more for the target.

    Attributes:
        where: Offset and length, in tokens of the document, of the stretch that speaks for it;
            length 0 where the method names no stretch.
        low, high: 95 % interval of each score over the target's prompts; None where there is none.
        signed: Whether a score may speak against a document, as a pull the other way does.
        formula: How a score was computed, in a few words.
        details: What else the provenance of a result should hold.
    """

    documents: Int64[np.ndarray, " document"]
    scores: Float64[np.ndarray, " document"]
    where: Callable[[int], tuple[int, int]] = _whole
    low: Float64[np.ndarray, " document"] | None = None
    high: Float64[np.ndarray, " document"] | None = None
    signed: bool = False
    formula: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def among(self, documents: Int64[np.ndarray, " candidate"]) -> "Ranking":
        """The same of some documents alone."""
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
    """A ranking of documents that come in any order; equal scores keep the order given."""
    order = np.argsort(-scores, kind="stable")
    for name in ("low", "high"):
        if others.get(name) is not None:
            others[name] = others[name][order]
    return Ranking(documents[order], scores[order], **others)
