"""Write executed outputs into notebooks, so that readers see them without running anything.

    python tests/saved_outputs.py notebooks/*.ipynb

A reader who has not run a notebook sees text, tables and PNG: GitHub removes scripts, styles and
frames from HTML, and damages SVG; Jupyter hides SVG until it trusts the file. So a figure is saved
as PNG, drawn from its SVG by Chromium, and a panel as its HTML; `as_github` returns what is left of
that. Lines of progress and stderr are left out, and the folders of this machine become `~` and `.`.

A notebook whose first cell says "Saved without outputs" is stripped, for its outputs would hold
text of others. The metadata of the other ones hold digests of code and outputs, which `stale`
compares, and the versions that computed them. `make notebooks-saved` renews all.
"""

import base64
import hashlib
import html
import json
import platform
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbformat import NotebookNode

from tests.play_notebooks import MOST_OUTPUT_BYTES, execute, output_sizes
from tests.worlds.browser import chromium
from train import storage


__all__ = [
    "WITHOUT",
    "as_github",
    "everywhere",
    "outputs_of_others",
    "problems",
    "record",
    "save",
    "stale",
]

WITHOUT = "**Saved without outputs**"
MOST_BYTES = 500_000  # of a saved notebook: a repository keeps every version of it
PACKAGES = ("torch", "numpy", "pandas", "plotly")
PIXELS = 1.5  # of a saved picture for each pixel of the figure
SVG, PNG = "image/svg+xml", "image/png"
SHOWN = (PNG, "text/html", "text/plain")
# Folders of a machine and addresses of objects, which differ from one execution to the next. A path
# begins behind a space, a quote or the like; one with a word in front of it is relative. That of
# devices is the same everywhere.
PRIVATE = re.compile(
    r"(?:(?<![^\s\"'`(\[{<>=,;:|])|(?<=file://))/(?!(?:dev|proc)/)\w[\w.+@ -]*/"
    r"|[A-Za-z]:\\{1,2}\w+\\|0x[0-9a-f]{8}"
)
Draw = Callable[[str], bytes]

# Draws an SVG as an image, which runs no script, and returns its pixels.
DRAW = """async ([drawing, scale]) => {
  const image = new Image();
  image.src = "data:image/svg+xml;base64," + drawing;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width * scale, image.height * scale];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
  const pieces = [];
  for (let i = 0; i < data.length; i += 32768)
    pieces.push(String.fromCharCode.apply(null, data.subarray(i, i + 32768)));
  return [width, height, btoa(pieces.join(""))];
}"""

# The elements that GitHub's public filter allows (lib/html_pipeline/sanitization_filter.rb of
# github.com/gjtorikian/html-pipeline); neither class nor style is among its attributes. The code
# that shows notebooks is not public. Of `REMOVED` the text goes too.
ELEMENTS = frozenset((
    "a", "abbr", "b", "bdo", "blockquote", "br", "caption", "cite", "code", "dd", "del", "details",
    "dfn", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6",
    "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "rp", "rt", "ruby", "s",
    "samp", "small", "span", "strike", "strong", "sub", "summary", "sup", "table", "tbody", "td",
    "tfoot", "th", "thead", "time", "tr", "tt", "ul", "var", "wbr",
))  # fmt: skip
VOID = frozenset(("br", "hr", "img", "wbr"))
REMOVED = frozenset(("iframe", "math", "noscript", "object", "script", "style", "svg", "template"))


