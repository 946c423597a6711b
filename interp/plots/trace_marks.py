"""The marks of bars and scatter plots, with their error bars."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from interp.plots.axes import Axis
from interp.plots.marks import line_mark, safe, text_mark
from interp.plots.trace_values import DASHES, error_ends, number_text, plain


__all__ = ["bar_marks", "scatter_marks"]


def bar_marks(trace: Any, colour: str, x: Axis, y: Axis, number: int, of: int) -> Iterator[str]:
    """Draw the bars of one of several traces, which stand side by side."""
    width = 0.8 * x.step / of
    names, values = list(plain(trace.x)), list(plain(trace.y))
    zero = y.at(0.0) or y.start
    for name, value, ends in zip(names, values, error_ends(trace, values), strict=True):
        tip, centre = y.at(value), x.at(name)
        if tip is None or centre is None:
            continue
        left = centre + (number - of / 2) * width
        bounds = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
        which = f"{name}, {trace.name}" if trace.name else name
        yield (
            f'<rect x="{left:.1f}" y="{min(zero, tip):.1f}" width="{0.92 * width:.1f}" '
            f'height="{abs(zero - tip):.1f}" fill="{colour}">'
            f"<title>{safe(f'{which}: {value:.3f}{bounds}')}</title></rect>"
        )
        yield from _error_bar(left + 0.46 * width, ends, y, "#222")


def scatter_marks(trace: Any, colour: str, x: Axis, y: Axis) -> Iterator[str]:
    """Draw a curve, its points and their error bars, texts, or a filled region."""
    across, up = list(plain(trace.x)), list(plain(trace.y))
    mode = trace.mode or ("lines+markers" if len(across) < 20 else "lines")
    spots = [
        None if (a := x.at(one)) is None or (b := y.at(other)) is None else (a, b)
        for one, other in zip(across, up, strict=True)
    ]
    if trace.fill == "toself":
        ring = " ".join(f"{a:.1f},{b:.1f}" for spot in spots if spot for a, b in [spot])
        yield f'<polygon points="{ring}" fill="{colour}" opacity="{trace.opacity or 0.2:g}"/>'
        return
    if "lines" in mode:
        pieces = "".join(
            f"{'L' if before else 'M'}{spot[0]:.1f} {spot[1]:.1f}"
            for before, spot in pairwise([None, *spots])
            if spot
        )
        dash = DASHES.get(trace.line.dash or "", "")
        broad = 2 if trace.line.width is None else trace.line.width
        yield (
            f'<path d="{pieces}" fill="none" stroke="{colour}" stroke-width="{broad:g}"'
            + (f' stroke-dasharray="{dash}"/>' if dash else "/>")
        )
    said = trace.hovertext if trace.hovertext is not None else trace.text
    texts = [said] * len(spots) if said is None or isinstance(said, str) else list(plain(said))
    faint = ' opacity="0"' if trace.opacity == 0 else ""
    rows = zip(spots, across, up, texts, error_ends(trace, up), strict=True)
    for spot, one, other, text, ends in rows:
        if spot is None:
            continue
        yield from _error_bar(spot[0], ends, y, colour)
        if "text" in mode:
            # On a white edge, because lines end here.
            edge = 'paint-order="stroke" stroke="#fff" stroke-width="5"'
            yield f"<g {edge}>{text_mark(spot[0], spot[1] + 4, str(text), 'middle')}</g>"
        elif "markers" in mode and "line-ns" in str(trace.marker.symbol):
            yield line_mark(spot[0], spot[1] - 4, spot[0], spot[1] + 4, colour)
        elif "markers" in mode:
            shown = [str(one) for one in (trace.name, text) if one is not None]
            shown += [] if faint else [f"{number_text(one)}, {number_text(other)}"]
            yield (
                f'<circle cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="3.5" fill="{colour}"{faint}>'
                f"<title>{safe(': '.join(shown))}</title></circle>"
            )


def _error_bar(at: float, ends: tuple[float, float] | None, y: Axis, colour: str) -> Iterator[str]:
    low, high = (None, None) if ends is None else (y.at(ends[0]), y.at(ends[1]))
    if low is not None and high is not None:
        yield line_mark(at, low, at, high, colour)
        for end in (low, high):
            yield line_mark(at - 3, end, at + 3, end, colour)
