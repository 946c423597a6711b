"""Export of figures to files: an HTML page that opens without a network, or a picture.

The page contains plotly.js (4.8 MB); the figure itself takes some 20 kB. The camera button of the
page saves the figure as SVG in any browser. Pictures are plotly's own export, which starts Chrome
through the optional package kaleido.
"""

from pathlib import Path
from typing import Any

from interp.errors import InterpError
from train import storage


__all__ = ["SUFFIXES", "drawable", "write"]

SUFFIXES = (".html", ".svg", ".pdf", ".png")
SCALE = 2  # pixels of a .png per pixel of the figure, as on a high-resolution screen


def drawable(path: Path | None) -> Path | None:
    """Check, before anything is computed, that a figure can be written to this path; return it.

    For a picture an empty figure is drawn, which takes about two seconds.

    Raises:
        InterpError: The suffix is another one than `SUFFIXES`, or it is that of a picture, and
            kaleido or Chrome is not installed.
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
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    storage.writable(path)
    if path.suffix != ".html":
        _picture({}, path)
    return path


def write(figure: Any, path: str | Path) -> Path:
    """Write a plotly figure as .html, which opens without a network, or as .svg, .pdf or .png.

    The file is written atomically.

    Raises:
        InterpError, TrainError: As for `drawable`.

    Examples:
        >>> figure = plots.heads(torch.zeros(2, 4), title="heads", unit="share")
        >>> plots.write(figure, folder / "heads.html").name
        'heads.html'
    """
    path = Path(path)
    if path.suffix in SUFFIXES and path.suffix != ".html":
        content = _picture(figure, path)
    else:
        drawable(path)
        camera = {"toImageButtonOptions": {"format": "svg", "filename": path.stem}}
        # Not plotly's random name of the drawing: equal figures make equal files.
        page = figure.to_html(include_plotlyjs=True, config=camera, div_id="figure")
        content = page.encode()
    storage.write_bytes(path, content)
    return path


def _picture(figure: Any, path: Path) -> bytes:
    """Return a figure in the format that the suffix of `path` names."""
    from plotly.io import to_image  # plotly takes a second

    try:
        return to_image(figure, format=path.suffix[1:], scale=SCALE)
    except RuntimeError as error:  # kaleido is missing, or Chrome is missing or does not start
        reason = str(error).strip().partition("\n")[0].rstrip(".,")
        raise InterpError(
            f"{path.name}: pictures need Chrome ({reason}); `pip install "
            "-e '.[image]'` and `plotly_get_chrome`, or write .html and save its figure as SVG"
        ) from None
