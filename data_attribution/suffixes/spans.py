"""The maximal verbatim stretches of a text, at a cost that copies do not raise.

As OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096): the longest match from each token
on, less those inside another. Not every token needs a search. Past a stretch that ends before token
e, the next one begins at the first token from which the text matches through e, which is looked for
backwards from e, near which it mostly is. So a text that is copied whole takes one search, and any
other a few for each of its stretches.
"""

from collections.abc import Callable, Sequence

from data_attribution.suffixes.parts import Part


__all__ = ["maximal"]

# Most stretches begin so few tokens before the end of the last one.
NEAR = 4

Longest = Callable[[Sequence[int], int, int, bool], int]


def maximal(parts: Sequence[Part], text: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each maximal stretch, in the order of the text."""
    kept, start, longest = [], 0, _longest(parts)
    while start < len(text):
        stop = start + longest(text, start, len(text), False)
        if stop == start:
            start += 1
            continue
        kept.append((start, stop))
        if stop == len(text):
            break
        start = _through(longest, text, start, stop)
    return kept


def _longest(parts: Sequence[Part]) -> Longest:
    """`Part.longest` of all parts together."""
    if len(parts) == 1:
        return parts[0].longest
    searches = [part.longest for part in parts]

    def longest(text: Sequence[int], start: int, stop: int, whole: bool) -> int:
        most = 0
        for search in searches:
            most = max(most, search(text, start, stop, whole))
            if start + most == stop:
                break
        return most

    return longest


def _through(longest: Longest, text: Sequence[int], start: int, last: int) -> int:
    """The first token behind `start` from which the text matches through token `last`.

    `last` + 1 where that token stands nowhere. If the text matches from a token on, it does from
    all later ones, so steps backwards may double, which they do behind the first NEAR.
    """
    stop, first, step = last + 1, last, 1
    if not longest(text, last, stop, True):
        return stop
    while first - step > start and longest(text, first - step, stop, True):
        first -= step
        step = 1 if last - first < NEAR else 2 * step
    low = max(start, first - step)  # it matches from `first`, and not from `low`
    while first - low > 1:
        middle = (low + first) >> 1
        if longest(text, middle, stop, True):
            first = middle
        else:
            low = middle
    return first
