"""Figures are small, and the file that is written shows what the figure says."""

import json
import re
from typing import Any

import pandas
import pytest
import torch

from interp import plots
from interp.errors import InterpError


plotly = pytest.importorskip("plotly")
NOTEBOOK = "plotly_mimetype"  # what plotly chooses in a Jupyter kernel


def first_trace(figure) -> Any:
    """What is drawn first, with the attributes of its kind."""
    return figure.data[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wide(seed: int = 0):
    """12 layers of 64 heads."""
    values = torch.randn(12, 64, generator=generator(seed))
    return plots.heads(values, title="heads", unit="share")


def grouped():
    columns = {"a": ["x", "x", "y", "y"], "b": ["p", "q"] * 2, "v": [1.0, 2.0, 3.0, 4.0]}
    bounds = {"l": [0.5, 1.5, 2.5, None], "h": [1.2, 2.2, 3.5, None]}
    return plots.grouped_bars(
        pandas.DataFrame({**columns, **bounds}),
        across="a", by="b", value="v", low="l", high="h", title="bars", unit="logits",
    )  # fmt: skip


def side_by_side():
    figure = plots.figure(["one", "two", "three"])
    for column in (1, 2, 3):
        cells = first_trace(plots.heat_map([[1.0, -1.0]], ["L0"], ["a", "b"], title="", unit="x"))
        figure.add_trace(cells, row=1, col=column)
    return plots.framed(figure, "maps")


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 64), (12, 66), (12, 67), (48, 3072)])
def test_a_page_of_one_figure_is_under_100_kb_however_large_the_map(shape, tmp_path):
    figure = plots.heads(torch.randn(shape, generator=generator()), title="heads", unit="share")
    assert plots.write(figure, tmp_path / "heads.html").stat().st_size < 100_000
    assert len(wide().to_html(include_plotlyjs=False)) < 20_000


def test_twenty_figures_of_a_notebook_are_under_2_mb_and_carry_no_plotly():
    import plotly.io

    figures = [wide(seed) for seed in range(18)] + [grouped(), side_by_side()]
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
        "application/vnd.plotly.v1+json",
        "image/svg+xml",
        "text/plain",
    }
    assert len(nbformat.writes(notebook)) < 3_000_000


def test_values_have_four_digits_and_whole_numbers_stay():
    value = first_trace(wide()).z[0][0]
    assert value == float(f"{value:.4g}")
    figure = plots.bars(["a", "b"], [1 / 3, 12345.678], None, None, title="", unit="")
    assert list(first_trace(figure).y) == [0.3333, 12350.0]
    assert list(first_trace(grouped()).error_y.array) == pytest.approx([0.2, 0.5])


# --- files ---------------------------------------------------------------------------------------


def test_a_page_holds_all_that_it_needs(tmp_path):
    page = plots.write(grouped(), tmp_path / "bars.html").read_text()
    assert not re.search(r"<(script|link)|https?://(?!www\.w3\.org/2000/svg)", page)
    assert plots.svg(grouped()) in page
    assert ">logits</text>" in page


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.PNG", "figure.html.gz"])
def test_another_suffix_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(InterpError, match=r"must end in \.html, \.svg, \.pdf or \.png") as found:
        plots.write(wide(), tmp_path / name)
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InterpError, match="cannot be written"):
        plots.drawable(tmp_path / name)


@pytest.mark.parametrize("name", ["figure.pdf", "figure.png"])
def test_a_picture_is_what_plotly_draws_in_the_format_of_the_suffix(tmp_path, monkeypatch, name):
    def to_image(figure, *, format, scale):
        return f"{format} of {len(figure.data)} traces, scale {scale}".encode()

    monkeypatch.setattr("plotly.io.to_image", to_image)
    path = plots.write(grouped(), tmp_path / name)
    assert path.read_text() == f"{name[-3:]} of 2 traces, scale 2"


def test_without_a_browser_a_picture_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    def to_image(*_, **__):
        raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\n\nEither ...")

    monkeypatch.setattr("plotly.io.to_image", to_image)
    for refusal in (plots.drawable, lambda path: plots.write(grouped(), path)):
        with pytest.raises(InterpError) as found:
            refusal(tmp_path / "figure.png")
        assert str(found.value) == (
            "figure.png: .png needs Chrome (Kaleido requires Google Chrome to be installed); "
            "`pip install -e '.[image]'` and `plotly_get_chrome`, or write .svg"
        )
    assert list(tmp_path.iterdir()) == []
    for name in ("figure.html", "figure.svg"):
        assert plots.drawable(tmp_path / name) == tmp_path / name
    assert plots.drawable(None) is None


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # kaleido's, of the browser that it starts
def test_chrome_draws_a_figure(tmp_path):
    try:
        plots.drawable(tmp_path / "bars.pdf")
    except InterpError as error:
        pytest.skip(str(error))
    assert plots.write(grouped(), tmp_path / "bars.pdf").read_bytes().startswith(b"%PDF")
    assert plots.write(grouped(), tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_the_axes_of_a_map_are_named_in_words():
    figure = plots.heads(torch.zeros(2, 4), title="heads", unit="share")
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")


def test_the_scale_of_numbers_that_cannot_be_negative_begins_at_0():
    values = torch.tensor([[0.0, 0.5, 1.0]])
    drawn = [
        plots.svg(plots.heads(values, title="heads", unit="attention", from_zero=one))
        for one in (True, False)
    ]
    scales = [re.findall(r">(-?[\d.]+)</text>", one)[-3:] for one in drawn]
    assert scales == [["1", "0.5", "0"], ["1", "0", "-1"]]
