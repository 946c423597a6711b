"""How long the environment of `make demo` or `make test` takes to install, in several ways.

    python benchmarks/installation.py --extras dev,notebook

Each way makes an environment of its own in a temporary folder, without the installers' caches, and
then imports what the demo imports: modules that were not compiled when they were installed are
compiled then. Wall seconds; what has to be downloaded depends on the network. Exit 1 when
compiling everything beforehand is the quicker way.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine


ROOT = Path(__file__).parents[1]
IMPORTS = "import data_attribution.demo, data_attribution.report.demo_page"
DEFAULT, LAZY, UV = "pip", "pip, nothing compiled", "uv"


def main() -> int:
    """Install, import, print; 1 when the way of the Makefile is not the quickest of pip's."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--extras", default="", help="of pyproject.toml, with commas")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    print(f"{machine.described()}, extras {given.extras or 'none'}")
    ways = [DEFAULT, LAZY, *([UV] if shutil.which("uv") else [])]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            found[way].append(timed(way, given.extras))
    return report(found)


def report(found: dict[str, list[tuple[float, float]]]) -> int:
    """Print seconds to install and to import at first; 1 when compiling lazily is not quicker."""
    totals = {}
    for way, rounds in found.items():
        installed, imported = (min(one) for one in zip(*rounds, strict=True))
        totals[way] = min(map(sum, rounds))
        print(
            f"{way:<24} installed in {installed:5.0f} s, imported at first in {imported:4.0f} s, "
            f"together {totals[way]:5.0f} s, {totals[DEFAULT] / totals[way]:.2f} times as fast, "
            f"n {len(rounds)}"
        )
    return int(totals[LAZY] >= totals[DEFAULT])


def timed(way: str, extras: str) -> tuple[float, float]:
    """Seconds to make an environment, and to import in it what a demo imports."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "venv" / "bin" / "python"
        package = f"{ROOT}[{extras}]" if extras else str(ROOT)
        pinned = ["--quiet", "--constraint", str(ROOT / "constraints.txt"), "--editable", package]
        begin = time.perf_counter()
        if way == UV:
            run("uv", "venv", "--quiet", "--seed", "--python", sys.executable, python.parents[1])
            run("uv", "pip", "install", "--no-cache", "--python", python, *pinned)
        else:
            lazily = ["--no-compile"] if way == LAZY else []
            run(sys.executable, "-m", "venv", python.parents[1])
            run(python, "-m", "pip", "install", "--no-cache-dir", *lazily, *pinned)
        installed = time.perf_counter() - begin
        begin = time.perf_counter()
        run(python, "-c", IMPORTS)
        return installed, time.perf_counter() - begin


def run(*command: object) -> None:
    """A process that has to end well."""
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env=quiet, stderr=subprocess.PIPE)


if __name__ == "__main__":
    sys.exit(main())
