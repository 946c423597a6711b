"""Every example in a docstring runs as it stands, on the run that comes with openbook.

Examples may use the names of the fixture `names`, which `docs/reference/api/index.md` lists: the
front doors, the released run with its store, token index and model, and three behaviours. `folder`
is an empty folder, new for every example.
"""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
PAGES = sorted(path.stem for path in (ROOT / "docs" / "reference" / "api").glob("*.*.md"))

pytestmark = pytest.mark.integration


class Example(NamedTuple):
    """The docstring of a module, class or function that has an example."""

    name: str
    text: str
    path: Path
    line: int


def examples() -> Iterator[Example]:
    """Read them from the sources, so that collecting the tests imports nothing."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        source = path.read_text()
        if ">>> " not in source:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node)
            if text and ">>> " in text:
                name = getattr(node, "name", "")
                yield Example(f"{module}.{name}".rstrip("."), text, path, node.body[0].lineno - 1)


EXAMPLES = list(examples())
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


@pytest.fixture(scope="module")
def names(released_run) -> dict[str, Any]:
    """The names that an example may use; every example gets a copy of the mapping."""
    import numpy as np
    import torch

    doors = {page.rpartition(".")[2]: importlib.import_module(page) for page in PAGES}
    model, behaviours = doors["models"].load(released_run), doors["behaviours"]
    return {
        **doors,
        "np": np,
        "torch": torch,
        "run": released_run,
        "store": released_run.store,
        "model": model,
        "index": doors["token_index"].build(released_run.store),
        "ioi": behaviours.load("ioi", released_run),
        "capital": behaviours.load("capital", released_run),
        "fact": behaviours.load("fact:runethi", released_run),
    }


def failures(example: Example, names: dict[str, Any]) -> str:
    """Run an example and return what differs, or nothing."""
    parsed = doctest.DocTestParser().get_doctest(
        example.text, names, example.name, str(example.path), example.line
    )
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(parsed, out=told.append)
    return "".join(told)


@each_example
def test_an_example_prints_what_it_says(example, names, released_run, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBOOK_CACHE", str(released_run.path.parents[1]))
    monkeypatch.chdir(tmp_path)
    assert failures(example, {**names, "folder": tmp_path}) == ""


def test_an_example_that_prints_something_else_is_seen():
    wrong = Example("wrong", ">>> 1 + 1\n3", Path("wrong.py"), 0)
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong, {})
