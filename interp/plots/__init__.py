"""Figures: heat maps, bars and curves, written as HTML, SVG or PNG."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.plots.charts import (
        bars,
        columns,
        curves,
        effects,
        grouped_bars,
        heads,
        heat_map,
        lines,
        recall,
        trace,
        write,
    )
    from interp.plots.export import drawable
    from interp.plots.result_charts import agreement, circuit, erasure, probe, trajectory

__all__ = [
    "agreement",
    "bars",
    "circuit",
    "columns",
    "curves",
    "drawable",
    "effects",
    "erasure",
    "grouped_bars",
    "heads",
    "heat_map",
    "lines",
    "probe",
    "recall",
    "trace",
    "trajectory",
    "write",
]

__getattr__ = names_on_first_use(__name__, __file__)
