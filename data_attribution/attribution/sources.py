"""Sources: the ranked documents behind a text or a behaviour, with evidence and reading steps.

A source is a document to which some evidence points; it is not yet a cause. Whether the model would
differ without it is what `counterfactuals` answers. The *grade* of a source is the strongest
evidence for it:

* `none`            it has a rank, as every document does, but no method is evidence for it
* `lexical`         it shares words with the query, and no more
* `gradient`        its loss pulls the weights the way the query does, and far more than that of
  other documents (`fusion.speaking`)
* `replay`          the exact derivative of the query, through training, by the document's weight
* `counterfactual`  the model was retrained without it, and the behaviour disappeared
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_attribution.errors import EvidenceError
from train import html_panel, storage
from train.progress import count, listed
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["GRADES", "Effect", "Evidence", "Source", "Sources"]

# Schema 1 had lexical evidence only; its missing fields have defaults, so it can be read as it is.
KIND, SCHEMA, READS = "sources", 2, (1, 2)
SHAPE = {"query": str, "method": str, "items": [{str: object}], "provenance": {str: object}}
# What the caller of `documents` asked for. A page prints it as a command, so its types are checked.
# Earlier versions did not write what is optional.
ASKED = {
    "methods": str,
    "unspelled?": [str],
    "limit": int,
    "seed": int,
    "fold?": bool,
    "candidates?": (None, {"n": int, "sha256": str}),
    "behaviour?": str,
    "text?": str,
    "query?": str,
}
SHOWN_STEPS = 3  # pandas cuts a cell after 50 characters
GRADES = ("none", "lexical", "gradient", "replay", "counterfactual")  # weakest first


@dataclass(frozen=True)
class Evidence:
    """The result of one method for one document: rank from 1, score, 95 % interval over prompts."""

    rank: int
    score: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Effect:
    """The effect on the target of retraining without a document and those removed with it.

    It is measured on the prompts that ranked the document, or on those of the behaviour given.

    Attributes:
        question: Query measured on the retrained model.
        mean: Change of the query, minus the change from removing as many matched random documents.
        low, high: 95 % interval over prompts and controls; None if there is only one of each.
        together: Number of documents removed at once; the effect is that of the whole set.
        controls: Number of controls (removals of as many random documents).
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
    """One document and the evidence for it.

    `span` is the passage that is the evidence: `length` tokens from the document's token `start`
    on; `text` is that passage with the text around it. `steps` are the steps at which a token of
    the document was a target. `duplicates` are other documents with the same sha256, `near` others
    with nearly the same tokens; both are folded into the best-ranked of them. `low` and `high` are
    the 95 % interval of the score over prompts, where the method has one. `evidence` holds the
    result of each method for the document; `effect` is the effect of removing it, where that was
    tried.
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

    __repr__ = short_repr

    @property
    def group(self) -> tuple[int, ...]:
        """Return the document, its duplicates and its near-duplicates."""
        return (self.document, *self.duplicates, *self.near)


@dataclass(frozen=True)
class Sources:
    """Ranked sources by falling score; `provenance` records the run, index and formula.

    Examples:
        >>> sources = attribution.documents(run, fact, methods="lexical", limit=3)
        >>> sources.documents, sources.groups[0]
        ((28867, 2456, 7378), (28867, 28874))
        >>> sources.items[0].span, sources.items[0].steps
        ('runethi is governed from koreskul', (1513, 1625, 1670, 1795, 1838, 1929, 2025))
        >>> sources.save(folder / "sources.json")
        >>> attribution.Sources.load(folder / "sources.json").ids == sources.ids
        True
    """

    meaning: ClassVar[str] = (
        "A source shows to which documents the evidence points; it does not show a cause, "
        "unless it was retrained without them (`openbook counterfactual`)."
    )

    query: str
    method: str
    items: tuple[Source, ...]
    provenance: storage.JsonObject

    __repr__ = short_repr

    def __str__(self) -> str:
        first = "".join(f"; first {one.document}: {one.span!r}" for one in self.items[:1])
        return f"{self.query!r} by {self.method}, {count(len(self), 'document')}{first}"

    def __iter__(self) -> Iterator[Source]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def documents(self) -> tuple[int, ...]:
        """Return the indices in the token store, best first."""
        return tuple(one.document for one in self.items)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Return each source's document with its duplicates and near-duplicates, best first."""
        return tuple(one.group for one in self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the stable document ids, best first."""
        return tuple(one.id for one in self.items)

    def top(self, k: int) -> "Sources":
        """Return the k best sources."""
        return replace(self, items=self.items[:k])

    def to_frame(self) -> "pandas.DataFrame":
        """Return a table with one row per document, best first, and one column per field."""
        import pandas

        columns = [one.name for one in fields(Source)]
        return pandas.DataFrame([asdict(one) for one in self.items], columns=columns)

    @property
    def unit(self) -> str:
        """Unit or scale of the scores, in words.

        Examples:
            >>> attribution.documents(run, fact, methods="lexical", limit=3).unit
            'BM25: weighted inverse document frequencies in nats, 0 and up'
        """
        formula = str(self.provenance.get("formula", ""))
        added, _, rest = formula.partition(", each on a scale of length 1")
        if added != formula:
            return f"sum of {added.count(' + ') + 1} scores on scales of length 1{rest}"
        if formula.startswith("bm25"):
            return "BM25: weighted inverse document frequencies in nats, 0 and up"
        if formula == "maximal spans":
            return "nats of surprise of the shared spans, divided among their documents"
        if replay := self.provenance.get("replay"):
            return f"change of the query in {replay.get('unit', 'its unit')} a unit of the weight"
        kind = (self.provenance.get("gradient") or {}).get("kind")
        if kind and ("cosine" in kind or kind == "curvature"):
            return "cosine of gradients, -1 to 1"
        return "dot product of gradients, comparable within this ranking only" if kind else ""

    def show(self, n: int = 10) -> "pandas.DataFrame":
        """Return a short table of the n best: score, grade, passage in context, reading steps."""
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
        unit = f"\nscore: {self.unit}" if self.unit else ""

        class Table(pandas.DataFrame):
            """A table that a plain shell prints whole: pandas would leave out the text."""

            def __repr__(self) -> str:
                return self.to_string() + unit

            def __reduce__(self) -> tuple[Any, ...]:  # pickle does not find a class in a function
                return pandas.DataFrame, (self.to_dict("series"),)

        return Table(rows, index=range(1, len(rows["score"]) + 1))

    def _repr_html_(self) -> str:
        tried = sum(one.effect is not None for one in self.items)
        facts = (
            ("method", self.method),
            ("documents", len(self)),
            ("retrained without", tried or "none of them"),
        )
        # Not by `to_frame`: its columns are records.
        frame = self.show(html_panel.ROWS).drop(columns="text")
        return html_panel.panel_of(self, frame=frame, n_rows=len(self), facts=facts).html()

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON; the file is written whole or not at all."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Sources":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file was changed, or a value has another type.
            EvidenceError: It holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.get("kind") != KIND or content.get("schema") not in READS:
            raise EvidenceError(
                f"{path} holds {storage.held_kind(content)}; {KIND!r}, version {SCHEMA} was "
                "expected, as `openbook trace documents --out` writes it"
            )
        storage.check_shape(content, SHAPE, path)
        if (asked := content["provenance"].get("asked")) is not None:
            storage.check_shape({"asked": asked}, {"asked": ASKED}, path)
        with storage.reading(path):
            items = tuple(_source(one) for one in content["items"])
            return cls(content["query"], content["method"], items, content["provenance"])


def _source(saved: storage.JsonObject) -> Source:
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
    shown = listed(steps[:SHOWN_STEPS])
    more = len(steps) - SHOWN_STEPS
    return f"{shown} and {more:,} more" if more > 0 else shown
