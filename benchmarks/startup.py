"""How long `openbook --help` takes, and what importing the packages loads.

    python benchmarks/startup.py

Whole processes, one after another; the minimum is what the machine can do, the maximum its noise.
Exit 1 when the median is not under what is asked, or a package loads what is heavy.
"""

import subprocess
import sys
import time
from pathlib import Path

import machine


RUNS, ASKED = 10, 0.4
HEAVY = ("torch", "transformer_lens", "transformers", "datasets")


def main() -> int:
    """Time the command and list heavy modules; 1 when a bound is missed."""
    command = [str(Path(sys.executable).with_name("openbook")), "--help"]
    seconds = sorted(timed(command) for _ in range(RUNS + 1))[:RUNS]
    print(machine.described())
    print(
        f"openbook --help   min {seconds[0]:.3f} s   median {seconds[RUNS // 2]:.3f} s   "
        f"max {seconds[-1]:.3f} s   n {RUNS}   asked < {ASKED} s"
    )
    missed = seconds[RUNS // 2] >= ASKED
    for package in ("train", "interp", "data_attribution", "data_attribution.cli"):
        probe = f"import sys, {package}; print([m for m in {HEAVY} if m in sys.modules])"
        found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        print(f"import {package:<22} loads {found.stdout.strip()}")
        missed |= found.stdout.strip() != "[]"
    return int(missed)


def timed(command: list[str]) -> float:
    """Wall seconds of one process."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
