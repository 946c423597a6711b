"""The score of a model on an evaluation set: every number with n, its interval and the overlap.

A measure keeps one number per item, so that intervals, differences between models and the score
without some of the items can be computed from it. Shares get Wilson's interval. A loss is a ratio
of sums, such as nats by tokens, with Fieller's interval over items or documents
(`train.statistics.intervals`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import exp, log
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from interp.errors import EvaluationError, InterpError
from interp.results import Provenance, Result
from train import storage
from train.short_repr import short_repr
from train.statistics import Estimate, ratio_estimate, wilson


if TYPE_CHECKING:
    import pandas

__all__ = ["Measure", "Overlap", "Score", "Unit"]

SCHEMA = "openbook.score/1"
Unit = Literal["share", "nats", "bits", "perplexity"]
SCALES: dict[str, Callable[[float], float]] = {
    "share": float,
    "nats": float,
    "bits": lambda nats: nats / log(2),
    # exp(710) is no number of 64 bits; the interval of few items may reach there.
    "perplexity": lambda nats: exp(min(nats, 709.0)),
}


@dataclass(frozen=True, eq=False)
class Measure:
    """One number of a score: sum(part) / sum(whole) over items, in a unit.

    Attributes:
        name: What is measured, such as "accuracy" or "bits per byte".
        unit: `share` of items that are right; `nats` or `bits` per whole; `perplexity` is exp of
            the nats per whole.
        part: 1 for each right item of a share; otherwise the negative log-probability of each item
            in nats.
        whole: What each item counts: 1, or its number of tokens, words or bytes.
    """

    name: str
    unit: Unit
    part: Float64[np.ndarray, " item"]
    whole: Float64[np.ndarray, " item"]

    __repr__ = short_repr

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.part)

    @property
    def estimate(self) -> Estimate:
        """The number with its 95 % interval; without one if there are fewer than two items.

        Examples:
            >>> right = np.repeat([1.0, 0.0], [45, 5])
            >>> measure = model_evaluation.Measure("accuracy", "share", right, np.ones(50))
            >>> str(measure.estimate)
            '0.900 [0.786, 0.957]'
        """
        total = self.whole.sum()
        ratio = float(self.part.sum() / total) if total else float("nan")
        scale = SCALES[self.unit]
        if self.n < 2:
            return Estimate(scale(ratio), None, None)
        if self.unit == "share":
            return Estimate(ratio, *wilson(ratio, self.n))
        found = ratio_estimate(self.part, self.whole)
        if found.low is None or found.high is None:
            return Estimate(scale(ratio), None, None)
        return Estimate(scale(ratio), scale(found.low), scale(found.high))

    def only(self, items: Bool[np.ndarray, " item"]) -> "Measure":
        """Return the measure over some of the items."""
        return replace(self, part=self.part[items], whole=self.whole[items])


@dataclass(frozen=True, eq=False)
class Overlap:
    """The part of each item that occurs verbatim in the text that a model was trained on.

    An item overlaps if it shares `n` tokens in a row with the training text, or all of its tokens
    if it has fewer.

    Attributes:
        n: Length of the shared n-gram, in tokens.
        longest: Longest run of tokens of each item that occurs in the training text.
        lengths: Number of tokens of each item.
        store: Fingerprint of the token store that was searched; for a tuned run those of all
            stages, joined by "+".
    """

    n: int
    longest: Int64[np.ndarray, " item"]
    lengths: Int64[np.ndarray, " item"]
    store: str

    __repr__ = short_repr

    @property
    def flagged(self) -> Bool[np.ndarray, " item"]:
        """A flag for each item: whether it overlaps."""
        return self.longest >= np.minimum(self.n, np.maximum(self.lengths, 1))

    @property
    def share(self) -> Estimate:
        """Share of items that overlap, with its interval."""
        share = float(self.flagged.mean())
        return Estimate(share, *wilson(share, len(self.longest)))


@dataclass(frozen=True, eq=False)
class Score(Result):
    """Score of one model on one evaluation set.

    Attributes:
        model: How the model is called in a table.
        protocol: Name of the protocol.
        version: Version of the protocol.
        settings: The protocol in one line.
        items_sha256: sha256 over the items.
        keys: First 16 hex digits of the sha256 of each item.
        groups: Group of each item, such as its BLiMP paradigm; empty if there are none.
        measures: What was measured.
        overlap: Overlap with the training text; the reason if it is not known.
        provenance: Model and software that it was computed with.
    """

    schema: ClassVar[str] = SCHEMA
    refusal: ClassVar[type[InterpError]] = EvaluationError
    meaning: ClassVar[str] = (
        "A score shows how a model does on one set of items under one protocol; it does not "
        "show how it would do under another, nor, beyond the overlap stated, what it had read "
        "before."
    )

    model: str
    protocol: str
    version: str
    settings: str
    items_sha256: str
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    measures: tuple[Measure, ...]
    overlap: Overlap | str
    provenance: Provenance

    __repr__ = short_repr

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.keys)

    def measure(self, name: str) -> Measure:
        """Return a measure by its name.

        Raises:
            EvaluationError: There is no such measure.
        """
        for one in self.measures:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.measures)
        raise EvaluationError(f"{self.protocol} measures {known}, and {name!r} was asked for")

    def without_overlap(self, name: str) -> Measure | None:
        """Return a measure over the items that do not overlap; None if the overlap is unknown."""
        if isinstance(self.overlap, str):
            return None
        return self.measure(name).only(~self.overlap.flagged)

    def by_group(self, name: str) -> dict[str, Measure]:
        """Return a measure over the items of each group."""
        groups, measure = np.array(self.groups), self.measure(name)
        return {one: measure.only(groups == one) for one in dict.fromkeys(self.groups)}

    def rows(self) -> list[dict[str, object]]:
        """Return one row of plain values per measure."""
        rows = []
        for measure in self.measures:
            estimate, clean = measure.estimate, self.without_overlap(measure.name)
            row: dict[str, object] = {
                "model": self.model,
                "protocol": self.protocol,
                "version": self.version,
                "measure": measure.name,
                **asdict(estimate),
                "n": measure.n,
                "total": float(measure.whole.sum()),
                "overlap": self.overlap,
                "value_without_overlap": None,
                "n_without_overlap": None,
            }
            if clean is not None and isinstance(self.overlap, Overlap):
                row |= {
                    "overlap": {"tokens": self.overlap.n, **asdict(self.overlap.share)},
                    "value_without_overlap": asdict(clean.estimate) if clean.n else None,
                    "n_without_overlap": clean.n,
                }
            rows.append(row)
        return rows

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with one row per measure."""
        import pandas

        return pandas.DataFrame(self.rows())

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON, with the numbers of every item."""
        overlap = self.overlap
        if isinstance(overlap, Overlap):
            overlap = {**_plain(overlap), "share": asdict(overlap.share)}
        return {
            "schema": SCHEMA,
            "model": self.model,
            "protocol": self.protocol,
            "version": self.version,
            "settings": self.settings,
            "n": self.n,
            "items_sha256": self.items_sha256,
            "keys": list(self.keys),
            "groups": list(self.groups),
            "measures": [
                {**_plain(one), "estimate": asdict(one.estimate)} for one in self.measures
            ],
            "overlap": overlap,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Score":
        """Return the score that `to_dict` turned into plain values."""
        overlap = content["overlap"]
        if not isinstance(overlap, str):
            overlap = Overlap(
                overlap["n"],
                np.array(overlap["longest"], np.int64),
                np.array(overlap["lengths"], np.int64),
                overlap["store"],
            )
        return cls(
            **{
                name: content[name]
                for name in ("model", "protocol", "version", "settings", "items_sha256")
            },
            keys=tuple(content["keys"]),
            groups=tuple(content["groups"]),
            measures=tuple(
                Measure(
                    one["name"],
                    one["unit"],
                    np.array(one["part"], np.float64),
                    np.array(one["whole"], np.float64),
                )
                for one in content["measures"]
            ),
            overlap=overlap,
            provenance=Provenance(**content["provenance"]),
        )


def _plain(content: Measure | Overlap) -> dict[str, object]:
    return {
        key: one.tolist() if isinstance(one, np.ndarray) else one
        for key, one in vars(content).items()
    }
