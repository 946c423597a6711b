"""The request: the input of every attribution method, with a run, a query and the token index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from train.progress import Progress
from train.short_repr import short_repr


__all__ = ["Candidates", "Request", "run_and_seed"]

Candidates = Int64[np.ndarray, " document"] | None


@dataclass(frozen=True, eq=False)
class Request:
    """One query to a run.

    Attributes:
        run: Run that read the documents; a `train.runs.Run` for methods that need its weights.
        index: Token index of the run's store.
        target: Text or behaviour whose words are searched; None for a query without words.
        query: Quantity that is measured and differentiated, one number per prompt.
        candidates: Documents to score; None: the method chooses them, and gives their number in
            `details`. Methods that search for words rank all documents; whoever asks them restricts
            the ranking (`Ranking.among`).
        seed: Seed for everything random: projections, samples.
        progress: Callback for (what, done, total).
    """

    run: Any
    index: TokenIndex
    target: str | Behaviour | None
    query: Query
    candidates: Candidates = None
    seed: int = 0
    progress: Progress | None = None

    __repr__ = short_repr

    @property
    def name(self) -> str:
        """Return the name of an explicitly given query, else that of the target."""
        if isinstance(self.target, str) and self.query.name == queries.TEXT:
            return self.target
        return self.query.name

    @property
    def words(self) -> str | Behaviour:
        """Return the target whose words are searched.

        Raises:
            EvidenceError: The query has no words.
        """
        if self.target is None:
            raise EvidenceError(f"{self.query.name!r} has no words; give a text beside it")
        return self.target


def run_and_seed(requests: Sequence[Request]) -> tuple[Any, int]:
    """Return the run and the seed of requests that are answered together.

    Raises:
        EvidenceError: There is no request, or they have several runs or seeds.
    """
    runs, seeds = {request.run.id for request in requests}, {request.seed for request in requests}
    if len(runs) != 1 or len(seeds) != 1:
        raise EvidenceError(
            f"{len(requests)} requests to {len(runs)} runs with {len(seeds)} seeds cannot be "
            "answered together; give one request or more, to one run with one seed"
        )
    return requests[0].run, requests[0].seed
