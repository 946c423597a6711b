"""Removal of documents from training: which ones, why, and what becomes of their tokens.

A removed document is blanked: its tokens are replaced by end-of-text. A target that is end-of-text
right after end-of-text is padding and carries no loss, so the order, the shapes of batches, the
steps and the divisor of the loss all stay as they were. `trainer.retrain_without` trains a run
again in this way.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from train.data.duplicates import Together
from train.data.token_store import TokenStore
from train.errors import StoreError
from train.short_repr import short_repr


__all__ = ["DocumentRemoval", "RemovalChoice"]

KINDS = ("named", "facts", "matched-random", "matched-facts")


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


@dataclass(frozen=True)
class RemovalChoice:
    """The choice of the documents of a removal, as the manifest of a retrained run records it.

    The choice is no part of the run's id: the same documents give the same training.

    Attributes:
        kind: `named`: the user gave `named`, or a ranking that begins with them. `facts`: all
            documents that state `facts`. `matched-random`: drawn at random as a control of
            `matched_to`. `matched-facts`: all documents that state `facts`, which were drawn at
            random as a control of `matched_to`.
        named: Documents that were given, without the copies that were removed with them.
        together: Which copies of `named` were removed as well, if they were read.
        facts: Names of planted facts.
        seed: Seed of the draw.
        rule: Version of the rule by which `matched-random` documents are drawn. Their seed gives
            the same documents again under the same rule. None: drawn before rules were numbered.
        matched_to: Documents whose removal this one is a control of; () if nothing was drawn.
        avoided: Further documents that were not allowed to be drawn.

    Raises:
        StoreError: There is no such kind.

    Examples:
        >>> choice = data.RemovalChoice("named", named=(28867,), together="near")
        >>> choice.to_dict()
        {'kind': 'named', 'named': [28867], 'together': 'near'}
        >>> data.RemovalChoice.from_dict(choice.to_dict()) == choice
        True
    """

    kind: str
    named: tuple[int, ...] = ()
    together: Together | None = None
    facts: tuple[str, ...] = ()
    seed: int | None = None
    rule: int | None = None
    matched_to: tuple[int, ...] = ()
    avoided: tuple[int, ...] = ()

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StoreError(
                f"documents to remove are chosen as {', '.join(KINDS)}, not as {self.kind!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON, without what does not apply."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value not in (None, ())
        }

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "RemovalChoice":
        """Read back what `to_dict` returned."""
        lists = {name: tuple(one) for name, one in content.items() if isinstance(one, list)}
        return RemovalChoice(**{**content, **lists})
