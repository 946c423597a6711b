"""The shell of every page: one HTML file with panels, its look, its script, and its policy.

    page = document("Title", [Panel("behaviour", "Behaviour", body)], data, provenance)

A page opens from disk on any machine and needs no network. It can be read without its script, which
lets a reader choose, copy and compare. The policy in its head allows the style and the script of
this folder by their digests, and nothing else: no other script, no attribute that runs or styles,
no request, no form.

A `body` is markup. Whatever comes from outside (texts, names, numbers) goes through `shown`, which
escapes it and shows the characters that would hide or turn a text.
"""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path

from train.progress import visible


__all__ = ["Panel", "command", "document", "ending", "excerpt", "measured"]
__all__ += ["shell_path", "shown", "strength", "table"]

STRENGTHS = 9  # classes s1 to s9 of page.css
# Characters of JSON that could end a script element, or a line of a script.
_UNSAFE = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Panel:
    """A part of a page.

    Attributes:
        key: Letters, digits and `-`: the id of the panel, to which `#key` leads.
        title: Heading, as plain text.
        body: Markup.
        question: What the panel answers, in a short line of plain text.
        answer: The answer in a line of markup, which the page shows at its top.
    """

    key: str
    title: str
    body: str
    question: str = ""
    answer: str = ""


def document(
    title: str,
    panels: Sequence[Panel],
    data: Mapping[str, object] | None = None,
    provenance: Sequence[tuple[str, str]] = (),
    *,
    lead: str = "",
) -> str:
    """Return a whole page.

    Args:
        title: Plain text: the title of the window, and the heading.
        panels: The parts, in order. Those with an answer are the story at the top.
        data: Values for the script, which reads them from `#data`; plain JSON.
        provenance: Rows of the footer: what the page was made from, as plain text.
        lead: Markup below the heading.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )
    links = _links(panels)
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{shown(title)}</title><style>{style}</style></head><body>"
    )
    body = (
        f'<header class="bar"><div><b>openbook</b><nav aria-label="Panels">{links}</nav></div>'
        f"</header><main><h1>{shown(title)}</h1>{_lead(lead)}{_story(panels)}"
        + "".join(map(_panel, panels))
        + f"</main>{_footer(provenance)}"
    )
    values = json.dumps(_visible(data or {}), ensure_ascii=False, separators=(",", ":"))
    return _whole(
        head
        + visible(body)
        + f'<script type="application/json" id="data">{values.translate(_UNSAFE)}</script>'
        + f"<script>{script}</script></body></html>\n"
    )


def shown(text: object) -> str:
    """Return plain text as markup, in which no character has an effect.

    Examples:
        >>> from data_attribution.report.page import shown
        >>> shown("<b> \u202e")
        '&lt;b&gt; U+202E'
    """
    return escape(visible(str(text)))


def excerpt(text: str, letters: int = 4_000, *, around: str = "") -> str:
    """Return a text, or the part of a long one around the first place of `around`.

    Examples:
        >>> from data_attribution.report.page import excerpt
        >>> excerpt("a b c d e f g", 3, around="d")
        '… d … (3 of 13 letters)'
    """
    if len(text) <= letters:
        return text
    at = max(text.find(around), 0) if around else 0
    before = max(letters - len(around), 0) // 2
    first = max(min(at - before, len(text) - letters), 0)
    part = text[first : first + letters].strip()
    begin, end = "… " * (first > 0), " …" * (first + letters < len(text))
    return f"{begin}{part}{end} ({letters:,} of {len(text):,} letters)"


def ending(text: str, letters: int) -> str:
    """Return a text, or the end of a long one: of a prompt, what stands before the answer.

    Examples:
        >>> from data_attribution.report.page import ending
        >>> ending("a b c d e f g", 5)
        '… e f g'
    """
    return text if len(text) <= letters else f"… {text[-letters:].strip()}"


def measured(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    n: int | None = None,
    of: str = "prompts",
    unit: str = "",
    form: str = ".2f",
) -> str:
    """Return a number with its interval, unit and n, as plain text.

    Examples:
        >>> from data_attribution.report.page import measured
        >>> measured(0.907, 0.894, 0.921, n=64)
        '0.91 [0.89, 0.92], n = 64 prompts'
        >>> measured(-1.5, n=1, of="fact", unit="nats", form="+.1f")
        '-1.5 nats, n = 1 fact, no interval'
    """
    if value is None:
        return "not measured"
    bounds = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    counted = "" if n is None else f", n = {n:,} {of.removesuffix('s') if n == 1 else of}"
    missing = "" if bounds or n is None else ", no interval"
    return f"{value:{form}}{f' {unit}' if unit else ''}{bounds}{counted}{missing}"


def strength(share: float) -> str:
    """Return the class of page.css for a strength from 0 to 1; "" for nearly none.

    Examples:
        >>> from data_attribution.report.page import strength
        >>> strength(0.0), strength(0.5), strength(3.0)
        ('', 's5', 's9')
    """
    level = min(round(share * STRENGTHS + 0.01), STRENGTHS) if share == share else 0
    return f"s{level}" if level > 0 else ""


def command(*lines: str) -> str:
    """Return commands for the terminal as one block, which the script gives a button to copy it."""
    return f'<div class="command"><code>{shown(chr(10).join(lines))}</code></div>'


def shell_path(path: Path) -> str:
    """Return a path as a shell reads it; the home of who writes a page is `~`.

    Examples:
        >>> from pathlib import Path
        >>> from data_attribution.report.page import shell_path
        >>> shell_path(Path.home() / "my runs" / "run"), shell_path(Path("runs/planted"))
        ("~/'my runs/run'", 'runs/planted')
    """
    home = Path.home()
    if path.is_absolute() and home in path.parents:
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(path))


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    caption: str = "",
    markup: bool = False,
) -> str:
    """Return a table; the cells are plain text, or markup if that is said."""
    made = str if markup else shown
    head = "".join(f'<th scope="col">{shown(one)}</th>' for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{made(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    title = f"<caption>{shown(caption)}</caption>" if caption else ""
    heading = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{title}{heading}<tbody>{body}</tbody></table></div>'


def _links(panels: Sequence[Panel]) -> str:
    """Return links to the panels of the story, and to the first of the others."""
    story = [one for one in panels if one.answer] or [*panels]
    links = [(one.key, one.title) for one in story]
    links += [(one.key, "Details") for one in panels if one not in story][:1]
    return "".join(f'<a href="#{key}">{shown(title)}</a>' for key, title in links)


def _lead(lead: str) -> str:
    return f'<div class="lead">{lead}</div>' if lead else ""


def _story(panels: Sequence[Panel]) -> str:
    """Return the questions and answers of the panels, each a link to its panel."""
    items = "".join(
        f'<li><a href="#{one.key}"><span>{shown(one.question or one.title)}</span>'
        f"<strong>{one.answer}</strong></a></li>"
        for one in panels
        if one.answer
    )
    return f'<ol class="story">{items}</ol>' if items else ""


def _panel(one: Panel) -> str:
    question = f'<p class="question">{shown(one.question)}</p>' if one.question else ""
    return (
        f'<section class="panel" id="{one.key}" aria-labelledby="{one.key}-title">'
        f'<h2 id="{one.key}-title">{shown(one.title)}</h2>{question}{one.body}</section>'
    )


def _footer(provenance: Sequence[tuple[str, str]]) -> str:
    rows = [(shown(name), f"<code>{shown(value)}</code>") for name, value in provenance]
    facts = f"<h2>Where this comes from</h2>{table((), rows, markup=True)}" if rows else ""
    return (
        f"<footer>{facts}<p>One file, made by openbook: it opens without a "
        "network, and its policy lets nothing in it run but its own script.</p></footer>"
    )


@cache
def _asset(name: str) -> str:
    return files("data_attribution.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _digest(content: str) -> str:
    """Return the digest by which a policy allows a script or style."""
    return f"sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}"


def _visible(value: object) -> object:
    """Return plain values in which every text shows its control characters."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [_visible(one) for one in value]
    return value


def _whole(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
