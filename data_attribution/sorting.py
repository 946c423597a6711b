"""All suffixes of a token array in sorted order.

A suffix array lists the positions of an array so that the suffixes starting there are sorted; every
occurrence of a pattern is then one contiguous range of ranks (Manber & Myers 1993), which
`searching` finds. Order is by token id, and a suffix that ends first comes first. This file knows
no documents.

Three sorters give the same array, to the last position; only their time and memory differ:

* `divsufsort`, the default: libdivsufsort, from a wheel. It sorts bytes, so tokens are written as
  bytes that compare as the tokens do.
* `libsais`, several times as fast: a library that the user has built, named by its path.
* `doubling`: prefix doubling in numpy, where neither is there.
"""

from importlib import util

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt, UInt32


__all__ = ["backend", "buckets", "build", "divsufsort", "doubling"]

# Positions are uint32, and `doubling` packs two ranks and "past the end" into 64 bits.
LARGEST = 2**32 - 2
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
