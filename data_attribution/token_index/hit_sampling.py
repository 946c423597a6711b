"""Sampling of a query's occurrences: spread over its contexts, and reproducible by seed.

The sorted suffixes that start with a query are sorted by what follows it. Drawing one from each of
equally long stretches of them samples the contexts in proportion. The first hundred in the text
would instead be those of the first documents, and independent draws would take some occurrence
twice.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution.token_index.index_part import Part


__all__ = ["Range", "documents", "drawn", "of"]

# (part, low rank, high rank, tokens of the query).
Range = tuple[Part, int, int, int]
# Largest number of occurrences drawn while they lie in fewer documents than requested.
MOST = 1 << 22
KEPT = 1 << 12

Places = tuple[Int64[np.ndarray, " hit"], Int64[np.ndarray, " hit"]]


def of(ranges: Sequence[Range], limit: int | None, seed: int) -> Places:
    """Return positions, ascending, and lengths of at most `limit` occurrences."""
    total = sum(high - low for _, low, high, _ in ranges)
    return _places(ranges, drawn(total, min(total, limit or total), seed))


def documents(
    ranges: Sequence[Range],
    starts: Int64[np.ndarray, " document"],
    limit: int | None,
    seed: int,
) -> tuple[Places, Int64[np.ndarray, " hit"]]:
    """Return at most one occurrence per document as in `of`, and the document of each.

    More occurrences are drawn until they lie in `limit` documents, or all have been drawn. With a
    limit, at most 4 million are drawn; so a query with more occurrences, in fewer documents than
    `limit`, may miss some of these documents.

    Args:
        starts: Where the documents begin in tokens.bin.
    """
    total = sum(high - low for _, low, high, _ in ranges)
    count = min(total, limit or total)
    while True:
        positions, lengths = _places(ranges, drawn(total, count, seed))
        owners = starts.searchsorted(positions, side="right") - 1
        first = np.ones(len(owners), bool)
        np.not_equal(owners[1:], owners[:-1], out=first[1:])
        keep = first.nonzero()[0]
        if count == total or len(keep) >= (limit or total) or count >= MOST:
            break
        count = min(total, count * 4, MOST)
    if limit and len(keep) > limit:
        keep = keep[drawn(len(keep), limit, seed)]
    if len(keep) < len(owners):
        positions, lengths, owners = positions[keep], lengths[keep], owners[keep]
    return (positions, lengths), owners


def drawn(total: int, count: int, seed: int) -> Int64[np.ndarray, " drawn"]:
    """Return one number from each of `count` equal stretches of range(total), ascending.

    If `count` equals `total`, all numbers are returned.
    """
    if count == total:
        return np.arange(total)
    edges = np.arange(count + 1) * total // count
    uniform = _uniform(KEPT, seed)[:count] if count <= KEPT else _uniform(count, seed)
    return edges[:-1] + (uniform * (edges[1:] - edges[:-1])).astype(np.int64)


@lru_cache(maxsize=8)
def _uniform(count: int, seed: int) -> Float64[np.ndarray, " drawn"]:
    return np.random.Generator(np.random.Philox(seed)).random(count)


def _places(ranges: Sequence[Range], chosen: Int64[np.ndarray, " hit"]) -> Places:
    """Return positions, ascending, and lengths of the chosen occurrences of all ranges joined."""
    if len(ranges) == 1:
        part, low, _, length = ranges[0]
        positions = part.positions(chosen + low)
        positions.sort()
        return positions, np.full(len(positions), length)
    edges = np.cumsum([0] + [high - low for _, low, high, _ in ranges])
    inside = np.searchsorted(chosen, edges)
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for (part, low, _, length), edge, first, last in zip(
        ranges, edges[:-1], inside[:-1], inside[1:], strict=True
    ):
        positions = part.positions(chosen[first:last] - edge + low)
        pairs.append((positions, np.full(len(positions), length)))
    positions, lengths = map(np.concatenate, zip(*pairs, strict=True))
    order = np.argsort(positions, kind="stable")
    return positions[order], lengths[order]
