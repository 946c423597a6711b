"""Table of the first tokens of every 64th sorted suffix: most of a binary search in few bytes.

A key packs four tokens of 16 bits, or two of 32, the first in the highest bits, with zeros past the
end of the tokens; so keys ascend with their ranks. A search in the table leaves a bracket of 64
ranks (more where more suffixes share a key). The whole table stays in the processor's cache or at
least in memory, where a suffix array of a large corpus would not.
"""

import numpy as np
from jaxtyping import Int64, UInt, UInt32, UInt64


__all__ = ["STRIDE", "brackets", "build", "packed", "span"]

Ranks = Int64[np.ndarray, " pattern"]

STRIDE = 64
CHUNK = 1 << 20


def build(
    tokens: UInt[np.ndarray, " token"], suffixes: UInt32[np.ndarray, " token"]
) -> UInt64[np.ndarray, " key"]:
    """Return the key of every 64th suffix, from the first on.

    Memory does not grow with the tokens.
    """
    keys = np.zeros(-(-len(suffixes) // STRIDE), np.uint64)
    width = np.uint64(64 // span(tokens.dtype))
    for start in range(0, len(keys), CHUNK):
        at = suffixes[start * STRIDE : (start + CHUNK) * STRIDE : STRIDE].astype(np.int64)
        for ahead in range(span(tokens.dtype)):
            token = tokens[np.minimum(at + ahead, len(tokens) - 1)].astype(np.uint64)
            token[at + ahead >= len(tokens)] = 0
            keys[start : start + CHUNK] = keys[start : start + CHUNK] << width | token
    return keys


def span(dtype: np.dtype) -> int:
    """Return how many tokens of this type a key holds."""
    return 8 // np.dtype(dtype).itemsize


def packed(
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    n: int,
) -> tuple[UInt64[np.ndarray, " pattern"], UInt64[np.ndarray, " pattern"]]:
    """Return the smallest and greatest key of `n` tokens that begin with each text[start:stop]."""
    width, least = np.uint64(64 // n), np.zeros(len(starts), np.uint64)
    held = np.minimum(stops - starts, n)
    for ahead in range(n):
        token = text[np.minimum(starts + ahead, len(text) - 1)].astype(np.uint64)
        least = least << width | np.where(ahead < held, token, np.uint64(0))
    rest = np.array([2 ** (64 - 64 // n * k) - 1 for k in range(n + 1)], np.uint64)
    return least, least | rest[held]


def brackets(
    keys: UInt64[np.ndarray, " key"],
    least: UInt64[np.ndarray, " pattern"],
    greatest: UInt64[np.ndarray, " pattern"],
) -> tuple[tuple[Ranks, Ranks], tuple[Ranks, Ranks]]:
    """Return two brackets of ranks for each pattern: where its matches begin, and where they end.

    A suffix with a key below a pattern's smallest key sorts before the pattern. A suffix with a key
    above the smallest one begins with the pattern or sorts after it, and sorts after it if its key
    exceeds the greatest one. An equal key decides nothing. High ends may exceed the last rank.
    """
    left, right = np.searchsorted(keys, least), np.searchsorted(keys, least, "right")
    past = np.searchsorted(keys, greatest, "right")
    low = np.maximum((left - 1) * STRIDE + 1, 0)
    after = np.where(past > right, (past - 1) * STRIDE + 1, low)
    return (low, right * STRIDE), (after, past * STRIDE)
