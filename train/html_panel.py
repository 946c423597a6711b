"""Panels: results as a notebook shows them, in HTML without a script.

A dataclass takes its panel with `_repr_html_ = html_repr` in its body, as it takes `short_repr`.
The panel has the name and line of the result, its numbers and names, the first rows of its table
with intervals, what it means (the class's `meaning`) and what it was computed from. The HTML takes
its colours from the page around it, so that it can be read in light and dark themes, and is a
plain table where styles are stripped, as on GitHub. Names and texts are data of others: they are
escaped, and control characters and turns of direction are shown instead of having an effect.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from html import escape
from itertools import islice
from typing import Any

from train.progress import count, visible
from train.short_repr import short_repr


__all__ = ["LARGEST", "Grid", "Panel", "html_repr", "interval", "origin_rows", "panel_of"]

LARGEST = 100_000  # bytes of a panel
ROWS = 10  # rows of a table that a notebook shows
MOST_COLUMNS, MOST_FACTS, MOST_ITEMS = 16, 24, 6
MOST_CELLS = 1024  # cells of a grid
# Fields that are shown elsewhere, or say nothing of the result.
NO_FACTS = ("notes", "interval", "peak_bytes", "tokenizer")
DEFAULT_FACTS = ("n", "n_prompts", "draws")  # numbers that are shown also if they are the default
LONGEST_CELL, LONGEST_LINE = 120, 400  # characters
# Doubled, because Jupyter's own rules for tables have the weight of one class.
CLASS = ".openbook-panel.openbook-panel"
STYLE = f"""{CLASS}{{color:inherit;max-width:72em;line-height:1.4}}
{CLASS} table{{color:inherit;border-collapse:collapse;table-layout:auto;margin:.4em 0;
font-size:.92em}}
{CLASS} th,{CLASS} td{{text-align:left;vertical-align:top;padding:.1em .7em .1em 0;color:inherit;
border:0;border-bottom:1px solid rgba(128,128,128,.3);white-space:pre-wrap;max-width:40em}}
{CLASS} td.n,{CLASS} th.n{{text-align:right;font-variant-numeric:tabular-nums}}
{CLASS} .grid td{{padding:.15em .4em;text-align:right}}
{CLASS} p{{margin:.3em 0;border-left:3px solid currentColor;padding-left:.6em}}
{CLASS} span{{margin-right:1em}}
{CLASS} code{{color:inherit;background:none}}"""
CODE = re.compile("`([^`]+)`")  # as in Markdown
DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256
SHOWN_DIGITS = 12  # of a digest, as many as a run id has
RED, BLUE = "214,39,40", "31,119,180"  # above and below 0, as in the figures


@dataclass(frozen=True)
class Grid:
    """Numbers over rows and columns, such as one per layer and head, drawn as coloured cells."""

    down: Sequence[str]
    across: Sequence[str]
    values: Sequence[Sequence[float]]
    unit: str

    __repr__ = short_repr


@dataclass(frozen=True)
class Panel:
    """The view of a result in a notebook; `print` shows the same as text.

    Attributes:
        name: Name of the class of the result.
        line: The result in one line.
        facts: Names and values, such as n, unit and control.
        columns, rows: First rows of the table of the result.
        n_rows: Number of rows of the whole table.
        meaning: One sentence on what the result shows and what it does not.
        notes: Remarks for the reader.
        origin: What the result was computed from.
        grid: Numbers to show as a coloured grid.

    Examples:
        >>> from train.html_panel import Panel
        >>> columns, row = ("place", "effect"), ("L0H1", 0.9)
        >>> panel = Panel("Effects", "of heads", (("n", 64),), columns, (row,))
        >>> print(panel)
        Effects: of heads
        n: 64
        place  effect
        L0H1   0.9
        >>> "<td>L0H1</td>" in panel.html()
        True
    """

    name: str
    line: str
    facts: tuple[tuple[str, object], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    n_rows: int = 0
    meaning: str = ""
    notes: tuple[str, ...] = ()
    origin: tuple[tuple[str, object], ...] = ()
    grid: Grid | None = None

    def html(self) -> str:
        """Return the panel as HTML of at most `LARGEST` bytes, with fewer rows if it must."""
        page = "".join(_parts(self))
        if len(page.encode()) <= LARGEST or not (self.rows or self.grid):
            return page
        if self.grid is not None:
            return replace(self, grid=None).html()
        n_rows = max(self.n_rows, len(self.rows))
        return replace(self, rows=self.rows[: len(self.rows) // 2], n_rows=n_rows).html()

    _repr_html_ = html
    __repr__ = short_repr

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.line}".removesuffix(": ")]
        lines += [f"{name}: {_text(value)}" for name, value in self.facts]
        lines += [visible(one) for one in _columns_of_text(self.columns, self.rows)]
        lines += [one for one in (_left_out(self), self.meaning, *self.notes) if one]
        return "\n".join(visible(line) for line in lines)


def html_repr(self: Any) -> str:
    """Return the panel of a dataclass as HTML: the `_repr_html_` of a class."""
    return panel_of(self).html()


def panel_of(result: Any, n: int = ROWS, *, frame: Any = None, **parts: Any) -> Panel:
    """Return the panel of a dataclass, from its fields and its `to_frame`.

    A table of places is ordered by the result's `top`; a column `low` and `high`, or `x low` and
    `x high`, is shown as the interval of the column before, or of `x`.

    Args:
        result: The dataclass.
        n: Largest number of rows.
        frame: Table to show; default: the result's `to_frame`, if it has one.
        parts: Attributes of `Panel` that replace those found.
    """
    name = type(result).__qualname__
    # A representation that lists the fields would say the same as the facts.
    said = (type(result).__repr__, type(result).__str__) != (short_repr, object.__str__)
    own = said and not hasattr(type(result).__repr__, "__wrapped__")
    line = repr(result).removeprefix(f"{name}(").removesuffix(")") if own else ""
    origin = getattr(result, "provenance", None)
    found: dict[str, Any] = {
        "name": name,
        "line": line,
        "facts": tuple(islice(_facts(result), MOST_FACTS)),
        "meaning": getattr(result, "meaning", ""),
        "notes": tuple(getattr(result, "notes", ())),
        "origin": tuple(origin_rows(origin)),
    }
    if frame is not None or hasattr(result, "to_frame"):
        found |= _table(result, n, frame)
    return Panel(**{**found, **parts})


def interval(value: object, low: object = None, high: object = None) -> str:
    """Format a number with its interval, if it has one: "0.412 [0.38, 0.451]"."""
    known = not any(one is None or one != one for one in (value, low, high))
    return _text(value) + (f" [{_text(low)}, {_text(high)}]" if known else "")


def _facts(result: Any) -> Iterator[tuple[str, object]]:
    """Yield the fields that are numbers or names, with their intervals, or "none" for a control."""
    for one in fields(result):
        value = getattr(result, one.name)
        if one.name in NO_FACTS or one.name.endswith("_interval"):
            continue
        if one.name not in DEFAULT_FACTS and isinstance(value, int) and value == one.default:
            continue
        if value is None and one.name.startswith("control"):
            yield one.name, "none"
        elif isinstance(value, bool | int | float) or (isinstance(value, str) and value):
            ends = getattr(result, f"{one.name}_interval", None)
            yield one.name, interval(value, *ends) if isinstance(ends, tuple) else value
        elif _is_names(value) and not hasattr(result, "to_frame"):
            yield one.name, value


def _is_names(value: object) -> bool:
    """Return whether a value is some numbers or names."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, bool | int | float | str) for item in value)


