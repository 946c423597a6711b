"""A panel shows what a result says, and what others wrote into it stays text.

Jupyter's own formatter makes the HTML, as it does for a result at the end of a cell.
"""

import math
from dataclasses import dataclass
from html.parser import HTMLParser

import pandas
import pytest
from IPython.core.formatters import HTMLFormatter

from train.html_panel import LARGEST, Grid, Panel, html_repr, interval, origin_rows, panel_of
from train.short_repr import short_repr


HOSTILE = (
    "<script>alert(1)</script>", "</style><script>alert(1)</script>",
    "<img src=x onerror=alert()>",
    '" onmouseover="alert(1)', "' autofocus onfocus='alert(1)", "<a href='javascript:f()'>x</a>",
    "</td></table><iframe srcdoc='<script>alert(1)</script>'>", "<svg/onload=alert(1)>",
    "<!--", "]]>", "&lt;script&gt;", "<style>*{display:none}</style>", "\x1b[31m",
    "a\u202eb\u2066c",
    "<math><mtext></mtext><mglyph><style><!--</style><img title='--><img src=x onerror=alert(1)>'>",
)  # fmt: skip
ELEMENTS = {"div", "style", "b", "span", "table", "tr", "th", "td", "p", "details", "summary",
            "code"}  # fmt: skip
ATTRIBUTES = {("div", "class"), ("table", "class"), ("td", "class"), ("th", "class"),
              ("td", "style")}  # fmt: skip


class Read(HTMLParser):
    """What a browser would make of HTML: its elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] != "style":
            self.text += data


@dataclass(frozen=True)
class Measured:
    """A result as openbook's are: a table with intervals, a control, a provenance."""

    name: str
    score: float
    score_interval: tuple[float, float]
    n: int
    control: float | None
    provenance: dict[str, object]
    notes: tuple[str, ...] = ()

    meaning = "A measurement shows a number; it does not show why."
    __repr__ = short_repr
    _repr_html_ = html_repr

    def to_frame(self) -> pandas.DataFrame:
        """Return two places."""
        return pandas.DataFrame(
            {"place": ["L0", self.name], "effect": [0.25, 0.5], "low": [0.125, math.nan],
             "high": [0.375, math.nan], "share": [1, 2], "share low": [0, None],
             "share high": [2, None]}
        )  # fmt: skip


def measured(text: str = "L1") -> Measured:
    return Measured(text, 0.5, (0.25, 0.75), 64, None, {"run": text, "versions": {"a": 3}}, (text,))


def shown(result: object) -> Read:
    html = HTMLFormatter()(result)
    assert html is not None
    return Read(html)


def test_a_panel_shows_numbers_with_intervals_n_control_meaning_and_origin():
    found = shown(measured())
    for said in ("score 0.5 [0.25, 0.75]", "n 64", "control none", Measured.meaning):
        assert said in found.text
    assert found.cells == [
        "place", "effect", "share", "L0", "0.25 [0.125, 0.375]", "1 [0, 2]", "L1", "0.5", "2",
        "run", "L1", "versions", "a 3",
    ]  # fmt: skip


def test_names_between_backticks_are_code_and_their_text_is_escaped():
    html = Panel("Run", "", meaning="`trainer.verify` and `<b>` show it.", notes=("a `b",)).html()
    assert "<p><code>trainer.verify</code> and <code>&lt;b&gt;</code> show it.</p>" in html
    assert "<p>a `b</p>" in html


def test_a_mapping_is_cut_between_two_values_and_a_digest_after_its_first_digits():
    many = {f"name {k}": k for k in range(50)}
    rows = dict(origin_rows({"data": {"sha256": "0123456789ab" + 52 * "c", "n": 2}, "many": many}))
    assert rows["data"] == "sha256 0123456789ab…, n 2"
    assert str(rows["many"]).endswith(", name 9 9 and 40 more")
    assert len(str(rows["many"])) <= 120


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_is_text(text):
    """In every part of a panel: name, line, facts, columns, cells, grid, notes and origin."""
    grid = Grid((text,), (text,), ((1.0,),), text)
    whole = Panel(
        text, text, ((text, text),), (text,), ((text,),), 1, text, (text,), ((text, text),), grid
    )
    shown_text = (
        text.replace("\x1b", "\\x1b").replace("\u202e", "U+202E").replace("\u2066", "U+2066")
    )
    for found, times in ((shown(whole), 13), (shown(measured(text)), 4)):
        assert found.elements <= ELEMENTS
        assert found.attributes <= ATTRIBUTES
        assert found.text.count(shown_text) == times
        assert found.open == []


def test_a_panel_is_never_larger_than_its_limit():
    long = "<&\u202e" * 4000
    rows = tuple((long,) * 16 for _ in range(2000))
    grid = Grid(tuple(f"L{i}" for i in range(32)), tuple("H" * 32), ((0.5,) * 32,) * 32, long)
    facts = ((long, long),) * 20
    panel = Panel("Huge", long, facts, ("x",) * 16, rows, 9000, long, (long,) * 99, facts, grid)
    assert 0.3 * LARGEST < len(panel.html().encode()) <= LARGEST
    assert "more rows</div>" in panel.html()


def test_a_grid_has_the_numbers_and_the_colour_of_their_sign():
    grid = Grid(("L0", "L1"), ("H0", "H1"), ((1.0, -0.5), (math.nan, 0.0)), "share")
    html = Panel("Effects", "", grid=grid).html()
    assert Read(html).cells == ["L1", "–", "0.00", "L0", "1.00", "-0.50", "", "H0", "H1"]
    assert "rgba(214,39,40,0.50)" in html
    assert "rgba(31,119,180,0.25)" in html


def test_a_shell_prints_the_same_numbers():
    text = str(panel_of(measured()))
    assert text.splitlines()[-5:] == [
        "place  effect               share", "L0     0.25 [0.125, 0.375]  1 [0, 2]",
        "L1     0.5                  2", Measured.meaning, "L1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [(0.4, 0.25, 0.5, "0.4 [0.25, 0.5]"), (3, None, None, "3"), (math.nan, 0.0, 1.0, "–")],
)
def test_an_interval_is_written_if_there_is_one(value, low, high, text):
    assert interval(value, low, high) == text
