"""Documents behind a text or a behaviour, ranked, with the evidence and the steps that read them.

A source is a document that some evidence points at; it is not yet a cause. Whether the model would
be another one without it is what `counterfactuals` answers. The *grade* of a row is the strongest
evidence that speaks for it:

* `none`            it ranks, for every document has a place, but no method speaks for it
* `lexical`         it shares words with the query, and no more
* `gradient`        its loss pulls the weights the way the query does, and far more than that of
                    other documents (`fusing.speaking`)
* `replay`          the exact derivative of the query, through training, by the document's weight
* `counterfactual`  the model was trained again without it, and the behaviour went
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_attribution.errors import EvidenceError
from train import storage


if TYPE_CHECKING:
    import pandas

__all__ = ["GRADES", "Effect", "Evidence", "Source", "Sources"]

# Schema 1 knew lexical evidence alone; what it lacks has defaults, so it is read as it is.
KIND, SCHEMA, READS = "sources", 2, (1, 2)
SHOWN_STEPS = 6
GRADES = ("none", "lexical", "gradient", "replay", "counterfactual")  # weakest first


@dataclass(frozen=True)
class Evidence:
    """What one method says of one document: its rank from 1, its score, 95 % over prompts."""

    rank: int
    score: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Effect:
    """What training again without a document, and those removed with it, did to the target.

    Attributes:
        question: What was asked of the retrained model.
        mean: Its change, minus what removing as many matched random documents did.
        low, high: 95 %, over prompts and controls; None where there is one of each.
        together: How many documents were removed at once: the effect is theirs together.
        controls: How often as many random ones were removed.
    """

    question: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    together: int
    controls: int


@dataclass(frozen=True)
class Source:
    """One document and why it is named.

    `span` is the stretch that speaks for it, `length` tokens from the document's token `start` on;
    `text` is that stretch among its neighbours. `steps` are those at which a token of the document
    was a target. `duplicates` are other documents with the same sha256, `near` others with nearly
    the same tokens; both are folded into the row of the best of them. `low` and `high` are the 95 %
    interval of the score over prompts, where the method has one. `evidence` says of each method
    that was asked how it ranks the document; `effect` what removing it did, where that was tried.
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
    near: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    evidence: dict[str, Evidence] = field(default_factory=dict)
    effect: Effect | None = None

    @property
    def group(self) -> tuple[int, ...]:
        """The document, its copies and its near copies."""
        return (self.document, *self.duplicates, *self.near)


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
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The documents of each row with their copies and near copies, best row first."""
        return tuple(one.group for one in self.items)

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

        columns = [one.name for one in fields(Source)]
        return pandas.DataFrame([asdict(one) for one in self.items], columns=columns)

    def show(self, n: int = 10) -> "pandas.DataFrame":
        """The n best, to look at: score, grade, the span in its place, the steps that read it."""
        import pandas

        rows = {
            "score": [_scored(one) for one in self.items[:n]],
            "grade": [one.grade for one in self.items[:n]],
            "ranks": [_ranks(one) for one in self.items[:n]],
            "span": [one.span for one in self.items[:n]],
            "text": [one.text for one in self.items[:n]],
            "read at steps": [_shortened(one.steps) for one in self.items[:n]],
            "duplicates": [len(one.group) - 1 for one in self.items[:n]],
            "document": [one.document for one in self.items[:n]],
        }
        return pandas.DataFrame(rows, index=range(1, len(rows["score"]) + 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write as sealed JSON, whole or not at all."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Sources":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file was changed.
            EvidenceError: It holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.get("kind") != KIND or content.get("schema") not in READS:
            held = content.get("kind", "no kind"), content.get("schema", "no schema")
            raise EvidenceError(
                f"{path} holds {held[0]}, schema {held[1]}; {KIND}, schema {SCHEMA} was expected, "
                "as `openbook trace documents --out` writes it"
            )
        items = tuple(_source(one) for one in content["items"])
        return cls(content["query"], content["method"], items, content["provenance"])


def _source(saved: dict[str, Any]) -> Source:
    lists = {name: tuple(saved.get(name, ())) for name in ("steps", "duplicates", "near")}
    evidence = {name: Evidence(**one) for name, one in saved.get("evidence", {}).items()}
    effect = Effect(**saved["effect"]) if saved.get("effect") else None
    return Source(**{**saved, **lists, "evidence": evidence, "effect": effect})


def _scored(one: Source) -> str:
    if one.low is None or one.high is None:
        return f"{one.score:.3g}"
    return f"{one.score:.3g} [{one.low:.3g}, {one.high:.3g}]"


def _ranks(one: Source) -> str:
    return ", ".join(f"{name} {found.rank}" for name, found in one.evidence.items())


def _shortened(steps: tuple[int, ...]) -> str:
    shown = ", ".join(str(step) for step in steps[:SHOWN_STEPS])
    more = len(steps) - SHOWN_STEPS
    return f"{shown} and {more} more" if more > 0 else shown
