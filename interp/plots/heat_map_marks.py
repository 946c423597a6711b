"""The cells of a heat map, one by one or as an embedded picture, and its scale of colours."""

import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil, isfinite
from typing import Any

from interp.plots.axes import Axis
from interp.plots.marks import safe, short, text_mark, turned_text
from interp.plots.trace_values import plain


__all__ = ["cells", "colour_scale"]

NUMBERED = 64  # cells up to which each shows its number


def cells(trace: Any, x: Axis, y: Axis, *, embedded: bool) -> Iterator[str]:
    """Draw the cells of a heat map, each with its value as a tooltip, or embed a picture."""
    rows = [[None if v is None else float(v) for v in plain(row)] for row in trace.z]
    across, up = list(plain(trace.x)), list(plain(trace.y))
    shade = _shader(trace)
    wide, high = x.step, y.step
    if embedded:
        # Cells that share a pixel show the largest of them, so that none is lost.
        beside, above = ceil(len(across) / (x.end - x.start)), ceil(len(rows) / (y.start - y.end))
        columns = zip(*(_largest(row, beside) for row in rows), strict=True)
        small = zip(*(_largest(column, above) for column in columns), strict=True)
        picture = _png([[shade(one) for one in row] for row in reversed([*small])])
        yield (
            f'<image x="{x.start:.1f}" y="{y.end:.1f}" width="{x.end - x.start:.1f}" '
            f'height="{y.start - y.end:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>'
        )
        return
    written = len(rows) * len(across) <= NUMBERED and wide >= 30 and high >= 14
    for name, row in zip(up, rows, strict=True):
        for label, value in zip(across, row, strict=True):
            left, middle = (x.at(label) or 0.0) - wide / 2, y.at(name) or 0.0
            shown = "not measured" if value is None or not isfinite(value) else f"{value:.3f}"
            red, green, blue = shade(value)
            yield (
                f'<rect x="{left:.1f}" y="{middle - high / 2:.1f}" width="{wide:.1f}" '
                f'height="{high:.1f}" fill="#{red:02x}{green:02x}{blue:02x}">'
                f"<title>{safe(f'{name} {label}: {shown}')}</title></rect>"
            )
            if written and value is not None and isfinite(value):
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 120
                colour = "#fff" if dark else "#222"
                number = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                yield text_mark(left + wide / 2, middle + 4, number, "middle", fill=colour)


def _largest(row: Sequence[float | None], each: int) -> list[float | None]:
    """Return of every `each` neighbouring values the one of largest size."""
    parts = [row[i : i + each] for i in range(0, len(row), each)]
    return [
        max(part, key=lambda one: -1.0 if one is None or not isfinite(one) else abs(one))
        for part in parts
    ]


def colour_scale(trace: Any, unit: str, left: float, ends: tuple[float, float]) -> Iterator[str]:
    """Draw the scale of colours to the right of `left`, between two heights."""
    (top, bottom), shade = ends, _shader(trace)
    step = (bottom - top) / 24
    for i in range(24):
        value = trace.zmax + (trace.zmin - trace.zmax) * (i + 0.5) / 24
        colour = "#{:02x}{:02x}{:02x}".format(*shade(value))
        y = top + i * step
        yield (
            f'<rect x="{left + 10:.1f}" y="{y:.1f}" width="12" height="{step + 0.5:.1f}" '
            f'fill="{colour}"/>'
        )
    between = (trace.zmax + trace.zmin) / 2
    for value, y in (
        (trace.zmax, top + 8),
        (between, (top + bottom) / 2 + 4),
        (trace.zmin, bottom),
    ):
        yield text_mark(left + 25, y, f"{value:.3g}")
    yield turned_text(left + 70, (top + bottom) / 2, short(unit, 60), 90, "middle")


def _shader(trace: Any) -> Callable[[float | None], tuple[int, int, int]]:
    """Return the function from a value to its colour, by the scale of a heat map."""
    stops = [(float(at), _rgb(colour)) for at, colour in trace.colorscale]
    if trace.reversescale:
        stops = [(1 - at, colour) for at, colour in reversed(stops)]
    low, high = float(trace.zmin), float(trace.zmax)

    def shade(value: float | None) -> tuple[int, int, int]:
        if value is None or not isfinite(value):
            return 204, 204, 204
        share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
        (a, one), (b, other) = next(
            (left, right) for left, right in pairwise(stops) if share <= right[0] + 1e-12
        )
        part = (share - a) / ((b - a) or 1.0)
        red, green, blue = (round(p + part * (q - p)) for p, q in zip(one, other, strict=True))
        return red, green, blue

    return shade


def _rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue of `#rrggbb` or `rgb(r, g, b)`."""
    if colour.startswith("#"):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    else:
        red, green, blue = (int(float(one)) for one in re.findall(r"[\d.]+", colour)[:3])
    return red, green, blue


def _png(rows: list[list[tuple[int, int, int]]]) -> str:
    """Return a picture with one pixel a cell, in base64."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    pixels = b"".join(b"\0" + bytes(part for cell in row for part in cell) for row in rows)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b""))
    return b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()
