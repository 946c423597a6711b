"""The table of an evaluation: a row a method, a kind of case and a measure, each with its n."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from interp.statistics import mean_interval


__all__ = ["Evaluation", "Row", "mean_row", "row"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A row a method and kind of fact; numbers that were not asked for are left out.

    Attributes:
        rows: Plain values: `method`, `kind`, `measure`, `value`, `low`, `high`, `n`.
        provenance: Run, facts, candidates, components, seconds a method.
    """

    rows: tuple[Row, ...]
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"rows": list(self.rows), "provenance": self.provenance}

    def to_frame(self) -> pd.DataFrame:
        """A row a number."""
        return pd.DataFrame(list(self.rows))

    def value(self, method: str, kind: str, measure: str) -> Row:
        """One row of `rows`."""
        return next(
            row for row in self.rows
            if (row["method"], row["kind"], row["measure"]) == (method, kind, measure)
        )  # fmt: skip

    def lines(self) -> str:
        """The table for a person: a line a method and kind, a column a measure."""
        measures = list(dict.fromkeys(one["measure"] for one in self.rows))
        wide = max(len("facts"), *(len(one["kind"]) for one in self.rows)) + 2
        head = f"{'method':<12}{'facts':<{wide}}" + "".join(f"{one:<29}" for one in measures)
        lines = [head.rstrip()]
        by_line: dict[tuple[str, str], dict[str, Row]] = {}
        for one in self.rows:
            by_line.setdefault((one["method"], one["kind"]), {})[one["measure"]] = one
        for (method, kind), row in by_line.items():
            cells = "".join(f"{_cell(row.get(one)):<29}" for one in measures)
            lines.append(f"{method:<12}{kind:<{wide}}{cells}".rstrip())
        about = self.provenance
        lines.append(
            f"run {about['run']}; {about['candidates']} candidates; localised to "
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
    """A row of the mean over cases and its interval; none where there is no case."""
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
    """A row with its 95 % interval; None where an end is not known."""
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
