"""Search for the maximal verbatim spans of a text, at a cost that does not grow with copied text.

As in OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096), the maximal spans are the
longest matches from each token on, without those inside another. Not every token needs a search.
After a span that ends before token e, the next one begins at the first token from which the text
matches through e. That token is searched backwards from e, because it is mostly near e. So a text
that is copied whole takes one search, and any other text a few for each of its spans.
"""

from collections.abc import Sequence

from data_attribution.token_index.index_part import Part


__all__ = ["maximal"]

# Most spans begin at most this many tokens before the end of the last one.
NEAR = 4


def maximal(parts: Sequence[Part], text: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (start, stop, occurrences) of each maximal span, in the order of the text."""
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
    """Return how many tokens of text[start:] occur in some part, and how often in all parts."""
    most = count = 0
    for part in parts:
        length, low, high = part.longest(text, start, len(text))
        if length > most:
            most, count = length, 0
        if length == most:
            count += high - low
    return most, count


def _through(parts: Sequence[Part], text: Sequence[int], start: int, last: int) -> int:
    """Return the first token behind `start` from which the text matches through token `last`.

    The result is `last` + 1 if that token occurs nowhere. If the text matches from a token on, it
    also matches from all later ones, so the step backwards may double; it does beyond the first
    NEAR tokens.
    """

    def stands(at: int) -> bool:
        return any(part.stands(text, at, stop) for part in parts)

    stop, first, step = last + 1, last, 1
    if not stands(last):
        return stop
    while first - step > start and stands(first - step):
        first -= step
        step = 1 if last - first < NEAR else 2 * step
    low = max(start, first - step)  # invariant: matches from `first`, not from `low`
    while first - low > 1:
        middle = (low + first) >> 1
        if stands(middle):
            first = middle
        else:
            low = middle
    return first
