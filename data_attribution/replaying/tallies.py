"""Where the scores of targets are added up: by document, and within it by token."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from train.errors import TrainError
from train.runs import Run
from train.token_store import TokenStore


__all__ = ["Tally", "heaviest", "of_span"]


@dataclass(frozen=True, eq=False)
class Tally:
    """A number for each question and each target of some documents.

    Attributes:
        documents: Ascending.
        starts: Where the targets of each begin in `totals`: its tokens, then the end-of-text.
    """

    store: TokenStore
    context: int
    documents: Int64[np.ndarray, " document"]
    starts: Int64[np.ndarray, " document"]
    totals: Float64[np.ndarray, "question target"]

    def add(
        self,
        windows: Int64[np.ndarray, " batch"],
        scores: Float[torch.Tensor, "question batch pos"],
    ) -> None:
        """Add what was found for the targets of the windows that begin at these offsets."""
        offsets = (windows[:, None] + 1 + np.arange(self.context)).ravel()
        begins = self.store.starts[self.documents]
        row = np.searchsorted(begins, offsets, side="right") - 1
        # The end-of-text behind a document is its last target; what else lies between is padding.
        within = offsets - begins[row]
        taught = (row >= 0) & (within <= self.store.lengths[self.documents][row])
        places = (self.starts[row] + within)[taught]
        for total, found in zip(self.totals, scores.flatten(1).double().cpu().numpy(), strict=True):
            np.add.at(total, places, found[taught])


def of_span(run: Run, n_questions: int, first: int, last: int) -> Tally:
    """An empty tally for the documents that were read in steps first..last.

    Raises:
        TrainError: No document was.
    """
    read = (run.documents_read(step) for step in range(first, last + 1))
    documents = reduce(np.union1d, read).astype(np.int64)
    if not len(documents):
        raise TrainError(f"no document was read in steps {first} to {last} of {run.path}")
    sizes = run.store.lengths[documents].astype(np.int64) + 1
    starts = np.cumsum(sizes) - sizes
    totals = np.zeros((n_questions, int(sizes.sum())))
    return Tally(run.store, run.order.context, documents, starts, totals)


def heaviest(scores: Float64[np.ndarray, " token"]) -> tuple[int, int]:
    """Offset and length of the stretch with the largest sum, one token at least; 0, 0 of none."""
    if not len(scores):
        return 0, 0
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    lowest = np.minimum.accumulate(sums[:-1])
    stop = int((sums[1:] - lowest).argmax()) + 1
    start = int(sums[:stop].argmin())
    return start, stop - start
