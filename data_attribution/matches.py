"""What a token index answers with: counts, places, what follows, spans.

Plain records: each says of which tokens it speaks, and keeps what was trained on apart from what
was held out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64


__all__ = ["Count", "Hit", "Hits", "NextToken", "Reader", "Span", "Spelling"]


@runtime_checkable
class Reader(Protocol):
    """What is asked of a run: at which steps it read a stretch of the store."""

    def steps_reading_tokens(self, start: int, stop: int) -> Int64[np.ndarray, " step"]: ...


@dataclass(frozen=True)
class Spelling:
    """One way in which a query may stand in the corpus, and how often it does."""

    text: str
    tokens: tuple[int, ...]
    count: int
    held_out: int


@dataclass(frozen=True)
class Count:
    """How often a query stands in the text that is trained on, and in the text held out."""

    query: str
    spellings: tuple[Spelling, ...]

    @property
    def count(self) -> int:
        """Occurrences in the train region."""
        return sum(one.count for one in self.spellings)

    @property
    def held_out(self) -> int:
        """Occurrences in the held-out region, which no run reads."""
        return sum(one.held_out for one in self.spellings)


@dataclass(frozen=True)
class Hit:
    """One occurrence: `position` counts tokens of tokens.bin, `offset` tokens of the document."""

    position: int
    length: int
    document: int
    offset: int
    held_out: bool

    def steps(self, run: Reader) -> Int64[np.ndarray, " step"]:
        """The steps at which a token of this occurrence was a target; none when held out."""
        return run.steps_reading_tokens(self.position, self.position + self.length)


@dataclass(frozen=True)
class Hits:
    """Occurrences of a query by position: all of them, or a sample spread over their contexts."""

    found: Count
    items: tuple[Hit, ...]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class NextToken:
    """A token that follows the query, and how often. End-of-text: a document ends there."""

    token: int
    text: str
    count: int


@dataclass(frozen=True)
class Span:
    """A stretch of a text that stands in the corpus and cannot be made longer in the text.

    `start` and `stop` count tokens of the text; `log_probability` is the sum of the unigram log
    probabilities of its tokens in the train region, in nats: the lower, the more surprising.
    """

    start: int
    stop: int
    text: str
    tokens: tuple[int, ...]
    count: int
    held_out: int
    log_probability: float
