"""Every folder of the packages has a front door: it names what others may use, and loads it late.

`tests/public_names.txt` holds all of these names. A name that comes or goes is a decision: write
the file anew with `python tests/test_front_doors.py`, and a line into CHANGELOG.md.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
SNAPSHOT = Path(__file__).with_name("public_names.txt")
HEAVY = ("torch", "transformer_lens", "datasets", "transformers", "pandas", "plotly", "pyarrow")
FOLDERS = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("__init__.py")
    if path.parent.name not in (*PACKAGES, "cli")
)
each_folder = pytest.mark.parametrize("folder", FOLDERS)


def parsed(folder: str) -> ast.Module:
    return ast.parse((ROOT / folder.replace(".", "/") / "__init__.py").read_text())


def imported(folder: str) -> dict[str, str]:
    """Names in the `if TYPE_CHECKING:` block, and where they live."""
    return {
        alias.name: node.module
        for node in ast.walk(parsed(folder))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(folder)
        for alias in node.names
    }


def listed(folder: str) -> list[str]:
    """The names in `__all__`, as they are written."""
    (names,) = (
        ast.literal_eval(node.value)
        for node in parsed(folder).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return names


def snapshot() -> str:
    return "".join(f"{folder}: {' '.join(sorted(listed(folder)))}\n" for folder in FOLDERS)


def test_public_names_are_those_of_the_snapshot():
    assert snapshot() == SNAPSHOT.read_text()


@each_folder
def test_a_front_door_lists_what_it_imports_and_every_name_loads(folder):
    assert sorted(listed(folder)) == sorted(imported(folder))
    door = importlib.import_module(folder)
    for name, home in imported(folder).items():
        assert getattr(door, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = door.nothing


@each_folder
def test_no_public_name_is_hidden_by_a_module_of_that_name(folder):
    """Python binds a module to its folder once it is imported, over whatever was there."""
    modules = {path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py")}
    assert modules & set(listed(folder)) == set()


def test_a_front_door_imports_nothing_heavy_before_a_name_is_used():
    code = f"import sys, {', '.join(FOLDERS)}; print(sorted({set(HEAVY)!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_outsiders_come_through_the_front_door():
    """Modules of the packages and notebooks; benchmarks and tests may look inside."""
    inside = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    found = []
    for path in [*(ROOT / "notebooks").glob("*.py"), *map(module_path, sorted(inside))]:
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                target = full if full in inside else node.module
                folder = target.rpartition(".")[0]
                if target in inside and folder in FOLDERS and not own.startswith(f"{folder}."):
                    found.append(f"{own} imports {target}")
    assert found == []


def module_path(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


def test_a_circle_between_two_modules_is_found(tmp_path):
    """The contract that CI holds (`lint-imports`) fails on a circle, and on a late import too."""
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from ring import two\n")
    (package / "two.py").write_text("def late():\n    from ring import one\n    return one\n")
    (tmp_path / "setup.cfg").write_text(
        "[importlinter]\nroot_package = ring\n[importlinter:contract:1]\nname = no circles\n"
        "type = acyclic_siblings\nancestors = ring\n"
    )
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports as lint;"
    code += "sys.exit(lint(config_filename='setup.cfg'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert found.returncode == 1
    (package / "two.py").write_text("")
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert found.returncode == 0


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
