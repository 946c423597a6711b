"""Figures are small, and the file that is written shows what the figure says."""

import json
import re
import struct
from typing import Any

import pandas
import pytest
import torch

from interp import plots
from interp.errors import InterpError
from interp.plots import export


plotly = pytest.importorskip("plotly")
NOTEBOOK = "plotly_mimetype"  # what plotly chooses in a Jupyter kernel


def first_trace(figure) -> Any:
    """What is drawn first, with the attributes of its kind."""
    return figure.data[0]


def wide(seed: int = 0):
    """12 layers of 64 heads."""
    values = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed))
    return plots.heads(values, title="heads", unit="share")


def grouped():
    columns = {"a": ["x", "x", "y", "y"], "b": ["p", "q"] * 2, "v": [1.0, 2.0, 3.0, 4.0]}
    bounds = {"l": [0.5, 1.5, 2.5, None], "h": [1.2, 2.2, 3.5, None]}
    return plots.grouped_bars(
        pandas.DataFrame({**columns, **bounds}),
        across="a", by="b", value="v", low="l", high="h", title="bars", unit="logits",
    )  # fmt: skip


def curves():
    figure = grouped().__class__()
    figure.add_scatter(x=[1, 10, 100], y=[0.1, None, 0.9], name="one")
    figure.add_scatter(x=[1, 10, 100], y=[0.3, 0.2, 0.1], name="two", line={"dash": "dot"})
    figure.add_scatter(x=[1, 9, 9, 1], y=[0, 0, 1, 1], fill="toself", opacity=0.2, showlegend=False)
    figure.add_scatter(x=[1], y=[0.5], text=["here"], mode="text", showlegend=False)
    figure.add_scatter(x=[3, 30], y=["doc", "doc"], yaxis="y2", mode="markers")
    figure.add_hline(y=0.5, line_dash="dot", annotation_text="chance")
    figure.update_layout(yaxis={"domain": [0.2, 1]}, yaxis2={"domain": [0, 0.1], "anchor": "x"})
    return figure.update_xaxes(type="log")


# --- size ----------------------------------------------------------------------------------------


def test_a_heat_map_of_12_by_64_heads_is_well_under_100_kb_without_plotly(tmp_path):
    bare = wide().to_html(include_plotlyjs=False)
    page = plots.write(wide(), tmp_path / "heads.html").read_text()
    library = max(re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL), key=len)
    assert len(page) - len(library) < 20_000
    assert len(bare) < 20_000


def test_twenty_figures_of_a_notebook_are_under_2_mb_and_carry_no_plotly():
    import plotly.io

    figures = [wide(seed) for seed in range(18)] + [grouped(), curves()]
    bundles = [plotly.io.renderers[NOTEBOOK].to_mimebundle(one.to_dict()) for one in figures]
    written = [json.dumps(one, cls=plotly.utils.PlotlyJSONEncoder) for one in bundles]
    assert all("plotly.js v" not in one for one in written)
    assert sum(map(len, written)) < 500_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_notebook_of_twenty_figures_that_was_run_is_under_2_mb():
    nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
    draw = "plots.heads(torch.randn(12, 64), title='heads', unit='share')"
    cells = ["import torch\nfrom interp import plots", *[draw] * 20]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.outputs if "data" in output]
    assert len(shown) == 20
    assert {kind for output in shown for kind in output["data"]} == {
        "application/vnd.plotly.v1+json"
    }
    assert len(nbformat.writes(notebook)) < 2_000_000


def test_values_have_four_digits_and_whole_numbers_stay():
    value = first_trace(wide()).z[0][0]
    assert value == float(f"{value:.4g}")
    figure = plots.bars(["a", "b"], [1 / 3, 12345.678], None, None, title="", unit="")
    assert list(first_trace(figure).y) == [0.3333, 12350.0]
    assert list(first_trace(grouped()).error_y.array) == pytest.approx([0.2, 0.5])


