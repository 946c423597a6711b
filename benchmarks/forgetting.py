"""Does a run forget exactly the facts whose documents it was trained without?

    python benchmarks/forgetting.py --out runs/acceptance

On three runs of benchmarks/planted_acceptance.py, each of other seeds: all documents of nine facts
at 16 exposures are taken out in one retraining, and all documents of nine others like them in each
of three others (--controls). A control is as redundant as what it stands beside: its facts are
stated as often, in the same part of training, and lose every document too. Once with late facts,
which are read in the last third of training, and once with facts that are read throughout. Prints
recall with Wilson's interval, the difference in log-probability with Student's interval, n facts,
and that difference beyond the controls, whose interval includes how much they differ. A retraining
for late facts costs .3 of a training, one for the others a whole one.
"""

import argparse
import sys
from pathlib import Path

import machine
import pandas as pd
from planted_acceptance import DIAGONAL

from data_attribution import counterfactuals
from data_attribution.counterfactuals import EffectSize
from train import progress, runs


KINDS = {"late": True, "throughout": False}


def main() -> int:
    """Retrain, ask, print; 1 when the claim fails for a seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="as for planted_acceptance.py")
    parser.add_argument("--runs", type=int, default=len(DIAGONAL), help="only the first of them")
    parser.add_argument("--controls", type=int, default=3, help="of every run and kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    arguments = parser.parse_args()
    print(machine.described("torch"))
    failed = 0
    for kind in arguments.kinds:
        for init, order, content in DIAGONAL[: arguments.runs]:
            run = runs.open(arguments.out / f"run-{init}-{order}-{content}")
            names = counterfactuals.removable_facts(run, late=KINDS[kind])
            with progress.bar(f"init {init}, {kind}") as advance:
                found = counterfactuals.forget_facts(
                    run, names, controls=arguments.controls, progress=advance
                )
            with pd.option_context("display.width", 160, "display.precision", 3):
                print(
                    f"\ninit {init}, order {order}, content {content}, run {run.id}, "
                    f"{run.numerics.precision}, facts read {kind}: {len(found.removed)} documents "
                    f"of {len(found.facts)} facts, first read at step {found.first_read}"
                )
                print(found.to_frame().to_string(index=False))
            print(beyond(found.beyond_controls))
            failed += not found.holds
            print("holds" if found.holds else "FAILED", flush=True)
    return min(failed, 1)


def beyond(effect: EffectSize | None) -> str:
    """The change of the removed facts beyond the controls, as text."""
    if effect is None or effect.low is None or effect.high is None:
        return "beyond the controls: no interval"
    ends = f"[{effect.low:+.2f}, {effect.high:+.2f}]"
    return f"beyond {effect.seeds} controls {effect.mean:+.2f} {ends} nats, {effect.n} facts"


if __name__ == "__main__":
    sys.exit(main())
