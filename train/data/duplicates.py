"""Exact and near duplicates among the documents of a token store.

A copy of a document teaches the same as the document, so copies are removed together, and a random
control must not contain one. *Exact* duplicates have the same sha256 in the document table. *Near*
duplicates share most of their shingles (runs of three tokens): the Jaccard similarity of the two
sets is at least .65. It is computed exactly for every document of the store, not estimated (Broder
1997, On the resemblance and containment of documents).

Three tokens and .65 were chosen on the planted corpus of content seed 0. Its declared near
duplicates, with one word of 18, 27 or 36 replaced, have a similarity of .67 or more; statements of
two different facts have at most .60. On content seeds 1 to 8, which were not used for the choice,
the same holds for all statements and for all but 4 of 1,600 near duplicates, which have .625 and
are missed. The relation is not transitive: a near duplicate of a near duplicate counts only if it
is itself near the document.

The store is read in blocks, because all of OpenWebText at once would take gigabytes.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int64

from train.data.token_store import TokenStore


if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Together", "copies", "document_sha256s", "near_duplicates", "with_duplicates"]

SHINGLE, SHARE = 3, 0.65

# Which duplicates of a document are removed with it.
Together = Literal["near", "exact", "none"]


def with_duplicates(store: TokenStore, documents: Collection[int], which: Together) -> set[int]:
    """Return the documents and their duplicates: none of them, exact ones, or near ones as well.

    Examples:
        >>> sorted(data.with_duplicates(store, [28867], "near"))
        [28867, 28874]
    """
    if which == "none":
        return {*documents}
    exact = copies(store, documents)
    if which == "exact":
        return exact
    near = near_duplicates(store, documents)
    return exact.union(*near.values())


def copies(store: TokenStore, documents: Collection[int]) -> set[int]:
    """Return all documents with the same text as one of `documents`, these included."""
    wanted = {store.document(one).sha256 for one in sorted(documents)}
    return {index for index, sha256 in enumerate(document_sha256s(store)) if sha256 in wanted}


def document_sha256s(store: TokenStore) -> Iterator[str]:
    """Yield the sha256 of every document's text, in the order of the table.

    Examples:
        >>> next(data.document_sha256s(store)) == store.document(0).sha256
        True
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(store.table_path)
    for batch in file.iter_batches(columns=["sha256"]):
        yield from batch.column(0).to_pylist()


def near_duplicates(
    store: TokenStore,
    documents: Collection[int],
    *,
    share: float = SHARE,
    among: Collection[int] | None = None,
    block_tokens: int = 1 << 20,
) -> dict[int, dict[int, float]]:
    """Find the near duplicates of each document, and their similarity.

    Reads the whole store once, or only the documents in `among`. Documents shorter than a shingle
    have no near duplicates.

    Args:
        share: Smallest similarity of a near duplicate.
        among: Documents to search; default: all.
        block_tokens: Number of tokens compared at a time; a million take about 100 MB of memory.

    Returns:
        For each document, ascending: its near duplicates and the Jaccard similarity of their
        shingles, from `share` to 1.

    Examples:
        >>> data.near_duplicates(store, [28867, 2456])
        {2456: {}, 28867: {28874: 1.0}}
    """
    asked = np.array(sorted({*documents}), np.int64)
    found: dict[int, dict[int, float]] = {int(one): {} for one in asked}
    owners, shingles = _shingles(store, asked)
    known = np.unique(shingles)
    if not len(known):
        return found
    ours = _sets(owners, np.searchsorted(known, shingles), (len(asked), len(known)))
    if among is None:
        blocks = _blocks(store, block_tokens)
    else:
        blocks = [np.array(sorted({*among}), np.int64)]
    for block in blocks:
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
    """Yield row in `ours`, other document and Jaccard similarity, if that is at least `share`."""
    owners, shingles = _shingles(store, others)
    totals = np.bincount(owners, minlength=len(others))
    columns = np.minimum(np.searchsorted(known, shingles), len(known) - 1)
    held = known[columns] == shingles
    # |A & B| <= |B & known|, and J(A, B) >= share implies |A & B| >= share * |B|: a document B with
    # fewer known shingles than that cannot be a near duplicate.
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
    """Return every distinct shingle of each document: row in `documents`, and shingle as a number.

    The number holds three tokens of 21 bits each. It identifies the shingle, because no vocabulary
    has two million tokens.
    """
    places = np.maximum(store.lengths[documents] - SHINGLE + 1, 0)
    owners = np.repeat(np.arange(len(documents)), places)
    # offsets: first token of every shingle, for one document after the other.
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
    # Imported here, because scipy.sparse takes a fifth of a second to import.
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)


def _blocks(store: TokenStore, n_tokens: int) -> Iterator[Int64[np.ndarray, " document"]]:
    """Yield the indices of all documents, in blocks of about `n_tokens` tokens."""
    first, n = 0, store.n_documents
    while first < n:
        end = int(np.searchsorted(store.starts, int(store.starts[first]) + n_tokens))
        last = min(max(end, first + 1), n)
        yield np.arange(first, last)
        first = last
