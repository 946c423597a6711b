"""The values of a trace as plotly keeps them: numbers and names, error bars, colours."""

from collections.abc import Sequence
from html import escape
from typing import Any


__all__ = ["COLOURS", "DASHES", "Scalar", "colour_of", "error_ends", "number_text", "plain"]

# Plotly's default ten colours, listed because an interval needs the colour of its curve.
COLOURS = (
    "#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a", "#19d3f3", "#ff6692", "#b6e880",
    "#ff97ff", "#fecb52",
)  # fmt: skip
DASHES = {"dot": "2 4", "dash": "6 4", "dashdot": "6 3 2 3"}
Scalar = float | int | str | None


def plain(values: Any) -> list[Any]:
    """Return a list of Python values from what plotly keeps."""
    if values is None:
        return []
    return values.tolist() if hasattr(values, "tolist") else list(values)


def error_ends(trace: Any, values: Sequence[Scalar]) -> list[tuple[float, float] | None]:
    """Return the lower and upper end of every error bar; None for no bar."""
    above, below = trace.error_y.array, trace.error_y.arrayminus
    if above is None:
        return [None] * len(values)
    below = above if below is None else below
    return [
        None if a is None or b is None or not isinstance(v, int | float) else (v - b, v + a)
        for v, a, b in zip(values, plain(above), plain(below), strict=True)
    ]


def colour_of(trace: Any, number: int) -> str:
    """Return the colour of the trace of this number: its line's, its marker's, or the usual one."""
    usual = COLOURS[number % len(COLOURS)]
    if trace.type == "heatmap":
        return usual
    line = trace.line.color if trace.type == "scatter" else None
    marker = trace.marker.color if isinstance(trace.marker.color, str) else None
    return escape(line or marker or usual)


def number_text(value: Scalar) -> str:
    """Return a number with four digits, and a name as it is."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
