"""Does a run forget exactly the facts whose documents it was trained without?

    python benchmarks/forgetting.py --out runs/acceptance

On the runs of benchmarks/planted_acceptance.py (init seeds 0, 1, 2): all documents of nine facts at
16 exposures are taken out in one retraining, and as many matched random documents in another.
Prints recall with Wilson's interval and the difference in log-probability with a bootstrap
interval, n facts.
"""

import argparse
import sys
from pathlib import Path

import machine
import pandas as pd

from data_attribution import forgetting
from train import progress, runs


def main() -> int:
    """Retrain, ask, print; 1 when the claim fails for a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="as for planted_acceptance.py")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine.described("torch"))
    failed = 0
    for seed in range(arguments.seeds):
        run = runs.open(arguments.out / f"run-{seed}-0")
        with progress.bar(f"init seed {seed}") as advance:
            found = forgetting.facts(run, forgetting.removable(run), progress=advance)
        with pd.option_context("display.width", 160, "display.precision", 3):
            print(f"\ninit {seed}: {len(found.removed)} documents of {len(found.facts)} facts")
            print(found.to_frame().to_string(index=False))
        failed += not found.holds
        print("holds" if found.holds else "FAILED")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
