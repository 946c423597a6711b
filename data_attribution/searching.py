"""Binary search in sorted suffixes: one pattern in microseconds, or many at once.

Every occurrence of a pattern is one contiguous range of ranks in the suffix array that `sorting`
makes (Manber & Myers 1993). This file knows no documents.

The table of first tokens and the table of keys (`key_tables`) leave some 64 ranks to search in. One
pattern is searched without numpy, whose calls cost more than the search itself. Many patterns are
searched together; there each comparison starts after the tokens that both ends of the bracket
already share with the pattern (Manber & Myers' skip), so long repeats cost no more than short ones,
and the longest match of a pattern falls out of the search for it.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt, UInt32, UInt64

from data_attribution import key_tables
from data_attribution.key_tables import STRIDE


__all__ = ["finder", "longest", "search"]

# Rows of tokens fetched per comparison start narrow and double: most are decided in the first.
NARROW, WIDE = 8, 256
# The same for one pattern, where a row that is too wide costs little.
FIRST = 16
# Patterns searched together: more of them are no faster, and take more memory.
TOGETHER = 1 << 14

Ranks = tuple[int, int]


def finder(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    table: Int64[np.ndarray, " bucket"],
    keys: UInt64[np.ndarray, " key"] | None = None,
) -> Callable[[Sequence[int]], Ranks]:
    """A function from one pattern to the ranks [low, high) of the suffixes that start with it.

    It reads the arrays through memoryviews; about 5 microseconds a pattern on 50 million tokens.
    The pattern must have a token, and its first must lie inside the table.

    Args:
        table: `sorting.buckets` of these tokens.
        keys: `key_tables.build` of them; without it a search takes more halvings.
    """
    text, order, begins = tokens.data, suffixes.data, table.data
    size, held = tokens.itemsize, key_tables.span(tokens.dtype)
    rows = [_row(text, n) for n in range(FIRST + 1)]
    packed = None if keys is None else keys.data

    def find(pattern: Sequence[int]) -> Ranks:
        low, high = begins[pattern[0]], begins[pattern[0] + 1]
        if len(pattern) == 1 or low == high:
            return low, high
        (low, before), (after, high) = narrowed(pattern, low, high)
        head, row = tuple(pattern[:FIRST]), rows[min(len(pattern), FIRST)]
        low = bisect_left(order, head, low, before, key=row)
        high = bisect_right(order, head, max(low, after), high, key=row)
        return (low, high) if len(pattern) <= FIRST else deeper(pattern, low, high)

    def narrowed(pattern: Sequence[int], low: int, high: int) -> tuple[Ranks, Ranks]:
        """Brackets of where the pattern begins and ends, as `key_tables.brackets`."""
        if packed is None:
            return (low, high), (low, high)
        key = 0
        for token in pattern[:held]:
            key = key << 8 * size | token
        free = 8 * size * max(held - len(pattern), 0)
        key <<= free
        stop = -(-high // STRIDE)
        left = bisect_left(packed, key, -(-low // STRIDE), stop)
        right = bisect_right(packed, key, left, stop)
        past = bisect_right(packed, key | (1 << free) - 1, right, stop) if free else right
        low = max(low, (left - 1) * STRIDE + 1)
        after = (past - 1) * STRIDE + 1 if past > right else low
        return (low, min(high, right * STRIDE)), (after, min(high, past * STRIDE))

    def deeper(pattern: Sequence[int], low: int, high: int) -> Ranks:
        """The same ranks less those that differ behind the first tokens, twice as many a time."""
        done = FIRST
        while low < high and done < len(pattern):
            piece = list(pattern[done : 2 * done])
            row = partial(_piece, text, done, done + len(piece))
            low = bisect_left(order, piece, low, high, key=row)
            high = bisect_right(order, piece, low, high, key=row)
            done += len(piece)
        return low, high

    return find


def _row(text: memoryview, n: int) -> Callable[[int], tuple[int, ...]]:
    """A function from a position to the `n` tokens from there, or as many as are left."""
    unpack, size = struct.Struct(f"{n}{text.format}").unpack_from, text.itemsize

    def read(at: int) -> tuple[int, ...]:
        try:
            return unpack(text, at * size)
        except struct.error:
            return tuple(text[at:])

    return read


def _piece(text: memoryview, start: int, stop: int, at: int) -> list[int]:
    return text[at + start : at + stop].tolist()


def search(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    patterns: Sequence[Integer[np.ndarray, " _"]],
    table: Int64[np.ndarray, " bucket"] | None = None,
    keys: UInt64[np.ndarray, " key"] | None = None,
) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
    """Ranks [low, high) of the suffixes that start with each pattern; high - low is the count.

    Args:
        table: `sorting.buckets` of these tokens. Then every pattern must have a token, and its
            first must lie inside the table.
        keys: `key_tables.build` of them; both only spare halvings.
    """
    found = [np.empty((0, 2), np.int64)]
    for first in range(0, len(patterns), TOGETHER):
        some = patterns[first : first + TOGETHER]
        stops = np.cumsum([len(pattern) for pattern in some])
        starts = np.append(0, stops[:-1])
        text = np.concatenate(some).astype(np.int64)
        ranks, _ = _bisect(tokens, suffixes, text, starts, stops, table, keys, both=True)
        found.append(ranks.reshape(2, -1).T)
    low, high = np.concatenate(found).T
    return low, high


def longest(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    text: Integer[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " start"],
    stops: Int64[np.ndarray, " start"],
    table: Int64[np.ndarray, " bucket"] | None = None,
    keys: UInt64[np.ndarray, " key"] | None = None,
) -> Int64[np.ndarray, " start"]:
    """Length of the longest match in `tokens` of text[start:stop] from each start on."""
    text, found = text.astype(np.int64), [np.empty(0, np.int64)]
    for first in range(0, len(starts), TOGETHER):
        some = slice(first, first + TOGETHER)
        found.append(
            _bisect(tokens, suffixes, text, starts[some], stops[some], table, keys, both=False)[1]
        )
    return np.concatenate(found)


def _bisect(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    table: Int64[np.ndarray, " bucket"] | None,
    keys: UInt64[np.ndarray, " key"] | None,
    *,
    both: bool,
) -> tuple[Int64[np.ndarray, " bound"], Int64[np.ndarray, " bound"]]:
    """First rank not before each pattern text[start:stop]; if `both`, also first past its matches.

    Second result: how many tokens of the pattern are shared with the nearer neighbour of that rank,
    which for the first kind of bound is its longest match.
    """
    text = np.append(text, 0)  # so that the place just past a pattern can be read
    low, high = _brackets(tokens, text, starts, stops, table, keys, both=both)
    past = np.arange(len(low)) >= len(starts)
    if both:
        starts, stops = np.tile(starts, 2), np.tile(stops, 2)
    left, right = np.zeros_like(low), np.zeros_like(low)
    while (rows := np.flatnonzero(low < high)).size:
        middle = (low[rows] + high[rows]) >> 1
        at = suffixes[middle].astype(np.int64)
        skip = np.minimum(left[rows], right[rows])
        common, before, whole = _compare(tokens, at, text, starts[rows], stops[rows], skip)
        up = before | (whole & past[rows])
        low[rows[up]], left[rows[up]] = middle[up] + 1, common[up]
        high[rows[~up]], right[rows[~up]] = middle[~up], common[~up]
    return low, np.maximum(left, right)


def _brackets(
    tokens: UInt[np.ndarray, " token"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    table: Int64[np.ndarray, " bucket"] | None,
    keys: UInt64[np.ndarray, " key"] | None,
    *,
    both: bool,
) -> tuple[Int64[np.ndarray, " bound"], Int64[np.ndarray, " bound"]]:
    """Between which ranks each bound lies, as the tables say; the first kind, then the second."""
    low, high = np.zeros_like(starts), np.full_like(starts, len(tokens))
    if table is not None:
        low, high = table[text[starts]], table[text[starts] + 1]
    bounds = [(low, high)] * (1 + both)
    if keys is not None:
        found = key_tables.packed(text, starts, stops, key_tables.span(tokens.dtype))
        bounds = [
            (np.maximum(low, first), np.minimum(high, last))
            for first, last in key_tables.brackets(keys, *found)[: 1 + both]
        ]
    low, high = (np.concatenate(one) for one in zip(*bounds, strict=True))
    return low, high


def _compare(
    tokens: UInt[np.ndarray, " token"],
    at: Int64[np.ndarray, " pattern"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    common: Int64[np.ndarray, " pattern"],
) -> tuple[
    Int64[np.ndarray, " pattern"], Bool[np.ndarray, " pattern"], Bool[np.ndarray, " pattern"]
]:
    """Tokens that suffix and pattern share; is the suffix before it; does it start with it.

    `common` tokens are known to be shared and are not read again.
    """
    n, length = len(tokens), stops - starts
    room = np.minimum(length, n - at)
    rows, width = np.flatnonzero(common < room), NARROW
    while rows.size:
        ahead = common[rows, None] + np.arange(width)
        ours = tokens[np.minimum(at[rows, None] + ahead, n - 1)]
        theirs = text[np.minimum(starts[rows, None] + ahead, len(text) - 1)]
        same = (ours == theirs) & (ahead < room[rows, None])
        all_same = same.all(axis=1)
        common[rows] += np.where(all_same, width, same.argmin(axis=1))
        rows = rows[all_same & (common[rows] < room[rows])]
        width = min(2 * width, WIDE)
    whole = common == length
    ended = common == n - at
    smaller = tokens[np.minimum(at + common, n - 1)] < text[starts + common]
    return common, ~whole & (ended | smaller), whole
