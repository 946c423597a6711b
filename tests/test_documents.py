"""README and docs say what is there: commands, names, links and generated pages are checked.

Commands are parsed by the Typer app and not executed, except those under `<!-- executed -->` in
README.md, which a slow test runs.
"""

import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from data_attribution.cli.app import app
from data_attribution.errors import AttributionError
from interp.errors import InterpError
from train.errors import TrainError


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
DOCS = ROOT / "docs"
OPENBOOK = Path(sys.executable).with_name("openbook")
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
CLI_PAGE = DOCS / "reference" / "cli.md"
GLOSSARY = [
    "corpus", "document", "token store", "data order", "step", "run", "checkpoint", "ledger",
    "example", "base", "lineage / stage", "reference",
    "behaviour", "clean / corrupt", "metric", "site", "component", "patch", "effect", "circuit",
    "edge", "query", "method", "evidence", "ranking", "source", "passage",
    "reading / exposure", "documents of a fact", "remove", "retrain", "control",
]  # fmt: skip
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in some languages."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in fenced if language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# README


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.split()) <= 1200
    assert len(text.splitlines()) <= 150


# Commands


def whole_commands(page: Path) -> list[list[str]]:
    """Every command of a page that could be typed as it stands, in words, without `> FILE`."""
    lines = "\n".join(blocks(page, "sh", "text")).replace("\\\n", " ").splitlines()
    typed = [line.removeprefix("$ ").partition(" > ")[0] for line in lines if command(line)]
    return [shlex.split(line, comments=True)[1:] for line in typed]


def command(line: str) -> bool:
    return bool(re.match(r"(\$ )?openbook( |$)", line))


def mentioned_commands(page: Path) -> list[list[str]]:
    """Every command that the prose of a page names, often without its arguments."""
    return [shlex.split(text)[1:] for text in re.findall(r"`(openbook [^`]*)`", prose(page))]


def refused(words: list[str], *, whole: bool = True) -> str:
    """Say why a command does not parse, or nothing. It is not executed.

    Args:
        whole: Whether it could be typed as it stands; what a sentence names may leave out what it
            is applied to.
    """
    found: Any = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    if hasattr(found, "commands"):
        return f"no such command: {words}" if set(words) - {"--help"} else ""
    try:
        found.make_context(found.name, [word for word in words if word != "--help"])
    except (TrainError, InterpError, AttributionError):
        return ""  # it parses; a file that it names is not there
    except Exception as error:
        left_out = ("MissingParameter", "BadOptionUsage")
        return "" if not whole and type(error).__name__ in left_out else f"{words}: {error}"
    return ""


@each_page
def test_every_command_parses(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # options such as --out look at the folder they are typed in
    # The blocks of the reference are usage lines; that page is compared as a whole below.
    typed = [] if page == CLI_PAGE else whole_commands(page)
    wrong = [refused(words) for words in typed]
    wrong += [refused(words, whole=False) for words in mentioned_commands(page)]
    assert [reason for reason in wrong if reason] == []


def test_a_wrong_option_and_a_wrong_command_do_not_parse():
    assert "--ovr" in refused(["patch", "runs/a", "ioi", "--ovr", "heads"])
    assert "pach" in refused(["pach", "runs/a"])
    assert "bild" in refused(["index", "bild"])
    assert refused(["patch", "runs/a"])


# Python


def imported(tree: ast.Module) -> dict[str, Any]:
    """What the import lines of a block bind; a name that is not there raises."""
    bound: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            assert node.module
            for alias in node.names:
                bound[alias.asname or alias.name] = attribute(node.module, alias.name)
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name] = importlib.import_module(alias.name)
    return bound


def attribute(module: str, name: str) -> Any:
    """A name of a module, or the module of that name inside it."""
    door = importlib.import_module(module)
    return (
        getattr(door, name) if hasattr(door, name) else importlib.import_module(f"{module}.{name}")
    )


