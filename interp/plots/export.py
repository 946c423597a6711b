"""Export of figures to files: an HTML page or an SVG without scripts, a PDF or a PNG.

Page and SVG take some 20 kB (`interp.plots.picture`). A page of plotly's own, with zoom and with
4.8 MB of scripts, is `figure.write_html(path)`. PDF and PNG are plotly's export, which starts
Chrome through the optional package kaleido.
"""

from html import escape
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.plots import picture
from train import storage


__all__ = ["SUFFIXES", "drawable", "write"]

SUFFIXES = (".html", ".svg", ".pdf", ".png")
DRAWN_HERE = (".html", ".svg")
SCALE = 2  # pixels of a .png per pixel of the figure, as on a high-resolution screen


def drawable(path: Path | None) -> Path | None:
    """Check, before anything is computed, that a figure can be written to this path; return it.

    For .pdf and .png an empty figure is drawn, which takes about two seconds.

    Raises:
        InterpError: The suffix is another one than `SUFFIXES`, or it is .pdf or .png, and
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
    if path.suffix not in DRAWN_HERE:
        _by_chrome({}, path)
    return path


def write(figure: Any, path: str | Path) -> Path:
    """Write a figure as .html or .svg, which need neither scripts nor network, or as .pdf or .png.

    The file is written atomically.

    Raises:
        InterpError, TrainError: As for `drawable`. Also if a figure that is to be written as .html
            or .svg has a trace that `interp.plots` does not make, such as a pie.

    Examples:
        >>> figure = plots.heads(torch.zeros(2, 4), title="heads", unit="share")
        >>> plots.write(figure, folder / "heads.html").name
        'heads.html'
    """
    path = Path(path)
    if path.suffix in SUFFIXES and path.suffix not in DRAWN_HERE:
        content = _by_chrome(figure, path)
    else:
        drawable(path)
        drawn = picture.svg(figure)
        content = (drawn if path.suffix == ".svg" else _page(figure, drawn)).encode()
    storage.write_bytes(path, content)
    return path


def _page(figure: Any, drawn: str) -> str:
    """Return an HTML page of one figure."""
    title = escape(figure.layout.title.text or "figure")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\"></head>\n"
        f"<body>{drawn}</body></html>\n"
    )


def _by_chrome(figure: Any, path: Path) -> bytes:
    """Return a figure in the format that the suffix of `path` names."""
    from plotly.io import to_image  # plotly takes a second

    try:
        return to_image(figure, format=path.suffix[1:], scale=SCALE)
    except RuntimeError as error:  # kaleido is missing, or Chrome is missing or does not start
        reason = str(error).strip().partition("\n")[0].rstrip(".,")
        raise InterpError(
            f"{path.name}: {path.suffix} needs Chrome ({reason}); `pip install -e '.[image]'` and "
            "`plotly_get_chrome`, or write .svg"
        ) from None
