"""Does a run forget exactly the facts whose documents it was trained without?

    python benchmarks/forgetting.py --out runs/acceptance

On three runs of benchmarks/planted_acceptance.py, each of other seeds: all documents of nine facts
at 16 exposures are taken out in one retraining, and all documents of nine others like them in
another. Once with late facts, which are read in the last third of training, and once with facts
that are read throughout. Prints recall with Wilson's interval and the difference in log-probability
with Student's interval, n facts.
"""

import argparse
import sys
from pathlib import Path

import machine
import pandas as pd
import planted_acceptance

from data_attribution import counterfactuals
from train import progress, runs


def main() -> int:
    """Retrain, ask, print; 1 when the claim fails for a seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="as for planted_acceptance.py")
    arguments = parser.parse_args()
    print(machine.described("torch"))
    failed = 0
    for late in (True, False):
        kind = "late facts" if late else "facts read throughout"
        for init, order, content in planted_acceptance.DIAGONAL:
            run = runs.open(arguments.out / f"run-{init}-{order}-{content}")
            names = counterfactuals.removable_facts(run, late=late)
            with progress.bar(f"init {init}, {kind}") as advance:
                found = counterfactuals.forget_facts(run, names, progress=advance)
            with pd.option_context("display.width", 160, "display.precision", 3):
                print(
                    f"\ninit {init}, order {order}, content {content}, run {run.id}, "
                    f"{run.numerics.precision}, {kind}: {len(found.removed)} documents of "
                    f"{len(found.facts)} facts, first read at step {found.first_read}"
                )
                print(found.to_frame().to_string(index=False))
            failed += not found.holds
            print("holds" if found.holds else "FAILED", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
