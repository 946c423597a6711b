"""All suffixes of a token array in sorted order, and binary search in them.

A suffix array lists the positions of an array so that the suffixes starting there are sorted; every
occurrence of a pattern is then one contiguous range of ranks (Manber & Myers 1993). Order is by
token id, and a suffix that ends first comes first. This file knows no documents.

Sorting is libdivsufsort's. It sorts bytes: big-endian tokens compare as their bytes do, and only
the positions that begin a token are kept. Where its wheel is missing, prefix doubling in numpy
gives the same array, more slowly.

Searching takes many patterns at once. Each comparison starts after the tokens that both ends of the
bracket already share with the pattern (Manber & Myers' skip), so long repeats cost no more than
short ones, and the longest match of a pattern falls out of the search for it.
"""

from collections.abc import Sequence
from importlib import util

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer, UInt, UInt32


__all__ = ["backend", "buckets", "build", "divsufsort", "doubling", "longest", "search"]

# Positions are uint32, and `doubling` packs two ranks and "past the end" into 64 bits.
LARGEST = 2**32 - 2
# Rows of tokens fetched per comparison start narrow and double: most are decided in the first.
NARROW, WIDE = 8, 256
CHUNK = 1 << 22


def build(tokens: UInt[np.ndarray, " token"]) -> UInt32[np.ndarray, " token"]:
    """Positions of `tokens` in the order of the suffixes that start there.

    Takes about 20 bytes of memory a token with libdivsufsort, 67 without.

    Raises:
        ValueError: More tokens than a uint32 position can name.
    """
    if len(tokens) > LARGEST:
        raise ValueError(
            f"a suffix array of {len(tokens):,} tokens; at most {LARGEST:,} fit uint32"
        )
    return divsufsort(tokens) if backend() == "pydivsufsort" else doubling(tokens)


def backend() -> str:
    """Which sorter `build` uses here: the choice changes the time, never the result."""
    return "pydivsufsort" if util.find_spec("pydivsufsort") else "numpy"


def divsufsort(tokens: UInt[np.ndarray, " token"]) -> UInt32[np.ndarray, " token"]:
    """Sort with libdivsufsort, on one thread: a second one is busy a quarter of the time."""
    from pydivsufsort import divsufsort as sort
    from threadpoolctl import threadpool_limits

    if len(tokens) == 0:
        return np.empty(0, np.uint32)
    with threadpool_limits(limits=1, user_api="openmp"):
        return sort(np.ascontiguousarray(tokens).view(np.ndarray)).astype(np.uint32)


def doubling(tokens: UInt[np.ndarray, " token"]) -> UInt32[np.ndarray, " token"]:
    """Sort by prefix doubling: only suffixes that still tie are sorted again, by twice the length.

    A suffix's rank is the first place of its group of ties in the sorted array, so a suffix that
    ties with none already has its final rank (Larsson & Sadakane 2007).
    """
    n = len(tokens)
    keys, span = _packed(np.asarray(tokens))
    order = np.argsort(keys, kind="stable")
    rank = np.empty(n, np.uint64)
    slots = np.arange(n)
    heads = _heads(keys[order], slots)
    rank[order] = heads
    while True:
        tied = _tied(heads)
        slots, heads = slots[tied], heads[tied]
        if not slots.size:
            return order.astype(np.uint32)
        at = order[slots]
        following = np.zeros(len(at), np.uint64)  # 0: the suffix ends here, before every rank
        inside = at + span < n
        following[inside] = rank[at[inside] + span] + np.uint64(1)
        keys = heads.astype(np.uint64) << np.uint64(32) | following
        again = np.argsort(keys, kind="stable")
        order[slots] = at[again]
        heads = _heads(keys[again], slots)
        rank[order[slots]] = heads
        span *= 2


def buckets(tokens: UInt[np.ndarray, " token"], vocab_size: int) -> Int64[np.ndarray, " bucket"]:
    """Where each first token's suffixes begin: token t has ranks buckets[t] to buckets[t + 1].

    The differences are the unigram counts.
    """
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[start : start + CHUNK], minlength=vocab_size)
    return np.concatenate([[0], np.cumsum(counts)])


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


def _packed(tokens: UInt[np.ndarray, " token"]) -> tuple[UInt[np.ndarray, " token"], int]:
    """As many leading tokens of each suffix as fit 64 bits, and how many they are."""
    width = (
        int(tokens.max(initial=0)) + 1
    ).bit_length()  # 0 is "past the end", so ids count from 1
    span = 64 // width
    keys = np.zeros(len(tokens), np.uint64)
    symbols = np.concatenate([tokens.astype(np.uint64) + np.uint64(1), np.zeros(span, np.uint64)])
    for ahead in range(span):
        keys = keys << np.uint64(width) | symbols[ahead : ahead + len(tokens)]
    return keys, span


def _heads(
    keys: UInt[np.ndarray, " tied"], slots: Int[np.ndarray, " tied"]
) -> Int[np.ndarray, " tied"]:
    """The first slot of each run of equal sorted keys, one entry a key."""
    begins = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return slots[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]


def _tied(heads: Int[np.ndarray, " tied"]) -> Bool[np.ndarray, " tied"]:
    """Which entries share their head with a neighbour."""
    same = heads[1:] == heads[:-1]
    return np.append(same, False)[: len(heads)] | np.append(False, same)[: len(heads)]
