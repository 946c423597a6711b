"""Windows of tokens that a model reads, and the document that each token belongs to.

The activation at a token depends on the tokens before it, so a token of a corpus has no single
activation. There are three ways to read a corpus; a store records which one was used:

    trained     windows of `context` tokens that tile the token store, as the trainer cuts it; a
                token sees everything before it in its window, including other documents
    documents   every document by itself, behind one end-of-text token; documents longer than
                `context` are cut into several windows, each of which repeats the last `overlap`
                tokens of the one before
    prompts     given prompts, which belong to no document

A window is a range of one token array (the token store's `tokens.bin`), so nothing is copied before
it is read. Every token gets one row; tokens that a window repeats are context and get none. A row
is identified by `document` and `offset`, the index of the token in its document, which is also what
a hit of the token index holds. Both are -1 for end-of-text and padding, which belong to no
document. `position` is the index of the token in tokens.bin, and `pos` its index in the window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from interp.errors import BehaviourError
from train.data import TokenStore
from train.errors import StoreError
from train.short_repr import short_repr


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
    """Ranges of one token array that a model reads, each by itself.

    Attributes:
        tokens: Token array.
        first: Index of each window's first token in the array, ascending.
        length: Number of tokens of each window.
        repeated: Number of tokens at the beginning of each window that are context without a row.
        reading: Way of reading (`trained`, `documents` or `prompts`) and its parameters.
        store: Token store of the tokens; None for prompts.
    """

    tokens: np.ndarray
    first: Int64[np.ndarray, " window"]
    length: Int64[np.ndarray, " window"]
    repeated: Int64[np.ndarray, " window"]
    reading: dict[str, object]
    store: TokenStore | None = None

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.first)

    @property
    def n_rows(self) -> int:
        """Number of tokens whose activations are kept."""
        return int((self.length - self.repeated).sum())

    @property
    def sha256(self) -> str:
        """Digest of the windows; for prompts, which no token store identifies, of tokens too."""
        parts = [np.stack([self.first, self.length, self.repeated]).astype("<i8").tobytes()]
        if self.store is None:
            parts.append(self.tokens.astype("<i8").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def inputs(self, chosen: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, "some pos"]:
        """Return the tokens of some windows, which must be equally long."""
        places = self.first[chosen][:, None] + np.arange(int(self.length[chosen[0]]))
        return np.asarray(self.tokens[places]).astype(np.int64)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return a record of `ROW` for every row of the windows [start, stop)."""
        kept = (self.length - self.repeated)[start:stop]
        rows = np.empty(int(kept.sum()), dtype=ROW)
        # Index of each row in its window: 0 ... kept[0] - 1, 0 ... kept[1] - 1, and so on.
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
    """Return the windows that a trainer with this context reads, in the order of the token store.

    Args:
        store: A token store.
        context: Number of tokens in a window.
        documents: Keep only windows with a token of these documents. None: all windows. All tokens
            of a window get a row, also those of other documents.

    Raises:
        StoreError: No window contains one of the documents, because it was held out or lies after
            the last whole window. Or there is no such document, or no whole window at all.

    Examples:
        >>> windows = activations.training_windows(store, context=64, documents=[28867])
        >>> windows.n_rows, windows.length.tolist()
        (64, [64])
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
    """Return windows of single documents, each behind one end-of-text token.

    A document longer than the context is cut into several windows.

    Args:
        store: A token store.
        context: Maximum number of tokens in a window.
        documents: Indices in the document table, which are read in the order of the table. None:
            all, including held-out ones.
        overlap: Number of tokens that the second and later windows of a document repeat as context.

    Raises:
        StoreError: There is no such document, or the overlap is not below the context.

    Examples:
        >>> windows = activations.document_windows(store, context=64, documents=[28867])
        >>> windows.n_rows, windows.length.tolist()
        (7, [7])
    """
    if not 0 <= overlap < context:
        raise StoreError(
            f"an overlap of {overlap} leaves a window of {context} tokens nothing of its own; it "
            f"must lie between 0 and {context - 1}"
        )
    chosen = np.arange(store.n_documents) if documents is None else _checked(store, documents)
    # One more for the end-of-text, which stands before each document in every token store.
    whole = store.lengths[chosen] + 1
    # Window k of a document begins at k * step of its tokens, end-of-text included.
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
    """Return each prompt as one window, without adding any token.

    Raises:
        BehaviourError: There are no prompts, or they are empty.

    Examples:
        >>> windows = activations.prompt_windows(ioi.clean)
        >>> windows.n_rows, windows.reading
        (960, {'kind': 'prompts', 'context': 15})
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
    """Return the documents in ascending order without repeats, so that rows can be searched.

    Raises:
        StoreError: There are none, or the store has no such document.
    """
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
