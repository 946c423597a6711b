"""Documents behind a text or a behaviour, ranked, with the evidence and the steps that read them.

A source is a document that some evidence points at; it is not yet a cause. Whether the model would
be another one without it is what `counterfactuals` answers. The *grade* says how strong the
evidence is: `lexical` means that the document shares words with the query, and no more.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_attribution.errors import EvidenceError
from train import durable


if TYPE_CHECKING:
    import pandas

__all__ = ["Source", "Sources"]

KIND, SCHEMA = "sources", 1
SHOWN_STEPS = 6


@dataclass(frozen=True)
class Source:
    """One document and why it is named.

    `span` is the stretch that speaks for it, `length` tokens from the document's token `start` on;
    `text` is that stretch among its neighbours. `steps` are those at which a token of the document
    was a target. `duplicates` are other documents with the same sha256.
    """

    document: int
    id: str
    text: str
    span: str
    score: float
    grade: str
    steps: tuple[int, ...]
    start: int
    length: int
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Documents by falling score. `provenance` says of which run, index and formula."""

    query: str
    method: str
    items: tuple[Source, ...]
    provenance: dict[str, Any]

    def __iter__(self) -> Iterator[Source]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def documents(self) -> tuple[int, ...]:
        """Indices in the token store, best first."""
        return tuple(one.document for one in self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """Stable document ids, best first."""
        return tuple(one.id for one in self.items)

    def top(self, k: int) -> "Sources":
        """The k best."""
        return replace(self, items=self.items[:k])

    def to_frame(self) -> "pandas.DataFrame":
        """A row a document, best first, every field a column."""
        import pandas

        columns = [field.name for field in fields(Source)]
        return pandas.DataFrame([asdict(one) for one in self.items], columns=columns)

    def show(self, n: int = 10) -> "pandas.DataFrame":
        """The n best, to look at: score, grade, the span in its place, the steps that read it."""
        import pandas

        rows = {
            "score": [round(one.score, 2) for one in self.items[:n]],
            "grade": [one.grade for one in self.items[:n]],
            "span": [one.span for one in self.items[:n]],
            "text": [one.text for one in self.items[:n]],
            "read at steps": [_shortened(one.steps) for one in self.items[:n]],
            "duplicates": [len(one.duplicates) for one in self.items[:n]],
            "document": [one.document for one in self.items[:n]],
        }
        return pandas.DataFrame(rows, index=range(1, len(rows["score"]) + 1))

    def save(self, path: str | Path) -> None:
        """Write as sealed JSON, whole or not at all."""
        content = {"kind": KIND, "schema": SCHEMA, **asdict(self)}
        durable.write_json(Path(path), durable.seal(content))

    @classmethod
    def load(cls, path: str | Path) -> "Sources":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file was changed.
            EvidenceError: It holds something else.
        """
        content = durable.read_sealed(Path(path))
        if content.get("kind") != KIND or content.get("schema") != SCHEMA:
            held = content.get("kind", "no kind"), content.get("schema", "no schema")
            raise EvidenceError(
                f"{path} holds {held[0]}, schema {held[1]}; {KIND}, schema {SCHEMA} was expected, "
                "as `openbook trace documents --out` writes it"
            )
        items = tuple(
            Source(**{**one, "steps": tuple(one["steps"]), "duplicates": tuple(one["duplicates"])})
            for one in content["items"]
        )
        return cls(content["query"], content["method"], items, content["provenance"])


def _shortened(steps: tuple[int, ...]) -> str:
    shown = ", ".join(str(step) for step in steps[:SHOWN_STEPS])
    more = len(steps) - SHOWN_STEPS
    return f"{shown} and {more} more" if more > 0 else shown
