"""Removal of documents from training: which ones, and what becomes of their tokens.

A removed document is blanked: its tokens are replaced by end-of-text. A target that is end-of-text
right after end-of-text is padding and carries no loss, so the order, the shapes of batches, the
steps and the divisor of the loss all stay as they were. `trainer.retrain_without` trains a run
again in this way.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from train.data.token_store import TokenStore
from train.errors import StoreError
from train.short_repr import short_repr


__all__ = ["DocumentRemoval"]


@dataclass(frozen=True)
class DocumentRemoval:
    """Documents to remove from training, and how to remove them.

    Attributes:
        documents: Indices in the document table, ascending.
        mode: `blank` replaces their tokens by end-of-text, so the model does not even see them as
            context; `loss` keeps them as context but does not train on them.

    Raises:
        StoreError: There is no such mode, or the documents are not ascending and distinct.

    Examples:
        >>> removal = data.DocumentRemoval((28867,))
        >>> start = int(store.starts[28867])
        >>> removal.covers(store, np.array([[start - 1, start]])).tolist()
        [[False, True]]
    """

    documents: tuple[int, ...]
    mode: str = "blank"

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.mode not in ("blank", "loss"):
            raise StoreError(f"documents are removed by 'blank' or 'loss', not by {self.mode!r}")
        if list(self.documents) != sorted(set(self.documents)):
            raise StoreError("the documents to remove must be ascending and without repeats")

    def joined(self, earlier: "DocumentRemoval | None") -> "DocumentRemoval":
        """Combine this removal with an `earlier` one of the same run.

        Raises:
            StoreError: The two have different modes; a run can have only one.
        """
        if earlier is None:
            return self
        if earlier.mode != self.mode:
            raise StoreError(
                f"the run already lacks {len(earlier.documents)} documents, removed by "
                f"{earlier.mode!r}; {len(self.documents)} more cannot be removed by {self.mode!r}: "
                f"use {earlier.mode!r}, or begin at the run it was trained from"
            )
        return DocumentRemoval(tuple(sorted({*earlier.documents, *self.documents})), self.mode)

    def covers(
        self, store: TokenStore, offsets: Int64[np.ndarray, "batch pos"]
    ) -> Bool[np.ndarray, "batch pos"]:
        """Return which token offsets are in a removed document or the end-of-text after it."""
        documents = np.array(self.documents, dtype=np.int64)
        starts = store.starts[documents]
        stops = starts + store.lengths[documents] + 1
        nearest = np.searchsorted(starts, offsets, side="right") - 1
        return (nearest >= 0) & (offsets < stops[nearest])

    def blanked(
        self,
        tokens: Int64[np.ndarray, "batch pos"],
        removed: Bool[np.ndarray, "batch pos"],
        eot: int,
    ) -> Int64[np.ndarray, "batch pos"]:
        """Return the tokens of a batch without the removed ones; with mode "loss" they stay."""
        return np.where(removed, eot, tokens) if self.mode == "blank" else tokens
