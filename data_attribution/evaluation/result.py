"""The table of an evaluation: one row per method, kind of fact and measure, each with its n."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import numpy as np
import pandas as pd
from jaxtyping import Float64

from train import storage
from train.html_panel import html_repr
from train.short_repr import short_repr
from train.statistics import mean_interval


__all__ = ["Evaluation", "Row", "mean_row", "row"]

PRESELECTED = ("gradient", "localised")  # methods that rank only what words preselected


class Row(TypedDict):
    """One number of an evaluation: the mean of a measure over `n` facts, and its interval."""

    method: str
    kind: str
    measure: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Evaluation:
    """One row per method, kind of fact and measure; measures that were not requested are left out.

    Attributes:
        rows: Plain values: `method`, `kind`, `measure`, `value`, `low`, `high`, `n`.
        provenance: Run, facts, candidates, components, and seconds per method.
    """

    meaning: ClassVar[str] = (
        "An evaluation shows how well methods find the documents of planted facts in a "
        "generated corpus; it does not show how well they do on natural text."
    )

    rows: tuple[Row, ...]
    provenance: storage.JsonObject

    __repr__ = short_repr
    _repr_html_ = html_repr

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {"rows": list(self.rows), "provenance": self.provenance}

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per number."""
        return pd.DataFrame(list(self.rows))

    def value(self, method: str, kind: str, measure: str) -> Row:
        """Return one row of `rows`."""
        return next(
            row for row in self.rows
            if (row["method"], row["kind"], row["measure"]) == (method, kind, measure)
        )  # fmt: skip

    def lines(self) -> str:
        """Return the table as text: one line per method and kind, one column per measure."""
        measures = list(dict.fromkeys(one["measure"] for one in self.rows))
        wide = max(len("facts"), *(len(one["kind"]) for one in self.rows)) + 2
        head = f"{'method':<25}{'facts':<{wide}}" + "".join(f"{one:<33}" for one in measures)
        lines = [head.rstrip()]
        by_line: dict[tuple[str, str], dict[str, Row]] = {}
        for one in self.rows:
            by_line.setdefault((one["method"], one["kind"]), {})[one["measure"]] = one
        for (method, kind), row in by_line.items():
            cells = "".join(f"{_cell(row.get(one)):<33}" for one in measures)
            name = f"{method} (preselected)" if method in PRESELECTED else method
            lines.append(f"{name:<25}{kind:<{wide}}{cells}".rstrip())
        about = self.provenance
        lines.append(
            f"run {about['run']}; (preselected): gradients of {about['candidates']} documents that "
            f"words preselected{' of ' + str(about['documents']) if 'documents' in about else ''}, "
            "also in fused; the other methods rank all; localised to "
            f"{', '.join(about['within']) or 'nothing'}; value [95 %] (n)"
        )
        if replayed := about.get("replayed"):
            lines.append(
                f"replayed: the {len(replayed['facts'])} most stated facts, and of every method's "
                f"list the {replayed['documents']} documents that the last steps read, "
                f"{replayed['stating']} of which state these facts and {replayed['distractors']} "
                "distract from them; replay answers for no other"
            )
        return "\n".join(lines)


def mean_row(
    method: str, kind: str, measure: str, values: Float64[np.ndarray, " case"]
) -> Iterator[Row]:
    """Yield a row with the mean over cases and its interval; nothing if there is no case."""
    if len(values):
        bounds = mean_interval(values)
        yield row(method, kind, measure, float(values.mean()), bounds, len(values))


def row(
    method: str,
    kind: str,
    measure: str,
    value: float,
    bounds: tuple[float | None, float | None] | None,
    n: int,
) -> Row:
    """Return a row with its 95 % interval; an unknown end is None."""
    low, high = bounds or (None, None)
    return {
        "method": method,
        "kind": kind,
        "measure": measure,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    ends = ("" if end is None else f"{end:.3g}" for end in (row["low"], row["high"]))
    return f"{row['value']:.3g} [{', '.join(ends)}] ({row['n']})"
