"""What do the circuits of IOI and of induction keep, by size, ablation and seed?

    python benchmarks/circuit_sizes.py runs/acceptance/run-0-0-0 runs/acceptance/run-1-1-2 ...

For every run (`benchmarks/planted_acceptance.py` makes them) and behaviour, circuits of 4 to all
edges, chosen on one half of 64 prompts by EAP-IG, are tested on the other half. Ablated edges carry
the corrupt prompt's values, the mean over prompts, or another prompt's values. The last lines say,
over all runs, which statement the numbers support:

    contrast     corrupt: the circuit tells clean from corrupt prompts (faithfulness of .8 or more)
    order        mean: it prefers answer to foil on 90 % of prompts
    prediction   mean: its first choice is the answer half as often as the model's is, or more
    alone        resample: the same, when ablated edges say another prompt

Prints numbers and judges nothing: exit 1 only if a run cannot be measured.
"""

import argparse
import sys
from pathlib import Path

import machine
import torch

from interp import behaviours, circuits, models
from interp.circuits import AblationTest
from train import progress, runs


NAMES = ("ioi", "induction")
SIZES = (4, 8, 16, 32, 64, 128)
STATEMENTS = ("contrast", "order", "prediction", "alone")


def main() -> int:
    """Print a table per run and behaviour, and what they support."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="Folders of runs of the planted recipe.")
    parser.add_argument("--prompts", type=int, default=64, help="Prompts, half of which choose.")
    parser.add_argument("--seed", type=int, default=0, help="Of prompts and of the split.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.described("torch"))
    first: dict[str, dict[str, list[int | None]]] = {
        name: {statement: [] for statement in STATEMENTS} for name in NAMES
    }
    for path in asked.runs:
        run = runs.open(path)
        model = models.load(run)
        for name in NAMES:
            behaviour = behaviours.load(name, run, n_prompts=asked.prompts, seed=asked.seed)
            most = circuits.graph_of(model).n_edges
            sizes = (*(n for n in SIZES if n < most), most)
            print(
                f"\n{path.name} ({run.id}), {name}: {asked.prompts // 2} choose, the others judge"
            )
            rows = []
            for n in sizes:
                with progress.bar(f"{name}, {n} edges") as advance:
                    found = circuits.find(
                        model,
                        behaviour,
                        n_edges=n,
                        checked=False,
                        seed=asked.seed,
                        progress=advance,
                    )
                rows.append(found.ablations)
                for test in found.ablations:
                    print(f"  {n:>4} asked: {line(test)}")
            for statement in STATEMENTS:
                holding = [tests[0].n_edges for tests in rows if supports(statement, tests)]
                first[name][statement].append(min(holding, default=None))
            sys.stdout.flush()
    print("\nfewest edges that support a statement, by run (-: no size does)")
    for name, statements in first.items():
        for statement, edges in statements.items():
            shown = ", ".join("-" if n is None else str(n) for n in edges)
            print(f"  {name:<10} {statement:<15} {shown}")
    return 0


def line(test: AblationTest) -> str:
    """What one circuit keeps under one ablation, every number with its interval."""
    return (
        f"{test.standin}: {test.n_edges} edges, faithfulness {test.faithfulness or 'undefined'}, "
        f"answer above foil {test.above_foil}, first choice {test.top1}, of the full model "
        f"{test.model_top1.value:.2f}"
    )


def supports(statement: str, tests: tuple[AblationTest, ...]) -> bool:
    """Whether the tests of one circuit support a statement of the module's list."""
    corrupt, mean, resample = tests
    kept = corrupt.faithfulness
    if statement == "contrast":
        return kept is not None and kept.value >= 0.8
    if statement == "order":
        return mean.above_foil.value >= 0.9
    one = mean if statement == "prediction" else resample
    return one.top1.value >= 0.5 * one.model_top1.value > 0


if __name__ == "__main__":
    sys.exit(main())
