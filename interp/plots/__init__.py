"""Figures: heat maps, bars and curves, written as HTML pages or pictures."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.plots.charts import (
        HEIGHT,
        WIDTH,
        Figure,
        bars,
        columns,
        curves,
        estimates,
        figure,
        framed,
        grouped_bars,
        heads,
        heat_map,
        interval,
        lines,
        shortened,
    )
    from interp.plots.export import drawable, write
    from interp.plots.picture import svg
    from interp.plots.trace_values import COLOURS

__all__ = [
    "COLOURS",
    "HEIGHT",
    "WIDTH",
    "Figure",
    "bars",
    "columns",
    "curves",
    "drawable",
    "estimates",
    "figure",
    "framed",
    "grouped_bars",
    "heads",
    "heat_map",
    "interval",
    "lines",
    "shortened",
    "svg",
    "write",
]

__getattr__ = names_on_first_use(__name__, __file__)
