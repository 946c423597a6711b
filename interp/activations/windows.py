"""Which stretches of tokens a model reads to have its activations kept, and whose tokens they are.

What a model makes of a token depends on what it has read before it, so there is no such thing as
*the* activation at a token of a corpus. Three readings, and the choice travels with the values:

    trained     windows of `context` tokens tile the stream, as the trainer cuts it: a token sees
                whatever lies before it in its window, other documents included
    documents   every document alone, behind one end-of-text; what does not fit into `context` is
                cut into further windows, each of which repeats the last `overlap` tokens
    prompts     rows of tokens that belong to no document

A window is a stretch of one token array (the store's `tokens.bin`), so nothing is copied before it
is read. Every token is kept once: what a window repeats is context and gets no row. The place of a
row is `document` and `offset` (tokens of the document from 0, as the token index counts its hits),
-1 and -1 for end-of-text and padding, which belong to no document; `position` counts tokens of
tokens.bin, and `pos` those of the window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from interp.errors import BehaviourError
from train.data import TokenStore
from train.errors import StoreError


__all__ = ["ROW", "Windows", "document_windows", "prompt_windows", "training_windows"]

ROW = np.dtype([
    ("window", "<i4"),
    ("pos", "<i4"),
    ("token", "<u4"),
    ("document", "<i4"),
    ("offset", "<i4"),
    ("position", "<i8"),
])  # fmt: skip


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of one token array that a model reads, each on its own.

    Attributes:
        tokens: The array.
        first: First token of each window in it, ascending.
        length: Tokens of each window.
        repeated: How many of them at its beginning are only context, and have no row.
        reading: `trained`, `documents` or `prompts`, with what it was made with.
        store: Whose tokens they are; None for prompts.
    """

    tokens: np.ndarray
    first: Int64[np.ndarray, " window"]
    length: Int64[np.ndarray, " window"]
    repeated: Int64[np.ndarray, " window"]
    reading: dict[str, Any]
    store: TokenStore | None = None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def n_rows(self) -> int:
        """Tokens whose activations are kept."""
        return int((self.length - self.repeated).sum())

    @property
    def sha256(self) -> str:
        """Over the cuts; of prompts, over their tokens too, which no store answers for."""
        parts = [np.stack([self.first, self.length, self.repeated]).astype("<i8").tobytes()]
        if self.store is None:
            parts.append(self.tokens.astype("<i8").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def inputs(self, chosen: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, "some pos"]:
        """The tokens of windows of one length."""
        places = self.first[chosen][:, None] + np.arange(int(self.length[chosen[0]]))
        return np.asarray(self.tokens[places]).astype(np.int64)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """What is known of every row of the windows [start, stop), a record of `ROW` each."""
        kept = (self.length - self.repeated)[start:stop]
        rows: Any = np.empty(int(kept.sum()), dtype=ROW)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
        rows["window"] = np.repeat(np.arange(start, stop), kept)
        rows["pos"] = within + np.repeat(self.repeated[start:stop], kept)
        places = rows["pos"] + np.repeat(self.first[start:stop], kept)
        rows["token"] = self.tokens[places]
        rows["document"] = rows["offset"] = rows["position"] = -1
        if self.store is not None:
            owner = self.store.document_at(places)
            rows["document"] = owner
            rows["offset"] = np.where(owner < 0, -1, places - self.store.starts[owner])
            rows["position"] = places
        return rows


def training_windows(
    store: TokenStore, *, context: int, documents: Sequence[int] | None = None
) -> Windows:
    """The windows that a trainer of this context reads, as their tokens lie in the store.

    Args:
        documents: Only the windows that hold a token of these; None is every window. All tokens of
            a window get a row, whosever they are.

    Raises:
        StoreError: A document that no window holds: held out, or behind the last whole window.
    """
    n_windows = (store.train_tokens - 1) // context
    chosen = np.arange(n_windows)
    if documents is not None:
        chosen = _holding(store, _checked(store, documents), context, n_windows)
    if not len(chosen):
        raise StoreError(
            f"no window of {context} tokens fits the {store.train_tokens} tokens of {store.path} "
            "that are trained on"
        )
    return Windows(
        tokens=store.tokens,
        first=chosen * context,
        length=np.full(len(chosen), context),
        repeated=np.zeros(len(chosen), dtype=np.int64),
        reading={"kind": "trained", "context": context},
        store=store,
    )


def document_windows(
    store: TokenStore,
    *,
    context: int,
    documents: Sequence[int] | None = None,
    overlap: int = 0,
) -> Windows:
    """Every document alone, behind one end-of-text, cut where it is longer than the context.

    Args:
        documents: Indices in the document table; None is all, held-out ones included. They are
            read in the order of the table.
        overlap: Tokens that a further window of a document repeats as context.

    Raises:
        StoreError: There is no such document, or the overlap leaves a window nothing of its own.
    """
    if not 0 <= overlap < context:
        raise StoreError(
            f"an overlap of {overlap} leaves a window of {context} tokens nothing of its own; it "
            f"must lie between 0 and {context - 1}"
        )
    chosen = np.arange(store.n_documents) if documents is None else _checked(store, documents)
    # One more for the end-of-text before the document, which every store has there.
    whole = store.lengths[chosen] + 1
    step = context - overlap
    counts = np.maximum(-(-(whole - overlap) // step), 1)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * step
    return Windows(
        tokens=store.tokens,
        first=np.repeat(store.starts[chosen] - 1, counts) + begin,
        length=np.minimum(np.repeat(whole, counts) - begin, context),
        repeated=np.where(number > 0, overlap, 0),
        reading={"kind": "documents", "context": context, "overlap": overlap},
        store=store,
    )


def prompt_windows(tokens: Int[Tensor, "prompt pos"]) -> Windows:
    """Prompts as they are, a window each; nothing is put in front.

    Raises:
        BehaviourError: There are none.
    """
    n, length = tokens.shape
    if not tokens.numel():
        raise BehaviourError(f"{n} prompts of {length} tokens hold nothing to read")
    return Windows(
        tokens=tokens.cpu().numpy().reshape(-1),
        first=np.arange(n) * length,
        length=np.full(n, length),
        repeated=np.zeros(n, dtype=np.int64),
        reading={"kind": "prompts", "context": length},
    )


def _checked(store: TokenStore, documents: Sequence[int]) -> Int64[np.ndarray, " document"]:
    """Ascending and without repeats, so that a row is found by searching."""
    chosen = np.unique(np.asarray(documents, dtype=np.int64))
    if not len(chosen):
        raise StoreError(f"none of the {store.n_documents} documents of {store.path} was chosen")
    if not 0 <= chosen[0] <= chosen[-1] < store.n_documents:
        raise StoreError(
            f"documents {chosen[0]} to {chosen[-1]} were asked of a store with "
            f"{store.n_documents} documents"
        )
    return chosen


def _holding(
    store: TokenStore, chosen: Int64[np.ndarray, " document"], context: int, n_windows: int
) -> Int64[np.ndarray, " window"]:
    low = store.starts[chosen] // context
    high = np.minimum((store.starts[chosen] + store.lengths[chosen] - 1) // context, n_windows - 1)
    if (low > high).any():
        raise StoreError(
            f"document {chosen[low > high][0]} is in none of the {n_windows} windows of {context} "
            "tokens that are trained on; read it alone (`documents`)"
        )
    counts = high - low + 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(low, counts) + within)
