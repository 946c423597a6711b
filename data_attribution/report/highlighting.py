"""HTML of a text with some spans highlighted.

Spans are known in tokens, and a page shows letters. Tokenizers keep letters but may lose white
space (whole words are joined by one space), so positions are counted in letters that are not space.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from jaxtyping import UInt32

from data_attribution.report.page import strength
from data_attribution.tracing import Generation
from train.data import Tokenizer


__all__ = ["Mark", "html", "places", "within"]

FAINT = 0.2  # strength of the least surprising mark
TORN = "\N{REPLACEMENT CHARACTER}"  # decoded from bytes that are not a whole letter


@dataclass(frozen=True)
class Mark:
    """The letters [start, stop) of a text to mark.

    A greater `strength` is darker; `href` is the link target and `said` the tooltip.
    """

    start: int
    stop: int
    strength: float
    href: str
    said: str


def places(found: Generation, tokenizer: Tokenizer) -> list[tuple[int, int] | None]:
    """Return each span's place in a traced text, in letters; None if not found in its tokens."""
    for text in (found.text, " " + found.text, found.text.removeprefix(" ")):
        ids = np.asarray(tokenizer.encode(text))
        spans = [one.span for one in found.spans]
        if all(tuple(ids[one.start : one.stop].tolist()) == one.tokens for one in spans):
            letters = _letters_before(
                {cut for one in spans for cut in (one.start, one.stop)}, ids, tokenizer
            )
            at = _at(found.text)
            return [
                _place(at, letters[one.start], letters[one.stop], len(found.text)) for one in spans
            ]
    return [None] * len(found.spans)


def html(text: str, marks: Sequence[Mark]) -> str:
    """Return the text as markup; where marks overlap the strongest is shown."""
    cuts = sorted({0, len(text), *(cut for one in marks for cut in (one.start, one.stop))})
    parts = []
    for start, stop in pairwise(cuts):
        over = [one for one in marks if one.start <= start and stop <= one.stop]
        part = escape(text[start:stop])
        if over:
            mark = max(over, key=lambda one: one.strength)
            part = (
                f'<a href="#{escape(mark.href)}" title="{escape(mark.said)}">'
                f'<mark class="heat {strength(FAINT + (1 - FAINT) * mark.strength)}">{part}</mark>'
                "</a>"
            )
        parts.append(part)
    return "".join(parts)


def within(text: str, span: str) -> str:
    """Return the text as markup, with the first occurrence of a span in it marked."""
    span = span.strip()
    before, there, after = text.partition(span) if span else (text, "", "")
    marked = f"<mark>{escape(there)}</mark>" if there else ""
    return escape(before) + marked + escape(after)


def _letters_before(
    cuts: Collection[int], ids: UInt32[np.ndarray, " pos"], tokenizer: Tokenizer
) -> dict[int, int]:
    """Return how many letters the tokens of a text before each cut make.

    The count continues from the previous cut, unless that one falls inside a letter of several
    bytes: its parts are not letters by themselves, so the count continues from the last cut between
    two letters.
    """
    found: dict[int, int] = {}
    clean = before = 0
    for cut in sorted(cuts):
        piece = tokenizer.decode(ids[clean:cut])
        found[cut] = before + _letters(piece)
        if not piece.endswith(TORN):
            clean, before = cut, found[cut]
    return found


def _letters(text: str) -> int:
    return sum(not letter.isspace() for letter in text)


def _at(text: str) -> list[int]:
    """Return the position of each letter that is not space."""
    return [place for place, letter in enumerate(text) if not letter.isspace()]


def _place(at: Sequence[int], first: int, last: int, end: int) -> tuple[int, int] | None:
    if not first < last <= len(at):
        return None
    return at[first], min(at[last - 1] + 1, end)
