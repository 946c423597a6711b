"""The marks of a drawing as SVG: texts and lines, with all that a reader may write made safe."""

import re
from html import escape


__all__ = ["LETTER", "clean", "line_mark", "safe", "short", "text_mark", "turned_text"]

LETTER = 6.2  # width in pixels of a letter of 11 pixels, on average
LONGEST = 26  # letters of a label; longer ones are cut
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Show line ends, and replace other control characters, which XML forbids."""
    return CONTROL.sub("\ufffd", text.replace("\n", "\\n").replace("\t", "\\t"))


def safe(text: str) -> str:
    """Return a text as it may stand in SVG."""
    return escape(clean(text))


def short(text: str, letters: int = LONGEST) -> str:
    """Return a text, cut if it is long."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def line_mark(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    """Return a line between two points, in pixels from the left and from the top."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'
    )


def text_mark(
    x: float, y: float, text: str, anchor: str = "start", *, size: int = 11, fill: str = ""
) -> str:
    """Return a text at a point; `anchor` says which of its ends lies there, or its middle."""
    more = (f' text-anchor="{anchor}"' if anchor != "start" else "") + (
        (f' font-size="{size}"' if size != 11 else "") + (f' fill="{fill}"' if fill else "")
    )
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{safe(text)}</text>'


def turned_text(x: float, y: float, text: str, degrees: int = 35, anchor: str = "end") -> str:
    """Return a text that is turned against the clock around a point."""
    return (
        f'<text transform="translate({x:.1f} {y:.1f}) rotate(-{degrees})" text-anchor="{anchor}">'
        f"{safe(text)}</text>"
    )
