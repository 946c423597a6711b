"""The SVG of a figure shows every value at its place, and is well-formed whatever it names."""

import re
import struct
import zlib
from base64 import b64decode
from datetime import date
from typing import Any
from xml.etree import ElementTree

import pytest

from interp import plots
from interp.errors import InterpError


SVG = "{http://www.w3.org/2000/svg}"
LEFT_OUT = float("nan")


def parsed(figure) -> ElementTree.Element:
    return ElementTree.fromstring(plots.svg(figure))


def said(figure) -> list[str]:
    """Tooltips, in the order of drawing."""
    return [one.text or "" for one in parsed(figure).iter(f"{SVG}title")]


def written(figure) -> list[str]:
    return [one.text or "" for one in parsed(figure).iter(f"{SVG}text")]


def boxes(figure) -> dict[str, tuple[Any, ...]]:
    """Left, top, height and colour of every mark with a tooltip."""
    return {
        str(one[0].text): (
            *(float(one.attrib[k]) for k in ("x", "y", "height")),
            one.attrib["fill"],
        )
        for one in parsed(figure).iter(f"{SVG}rect")
        if len(one)
    }


def test_a_heat_map_puts_each_value_at_its_row_and_column_in_its_colour():
    figure = plots.heat_map(
        [[1.0, -1.0], [0.0, LEFT_OUT]], ["L0", "L1"], ["a", "b"], title="map", unit="nats"
    )
    found = boxes(figure)
    assert list(found) == ["L0 a: 1.000", "L0 b: -1.000", "L1 a: 0.000", "L1 b: not measured"]
    (x_a, y_0, _, red), (x_b, _, _, blue), (_, y_1, _, white), (_, _, _, grey) = found.values()
    assert x_a < x_b
    assert y_1 < y_0  # the first row is at the bottom
    assert (red, blue, grey) == ("#67001f", "#053061", "#cccccc")
    assert white == "#f7f7f7"
    assert {"L0", "L1", "a", "b", "1.00", "-1.00", "nats", "map"} <= set(written(figure))


def test_bars_are_as_high_as_their_values_and_begin_at_zero():
    low, high = [1.0, -2.0, LEFT_OUT], [3.0, 0.0, LEFT_OUT]
    figure = plots.bars(
        ["a", "b", "c"], [2.0, -1.0, LEFT_OUT], low, high, title="bars", unit="nats"
    )
    found = boxes(figure)
    assert list(found) == ["a: 2.000 [1.000, 3.000]", "b: -1.000 [-2.000, 0.000]"]
    (_, top, height, _), (_, zero, depth, _) = found.values()
    assert height == pytest.approx(2 * depth, abs=0.2)
    assert top + height == pytest.approx(zero, abs=0.2)
    # Both intervals are as long as the first bar.
    lines = [one.attrib for one in parsed(figure).iter(f"{SVG}line") if one.get("stroke") == "#222"]
    upright = [abs(float(one["y1"]) - float(one["y2"])) for one in lines if one["x1"] == one["x2"]]
    assert upright == pytest.approx([height, height], abs=0.2)


def test_a_curve_breaks_where_nothing_was_measured():
    figure = plots.lines(
        [0, 1, 2, 3], {"a": [0.0, 1.0, LEFT_OUT, 1.0]}, title="", unit="", across="x"
    )
    (path,) = parsed(figure).iter(f"{SVG}path")
    assert re.sub(r"[\d. ]", "", path.attrib["d"]) == "MLM"


def test_a_logarithmic_axis_leaves_out_zero_and_labels_round_numbers():
    figure = plots.lines([0, 10, 100, 1000], {"a": [1.0] * 4}, title="", unit="", across="step")
    figure.update_xaxes(type="log")
    (path,) = parsed(figure).iter(f"{SVG}path")
    x = [float(one) for one in re.findall(r"[ML]([\d.]+)", path.attrib["d"])]
    assert len(x) == 3
    assert x[2] - x[1] == pytest.approx(x[1] - x[0], abs=0.2)
    assert {"10", "100", "1000"} <= set(written(figure))


def test_maps_side_by_side_share_their_rows_and_one_scale():
    figure = plots.figure(["one", "two", "three"])
    for column in (1, 2, 3):
        cells = plots.heat_map([[1.0]], ["L0"], ["a"], title="", unit="x").data[0]
        cells.showscale = column == 3
        figure.add_trace(cells, row=1, col=column)
    found = written(plots.framed(figure, "maps"))
    assert [found.count(one) for one in ("one", "two", "three", "L0", "a", "x")] == [1] * 3 + [
        1,
        3,
        1,
    ]
    lefts = [float(one.attrib["x"]) for one in parsed(figure).iter(f"{SVG}rect") if len(one)]
    assert lefts == sorted(set(lefts))
    assert len(lefts) == 3


