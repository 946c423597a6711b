"""Outputs are saved as every reader sees them, and stale ones are found."""

import html
import re
import struct
import zlib
from typing import Any

import jupytext.cli
import nbformat
import numpy as np
import pytest

from tests import saved_outputs
from tests.train.test_html_panel import HOSTILE
from train.html_panel import Grid, Panel


CODE = """# %% [markdown]
# # Numbers
# %%
import sys
from pathlib import Path

from train import progress, storage

with progress.bar("counting") as advance:
    advance("cells", 1, 1)
print("a warning", file=sys.stderr)
print(storage.project_root() / "runs", Path.home())
# %%
class Figure:
    def __repr__(self):
        return "Figure('one bar', 1 trace)"
    def _repr_svg_(self):
        return '<svg width="680" height="340"></svg>'
    def _repr_javascript_(self):
        return "draw()"
Figure()
"""


def written(folder: Any, code: str = CODE) -> Any:
    """Write a notebook as text and as a pair without outputs; return the path of the pair."""
    text = folder / "a.py"
    text.write_text(code)
    notebook = jupytext.read(text)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, text.with_suffix(".ipynb"))
    return text.with_suffix(".ipynb")


def drawn(drawing: str) -> bytes:
    assert drawing.startswith("<svg")
    return b"picture"


# --- what is saved


@pytest.mark.integration
def test_a_notebook_is_saved_with_pictures_and_without_progress_paths_and_messages(tmp_path):
    path = written(tmp_path)
    saved_outputs.save(path, drawn)
    first = path.read_bytes()
    saved_outputs.save(path, drawn)
    assert path.read_bytes() == first
    notebook: Any = nbformat.read(path, as_version=4)
    counted, figure = saved_outputs.code_cells(notebook)
    assert [(one.output_type, one.text) for one in counted.outputs] == [("stream", "./runs ~\n")]
    assert figure.outputs[0].data == {
        "image/png": "cGljdHVyZQ==",
        "text/plain": "Figure('one bar', 1 trace)",
    }
    assert figure.outputs[0].metadata["image/png"] == {"width": 680, "height": 340}
    assert (saved_outputs.stale(notebook), saved_outputs.problems(notebook)) == ("", [])

    # jupytext renews the text and keeps the outputs of cells whose code is the same.
    text = path.with_suffix(".py")
    text.write_text(CODE.replace("# # Numbers", "# # Other numbers"))
    jupytext.cli.jupytext(["--quiet", "--to", "ipynb", "--update", str(text)])
    renamed: Any = nbformat.read(path, as_version=4)
    assert renamed.cells[0].source == "# Other numbers"
    assert saved_outputs.record(renamed) == saved_outputs.record(notebook)
    assert saved_outputs.stale(renamed) == ""
    text.write_text(CODE.replace("draw()", "redraw()"))
    jupytext.cli.jupytext(["--quiet", "--to", "ipynb", "--update", str(text)])
    assert "the code is not what was executed" in saved_outputs.stale(
        nbformat.read(path, as_version=4)
    )


def test_a_notebook_on_texts_of_others_is_stripped_and_not_executed(tmp_path):
    code = CODE.replace("# # Numbers", f"# # Numbers\n#\n# {saved_outputs.WITHOUT}: a reason.")
    path = written(tmp_path, code.replace("import sys", "raise SystemError"))
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="somebody's poem")]
    notebook.metadata.openbook = saved_outputs.record(notebook)
    nbformat.write(notebook, path)
    saved_outputs.save(path, drawn)
    assert "poem" not in path.read_text()
    assert "openbook" not in nbformat.read(path, as_version=4).metadata