# --- files ---------------------------------------------------------------------------------------


def test_a_page_holds_all_that_it_needs(tmp_path):
    page = plots.write(grouped(), tmp_path / "bars.html").read_text()
    assert "plotly.js v" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert '"logits"' in page


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.PNG", "figure.html.gz"])
def test_another_suffix_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(InterpError, match=r"must end in \.html or \.png") as found:
        plots.write(wide(), tmp_path / name)
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InterpError, match="cannot be written"):
        export.drawable(tmp_path / name)


def test_without_matplotlib_a_picture_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InterpError, match=r"pip install 'openbook\[png\]'`, or write \.html"):
        export.drawable(tmp_path / "figure.png")
    assert export.drawable(tmp_path / "figure.html") == tmp_path / "figure.html"
    assert export.drawable(None) is None


def pixels(path):
    """[row column channel] from the top, in [0, 1]."""
    image = pytest.importorskip("matplotlib.image")
    return image.imread(path)


@pytest.mark.parametrize("figure", [wide, grouped, curves])
def test_a_picture_is_a_png_twice_the_size_of_the_figure_and_always_the_same(tmp_path, figure):
    pytest.importorskip("matplotlib")
    one = plots.write(figure(), tmp_path / "one.png").read_bytes()
    other = plots.write(figure(), tmp_path / "other.png").read_bytes()
    assert one[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", one[16:24])
    assert 1000 < width < 1800
    assert 500 < height < 1200
    assert one == other
    assert len(one) < 100_000


def test_a_heat_map_has_its_first_row_at_the_bottom_red_for_and_blue_against(tmp_path):
    values = [[1.0, 0.0], [0.0, -1.0]]  # down: L0, L1; across: a, b
    figure = plots.heat_map(values, ["L0", "L1"], ["a", "b"], title="", unit="")
    image = pixels(plots.write(figure, tmp_path / "map.png"))
    height, width, _ = image.shape
    # Inside the axes, well off the labels and the colour bar.
    corner = {
        "bottom left": image[int(height * 0.7), int(width * 0.2)],
        "bottom right": image[int(height * 0.7), int(width * 0.6)],
        "top left": image[int(height * 0.3), int(width * 0.2)],
        "top right": image[int(height * 0.3), int(width * 0.6)],
    }
    assert corner["bottom left"][0] > 2 * corner["bottom left"][2]
    assert corner["top right"][2] > 2 * corner["top right"][0]
    assert min(corner["top left"][:3]) > 0.9
    assert min(corner["bottom right"][:3]) > 0.9


def test_a_bar_twice_as_high_is_twice_as_many_pixels(tmp_path):
    figure = plots.bars(["a", "b"], [1.0, 2.0], None, None, title="", unit="")
    image = pixels(plots.write(figure, tmp_path / "bars.png"))
    # Plotly's first colour, #636efa.
    filled = (abs(image[..., :3] - torch.tensor([0x63, 0x6E, 0xFA]).numpy() / 255) < 0.02).all(-1)
    columns = filled.sum(axis=0)
    low, high = columns[int(len(columns) * 0.25)], columns[int(len(columns) * 0.75)]
    assert high == pytest.approx(2 * low, rel=0.02)


def test_dollars_and_tags_are_text_and_many_labels_are_thinned(tmp_path):
    across = [f"{pos} ${pos}" for pos in range(60)]
    figure = plots.heat_map([[0.5] * 60], ["L0"], across, title="<b>$x</b> & $y", unit="$")
    assert plots.write(figure, tmp_path / "map.png").stat().st_size > 5000


def test_a_kind_of_trace_that_a_picture_cannot_show_is_refused(tmp_path):
    figure = grouped()
    figure.add_pie(values=[1, 2])
    with pytest.raises(InterpError, match="a pie cannot be drawn as a picture, only heatmap, bar"):
        plots.write(figure, tmp_path / "pie.png")
    assert list(tmp_path.iterdir()) == []
