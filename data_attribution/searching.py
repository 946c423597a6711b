"""Binary search in sorted suffixes.

Every occurrence of a pattern is one contiguous range of ranks in the suffix array that `sorting`
makes (Manber & Myers 1993). This file knows no documents.

Many patterns are searched at once. Each comparison starts after the tokens that both ends of the
bracket already share with the pattern (Manber & Myers' skip), so long repeats cost no more than
short ones, and the longest match of a pattern falls out of the search for it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt, UInt32


__all__ = ["longest", "search"]

# Rows of tokens fetched per comparison start narrow and double: most are decided in the first.
NARROW, WIDE = 8, 256


def search(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    patterns: Sequence[Integer[np.ndarray, " _"]],
    table: Int64[np.ndarray, " bucket"] | None = None,
) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
    """Ranks [low, high) of the suffixes that start with each pattern; high - low is the count.

    Args:
        table: `buckets` of these tokens; spares the first halvings. Then every pattern must have
            a token, and its first must lie inside the table.
    """
    lengths = np.array([len(pattern) for pattern in patterns], np.int64)
    stops = np.cumsum(lengths)
    text = np.concatenate([np.empty(0, np.int64), *patterns]).astype(np.int64)
    ranks, _ = _bisect(tokens, suffixes, text, stops - lengths, stops, table, both=True)
    return ranks[: len(lengths)], ranks[len(lengths) :]


def longest(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    text: Integer[np.ndarray, " pos"],
    table: Int64[np.ndarray, " bucket"] | None = None,
) -> Int64[np.ndarray, " pos"]:
    """Length of the longest match in `tokens` of `text` from each of its positions on."""
    starts = np.arange(len(text))
    stops = np.full(len(text), len(text))
    _, common = _bisect(tokens, suffixes, text.astype(np.int64), starts, stops, table, both=False)
    return common


def _bisect(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    table: Int64[np.ndarray, " bucket"] | None,
    *,
    both: bool,
) -> tuple[Int64[np.ndarray, " bound"], Int64[np.ndarray, " bound"]]:
    """First rank not before each pattern text[start:stop]; if `both`, also first past its matches.

    Second result: how many tokens of the pattern are shared with the nearer neighbour of that rank,
    which for the first kind of bound is its longest match.
    """
    text = np.append(text, 0)  # so that the place just past a pattern can be read
    low, high = _brackets(len(tokens), text[starts], table)
    past = np.zeros(len(starts), bool)
    if both:
        starts, stops = np.tile(starts, 2), np.tile(stops, 2)
        low, high, past = np.tile(low, 2), np.tile(high, 2), np.repeat([False, True], len(past))
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
    n: int, first: Int64[np.ndarray, " pattern"], table: Int64[np.ndarray, " bucket"] | None
) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
    if table is None:
        return np.zeros_like(first), np.full_like(first, n)
    return table[first], table[first + 1]


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
