"""Execute notebooks with the solutions of their exercises, and weigh what they put out.

    python tests/play_notebooks.py notebooks/*.ipynb

A solution is a block of Python inside `<details>` in a text cell; it is executed as a cell of its
own behind that cell. Prints the seconds, the kilobytes of all outputs and of the largest one. A
cell that raises, a notebook over 2 MB and an output over 100 kB are failures; exit 1.

The files stay as they are; `saved_outputs.py` writes them. `make notebooks` starts one process for
each notebook.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode


MOST_BYTES, MOST_OUTPUT_BYTES = 2_000_000, 100_000
CELL_SECONDS = 1200
FOLDED = re.compile(r"^<details.*?>.*?^</details>", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def solutions(text: str) -> list[str]:
    """Return the Python of every folded part of a text."""
    return [code for part in FOLDED.findall(text) for code in FENCED.findall(part)]


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """Return a copy in which every solution is a code cell behind the cell that folds it."""
    copy: Any = nbformat.from_dict(notebook)
    copy.cells = [one for cell in notebook.cells for one in (cell, *_solution_cells(cell))]
    return copy


def _solution_cells(cell: NotebookNode) -> Iterator[NotebookNode]:
    if cell.cell_type == "markdown":
        for code in solutions(cell.source):
            yield nbformat.v4.new_code_cell(code, metadata={"tags": ["solution"]})


def output_sizes(notebook: NotebookNode) -> list[int]:
    """Return the bytes of every output of an executed notebook, as they are saved."""
    return [
        len(json.dumps(output).encode())
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def too_large(sizes: list[int]) -> str:
    """Say which limit the outputs of a notebook exceed, or nothing."""
    if sum(sizes) > MOST_BYTES:
        return f"the outputs take {sum(sizes):,} bytes, and {MOST_BYTES:,} are allowed"
    if max(sizes, default=0) > MOST_OUTPUT_BYTES:
        return f"an output takes {max(sizes):,} bytes, and {MOST_OUTPUT_BYTES:,} are allowed"
    return ""


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return an executed copy of a notebook, whose code runs in a folder.

    Raises:
        CellExecutionError: A cell raises.
    """
    copy: Any = nbformat.from_dict(notebook)
    client = NotebookClient(
        copy,
        timeout=CELL_SECONDS,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # else it warns that its port is not encrypted
    )
    client.execute()
    return copy


def play(path: Path) -> tuple[str, list[int]]:
    """Execute a notebook in its folder; return what went wrong, and the bytes of its outputs."""
    notebook = with_solutions(nbformat.read(path, as_version=4))
    try:
        sizes = output_sizes(execute(notebook, path.parent))
    except CellExecutionError as error:
        return str(error), []
    return too_large(sizes), sizes


def main() -> int:
    """Play the notebooks that are named; 1 if one fails."""
    failed = False
    for path in map(Path, sys.argv[1:]):
        begin = time.monotonic()
        problem, sizes = play(path)
        sys.stdout.write(
            f"{path.stem:<32} {time.monotonic() - begin:5.0f} s  outputs {sum(sizes) / 1000:6.0f} "
            f"kB, largest {max(sizes, default=0) / 1000:4.0f} kB  {'FAILED' if problem else 'ok'}\n"
        )
        sys.stdout.flush()
        if problem:
            sys.stderr.write(f"{problem}\n")
        failed = failed or bool(problem)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
