"""The rules of the house that a machine can check: names, front doors, and where output is
allowed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
OUTSIDE = ("tests", "benchmarks", "notebooks")
NAMELESS = {
    "utils", "util", "utilities", "helpers", "helper", "common", "misc", "tools", "types",
    "constants", "base", "core", "manager", "config", "shared", "lib",
}  # fmt: skip


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_no_file_or_folder_has_a_name_that_says_nothing():
    inside = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    inside += (ROOT / "tests").rglob("*.py")
    named = {path for path in inside if path.stem.removeprefix("test_").lower() in NAMELESS}
    assert named == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_opens_with_a_docstring_and_re_exports_nothing(package):
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]


def test_every_module_says_what_it_is():
    assert [path for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_readme_is_filled_in():
    assert re.findall(r"@@\w*", (ROOT / "README.md").read_text()) == []


# What a file outside the cli folders may ask the environment for, and why.
ASKS = {
    "train/numerics.py": "cuBLAS takes its workspace from there; it is read and never set",
    "train/storage/user_cache.py": "it names the folder for what can be made again",
}


def test_only_commands_print_and_look_at_the_environment():
    found = {
        str(path.relative_to(ROOT)): said
        for path in sources()
        if path.parent.name != "cli" and (said := sorted(set(spoken(ast.parse(path.read_text())))))
    }
    assert {name: said for name, said in found.items() if name not in ASKS} == {}
    assert all(found[name] == ["os.environ"] for name in ASKS.keys() & found.keys())


def spoken(tree: ast.AST) -> Iterator[str]:
    """Calls of print, and every way to the environment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield "print("
        if ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
            yield ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"os.{one.name}" for one in node.names if one.name in ("environ", "getenv"))


def test_a_print_and_every_way_to_the_environment_are_seen():
    text = "import os\nfrom os import environ\nprint(1)\nconsole.print(2)\nos.getenv('A')"
    assert sorted(spoken(ast.parse(text))) == ["os.environ", "os.getenv", "print("]


# --- refusals of the command line ----------------------------------------------------------------

# Every function of the cli folders that raises an error, and what it refuses: a value or a file,
# never a combination of options. An option that only some uses read belongs to a command of its
# own, or into the value that reads it, as in `--over mlps:3` and `--method gradient:rank=8`.
REFUSALS = {
    "data_attribution/cli/trace.py _decoded": "a text that is too large or no UTF-8",
    "data_attribution/cli/trace.py _read": "a text in a file that is missing",
    "interp/cli/ablate.py _effects": "a file that is missing",
    "interp/cli/cache.py _token_store": "a model that comes without a token store",
    "interp/cli/lens.py lens_fit": "a file of another kind, and a model that comes without a run",
    "interp/cli/patch.py _positions": "a text that is no list of positions",
    "interp/cli/probe.py _numbers": "a text that is no list of numbers",
    "train/cli/options.py choice": "a word that is no choice",
    "train/cli/output.py _refuse_another_kind": "a file that holds another kind of result",
    "train/cli/options.py result_file": "a file that holds another kind of result",
    "train/cli/options.py __post_init__": "a run that is missing",
    "interp/cli/options.py __post_init__": "a model that is missing",
    "interp/cli/options.py behaviour_file": "a file that is missing",
    "train/cli/options.py _store_folder": "a token store that is missing",
    "train/cli/options.py _new_run": "a folder that holds a run",
    "train/cli/options.py page_file": "a file that is no page or figure",
    "interp/cli/probe.py _task_file": "a file that is missing",
    "train/cli/options.py readable": "a file that is missing",
    "train/cli/options.py result_of": "a file of another command",
    "train/cli/ranks.py _raise_failure": "a process that ended",
    "train/cli/ranks.py start_ranks": "more processes than were started by torchrun",
    "train/cli/recipes.py parsed_settings": "a setting without a value, or given twice",
    "train/cli/recipes.py recipes_show": "a file of another kind",
    "train/cli/run.py run_resume": "a setting of another recipe",
    "train/cli/train.py train_command": "a teacher of which the recipe would learn nothing",
}


def refusing(tree: ast.Module) -> set[str]:
    """Outermost functions and methods that raise an error; `typer.Exit` is none."""
    raised: set[str] = set()
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(one for holder in classes for one in holder.body)]:
        if isinstance(node, ast.FunctionDef):
            errors = {
                ast.unparse(one.exc)
                for one in ast.walk(node)
                if isinstance(one, ast.Raise) and one.exc
            }
            if not all(error.startswith("typer.Exit(") for error in errors):
                raised.add(node.name)
    return raised


def test_no_command_refuses_a_combination_of_its_options():
    found = {
        f"{path.relative_to(ROOT)} {name}"
        for path in sources()
        if path.parent.name == "cli"
        for name in refusing(ast.parse(path.read_text()))
    }
    assert found == {*REFUSALS}


def test_a_refusal_is_seen_in_a_command_and_in_its_options():
    text = """
def command(take, file):
    if take and not file:
        raise InterpError("--take needs --file")
class Options:
    def __post_init__(self):
        raise typer.BadParameter("give one")
def ended():
    raise typer.Exit(1)
"""
    assert refusing(ast.parse(text)) == {"command", "__post_init__"}


# --- private names -------------------------------------------------------------------------------

PRIVATE = re.compile(r"_[a-z]\w*", re.IGNORECASE)


def test_tests_benchmarks_and_notebooks_use_no_private_name_of_another_module():
    outside = [path for name in OUTSIDE for path in sorted((ROOT / name).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text()) for path in [*sources(), *outside]}
    private = {name for tree in trees.values() for name in defined(tree) if PRIVATE.fullmatch(name)}
    assert len(private) > 500
    used = {path: sorted(set(reached(trees[path])) & private) for path in outside}
    assert {str(path.relative_to(ROOT)): names for path, names in used.items() if names} == {}


def defined(tree: ast.AST) -> Iterator[str]:
    """Functions, classes, variables and attributes of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def reached(tree: ast.AST) -> Iterator[str]:
    """Names that are imported, attributes of anything but `self`, and those named in strings.

    Strings count because `monkeypatch.setattr` takes a name, and subprocesses take whole programs.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (
                part for one in node.names for part in [one.name, *str(node.module).split(".")]
            )
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"(?:\A|\.|\bimport )(_\w+)", node.value)


def test_every_way_to_a_private_name_is_seen():
    ways = (
        "from train.runs import _a", "from train._b import c", "runs._d", "runs.open(1)._e",
        "patch.setattr(runs, '_f')", "patch.setattr('train.runs._g')", "code = 'runs._h()'",
    )  # fmt: skip
    private = {name for way in ways for name in reached(ast.parse(way)) if PRIVATE.fullmatch(name)}
    assert private == {"_a", "_b", "_d", "_e", "_f", "_g", "_h"}
    assert set(reached(ast.parse("self._a = _b('x_c')"))) == set()


def test_every_test_that_the_list_of_claims_names_exists():
    folder, file, missing = ROOT / "tests", "", []
    named = re.findall(
        r"(?:tests/)?((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?", (folder / "CLAIMS.md").read_text()
    )
    for path, name in named:
        file = path or file
        text = (folder / file).read_text() if file and (folder / file).is_file() else ""
        if (path and not text) or (name and f"def {name}(" not in text):
            missing.append(f"{file}::{name}")
    assert sum(bool(name) for _, name in named) > 80
    assert missing == []