def result(**data: str) -> Any:
    output = nbformat.v4.new_output(
        "execute_result", data={one.replace("_", "/"): text for one, text in data.items()}
    )
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (result(text_plain="/tmp/runs/a"), "shows '/tmp/'"),
        (result(text_html="<b>/var/me/x</b>"), "shows '/var/'"),
        (result(text_plain="two lines\n/data/a"), "shows '/data/'"),
        (result(text_plain="PosixPath('/scratch/me/a')"), "shows '/scratch/'"),
        (result(text_plain="at=/Volumes/My Disk/a"), "shows '/Volumes/'"),
        (result(text_plain="file:///export/a"), "shows '/export/'"),
        (result(text_plain="C:" + r"\Users\me"), "shows 'C:" + r"\\Users\\'"),
        (result(text_plain="<function f at 0x7f12ab34cd56>"), "shows '0x7f12ab34'"),
        (result(text_plain="Figure('heads', 1 trace)"), "a figure without its picture"),
        (result(text_html="<style>p{}</style><script>draw()</script><svg>1</svg>"), "no text"),
        (result(text_plain="x", application_json="{}"), "application/json, which is not saved"),
        (result(text_plain="x" * 100_001), "an output of 100,"),
        (result(image_png="x" * 600_000), "bytes, and 500,000 are allowed"),
    ],
)
def test_what_a_reader_would_miss_or_should_not_see_is_a_problem(notebook, problem):
    assert any(problem in one for one in saved_outputs.problems(notebook))
    assert saved_outputs.problems(result(text_plain="x", image_png="AAAA/tmp/AAAA")) == []


@pytest.mark.parametrize(
    "text",
    ["accuracy 3/4/5", "./runs/a", "~/runs/a", "https://a.org/b/c", "/dev/null", "nats/token/step",
     "<p>a</p><p>b</p>", "and / or / both"],
)  # fmt: skip
def test_what_is_no_path_of_a_machine_is_no_problem(text):
    assert saved_outputs.problems(result(text_plain=text, text_html=f"<p>{text}</p>")) == []


@pytest.mark.parametrize(("home", "shown"), [("/", "3 / 4 /other/a"), ("/other", "3 / 4 ~/a")])
def test_a_home_that_is_the_root_leaves_fractions_as_they_are(monkeypatch, home, shown):
    monkeypatch.setenv("HOME", home)
    said = saved_outputs.everywhere("3 / 4 /other/a /otherwise")
    assert said == f"{shown} /otherwise"


def test_outputs_that_changed_after_they_were_saved_are_stale():
    notebook = result(text_plain="0.91")
    assert "the code" in saved_outputs.stale(notebook)
    notebook.metadata.openbook = saved_outputs.record(notebook)
    assert saved_outputs.stale(notebook) == ""
    notebook.cells[0].outputs[0].data["text/plain"] = "0.95"
    assert "the outputs" in saved_outputs.stale(notebook)


def decoded(written_png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a PNG by hand: its palette, and a number for each pixel behind the 0 of its row."""
    assert written_png.startswith(b"\x89PNG")
    chunks, at = {}, 8
    while at < len(written_png):
        (length,) = struct.unpack(">I", written_png[at : at + 4])
        kind, content = written_png[at + 4 : at + 8], written_png[at + 8 : at + 8 + length]
        assert written_png[at + 8 + length :][:4] == struct.pack(">I", zlib.crc32(kind + content))
        chunks[kind], at = content, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (rows[:, 0] == 0).all()
    return palette, palette[rows[:, 1:]]


def test_a_picture_has_the_pixels_of_the_figure():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4
    _, shown = decoded(saved_outputs.png(pixels))
    assert shown.shape == (4, 5, 3)
    assert (shown == pixels).all()


def test_a_picture_of_many_colours_keeps_those_that_fill_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pixels[:20] = (255, 247, 251)  # as nearly white as the cell of a number that is nearly 0
    palette, shown = decoded(saved_outputs.png(pixels))
    assert len(np.unique(palette, axis=0)) == len(palette) == 256
    assert (shown[:20] == (255, 247, 251)).all()
    # Every other pixel has the nearest of these colours.
    apart = np.square(pixels[20:, :, None].astype(int) - palette).sum(axis=-1)
    assert (np.square(shown[20:].astype(int) - pixels[20:]).sum(axis=-1) == apart.min(-1)).all()


# --- what GitHub leaves


@pytest.mark.parametrize("text", HOSTILE)
def test_what_github_leaves_has_no_element_that_runs_and_no_attribute(text):
    grid = Grid(("L0",), ("H0",), ((0.25,),), text)
    for page in (Panel(text, text, notes=(text,), grid=grid).html(), text):
        tags = re.findall("<[^>]*>", saved_outputs.as_github(page))
        assert {re.sub("[</>]", "", tag) for tag in tags} <= saved_outputs.ELEMENTS


def test_text_stays_text():
    assert saved_outputs.as_github("<p>a &lt;b&gt; &amp;</p>") == "<p>a &lt;b&gt; &amp;</p>"
    assert html.unescape(saved_outputs.as_github("<p onclick='f()'>x<br>y</p>")) == "<p>x<br>y</p>"
