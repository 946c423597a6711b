"""The maximal verbatim stretches of a text, at a cost that copies do not raise.

As OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096): the longest match from each token
on, less those inside another. Not every token needs a search. Past a stretch that ends before token
e, the next one begins at the first token from which the text matches through e, which is looked for
backwards from e, near which it mostly is. So a text that is copied whole takes one search, and any
other a few for each of its stretches.
"""

from collections.abc import Sequence

from data_attribution.token_index.segment import Part


__all__ = ["maximal"]

# Most stretches begin so few tokens before the end of the last one.
NEAR = 4


def maximal(parts: Sequence[Part], text: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, how often it stands) of each maximal stretch, in the order of the text."""
    kept, start = [], 0
    while start < len(text):
        length, count = _longest(parts, text, start)
        stop = start + length
        if stop == start:
            start += 1
            continue
        kept.append((start, stop, count))
        if stop == len(text):
            break
        start = _through(parts, text, start, stop)
    return kept


def _longest(parts: Sequence[Part], text: Sequence[int], start: int) -> tuple[int, int]:
    """How many tokens of text[start:] stand in some part, and how often they do in all."""
    most = count = 0
    for part in parts:
        length, low, high = part.longest(text, start, len(text))
        if length > most:
            most, count = length, 0
        if length == most:
            count += high - low
    return most, count


def _through(parts: Sequence[Part], text: Sequence[int], start: int, last: int) -> int:
    """The first token behind `start` from which the text matches through token `last`.

    `last` + 1 where that token stands nowhere. If the text matches from a token on, it does from
    all later ones, so steps backwards may double, which they do behind the first NEAR.
    """

    def stands(at: int) -> bool:
        return any(part.stands(text, at, stop) for part in parts)

    stop, first, step = last + 1, last, 1
    if not stands(last):
        return stop
    while first - step > start and stands(first - step):
        first -= step
        step = 1 if last - first < NEAR else 2 * step
    low = max(start, first - step)  # it matches from `first`, and not from `low`
    while first - low > 1:
        middle = (low + first) >> 1
        if stands(middle):
            first = middle
        else:
            low = middle
    return first
