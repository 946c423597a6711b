"""What a token index answers with: counts, places, what follows, spans.

Plain records: each says of which tokens it speaks, and keeps what was trained on apart from what
was held out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64


__all__ = [
    "Count",
    "Hit",
    "Hits",
    "NextToken",
    "NextTokens",
    "Reader",
    "Span",
    "Spelling",
    "Suffix",
]


@runtime_checkable
class Reader(Protocol):
    """What is asked of a run: at which steps it read a stretch of the store."""

    def steps_reading_tokens(self, start: int, stop: int) -> Int64[np.ndarray, " step"]: ...


@dataclass(frozen=True)
class Spelling:
    """One way in which a query may stand in the corpus, and how often it does.

    `decode` turns tokens into text, which is done when it is asked for.
    """

    tokens: tuple[int, ...]
    count: int
    held_out: int
    decode: Callable[[Sequence[int]], str] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The tokens as text."""
        return self.decode(self.tokens)


@dataclass(frozen=True)
class Count:
    """How often a query stands in the text that is trained on, and in the text held out.

    `asked` is the query where it was a text.
    """

    spellings: tuple[Spelling, ...]
    asked: str | None = None

    @property
    def query(self) -> str:
        """The query as text."""
        return self.spellings[0].text if self.asked is None else self.asked

    @property
    def count(self) -> int:
        """Occurrences in the train region."""
        return sum(one.count for one in self.spellings)

    @property
    def held_out(self) -> int:
        """Occurrences in the held-out region, which no run reads."""
        return sum(one.held_out for one in self.spellings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "query": self.query,
            "count": self.count,
            "held_out": self.held_out,
            "spellings": [
                {
                    "text": one.text,
                    "tokens": list(one.tokens),
                    "count": one.count,
                    "held_out": one.held_out,
                }
                for one in self.spellings
            ],
        }


class Hit(NamedTuple):
    """One occurrence: `position` counts tokens of tokens.bin, `offset` tokens of the document."""

    position: int
    length: int
    document: int
    offset: int
    held_out: bool

    def steps(self, run: Reader, *, before: int | None = None) -> Int64[np.ndarray, " step"]:
        """The steps at which a token of this occurrence was a target; none when held out.

        Args:
            before: A checkpoint: only the steps that it had seen, which are those below it.
        """
        steps = run.steps_reading_tokens(self.position, self.position + self.length)
        return steps if before is None else steps[steps < before]


@dataclass(frozen=True, eq=False)
class Hits:
    """Occurrences of a query by position: all of them, or a sample spread over their contexts.

    A row a hit in each array; iterating makes `Hit`s of them.
    """

    found: Count
    positions: Int64[np.ndarray, " hit"]
    lengths: Int64[np.ndarray, " hit"]
    documents: Int64[np.ndarray, " hit"]
    offsets: Int64[np.ndarray, " hit"]
    held_out: Bool[np.ndarray, " hit"]

    @cached_property
    def items(self) -> tuple[Hit, ...]:
        """The hits one by one."""
        columns = (self.positions, self.lengths, self.documents, self.offsets, self.held_out)
        # `Hit._make` also counts the columns of every row: 5 % of listing 100 hits.
        made = partial(tuple.__new__, Hit)
        return tuple(map(made, zip(*(one.tolist() for one in columns), strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hits):
            return NotImplemented
        return (self.found, self.items) == (other.found, other.items)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: int) -> Hit:
        return self.items[row]


@dataclass(frozen=True)
class Suffix:
    """The longest end of a query that stands often enough in the train region.

    `dropped` tokens were taken off its front. When all were, nothing of the query stands there
    that often, `found` has no spelling, and what is said of the suffix is said of any place.
    """

    dropped: int
    found: Count


@dataclass(frozen=True)
class NextToken:
    """A token that follows the query, and how often. End-of-text: a document ends there."""

    token: int
    text: str
    count: int


@dataclass(frozen=True)
class NextTokens:
    """What follows a query in the train region, commonest first, or the end of it that stands."""

    suffix: Suffix
    items: tuple[NextToken, ...]

    def __iter__(self) -> Iterator[NextToken]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> NextToken:
        return self.items[row]


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
