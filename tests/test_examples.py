"""Every example in a docstring runs as it stands, on the run that comes with openbook.

Examples may use the names of the fixture `names`, which `docs/reference/api/index.md` lists: the
front doors, the released run with its store, token index and model, and three behaviours. `folder`
is an empty folder, new for every example.
"""

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from train.short_repr import LONGEST


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
PAGES = sorted(path.stem for path in (ROOT / "docs" / "reference" / "api").glob("*.*.md"))

pytestmark = pytest.mark.integration


# Public functions without an example, by reason.
WITHOUT = {
    "trains a model, which takes minutes": """
        train.trainer: first_state initial_state load_state next_token replay retrain_without
            run_steps teacher_entry train training_steps tune
        train.ensembles: train_chain
        train.ladder: begin climb cost measurements save_table tabulate
        interp.causal_abstraction: align
        interp.lenses: evaluate_lens fit_tuned_lens held_out_tokens load_tuned_lens tuned
        interp.training_dynamics: replayed
        data_attribution.counterfactuals: compare forget_facts marked_sources validate_sources
            without
        data_attribution.evaluation: evaluate rankings_by_method removal_curves_of
            retrained_on_subsets
        data_attribution.metagradients: influence rank_by_replay
        data_attribution.demo: finished_formation formation_of line_readings plan plan_code play
            play_code play_released refuse_other trained
        data_attribution.report: code_summary demo_summary read_proof write_code_page
            write_demo_page
        """,
    "takes over two seconds on the released run": """
        data_attribution.report: gather write_behaviour_page
        interp.attribution_patching: missed
        interp.probing: erasure_effect linear
        train.data.planted: planted_corpus planted_truth
        train.data.tuning: planted_instructions planted_preferences
        """,
    "is measured on preferences, which the released run has not read": """
        train.trainer: pair_log_probs reference_log_probs
        train.runs: read_reference reference_bytes
        """,
    "needs a network, a file from elsewhere, or a package that takes seconds to import": """
        train.convert: fetch_pretrained gguf_to_huggingface import_nanogpt to_huggingface
        interp.models: transformer_lens
        interp.training_dynamics: logged
        train.released: write
        """,
    "writes or checks a part of a run or an index; the whole has an example": """
        train.runs: ledger_writer write_ledger begin_manifest begin_monitor_log drop_unlisted
            finish_manifest imported_manifest parse_log record_schedule released_manifest
            resumed_manifest write_checkpoint
        train.storage: artifact_manifest disk_guard lock_artifact sync_folder verify_artifact
        train.trainer: adamw optimizer_state
        """,
    "reads held-out documents, and the released run has none": """
        train.ensembles: evaluate held_out_scores scores_of
        """,
    "is a step inside the engine, a sweep or an importer": """
        interp.patching.engine: arriving averaged fast_fp32 product_for spread
        train.convert: refuse_pickle
        """,
    "connects with other processes": """
        train.trainer: join_ranks
        """,
    "draws a part of a figure, or a figure like those of the examples": """
        interp.plots: columns curves estimates figure framed grouped_bars interval
        """,
}


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
    """Run an example and return what differs or is too long to be shown, or nothing."""
    parsed = doctest.DocTestParser().get_doctest(
        example.text, names, example.name, str(example.path), example.line
    )
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(parsed, out=told.append, clear_globs=False)
    made = [value for name, value in parsed.globs.items() if names.get(name) is not value]
    return "".join([*told, *unreadable(made)])


def unreadable(values: Iterable[object]) -> list[str]:
    """Return the representations that a notebook should not show as they are.

    Of a collection, the first item counts.
    """
    first = [next(iter(value), None) if isinstance(value, Sequence) else value for value in values]
    shown = [repr(value) for value in first if is_dataclass(value) and not isinstance(value, type)]
    return [text for text in shown if not readable(text)]


def readable(text: str) -> bool:
    return len(text) <= LONGEST and not re.search(r"\b(array|tensor)\(|\n", text)


@each_example
def test_an_example_prints_what_it_says(example, names, released_run, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBOOK_CACHE", str(released_run.path.parents[1]))
    monkeypatch.chdir(tmp_path)
    assert failures(example, {**names, "folder": tmp_path}) == ""


def public_functions() -> dict[str, Any]:
    """The functions that the pages of the Python API show, by page and name."""
    doors = {page: importlib.import_module(page) for page in PAGES}
    return {
        f"{page}.{name}": getattr(door, name)
        for page, door in doors.items()
        for name in door.__all__
        if inspect.isfunction(getattr(door, name))
    }


def listed(text: str) -> Iterator[str]:
    """Read lines such as `folder: name name`."""
    folder = ""
    for word in text.split():
        if word.endswith(":"):
            folder = word[:-1]
        else:
            yield f"{folder}.{word}"


def test_every_public_function_has_an_example_or_a_reason_why_not():
    shown = {example.name for example in EXAMPLES}
    bare = {
        name
        for name, function in public_functions().items()
        if f"{function.__module__}.{function.__name__}" not in shown
    }
    excused = [name for text in WITHOUT.values() for name in listed(text)]
    assert sorted(bare) == sorted(excused)


def test_an_example_that_prints_something_else_is_seen():
    wrong = Example("wrong", ">>> 1 + 1\n3", Path("wrong.py"), 0)
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong, {})
