"""Nothing heavy is imported before it is needed: the packages, the commands and their help."""

import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.integration
HEAVY = ("torch", "transformer_lens", "datasets", "transformers", "pandas", "plotly", "numpy")
EXECUTABLE = Path(sys.executable).with_name("openbook")
SHOW = f"import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "module",
    [
        "train", "interp", "data_attribution", "train.cli", "interp.cli", "data_attribution.cli",
        "train.errors", "interp.errors", "data_attribution.errors",
    ],
)  # fmt: skip
def test_importing_a_package_or_its_commands_imports_nothing_heavy(module):
    result = run_python(f"import {module}; {SHOW}")
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["patch", "--help"], ["index", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["openbook", *{arguments!r}]
from data_attribution.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code
assert "rich.console" not in sys.modules
{SHOW}
"""
    result = run_python(code)
    assert result.stderr == ""
    assert "Usage: openbook" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_the_executable_gives_help():
    """How long it takes is measured by benchmarks/startup.py."""
    result = subprocess.run([EXECUTABLE, "--help"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: openbook" in result.stdout
