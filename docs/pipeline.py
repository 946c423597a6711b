"""Draw docs/pipeline.svg, the picture of the pipeline: `python docs/pipeline.py` writes it anew.

The same script gives the same bytes, and tests/test_documents.py compares them.
"""

from pathlib import Path
from xml.sax.saxutils import escape


ROWS = [
    (
        "train",
        "#dbeafe",
        [
            ("corpus", "documents with ids and hashes"),
            ("token store", "tokens and their documents"),
            ("data order", "step to documents and back"),
            ("run", "checkpoints, ledger, manifest"),
        ],
    ),
    (
        "interp",
        "#dcfce7",
        [
            ("hooked model", "the trained module itself"),
            ("behaviour", "clean and corrupt prompts"),
            ("patching", "exchange one activation"),
            ("effects", "heads, paths, a circuit"),
        ],
    ),
    (
        "data_attribution",
        "#fef3c7",
        [
            ("token index", "every span to its documents"),
            ("evidence", "words, gradients, replay"),
            ("sources", "ranked documents"),
            ("counterfactual", "retrain without, and a control"),
        ],
    ),
]
WIDTH, LEFT, TOP = 960, 20, 62
BOX, HEIGHT, GAP, BETWEEN = 200, 58, 33, 56
INK, GREY = "#1f2937", "#6b7280"
# What the four panels of a page of `openbook report` show, in the colours that they have there.
PANELS = {
    "behaviour": "#0b62b0",
    "effects": "#b8461f",
    "sources": "#3c7a3a",
    "counterfactual": "#7a4f96",
}


def text(x: float, y: float, words: str, size: int, *, colour: str = INK, more: str = "") -> str:
    """Give one line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'
    )


def box(x: float, y: float, colour: str, width: float = BOX, height: float = HEIGHT) -> str:
    """Give a rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{colour}" stroke="{GREY}"/>'
    )


def arrow(path: str, end: tuple[float, float], towards: str = "right") -> str:
    """Give a line along `path`, and a head at its end."""
    x, y = end
    (a, b), (c, d) = {
        "right": ((-8, -4), (-8, 4)),
        "left": ((8, -4), (8, 4)),
        "down": ((-4, -8), (4, -8)),
    }[towards]
    corners = f"{x:g},{y:g} {x + a:g},{y + b:g} {x + c:g},{y + d:g}"
    return (
        f'<path d="{path}" fill="none" stroke="{GREY}"/><polygon points="{corners}" fill="{GREY}"/>'
    )


def page(width: float, height: float, title: str, parts: list[str]) -> str:
    """Give a whole picture on a white ground, which stays readable on a dark page."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def drawing() -> str:
    """Give the picture of the pipeline."""
    middle = ' text-anchor="middle"'
    question = "Which documents taught a behaviour, and through which heads?"
    parts = [text(WIDTH / 2, 30, question, 20, more=middle + ' font-weight="bold"')]
    for number, (package, colour, boxes) in enumerate(ROWS):
        y = TOP + number * (HEIGHT + BETWEEN)
        parts.append(text(LEFT, y - 8, package, 14, colour=GREY, more=' font-style="italic"'))
        for column, (name, line) in enumerate(boxes):
            x = LEFT + column * (BOX + GAP)
            parts.append(box(x, y, colour))
            if name in PANELS:
                parts.append(
                    f'<path d="M{x + 6:g} {y + 2.5:g} H{x + BOX - 6:g}" stroke="{PANELS[name]}" '
                    'stroke-width="5"/>'
                )
            centre = x + BOX / 2
            parts.append(text(centre, y + 25, name, 16, more=middle + ' font-weight="bold"'))
            parts.append(text(centre, y + 45, line, 13, more=middle))
            if column:
                level = y + HEIGHT / 2
                parts.append(arrow(f"M{x - GAP:g} {level:g} H{x:g}", (x, level)))
        if number:  # from the last box of the row above to the first of this one
            last, first = LEFT + 3 * (BOX + GAP) + BOX / 2, LEFT + BOX / 2 + 60
            path = f"M{last:g} {y - BETWEEN:g} V{y - BETWEEN / 2:g} H{first:g} V{y:g}"
            parts.append(arrow(path, (first, y), "down"))
    bottom = TOP + 2 * (HEIGHT + BETWEEN) + HEIGHT
    right = LEFT + 3 * (BOX + GAP) + BOX
    run = TOP + HEIGHT / 2
    path = f"M{right:g} {bottom - HEIGHT / 2:g} H{right + 22:g} V{run:g} H{right:g}"
    parts.append(arrow(path, (right, run), "left"))
    caption = "The counterfactual trains the same run again; only the removed documents differ."
    parts.append(text(WIDTH / 2, bottom + 30, caption, 14, colour=GREY, more=middle))
    panels = "Coloured bars: the four panels of a page of openbook report."
    parts.append(text(WIDTH / 2, bottom + 52, panels, 14, colour=GREY, more=middle))
    return page(WIDTH, bottom + 68, question, parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing(), encoding="utf-8")