def pixels(figure) -> list[bytes]:
    """The pixels of the picture in a figure, row by row from the top, three bytes each."""
    (picture,) = parsed(figure).iter(f"{SVG}image")
    content = b64decode(picture.attrib["href"].removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", content[16:24])
    begin = content.index(b"IDAT")
    (size,) = struct.unpack(">I", content[begin - 4 : begin])
    flat = zlib.decompress(content[begin + 4 : begin + 4 + size])
    return [flat[k * (3 * width + 1) + 1 : (k + 1) * (3 * width + 1)] for k in range(height)]


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 5000), (5000, 1)])
def test_a_map_too_large_for_tooltips_shows_the_largest_of_the_values_that_share_a_pixel(
    n_rows, n_columns
):
    values = [[0.0] * n_columns for _ in range(n_rows)]
    values[1234 % n_rows][1234 % n_columns] = 1.0
    names = [[str(k) for k in range(n)] for n in (n_rows, n_columns)]
    figure = plots.heat_map(values, *names, title="", unit="")
    found = pixels(figure)
    assert len(found) < 680
    assert len(found[0]) < 3 * 680
    red = bytes.fromhex("67001f")
    assert sum(row[k : k + 3] == red for row in found for k in range(0, len(row), 3)) == 1


def test_several_maps_have_tooltips_only_if_all_of_them_together_are_small():
    """Three of 270 cells took 93 kB with a tooltip for each cell."""
    for n_rows, pictures in ((10, 0), (30, 3)):
        figure, rows = plots.figure(["one", "two", "three"]), [f"L{row}" for row in range(n_rows)]
        for column in (1, 2, 3):
            values = [[float(row * column)] * 9 for row in range(n_rows)]
            one = plots.heat_map(values, rows, list("abcdefghi"), title="", unit="x")
            figure.add_trace(one.data[0], row=1, col=column)
        found = plots.svg(figure)
        assert found.count("<image") == pictures
        assert len(found) < 50_000


@pytest.mark.parametrize(
    "name", ["a<b & c", "line\nend", "nul\x00", "\x1b[31m", "\ud800", "</svg>"]
)
def test_names_that_would_break_the_file_are_escaped(name):
    figure = plots.bars([name, "b"], [1.0, 2.0], None, None, title=name, unit=name)
    assert len(said(figure)) == 2


def test_a_trace_that_is_not_drawn_here_is_refused_and_left_to_plotly():
    figure = plots.figure()
    figure.add_pie(values=[1, 2])
    with pytest.raises(InterpError, match="a pie is not drawn here; draw heatmap, bar, scatter"):
        plots.svg(figure)


@pytest.mark.parametrize(
    ("kind", "trace"),
    [
        ("scatter", {"y": [1, 2]}),
        ("scatter", {"x": [date(2026, 1, 1)], "y": [1]}),
        ("bar", {"y": ["a"], "x": [1], "orientation": "h"}),
        ("heatmap", {"z": [[1]], "x": ["a"], "y": ["b"]}),
    ],
)
def test_what_a_reader_adds_in_another_form_is_left_to_plotly(kind, trace, tmp_path, monkeypatch):
    figure = plots.bars(["a", "b"], [1.0, 2.0], None, None, title="", unit="")
    figure.add_trace({"type": kind, **trace})
    with pytest.raises(InterpError, match="is not drawn here"):
        plots.write(figure, tmp_path / "a.svg")
    assert "image/svg+xml" not in kept(figure, monkeypatch)


def test_a_figure_without_traces_is_refused():
    with pytest.raises(InterpError, match="a figure without traces is not drawn here"):
        plots.svg(plots.figure())


def kept(figure, monkeypatch) -> dict[str, Any]:
    """What a notebook keeps of a figure, by its type."""
    formatters = pytest.importorskip("IPython.core.formatters")
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")
    return formatters.DisplayFormatter().format(figure)[0]


def test_a_notebook_keeps_the_svg_and_no_html_that_loads_scripts(monkeypatch):
    figure = plots.heat_map([[1.0]], ["L0"], ["a"], title="map", unit="x")
    found = kept(figure, monkeypatch)
    assert {*found} == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert found["image/svg+xml"] == plots.svg(figure)
    assert found["text/plain"] == "Figure('map', 1 trace)"


def test_a_turned_label_begins_inside_the_figure():
    names = [f"{i} <|endoftext|> and more" for i in range(12)]
    figure = plots.heat_map([[0.5] * 12], ["L0"], names, title="map", unit="share")
    found = parsed(figure).iter(f"{SVG}text")
    turned = {
        one.text: one.attrib["transform"] for one in found if "-35" in one.get("transform", "")
    }
    assert len(turned) == 12
    assert "11 <|endoftext|> and more" in turned
    for label, transform in turned.items():
        (end,) = re.findall(r"translate\(([\d.]+)", transform)
        assert float(end) - 5 * len(label or "") > 0  # five pixels a letter, from left to right
