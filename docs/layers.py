"""Draw docs/layers.svg, the layers inside each package: `python docs/layers.py` writes it anew.

The layers are read from the contracts of import-linter in pyproject.toml, so that the picture shows
what CI enforces. tests/test_documents.py compares the bytes.
"""

import tomllib
from pathlib import Path

from pipeline import ROWS, box, page, text


ROOT = Path(__file__).resolve().parents[1]
LEFT, TOP, COLUMN, GAP, LINE = 20, 92, 300, 20, 19


def layers() -> dict[str, list[list[str]]]:
    """Read the layers of each package, highest first; names of one layer stand together."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {
        contract["containers"][0]: [
            layer.replace("|", ":").replace(" ", "").split(":") for layer in contract["layers"]
        ]
        for contract in contracts["contracts"]
        if contract["type"] == "layers" and "containers" in contract
    }


def lines(names: list[str]) -> list[str]:
    """Break the names of one layer into lines of two."""
    return [", ".join(names[start : start + 2]) for start in range(0, len(names), 2)]


def drawing() -> str:
    """Give the picture of the layers."""
    middle = ' text-anchor="middle"'
    found = layers()
    width = 2 * LEFT + 3 * COLUMN + 2 * GAP
    title = "A layer may import the layers below it, and a package the packages to its left"
    parts = [text(width / 2, 30, title, 18, more=middle + ' font-weight="bold"')]
    lowest = TOP
    for number, (package, colour, _) in enumerate(ROWS):
        x, y = LEFT + number * (COLUMN + GAP), TOP
        parts.append(text(x + COLUMN / 2, TOP - 16, package, 17, more=middle))
        for names in found[package]:
            shown = lines(names)
            height = LINE * len(shown) + 12
            parts.append(box(x, y, colour, COLUMN, height))
            for row, line in enumerate(shown):
                parts.append(text(x + COLUMN / 2, y + 19 + row * LINE, line, 14, more=middle))
            y += height + 6
        lowest = max(lowest, y)
    return page(width, lowest + 14, title, parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing(), encoding="utf-8")