def origin_rows(provenance: Any) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a provenance, which is a dataclass or a mapping.

    A value that is a mapping becomes one text, and a digest its first digits.
    """
    pairs: Iterable[tuple[str, Any]] = ()
    if is_dataclass(provenance):
        pairs = ((one.name, getattr(provenance, one.name)) for one in fields(provenance))
    elif isinstance(provenance, Mapping):
        pairs = provenance.items()
    for name, value in islice(pairs, MOST_FACTS):
        if isinstance(value, Mapping):
            value = _pairs(value)
        if value not in (None, ""):
            yield str(name), value


def _pairs(values: Mapping[Any, Any]) -> str:
    """Return names and values as one text of at most a cell, with the number of those left out."""
    shown = ""
    for k, (name, value) in enumerate(values.items()):
        text = _text(value)
        digits = f"{text[:SHOWN_DIGITS]}…" if DIGEST.fullmatch(text) else text
        longer = f"{shown}, {name} {digits}".removeprefix(", ")
        more = f" and {len(values) - k:,} more"
        if shown and len(longer) > LONGEST_CELL - len(more):
            return shown + more
        shown = longer
    return shown


def _table(result: Any, n: int, given: Any) -> dict[str, Any]:
    """Return columns, first rows and number of rows of a result's frame, its intervals joined."""
    frame = result.to_frame() if given is None else given
    n_rows = len(frame)
    if given is None and hasattr(result, "top") and "place" in frame:
        frame = frame.set_index("place", drop=False).loc[list(result.top(n))]
    cells = {str(name): frame[name].tolist()[:n] for name in frame.columns}
    ends = _ends([*cells])
    bounds = {name for pair in ends.values() for name in pair}
    columns = tuple(name for name in cells if name not in bounds)[:MOST_COLUMNS]
    joined = [
        [*map(interval, cells[name], *(cells[end] for end in ends[name]))]
        if name in ends
        else cells[name]
        for name in columns
    ]
    return {"columns": columns, "rows": tuple(zip(*joined, strict=True)), "n_rows": n_rows}


