"""Export of figures to files: an HTML page that opens without a network, or a PNG picture.

The page contains plotly.js (4.8 MB); the figure itself takes some 20 kB. For pictures plotly would
start a browser (kaleido needs Chrome, 150 MB, and fails if there is none). The few kinds of traces
in our figures (heat map, bars, lines, markers, text) are therefore drawn again with matplotlib, an
optional dependency. Positions, order, colours and labels are read from the plotly figure, and tests
compare the drawing with it. A trace of any other kind is an error, so that nothing is left out.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from train import storage


__all__ = ["SUFFIXES", "drawable", "write"]

SUFFIXES = (".html", ".png")
SCALE = 2  # pixels of the picture per pixel of the figure, as on a high-resolution screen
DOTS_PER_INCH = 100
MOST_TICKS = 24  # maximum number of labels on an axis; of more, every second or third is written
LONG_LABEL = 4  # length of labels, twelve to an axis, that are not rotated
DASHES = {"dot": ":", "dash": "--", "dashdot": "-.", None: "-", "solid": "-"}
Axes = dict[str, Any]


def drawable(path: Path | None) -> Path | None:
    """Check, before anything is computed, that a figure can be written to this path; return it.

    Raises:
        InterpError: The suffix is neither .html nor .png, or it is .png and matplotlib is not
            installed.
        TrainError: The folder does not exist, or `path` is a folder.

    Examples:
        >>> plots.drawable(folder / "heads.html").name
        'heads.html'
    """
    if path is None:
        return None
    if path.suffix not in SUFFIXES:
        raise InterpError(
            f"a figure cannot be written as {path.name!r}: its name must end in "
            f"{' or '.join(SUFFIXES)}"
        )
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        raise InterpError(
            f"{path.name}: pictures need matplotlib, which is not installed; "
            "`pip install 'openbook[png]'`, or write .html"
        )
    return storage.writable(path)


def write(figure: Any, path: str | Path) -> Path:
    """Write a plotly figure as .html (with plotly.js, opens offline) or .png, atomically.

    Raises:
        InterpError, TrainError: As for `drawable`. An InterpError also if the figure has traces
            that a picture cannot show.
    """
    path = Path(path)
    drawable(path)
    if path.suffix == ".html":
        storage.write_text(path, figure.to_html(include_plotlyjs=True))
    else:
        storage.write_bytes(path, _picture(figure))
    return path


def _picture(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for trace in figure.data:
        if trace.type not in DRAWN:
            raise InterpError(
                f"a {trace.type} cannot be drawn as a picture, only {', '.join(DRAWN)}; write .html"
            )
    layout = figure.layout
    inches = ((layout.width or 700) / DOTS_PER_INCH, (layout.height or 450) / DOTS_PER_INCH)
    paper = Figure(figsize=inches, dpi=DOTS_PER_INCH * SCALE)
    FigureCanvasAgg(paper)
    axes = _axes(paper, figure)
    for number, trace in enumerate(figure.data):
        DRAWN[trace.type](axes[trace.yaxis or "y"], trace, _look(figure, number))
    lowest = min(axes.values(), key=lambda one: one["plot"].get_position().y0)
    for one in axes.values():
        _finish(one)
        if one is not lowest:
            one["plot"].tick_params(labelbottom=False)
            one["plot"].set_xlabel("")
    _shapes(axes["y"]["plot"], layout)
    paper.suptitle(_plain(layout.title.text), fontsize=11)
    content = BytesIO()
    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box, so the warning adds nothing.
        warnings.filterwarnings("ignore", message="Glyph")
        paper.savefig(content, format="png", bbox_inches="tight", metadata={"Software": None})
    return content.getvalue()


def _axes(paper: Any, figure: Any) -> dict[str, Axes]:
    """Create one plot for each y axis of the figure, placed by the domains of the y axes."""
    names = dict.fromkeys(["y", *(trace.yaxis or "y" for trace in figure.data)])
    found: dict[str, Axes] = {}
    for name in names:
        low, high = figure.layout[f"yaxis{name[1:]}"].domain or (0.0, 1.0)
        shared = found["y"]["plot"] if found else None
        plot = paper.add_axes((0.1, 0.12 + 0.76 * low, 0.85, 0.76 * (high - low)), sharex=shared)
        traces = [trace for trace in figure.data if (trace.yaxis or "y") == name]
        found[name] = {
            "plot": plot,
            "x": _Axis(figure.layout.xaxis, [trace.x for trace in traces]),
            "y": _Axis(figure.layout[f"yaxis{name[1:]}"], [trace.y for trace in traces]),
            "heat": any(trace.type == "heatmap" for trace in traces),
        }
    return found


class _Axis:
    """Mapping of values to numbers on an axis; categories are numbered in order of appearance."""

    def __init__(self, layout: Any, columns: Sequence[Any]) -> None:
        self.layout = layout
        values = [value for column in columns if column is not None for value in column]
        named = layout.type == "category" or any(isinstance(value, str) for value in values)
        self.names = list(dict.fromkeys(map(str, values))) if named else None

    def place(self, values: Any) -> list[float]:
        """Return the number of each value along the axis; NaN for None."""
        nowhere = float("nan")
        if self.names is not None:
            at = {name: float(number) for number, name in enumerate(self.names)}
            return [nowhere if value is None else at[str(value)] for value in values]
        return [nowhere if value is None else float(value) for value in values]


def _look(figure: Any, number: int) -> dict[str, Any]:
    """Return colour, legend name and rank of a trace among those of its kind."""
    colours = figure.layout.template.layout.colorway or ("#636efa",)
    trace = figure.data[number]
    kind = [one for one, other in enumerate(figure.data) if other.type == trace.type]
    line, marker = getattr(trace, "line", None), getattr(trace, "marker", None)
    given = next((one.color for one in (line, marker) if one is not None and one.color), None)
    several = sum(other.showlegend is not False for other in figure.data) > 1
    shown = several and trace.showlegend is not False and figure.layout.showlegend is not False
    return {
        "color": given if isinstance(given, str) else colours[number % len(colours)],
        "label": _plain(trace.name) if shown and trace.name else None,
        "rank": (kind.index(number), len(kind)),
    }


# --- kinds of traces -----------------------------------------------------------------------------


def _heat_map(axes: Axes, trace: Any, look: dict[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = [(at, _rgb(colour)) for at, colour in trace.colorscale or ()]
    if trace.reversescale:
        scale = [(1 - at, colour) for at, colour in reversed(scale)]
    colours = LinearSegmentedColormap.from_list("figure", scale) if scale else "RdBu_r"
    # `origin="lower"` puts the first row at the bottom, as plotly does.
    drawn = axes["plot"].imshow(
        [[float("nan") if value is None else value for value in row] for row in trace.z],
        origin="lower", aspect="auto", cmap=colours, vmin=trace.zmin, vmax=trace.zmax,
        interpolation="nearest",
    )  # fmt: skip
    bar = axes["plot"].figure.colorbar(drawn, ax=axes["plot"])
    bar.set_label(_plain(trace.colorbar.title.text))


def _bars(axes: Axes, trace: Any, look: dict[str, Any]) -> None:
    rank, n = look["rank"]
    width = 0.8 / n
    places = [place + (rank - (n - 1) / 2) * width for place in axes["x"].place(trace.x)]
    heights = _numbers(trace.y)
    axes["plot"].bar(places, heights, width, color=look["color"], label=look["label"])
    _intervals(axes["plot"], places, heights, trace, "#444444")


def _scatter(axes: Axes, trace: Any, look: dict[str, Any]) -> None:
    plot, x, y = axes["plot"], axes["x"].place(trace.x), axes["y"].place(trace.y)
    opacity = 1.0 if trace.opacity is None else trace.opacity
    if trace.fill == "toself":
        plot.fill(x, y, color=look["color"], alpha=opacity, linewidth=0, label=look["label"])
        return
    # Plotly's rule if no mode is given: markers too if there are fewer than 20 points.
    mode = trace.mode or ("lines+markers" if len(x) < 20 else "lines")
    if "text" in mode and trace.text is not None:
        for at, height, text in zip(x, y, trace.text, strict=True):
            plot.text(at, height, _plain(text), ha="center", va="center", fontsize=8)
    plot.plot(
        x, y, color=look["color"], alpha=opacity, label=look["label"],
        linestyle=DASHES.get(trace.line.dash, "--") if "lines" in mode else "",
        linewidth=1.5 if trace.line.width is None else trace.line.width,
        marker=_mark(trace) if "markers" in mode else "", markersize=5,
    )  # fmt: skip
    _intervals(plot, x, y, trace, look["color"])


DRAWN: dict[str, Callable[[Axes, Any, dict[str, Any]], None]] = {
    "heatmap": _heat_map,
    "bar": _bars,
    "scatter": _scatter,
}


def _mark(trace: Any) -> str:
    return "|" if "line-ns" in str(trace.marker.symbol) else "o"


def _intervals(plot: Any, x: list[float], y: list[float], trace: Any, colour: str) -> None:
    error = trace.error_y
    if error.array is None:
        return
    above = _numbers(error.array)
    below = above if error.arrayminus is None else _numbers(error.arrayminus)
    plot.errorbar(x, y, [below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=3)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


# --- axes, lines and annotations -----------------------------------------------------------------


def _finish(axes: Axes) -> None:
    plot = axes["plot"]
    for which in "xy":
        axis = axes[which]
        getattr(plot, f"set_{which}label")(_plain(axis.layout.title.text))
        if axis.names is not None:
            _name_ticks(plot, which, axis.names)
        elif axis.layout.type == "log":
            getattr(plot, f"set_{which}scale")("log")
        if axis.layout.range is not None:
            limits = [10**end if axis.layout.type == "log" else end for end in axis.layout.range]
            getattr(plot, f"set_{which}lim")(*limits)
        getattr(plot, f"{which}axis").set_visible(axis.layout.visible is not False)
    if axes["x"].layout.visible is False:
        plot.set_frame_on(False)
    elif not axes["heat"]:
        plot.grid(alpha=0.3)
        plot.set_axisbelow(True)
    if plot.get_legend_handles_labels()[1]:
        plot.legend(fontsize=8)


def _name_ticks(plot: Any, which: str, names: list[str]) -> None:
    every = -(-len(names) // MOST_TICKS)
    kept = [_plain(name) for name in names[::every]]
    crowded = which == "x" and (
        len(kept) > MOST_TICKS / 2 or max(map(len, kept)) > LONG_LABEL * 12 / len(kept)
    )
    getattr(plot, f"set_{which}ticks")(
        range(0, len(names), every), kept, fontsize=8, rotation=90 if crowded else 0
    )


def _shapes(plot: Any, layout: Any) -> None:
    """Draw the horizontal and vertical lines of the figure, and its annotations."""
    from matplotlib.transforms import blended_transform_factory

    for shape in layout.shapes:
        look = {"color": shape.line.color or "#444444", "linestyle": DASHES.get(shape.line.dash)}
        if shape.y0 == shape.y1:
            plot.axhline(shape.y0, **look)
        else:
            plot.axvline(shape.x0, **look)
    for note in layout.annotations:
        across, up = ("domain" in str(ref) or ref == "paper" for ref in (note.xref, note.yref))
        where = blended_transform_factory(
            plot.transAxes if across else plot.transData, plot.transAxes if up else plot.transData
        )
        plot.text(
            note.x, note.y, _plain(note.text), transform=where, fontsize=8, ha="right", va="bottom"
        )


def _plain(text: str | None) -> str:
    """Return text without plotly's HTML tags, and with "$" escaped, which starts a formula."""
    bare = re.sub(r"</?\w+[^>]*>", "", (text or "").replace("<br>", "\n"))
    return bare.replace("$", r"\$")


def _rgb(colour: str) -> tuple[float, ...] | str:
    found = re.fullmatch(r"rgb\((\d+), *(\d+), *(\d+)\)", colour)
    return tuple(int(part) / 255 for part in found.groups()) if found else colour
