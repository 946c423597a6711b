"""The maximal verbatim stretches of a text, at a cost that copies do not raise.

As OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096): the longest match from each token
on, less those inside another. Not every token needs a search. Past a stretch that ends before token
e, the next one begins at the first token from which the text matches through e, which is looked for
backwards from e, near which it mostly is. So a text that is copied whole takes one search, and any
other a few for each of its stretches.
"""

from collections.abc import Sequence

from data_attribution.suffixes.parts import Part


__all__ = ["maximal"]


def maximal(parts: Sequence[Part], text: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each maximal stretch, in the order of the text."""
    kept, start, searches = [], 0, [part.longest for part in parts]
    while start < len(text):
        stop = start + max(
            [longest(text, start, len(text), False) for longest in searches], default=0
        )
        if stop == start:
            start += 1
            continue
        kept.append((start, stop))
        if stop == len(text):
            break
        start = _through(searches, text, start, stop)
    return kept


def _through(searches: Sequence, text: Sequence[int], start: int, last: int) -> int:
    """The first token behind `start` from which the text matches through token `last`.

    `last` + 1 where that token stands nowhere. If the text matches from a token on, it does from
    all later ones, so steps backwards may double.
    """

    def matches(first: int) -> bool:
        return any([longest(text, first, last + 1, True) for longest in searches])

    if not matches(last):
        return last + 1
    high, step = last, 1  # it matches from `high`
    while high - step > start and matches(high - step):
        high, step = high - step, 2 * step
    low = max(start, high - step)  # and not from `low`
    while high - low > 1:
        middle = (low + high) >> 1
        low, high = (low, middle) if matches(middle) else (middle, high)
    return high