class _Sanitized(HTMLParser):
    """The elements and the text that GitHub keeps of HTML; of attributes, none is kept."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.kept: list[str] = []
        self.removed: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in REMOVED:
            self.removed.append(tag)
        elif tag in ELEMENTS and not self.removed:
            self.kept.append(f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        if self.removed:
            if tag == self.removed[-1]:
                self.removed.pop()
        elif tag in ELEMENTS and tag not in VOID:
            self.kept.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.removed:
            self.kept.append(html.escape(data, quote=False))


def as_github(page: str) -> str:
    """Return what GitHub leaves of HTML: no script, style, frame, drawing or attribute."""
    return "".join(_Sanitized(page).kept)


def outputs_of_others(notebook: NotebookNode) -> bool:
    """Return whether the first cell says that the notebook is saved without outputs."""
    return WITHOUT in notebook.cells[0].source


def code_cells(notebook: NotebookNode) -> list[Any]:
    """Return the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def record(notebook: NotebookNode) -> dict[str, str]:
    """Return the digests of a notebook's code and of its outputs."""
    cells = code_cells(notebook)
    return {
        "code": _digest([cell.source for cell in cells]),
        "outputs": _digest([cell.outputs for cell in cells]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def stale(notebook: NotebookNode) -> str:
    """Say why the outputs of a notebook are not those of its code, or nothing."""
    saved = notebook.metadata.get("openbook", {})
    for part, digest in record(notebook).items():
        if saved.get(part) != digest:
            return f"the {part} is not what was executed and saved; run `make notebooks-saved`"
    return ""


def problems(notebook: NotebookNode) -> list[str]:
    """Return what a reader would miss in the outputs of a notebook, or should not see."""
    found = []
    if (size := len(nbformat.writes(notebook).encode())) > MOST_BYTES:
        found.append(f"{size:,} bytes, and {MOST_BYTES:,} are allowed")
    if (size := max(output_sizes(notebook), default=0)) > MOST_OUTPUT_BYTES:
        found.append(f"an output of {size:,} bytes, and {MOST_OUTPUT_BYTES:,} are allowed")
    for number, cell in enumerate(code_cells(notebook), 1):
        found += [f"cell {number}: {one}" for output in cell.outputs for one in _unseen(output)]
    return found


def _unseen(output: NotebookNode) -> list[str]:
    found = []
    shown = "\n".join(_texts({**output, "data": {**output.get("data", {}), PNG: ""}}))
    if private := PRIVATE.search(shown):
        found.append(f"shows {private.group()!r}, which belongs to one machine or moment")
    if output.output_type == "stream":
        return [*found, *(["a stream that is not stdout"] if output.name != "stdout" else [])]
    if output.output_type != "execute_result":
        return [*found, f"a {output.output_type}, and results alone are saved"]
    data = output.data
    found += [f"{kind}, which is not saved" for kind in data if kind not in SHOWN]
    if "text/html" in data and not re.search(
        r"\w", re.sub("<[^>]*>", "", as_github(data["text/html"]))
    ):
        found.append("HTML of which GitHub leaves no text")
    if data.get("text/plain", "").startswith("Figure(") and PNG not in data:
        found.append("a figure without its picture")
    return found


def _texts(value: object) -> Iterator[str]:
    """Return all texts of a JSON value, without the escapes that it has in a file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def save(path: Path, draw: Draw) -> None:
    """Execute a notebook in its folder and write its outputs into it, or strip it.

    The solutions of exercises are not executed: their names would change the cells behind them.

    Raises:
        ValueError: The outputs are too large, or show what belongs to one machine.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.metadata.pop("openbook", None)
    if outputs_of_others(notebook):
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
    else:
        played = execute(notebook, path.parent)
        for number, (cell, other) in enumerate(
            zip(code_cells(notebook), code_cells(played), strict=True), 1
        ):
            cell.outputs = [one for output in other.outputs for one in _kept(output, number, draw)]
            cell.execution_count = number
        versions = {"python": platform.python_version(), **{one: version(one) for one in PACKAGES}}
        versions["machine"] = platform.machine()
        notebook.metadata.openbook = {**record(notebook), "versions": versions}
        if found := problems(notebook):
            raise ValueError(f"{path.name} was not saved: {'; '.join(found)}")
    storage.write_text(path, nbformat.writes(notebook) + "\n")


def _kept(output: NotebookNode, number: int, draw: Draw) -> list[NotebookNode]:
    """Return an output as it is saved; none for progress, which is displayed, and for stderr."""
    if output.output_type == "stream":
        text = everywhere(output.text)
        return [nbformat.v4.new_output("stream", text=text)] if output.name == "stdout" else []
    if output.output_type != "execute_result":
        return []
    data, metadata = {one: output.data[one] for one in SHOWN if one in output.data}, {}
    data = {kind: everywhere(text) for kind, text in data.items()}
    if drawing := output.data.get(SVG):
        data[PNG] = base64.b64encode(draw(drawing)).decode()
        width, height = (
            int(float(one)) for one in re.findall(r'(?:width|height)="([\d.]+)"', drawing)[:2]
        )
        metadata[PNG] = {"width": width, "height": height}
    return [
        nbformat.v4.new_output(
            "execute_result", data=data, metadata=metadata, execution_count=number
        )
    ]


def everywhere(text: str) -> str:
    """Return a text in which the folders of this machine are those of every other one."""
    for folder, short in ((storage.project_root(), "."), (Path.home(), "~")):
        if folder != Path(folder.anchor):  # "/" is in fractions too
            text = re.sub(rf"{re.escape(str(folder))}(?![\w-])", short, text)
    return text


def _picture(page: Any, drawing: str) -> bytes:
    """Return an SVG as the PNG that a browser makes of it."""
    encoded = base64.b64encode(drawing.encode()).decode()
    width, height, pixels = page.evaluate(DRAW, [encoded, PIXELS])
    array = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)
    return png(array[..., :3])


def png(pixels: np.ndarray) -> bytes:
    """Return red, green and blue, (height, width, 3), as a PNG of at most 256 colours.

    That is a third of the size of the same picture in all colours. The 256 commonest colours, which
    fill areas, stay as they are. Each other one, as at the edges of letters, becomes the nearest.
    """
    height, width, _ = pixels.shape
    colours, inverse, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = colours[np.sort(np.argsort(-counts, kind="stable")[:256])]
    apart = colours[:, None].astype(np.int32) - palette
    nearest = np.square(apart).sum(axis=-1).argmin(axis=1)
    rows = np.zeros((height, width + 1), np.uint8)  # every row begins with 0: unfiltered
    rows[:, 1:] = nearest[inverse].reshape(height, width)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def main(paths: Sequence[str]) -> None:
    """Save the notebooks that are named."""
    with chromium() as browser:
        page = browser.new_page()
        for path in map(Path, paths):
            save(path, partial(_picture, page))
            sys.stdout.write(f"{path.stem:<32} {path.stat().st_size / 1000:6.0f} kB\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
