"""A text as a whole and its sentences: how often the run read each of them, word for word.

Coloured spans do not tell a true sentence from a false one that is put together from true parts. So
the text, and each of its sentences, is looked for as a whole; the token index counts exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_attribution import tracing
from data_attribution.token_index import Span, TokenIndex
from train.data import Tokenizer
from train.runs import ReadableRun
from train.short_repr import short_repr


__all__ = ["TextPart", "sentences", "trace_parts"]

# White space behind . ! or ?, which a quotation mark or bracket may close; or an empty line.
SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+|\n\s*\n")


@dataclass(frozen=True)
class TextPart:
    """A text or a sentence of it, and how often the run read it as a whole.

    Attributes:
        text: The part, without white space at its ends.
        n_tokens: Its length in tokens.
        longest: Number of tokens of the longest span of it that stands in the training text.
        places: Number of places of the training text that hold it as a whole.
        readings: How often the run read it as a whole.
        sampled: True if `readings` is an estimate from a part of the places.
    """

    text: str
    n_tokens: int
    longest: int
    places: int
    readings: float
    sampled: bool = False

    __repr__ = short_repr


def sentences(text: str) -> tuple[str, ...]:
    """Split a text behind each . ! or ? that white space follows, and at empty lines.

    An abbreviation ends a sentence too.

    Examples:
        >>> from data_attribution.report.text_parts import sentences
        >>> sentences('It is 3.5 km. "Is it?" Yes\\n\\nno .')
        ('It is 3.5 km.', '"Is it?"', 'Yes', 'no .')
    """
    return tuple(part.strip() for part in SENTENCE_END.split(text) if part.strip())


def trace_parts(run: ReadableRun, texts: Sequence[str], index: TokenIndex) -> list[TextPart]:
    """Count how often the run read each text as a whole; equal texts are looked for once.

    Raises:
        QueryError: A text is empty, or longer than a million tokens.
    """
    distinct = list(dict.fromkeys(text.strip() for text in texts))
    counts = index.counts(distinct)
    spans = index.maximal_spans_each(distinct)
    found = {
        text: _part(run, text, counted.count, there, index)
        for text, counted, there in zip(distinct, counts, spans, strict=True)
    }
    return [found[text.strip()] for text in texts]


def _part(
    run: ReadableRun, text: str, places: int, spans: Sequence[Span], index: TokenIndex
) -> TextPart:
    tokenizer = run.store.tokenizer
    if places:
        exposure = tracing.exposure_of_text(run, text, index=index)
        n_tokens = len(tokenizer.encode(text))
        return TextPart(text, n_tokens, n_tokens, places, exposure.readings, exposure.sampled)
    longest = max(spans, key=lambda one: len(one.tokens), default=None)
    n_tokens = _n_tokens(text, longest, tokenizer)
    return TextPart(text, n_tokens, len(longest.tokens) if longest else 0, 0, 0.0)


def _n_tokens(text: str, span: Span | None, tokenizer: Tokenizer) -> int:
    """Return the length of the spelling of a text, with or without a space in front, of a span."""
    rows = [np.asarray(tokenizer.encode(one)) for one in (text, " " + text)]
    if span is None:
        return len(rows[0])
    within = partial(_stands, span)
    return len(next(filter(within, rows), rows[0]))


def _stands(span: Span, row: np.ndarray) -> bool:
    return tuple(row[span.start : span.stop].tolist()) == span.tokens
