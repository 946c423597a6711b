"""What every method of attribution is given: the run, what is asked of it, and its token index."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour


__all__ = ["Candidates", "Progress", "Request"]

Progress = Callable[[str, int, int | None], None] | None
Candidates = Int64[np.ndarray, " document"] | None


@dataclass(frozen=True, eq=False)
class Request:
    """One query to a run.

    Attributes:
        run: The run that read the documents; a `train.runs.Run` for methods that need its weights.
        index: The token index of its store.
        target: A text or a behaviour, whose words are looked for; None: a query without words.
        query: What is measured and differentiated, as a number a prompt.
        candidates: Documents to score; None: the method decides, and says how many in `details`.
        limit: How many documents are wanted; a method may rank more.
        seed: Of everything drawn: projections, samples.
        progress: Told (what, done, total).
    """

    run: Any
    index: TokenIndex
    target: str | Behaviour | None
    query: Query
    candidates: Candidates = None
    limit: int = 50
    seed: int = 0
    progress: Progress = None

    @property
    def name(self) -> str:
        """What is asked: the query where one was given for itself, else the target."""
        if isinstance(self.target, str) and self.query.name == queries.TEXT:
            return self.target
        return self.query.name

    @property
    def words(self) -> str | Behaviour:
        """The target, whose words are looked for.

        Raises:
            EvidenceError: The query has none.
        """
        if self.target is None:
            raise EvidenceError(f"{self.query.name!r} has no words; give a text beside it")
        return self.target