def _ends(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the columns that have an interval, with the columns that hold its ends."""
    found = {}
    for before, name in zip(["", *names], names, strict=False):
        for pair in ((f"{name} low", f"{name} high"), (f"{name}_low", f"{name}_high")):
            if {*pair} <= {*names}:
                found[name] = pair
        if name == "low" and before and "high" in names:
            found[before] = ("low", "high")
    return found


def _text(value: object) -> str:
    """Return a value as at most `LONGEST_CELL` characters."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_text(one) for one in value[:MOST_ITEMS])
        more = len(value) - MOST_ITEMS
        return f"{shown} and {more:,} more" if more > 0 else shown
    return _clipped(str(value), LONGEST_CELL)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _markup(text: str, longest: int = LONGEST_CELL) -> str:
    """Return the first `longest` characters of plain text as markup, escaped and visible."""
    return escape(visible(_clipped(text, longest)))


def _parts(panel: Panel) -> Iterator[str]:
    yield f'<div class="openbook-panel"><style>{STYLE}</style>'
    line = _markup(panel.line, LONGEST_LINE)
    yield f"<div><b>{_markup(panel.name)}</b> {line}</div>"
    if panel.facts:
        facts = (
            f"<span>{_markup(name)} <b>{_cell(value)}</b></span> " for name, value in panel.facts
        )
        yield f"<div>{''.join(facts)}</div>"
    if panel.grid is not None and len(panel.grid.down) * len(panel.grid.across) <= MOST_CELLS:
        yield from _grid(panel.grid)
    if panel.rows:
        yield from _rows(panel.columns, panel.rows)
    if left_out := _left_out(panel):
        yield f"<div>{escape(left_out)}</div>"
    for said in (panel.meaning, *panel.notes[:MOST_ITEMS]):
        if said:
            # Between backticks stands code. The text is escaped by now.
            text = CODE.sub(r"<code>\1</code>", _markup(said, LONGEST_LINE))
            yield f"<p>{text}</p>"
    if panel.origin:
        yield "<details><summary>computed from</summary>"
        yield from _rows((), tuple((name, value) for name, value in panel.origin))
        yield "</details>"
    yield "</div>"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(rows[0]))]
    kinds = [' class="n"' if one else "" for one in numeric]
    yield "<table>"
    if columns:
        heads = zip(kinds, columns, strict=True)
        yield f"<tr>{''.join(f'<th{kind}>{_markup(name)}</th>' for kind, name in heads)}</tr>"
    for row in rows:
        cells = zip(kinds, row, strict=True)
        yield f"<tr>{''.join(f'<td{kind}>{_cell(value)}</td>' for kind, value in cells)}</tr>"
    yield "</table>"


def _grid(grid: Grid) -> Iterator[str]:
    """Yield the table of a grid, the last row first, as the figures show it."""
    finite = (abs(value) for row in grid.values for value in row if math.isfinite(value))
    most = max(finite, default=0.0) or 1.0
    yield f'<div>{_markup(grid.unit)}</div><table class="grid">'
    for name, row in reversed([*zip(grid.down, grid.values, strict=True)]):
        yield f"<tr><th>{_cell(name)}</th>"
        for value in row:
            colour, strength = (RED if value > 0 else BLUE), 0.5 * abs(value) / most
            style = f' style="background:rgba({colour},{strength:.2f})"' if value == value else ""
            yield f"<td{style}>{value:.2f}</td>" if style else "<td>–</td>"
        yield "</tr>"
    yield f"<tr><th></th>{''.join(f'<th>{_cell(name)}</th>' for name in grid.across)}</tr></table>"


def _cell(value: object) -> str:
    return _markup(_text(value))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _left_out(panel: Panel) -> str:
    more = panel.n_rows - len(panel.rows)
    return f"and {count(more, 'more row')}" if panel.rows and more > 0 else ""


def _columns_of_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table for a terminal."""
    cells = [[*columns], *([_text(value) for value in row] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip()