def unknown(tree: ast.Module, bound: dict[str, Any]) -> Iterator[str]:
    """Names that a module does not have, and keywords that a function does not take."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = bound.get(node.value.id)
            if isinstance(owner, ModuleType) and not hasattr(owner, node.attr):
                yield ast.unparse(node)
        if isinstance(node, ast.Call):
            yield from wrong_keywords(node, bound)


def wrong_keywords(call: ast.Call, bound: dict[str, Any]) -> Iterator[str]:
    match call.func:
        case ast.Name(id=name):
            function = bound.get(name)
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if isinstance(
            bound.get(owner), ModuleType
        ):
            function = getattr(bound[owner], name, None)
        case _:
            return
    if not callable(function) or inspect.isbuiltin(function):  # some have no signature
        return
    takes = set(inspect.signature(function).parameters)
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.VAR_KEYWORD:  # typed by a TypedDict, or open
            (options,) = typing.get_args(one.annotation) or (None,)
            if options is None:
                return
            takes |= set(options.__annotations__)
    wrong = [one.arg for one in call.keywords if one.arg not in takes]
    yield from (f"{ast.unparse(call.func)}({name}=)" for name in wrong)


@each_page
def test_python_blocks_compile_and_their_names_exist(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        compile(tree, str(page), "exec")
        assert list(unknown(tree, imported(tree))) == []


def test_a_name_and_a_keyword_that_do_not_exist_are_seen():
    tree = ast.parse("from interp import patching\npatching.hads(1)\npatching.heads(1, mtric=2)")
    assert set(unknown(tree, imported(tree))) == {"patching.hads", "patching.heads(mtric=)"}


def test_every_new_name_of_the_migration_table_exists():
    pairs = re.findall(
        r"^\| `([\w.]+)` \| `([\w.]+)` \|$", (DOCS / "names.md").read_text(), re.MULTILINE
    )
    new = [name for _, name in pairs if name.count(".") and name.split(".")[0] in PACKAGES]
    assert len(new) > 300
    missing = []
    for name in new:
        try:
            attribute(*name.rpartition(".")[::2])
        except ImportError:
            missing.append(name)
    assert missing == []


# Generated pages and pictures


def test_the_command_reference_is_what_the_commands_say():
    assert CLI_PAGE.read_text() == runpy.run_path(str(DOCS / "cli.py"))["reference"](), (
        "run `python docs/cli.py`"
    )


@pytest.mark.parametrize("name", ["pipeline", "layers"])
def test_the_pictures_are_what_their_scripts_draw(name, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    drawn = runpy.run_path(str(DOCS / f"{name}.py"))["drawing"]()
    assert (DOCS / f"{name}.svg").read_text() == drawn, f"run `python docs/{name}.py`"


def test_every_front_door_has_a_page_that_shows_it():
    snapshot = (ROOT / "tests" / "public_names.txt").read_text()
    for folder in re.findall(r"^([\w.]+):", snapshot, re.MULTILINE):
        page = DOCS / "reference" / "api" / f"{folder}.md"
        assert f"::: {folder}\n" in page.read_text(), folder
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [str(page) for page in PAGES[1:] if str(page.relative_to(DOCS)) not in navigation] == []


def test_every_folder_and_module_is_on_the_page_of_the_architecture():
    text = (DOCS / "architecture.md").read_text()
    for package in PACKAGES:
        inside = [path for path in (ROOT / package).iterdir() if path.name[0] not in "._"]
        names = [path.stem for path in inside if path.suffix == ".py" or any(path.glob("*.py"))]
        assert [name for name in names if f"`{name}`" not in text] == []


def test_the_glossary_has_every_word_once():
    rows = re.findall(r"^\| ([\w /]+) \| \w", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert [row for row in rows if row != "word"] == GLOSSARY


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in kept}


@each_page
def test_relative_links_resolve(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith("https://"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_files_and_notebooks_that_are_named_exist():
    missing = []
    for page in PAGES:
        named = re.findall(
            r"`((?:benchmarks|tests|docs|interp|train|data_attribution)/[\w/]+\.\w+)`", prose(page)
        )
        named += re.findall(r"`python (benchmarks/\w+\.py)", prose(page))
        named += [f"notebooks/{name}.ipynb" for name in re.findall(r"`(\d\d_\w+)`", prose(page))]
        missing += [f"{page.name}: {name}" for name in named if not (ROOT / name).is_file()]
    assert missing == []


# Execution


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory):
    """A folder in which `openbook demo --quick` was played."""
    folder = tmp_path_factory.mktemp("readme")
    assert execute("openbook demo --quick", folder).returncode == 0
    return folder


def execute(typed: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [str(OPENBOOK), *shlex.split(typed, comments=True)[1:]]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(quick_folder):
    (block,) = re.findall(r"<!-- executed -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    typed = block.splitlines()
    assert len(typed) >= 4
    for line in typed:
        done = execute(line, quick_folder)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(tmp_path):
    (block,) = blocks(README, "python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBOOK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = README.read_text().partition("<!-- planted -->\n```text\n")[2].partition("```")[0]
    columns = [line.split() for line in shown.splitlines() if not re.search(r"\d", line)]
    assert len(columns) == 3
    assert [line for line in columns if line not in map(str.split, done.stdout.splitlines())] == []
