"""The maximal verbatim stretches of a text, at a cost that long copies do not raise.

As OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096): from each token on the longest
match is found, and stretches inside another are dropped. Most matches are short and are found many
at a time. A long one is followed to its end alone; the next stretch that is not inside it begins at
the first token from which the text matches *past* that end, so a text that is copied whole costs
one search and not one a token.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from data_attribution.parts import Part


__all__ = ["longest", "maximal"]

# A match is long from here on: it is then cheaper to follow it than to search from all its tokens.
LONG = 64
FEWEST, FIRST, MOST = 64, 256, 4096  # starts searched together

Stretches = tuple[Int64[np.ndarray, " span"], Int64[np.ndarray, " span"]]


def maximal(
    parts: Sequence[Part], text: Int64[np.ndarray, " pos"], edges: Int64[np.ndarray, " edge"]
) -> Stretches:
    """Starts and stops, ascending, of the maximal stretches of several texts laid end to end.

    Memory does not grow with the texts, but for the stretches themselves.

    Args:
        edges: Where the texts begin, and where the last one ends.
    """
    limits = np.repeat(edges[1:], np.diff(edges))
    kept: list[Stretches] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    at, some, reached = 0, FIRST, 0
    while at < len(text):
        starts = np.arange(at, min(at + some, len(text)))
        stops = np.minimum(starts + LONG, limits[starts])
        ends = starts + longest(parts, text, starts, stops)
        far = np.flatnonzero((ends == starts + LONG) & (ends < limits[starts]))
        short = slice(None, far[0] if far.size else None)
        new = np.diff(np.maximum.accumulate(np.append(reached, ends[short]))) > 0
        new &= ends[short] > starts[short]
        kept.append((starts[short][new], ends[short][new]))
        reached = max(reached, int(ends[short].max(initial=0)))
        at, some = at + len(starts), min(2 * some, MOST)
        if far.size:
            start = int(starts[far[0]])
            limit = int(limits[start])
            end = start + _alone(parts, text, start, limit)
            if end > reached:
                kept.append((np.array([start]), np.array([end])))
                reached = end
            at, some = _past(parts, text, start, end, limit), FEWEST
    starts, stops = map(np.concatenate, zip(*kept, strict=True))
    return starts, stops


def longest(
    parts: Sequence[Part],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " start"],
    stops: Int64[np.ndarray, " start"],
) -> Int64[np.ndarray, " start"]:
    """Length of the longest match of text[start:stop] from each start on, in any of the parts."""
    lengths = np.zeros(len(starts), np.int64)
    for part in parts:
        lengths = np.maximum(lengths, part.longest(text, starts, stops))
    return lengths


def _alone(parts: Sequence[Part], text: np.ndarray, start: int, stop: int) -> int:
    return int(longest(parts, text, np.array([start]), np.array([stop]))[0])


def _past(parts: Sequence[Part], text: np.ndarray, start: int, end: int, limit: int) -> int:
    """The first token behind `start` from which the text matches past `end`: it gallops there."""
    if end == limit:
        return limit

    def matches(first: int) -> bool:
        return _alone(parts, text, first, end + 1) == end + 1 - first

    step, low = 1, start  # text[low : end + 1] does not stand in the corpus
    while low + step < end and not matches(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, end)  # it does from here, or the next token stands alone
    while low + 1 < high:
        middle = (low + high) >> 1
        low, high = (low, middle) if matches(middle) else (middle, high)
    return high
