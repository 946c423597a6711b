"""Results of a token index: counts, occurrences, next tokens, spans.

These are plain records. Each names its tokens, and separates the train region from the held-out
region.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from train import html_panel
from train.progress import count
from train.runs import ReadableRun
from train.short_repr import short_repr


__all__ = [
    "Count",
    "Hit",
    "Hits",
    "NextToken",
    "NextTokens",
    "OtherForm",
    "Span",
    "Spelling",
    "Suffix",
]


@dataclass(frozen=True)
class Spelling:
    """One spelling of a query, and how often it occurs in the corpus.

    `decode` turns tokens into text when the text is needed.
    """

    tokens: tuple[int, ...]
    count: int
    held_out: int
    decode: Callable[[Sequence[int]], str] = field(repr=False, compare=False)

    __repr__ = short_repr

    @property
    def text(self) -> str:
        """Return the tokens as text."""
        return self.decode(self.tokens)


@dataclass(frozen=True)
class OtherForm:
    """Another form of a query that occurs: its Unicode normal form, its ends of lines, or both."""

    name: str
    count: int
    held_out: int

    def __str__(self) -> str:
        times = count(self.count, "occurrence")
        return f"{self.name} has {times} and {self.held_out:,} held out"


@dataclass(frozen=True)
class Count:
    """How often a query occurs in the train region and in the held-out region.

    Attributes:
        asked: The query if it was a text.
        other_forms: The forms of a text that occur, if the text itself does not.
    """

    spellings: tuple[Spelling, ...]
    asked: str | None = None
    other_forms: tuple[OtherForm, ...] = ()

    __repr__ = short_repr

    def __str__(self) -> str:
        if not self.spellings:
            return "no spelling"
        occurrences = count(self.count, "occurrence")
        spellings = count(len(self.spellings), "spelling")
        said = f"{self.query!r}, {occurrences} in {spellings}, {self.held_out:,} held out"
        return "; ".join([said, *filter(None, [self.hint])])

    def _repr_html_(self) -> str:
        import pandas

        columns = ["text", "count", "held_out", "tokens"]
        rows = [(repr(one.text), *(getattr(one, key) for key in columns[1:]))
                for one in self.spellings]  # fmt: skip
        frame = pandas.DataFrame(rows, columns=columns)
        facts = (("occurrences", self.count), ("held out", self.held_out))
        return html_panel.panel_of(self, frame=frame, facts=facts).html()

    @property
    def hint(self) -> str:
        """Say that other forms of the query occur; empty if none does, or the query itself does."""
        if not self.other_forms:
            return ""
        return f"another form of the query occurs: {', '.join(map(str, self.other_forms))}"

    @property
    def query(self) -> str:
        """Return the query as text."""
        return self.spellings[0].text if self.asked is None else self.asked

    @property
    def count(self) -> int:
        """Return the number of occurrences in the train region."""
        return sum(one.count for one in self.spellings)

    @property
    def held_out(self) -> int:
        """Return the number of occurrences in the held-out region, which no run reads."""
        return sum(one.held_out for one in self.spellings)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {
            "query": self.query,
            "count": self.count,
            "held_out": self.held_out,
            **(
                {"other_forms": [asdict(one) for one in self.other_forms]}
                if self.other_forms
                else {}
            ),
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

    def steps(self, run: ReadableRun, *, before: int | None = None) -> Int64[np.ndarray, " step"]:
        """Return the steps at which a token of this occurrence was a target; none if held out.

        Args:
            before: Checkpoint; only the steps below it, which it had seen, are returned.
        """
        steps = run.steps_reading_tokens(self.position, self.position + self.length)
        return steps if before is None else steps[steps < before]


@dataclass(frozen=True, eq=False)
class Hits:
    """Occurrences of a query by position: all of them, or a sample spread over their contexts.

    Each array has one row per occurrence; iteration yields `Hit`s.
    """

    found: Count
    positions: Int64[np.ndarray, " hit"]
    lengths: Int64[np.ndarray, " hit"]
    documents: Int64[np.ndarray, " hit"]
    offsets: Int64[np.ndarray, " hit"]
    held_out: Bool[np.ndarray, " hit"]

    __repr__ = short_repr

    def __str__(self) -> str:
        return f"{len(self):,} listed of {self.found}"

    def _repr_html_(self) -> str:
        import pandas

        rows = self.items[: html_panel.ROWS]
        frame = pandas.DataFrame(rows, columns=list(Hit._fields))
        return html_panel.panel_of(self, frame=frame, n_rows=len(self)).html()

    @cached_property
    def items(self) -> tuple[Hit, ...]:
        """Return the occurrences one by one."""
        columns = (self.positions, self.lengths, self.documents, self.offsets, self.held_out)
        # `Hit._make` also checks the length of every row, which is 5 % of listing 100 hits.
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
    """The longest end of a query that occurs often enough in the train region.

    `dropped` tokens were removed from its front. If all were removed, no end of the query occurs
    that often, `found` has no spelling, and results for the suffix are those for any position.
    """

    dropped: int
    found: Count


@dataclass(frozen=True)
class NextToken:
    """A token that follows the query, and its count; end-of-text: a document ends there."""

    token: int
    text: str
    count: int


@dataclass(frozen=True)
class NextTokens:
    """The tokens that follow a query, or the end of it that occurs, in the train region.

    They are sorted by falling count.
    """

    suffix: Suffix
    items: tuple[NextToken, ...]

    __repr__ = short_repr

    def _repr_html_(self) -> str:
        import pandas

        total = sum(one.count for one in self.items)
        frame = pandas.DataFrame(
            {
                "token": [repr(one.text) for one in self.items[: html_panel.ROWS]],
                "count": [one.count for one in self.items[: html_panel.ROWS]],
                "share": [one.count / total for one in self.items[: html_panel.ROWS]],
            }
        )
        facts = (("after", str(self.suffix.found)), ("dropped", self.suffix.dropped), ("n", total))
        return html_panel.panel_of(self, frame=frame, n_rows=len(self), facts=facts).html()

    def __iter__(self) -> Iterator[NextToken]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> NextToken:
        return self.items[row]


@dataclass(frozen=True)
class Span:
    """A span of a text that occurs in the corpus and cannot be made longer in the text.

    `start` and `stop` count tokens of the text; `log_probability` is the sum of the unigram
    log-probabilities of its tokens in the train region, in nats: the lower, the more surprising.
    """

    start: int
    stop: int
    text: str
    tokens: tuple[int, ...]
    count: int
    held_out: int
    log_probability: float

    __repr__ = short_repr
