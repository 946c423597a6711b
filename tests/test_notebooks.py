"""Notebooks are kept as text beside a copy with outputs, say what they claim, and hold no logic."""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from tests import play_notebooks, saved_outputs
from train import storage


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
MOST_CELLS, LONGEST_FUNCTION = 35, 5
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def functions(source: str):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def test_there_is_a_notebook_and_each_has_its_pair():
    folder = Path(__file__).parents[1] / "notebooks"
    assert NOTEBOOKS
    pairs = [path.with_suffix(".ipynb") for path in NOTEBOOKS]
    assert sorted(folder.glob("*.ipynb")) == pairs


@each_notebook
def test_the_pair_has_the_same_cells(path):
    pair = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert cells(pair) == cells(jupytext.read(path))


@each_notebook
def test_the_outputs_are_those_of_the_code_and_readers_see_them(path):
    pair = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert pair.metadata.kernelspec.name == "python3"
    code = saved_outputs.code_cells(pair)
    if saved_outputs.outputs_of_others(pair):
        assert "openbook" not in pair.metadata
        assert [cell.outputs for cell in code] == [[]] * len(code)
        assert [cell.execution_count for cell in code] == [None] * len(code)
    else:
        assert saved_outputs.stale(pair) == ""
        assert saved_outputs.problems(pair) == []
        assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
        pictures = [
            one for cell in code for one in cell.outputs if "image/png" in one.get("data", {})
        ]
        assert pictures


def test_the_notebooks_on_texts_of_others_are_saved_without_outputs():
    read = [nbformat.read(path.with_suffix(".ipynb"), as_version=4) for path in NOTEBOOKS]
    without = [saved_outputs.outputs_of_others(notebook) for notebook in read]
    names = [path.stem for path, others in zip(NOTEBOOKS, without, strict=True) if others]
    assert names == ["01_real_text", "10_real_code"]


def test_all_notebooks_together_take_less_than_two_megabytes():
    assert sum(path.with_suffix(".ipynb").stat().st_size for path in NOTEBOOKS) < 2_000_000


@each_notebook
def test_the_first_cell_asks_answers_and_says_what_is_needed(path):
    kind, source = cells(jupytext.read(path))[0]
    assert kind == "markdown"
    assert source.startswith("# ")
    starts = [line.split(" ")[0] for line in source.splitlines() if line.startswith("**")]
    assert starts == ["**Question.**", "**Answer.**", "**Needs.**"]


@each_notebook
def test_the_first_cell_says_how_long_it_takes_and_on_what(path):
    _, source = cells(jupytext.read(path))[0]
    needs = source.partition("**Needs.**")[2]
    assert re.search(r"(seconds|minutes?) on (one core|two cores) of an? \w+", needs)


@each_notebook
def test_the_last_cell_asserts(path):
    kind, source = cells(jupytext.read(path))[-1]
    assert kind == "code"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))


@each_notebook
def test_no_function_is_longer_than_five_lines(path):
    lengths = {one.name: one.end_lineno - one.lineno + 1 for one in functions(path.read_text())}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


@each_notebook
def test_there_are_at_most_35_cells(path):
    assert len(cells(jupytext.read(path))) <= MOST_CELLS


@each_notebook
def test_no_figure_carries_the_whole_of_plotly(path):
    assert "include_plotlyjs" not in path.read_text()


@each_notebook
def test_no_path_depends_on_the_folder_a_notebook_is_started_from(path):
    code = "\n".join(source for kind, source in cells(jupytext.read(path)) if kind == "code")
    assert re.findall(r"""Path\(["'][^"']*|["']\.\.?/[^"']*""", code) == []


@pytest.mark.parametrize("start", ["", "notebooks", "tests/worlds"])
def test_the_project_is_found_from_every_folder_of_it(start, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root / start)
    assert storage.project_root() == root


def test_a_notebook_elsewhere_finds_the_checkout_it_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.project_root() == Path(storage.__file__).parents[2]


# Solutions and sizes


def test_four_notebooks_have_exercises_and_every_solution_ends_with_an_assertion():
    found = {}
    for path in NOTEBOOKS:
        texts = [source for kind, source in cells(jupytext.read(path)) if kind == "markdown"]
        folded = sum(text.count("<details>") for text in texts)
        codes = [code for text in texts for code in play_notebooks.solutions(text)]
        assert len(codes) == folded, path.name
        assert all("\nassert " in code for code in codes), path.name
        found |= {path.stem: codes} if codes else {}
    assert {name[:2] for name in found} == {"00", "02", "05", "13"}


SOLVED = """Divide.

<details><summary>Solution</summary>

```python
{code}
```

</details>
"""


def played(path: Path, *, text: str = "", code: str = "") -> str:
    """Play a notebook of one text cell and one code cell; return what went wrong."""
    made = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=metadata), path)
    problem, _ = play_notebooks.play(path)
    return problem


@pytest.mark.integration
def test_a_notebook_that_fails_or_weighs_too_much_is_not_passed(tmp_path):
    path = tmp_path / "a.ipynb"
    assert "ZeroDivisionError" in played(path, text=SOLVED.format(code="1 / 0"))
    assert "an output takes" in played(path, code="print('long' * 30_000)")
    assert played(path, text=SOLVED.format(code="n = 2"), code="assert n == 2") == ""


def test_outputs_that_are_large_together_are_too_large():
    assert play_notebooks.too_large([99_000] * 20) == ""
    assert "2,079,000 bytes" in play_notebooks.too_large([99_000] * 21)
