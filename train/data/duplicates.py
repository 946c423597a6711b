"""Which documents of a store are the same text, or nearly.

A copy of a document teaches what the document taught, so copies are removed together, and no
control may hold one. *Exact* copies have the same sha256 in the document table. *Near* copies share
most of their shingles (runs of three tokens): Jaccard's measure of the two sets, computed for every
document of the store and not estimated (Broder 1997, On the resemblance and containment of
documents). Three tokens and .65 were chosen on the planted corpus of content seed 0: its declared
near duplicates, one word of 18, 27 or 36 replaced, share .67 or more; statements of two facts share
.60 at most. On content seeds 1 to 8, where nothing was chosen, that holds of all statements and of
all but 4 of 1,600 duplicates, which share .625 and are missed. Near is not passed on: a copy of a
copy counts only when it is near itself.

The store is read in blocks: all of it at once would be gigabytes for OpenWebText.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int64

from train.data import token_store
from train.data.token_store import TokenStore


if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Together", "copies", "document_sha256s", "near_duplicates", "with_duplicates"]

SHINGLE, SHARE = 3, 0.65
BLOCK = 1 << 20  # tokens looked at at a time, about 100 MB

# Which copies of a document share its fate.
Together = Literal["near", "exact", "none"]


def with_duplicates(store: TokenStore, documents: Collection[int], which: Together) -> set[int]:
    """The documents and their copies."""
    if which == "none":
        return {*documents}
    found = copies(store, documents)
    return found | {
        other for near_by in near_duplicates(store, documents).values() for other in near_by
    }


def copies(store: TokenStore, documents: Collection[int]) -> set[int]:
    """Documents that have the text of one of `documents`, themselves included."""
    wanted = {store.document(one).sha256 for one in sorted(documents)}
    return {index for index, sha256 in enumerate(document_sha256s(store)) if sha256 in wanted}


def document_sha256s(store: TokenStore) -> Iterator[str]:
    """The sha256 of every document's text, in the order of the table."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(store.path / token_store.TABLE)
    for batch in file.iter_batches(columns=["sha256"]):
        yield from batch.column(0).to_pylist()


def near_duplicates(
    store: TokenStore,
    documents: Collection[int],
    *,
    share: float = SHARE,
    among: Collection[int] | None = None,
) -> dict[int, dict[int, float]]:
    """For each document the other documents of the store that are near it, and how near.

    Reads the store once, or the documents `among` which to look. Documents shorter than a shingle
    are near nothing.

    Returns:
        By document, ascending: other document to Jaccard's measure of shingles, `share` to 1.
    """
    asked = np.array(sorted({*documents}), np.int64)
    found: dict[int, dict[int, float]] = {int(one): {} for one in asked}
    owners, shingles = _shingles(store, asked)
    known = np.unique(shingles)
    if not len(known):
        return found
    ours = _sets(owners, np.searchsorted(known, shingles), (len(asked), len(known)))
    for block in _blocks(store) if among is None else [np.array(sorted({*among}), np.int64)]:
        for row, other, measure in _compared(store, block, known, ours, share):
            if asked[row] != other:
                found[int(asked[row])][other] = measure
    return found


def _compared(
    store: TokenStore,
    others: Int64[np.ndarray, " document"],
    known: Int64[np.ndarray, " shingle"],
    ours: "csr_array",
    share: float,
) -> Iterator[tuple[int, int, float]]:
    """Row of an asked document, another one, and Jaccard's measure where it is `share` or more."""
    owners, shingles = _shingles(store, others)
    totals = np.bincount(owners, minlength=len(others))
    columns = np.minimum(np.searchsorted(known, shingles), len(known) - 1)
    held = known[columns] == shingles
    # Two sets share no more than either holds of what is known, and that must be most of either.
    enough = np.bincount(owners[held], minlength=len(others)) >= share * totals
    held &= enough[owners]
    theirs = _sets(owners[held], columns[held], (len(others), len(known)))
    shared = (ours @ theirs.T).tocoo()
    sizes = np.diff(ours.indptr)
    measures = shared.data / (sizes[shared.row] + totals[shared.col] - shared.data)
    for one in np.flatnonzero(measures >= share):
        yield int(shared.row[one]), int(others[shared.col[one]]), float(measures[one])


def _shingles(
    store: TokenStore, documents: Int64[np.ndarray, " document"]
) -> tuple[Int64[np.ndarray, " shingle"], Int64[np.ndarray, " shingle"]]:
    """Every distinct shingle of each document, as its row in `documents` and as one number.

    Three tokens of 21 bits each: no vocabulary has two million words, so no two shingles are one
    number.
    """
    places = np.maximum(store.lengths[documents] - SHINGLE + 1, 0)
    owners = np.repeat(np.arange(len(documents)), places)
    begin = store.starts[documents] - np.concatenate([[0], np.cumsum(places)[:-1]])
    offsets = begin[owners] + np.arange(len(owners))
    numbers = np.zeros(len(owners), np.int64)
    for shift in range(SHINGLE):
        numbers = (numbers << 21) | store.tokens[offsets + shift].astype(np.int64)
    order = np.lexsort((numbers, owners))
    owners, numbers = owners[order], numbers[order]
    first = np.ones(len(owners), bool)
    first[1:] = (np.diff(owners) != 0) | (np.diff(numbers) != 0)
    return owners[first], numbers[first]


def _sets(
    rows: Int64[np.ndarray, " member"],
    columns: Int64[np.ndarray, " member"],
    shape: tuple[int, int],
) -> "csr_array":
    # Here: scipy.sparse takes a fifth of a second to import.
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)


def _blocks(store: TokenStore) -> Iterator[Int64[np.ndarray, " document"]]:
    """All documents, about BLOCK tokens at a time."""
    first, n = 0, store.n_documents
    while first < n:
        end = int(np.searchsorted(store.starts, int(store.starts[first]) + BLOCK))
        last = min(max(end, first + 1), n)
        yield np.arange(first, last)
        first = last
