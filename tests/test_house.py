"""The house rules that a machine can check: sizes, names, and a README that tells the truth.

Sizes are printed for the reviewer who decides; only what is never right is refused.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
LONGEST_FILE, LONGEST_FUNCTION = 450, 80
NAMELESS = {
    "utils", "util", "utilities", "helpers", "helper", "common", "misc", "tools", "types",
    "constants", "base", "core", "manager", "config", "shared", "lib",
}  # fmt: skip


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Names and lengths, decorators not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_no_file_is_longer_than_450_lines_and_no_function_than_80(capsys):
    files = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in sources()}
    lengths = {name: n for path in sources() for name, n in functions(path)}
    ninety = quantiles(lengths.values(), n=10)[-1]
    with capsys.disabled():
        sys.stdout.write(
            f"\n  {len(files)} files, median {median(files.values()):.0f} lines, longest "
            f"{max(files, key=files.__getitem__)} {max(files.values())}"
            f"\n  {len(lengths)} functions, median {median(lengths.values()):.0f} lines, 90 % at "
            f"most {ninety:.0f}, longest {max(lengths, key=lengths.__getitem__)} "
            f"{max(lengths.values())}\n"
        )
    assert {name: n for name, n in files.items() if n > LONGEST_FILE} == {}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


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


def test_the_readme_lists_every_module_and_no_other():
    listed = in_the_tree((ROOT / "README.md").read_text())
    if not listed:
        pytest.skip("README.md has no fenced file tree with lines like `train/orders.py   ...` yet")
    there = {str(path.relative_to(ROOT)) for path in sources() if path.name != "__init__.py"}
    top_level = {path for path in there if path.count("/") == 1}
    assert {path: "is listed and is not there" for path in listed - there} == {}
    assert {path: "is there and is not listed" for path in top_level - listed} == {}


def test_the_readme_is_filled_in():
    assert re.findall(r"@@\w*", (ROOT / "README.md").read_text()) == []


# What a file outside cli.py may ask the environment for, and why.
ASKS = {
    "train/numerics.py": "cuBLAS takes its workspace from there; it is read and never set",
    "train/released.py": "where the user keeps what can be made again stands there alone",
}


def test_only_commands_print_and_look_at_the_environment():
    found = {
        str(path.relative_to(ROOT)): said
        for path in sources()
        if path.name != "cli.py" and (said := sorted(set(spoken(ast.parse(path.read_text())))))
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


def in_the_tree(text: str) -> set[str]:
    """Paths of modules that begin a line of a fenced block."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    start = re.compile(rf"^\s*((?:{'|'.join(PACKAGES)})/[\w/]+\.py)\b", flags=re.MULTILINE)
    return {path for block in blocks for path in start.findall(block)}


def test_the_tree_is_read_from_fenced_blocks_only():
    text = "train/no.py\n```\ntrain/a.py   first\ninterp/b/c.py  x\nsee train/d.py\n```\ntrain/e.py"
    assert in_the_tree(text) == {"train/a.py", "interp/b/c.py"}


def test_every_test_that_the_list_of_claims_names_exists():
    folder, file, missing = ROOT / "tests", "", []
    named = re.findall(
        r"(?:tests/)?((?:\w+/)?test_\w+\.py)?(?:::(test_\w+))?", (folder / "CLAIMS.md").read_text()
    )
    for path, name in named:
        file = path or file
        text = (folder / file).read_text() if file and (folder / file).is_file() else ""
        if (path and not text) or (name and f"def {name}(" not in text):
            missing.append(f"{file}::{name}")
    assert sum(bool(name) for _, name in named) > 80
    assert missing == []
