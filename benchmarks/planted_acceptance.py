"""Does the planted recipe grow its circuits for every seed? Trains thirteen runs and judges each.

    python benchmarks/planted_acceptance.py --out runs/acceptance

Init, order and content seeds 0, 1 and 2: nine of their 27 combinations, in which every two seeds of
two kinds meet once (a Latin square, chosen before any was trained); two content seeds, 7 and 11, on
which nothing was ever chosen; and two runs (FRESH) that were added when the number of steps was
chosen, so that it was not judged by the runs that led to it. The order seed also packs the store
anew. Every criterion is printed for every run, with n and, for recall, Wilson's interval; the exit
code is 1 when one of them fails. One thread a run; `--precision` is what this machine chooses if
not given. A run that is there already is judged again and not trained. About two minutes a run.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import machine
import torch

from data_attribution import demo
from interp import behaviours, training_dynamics
from interp.heads import copying_loss, induction_heads, previous_token_heads, repeated_tokens
from train import numerics, progress, runs
from train.runs import Run


# Init, order and content seed. Those that matter most come first, should time end.
SQUARE = tuple((init, order, (init + order) % 3) for init in range(3) for order in range(3))
DIAGONAL = tuple(one for one in SQUARE if one[0] == one[1])
UNTUNED = ((0, 0, 7), (0, 0, 11))
FRESH = ((3, 3, 13), (4, 4, 17))
SEEDS = (*DIAGONAL, *FRESH, *UNTUNED, *(one for one in SQUARE if one not in DIAGONAL))


@dataclass(frozen=True)
class Criterion:
    """One number that was asked for."""

    name: str
    value: float
    asked: str
    holds: bool


def main() -> int:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--runs", type=int, default=len(SEEDS), help="only the first of them")
    arguments = parser.parse_args()
    how = numerics.choose(threads=1, precision=arguments.precision)
    print(f"{machine.described('torch')}, {how}")
    failed, table, criteria = 0, [], []
    for seeds in SEEDS[: arguments.runs]:
        init_seed, order_seed, content_seed = seeds
        run = demo.trained(
            arguments.out / f"store-{order_seed}-{content_seed}",
            arguments.out / f"run-{init_seed}-{order_seed}-{content_seed}",
            progress.bar,
            how=how,
            init_seed=init_seed,
            order_seed=order_seed,
            content_seed=content_seed,
        )
        print(f"\ninit {init_seed}, order {order_seed}, content {content_seed}: run {run.id}")
        criteria = judged(run)
        for one in criteria:
            failed += not one.holds
            mark = "ok    " if one.holds else "FAILED"
            print(f"  {mark} {one.name:<44} {one.value:7.3f}   asked {one.asked}")
        table.append([one.value for one in criteria])
        sys.stdout.flush()
    print(f"\n{'over ' + str(len(table)) + ' runs':<44}    mean  lowest  highest")
    for one, values in zip(criteria, zip(*table, strict=True), strict=True):
        mean = sum(values) / len(values)
        print(f"  {one.name:<44} {mean:7.3f} {min(values):7.3f} {max(values):7.3f}")
    print(f"\n{failed} criteria failed over {len(table)} runs")
    return min(failed, 1)


@torch.inference_mode()
def judged(run: Run) -> list[Criterion]:
    """Every criterion of the planted run."""
    torch.set_num_threads(1)
    run = runs.open(run.path)
    model, truth = run.load(), run.store.truth or {}
    ioi = behaviours.measure(model, behaviours.load("ioi", run, n_prompts=300))
    tokens = repeated_tokens(run)
    copying = copying_loss(model, tokens)
    induction, previous = (
        induction_heads(model, tokens),
        previous_token_heads(model, tokens),
    )
    layer = int(induction.max(dim=1).values.argmax())
    below = float(previous[:layer].max()) if layer else 0.0
    held_out = [
        behaviours.measure(model, behaviours.load(f"ioi:{a}-{b}", run, n_prompts=150))
        for a, b in truth["ioi"]["held_out_combinations"]
    ]
    recalled = training_dynamics.recall_by_exposure(model, truth, run.store.tokenizer)
    levels, late = recalled.levels, recalled.late
    assert late is not None
    for level in (*levels, late):
        seen, unseen = level.seen, level.paraphrase
        shown = "none" if seen.recall is None else f"{seen.recall:.2f}"
        print(
            f"    documents {level.exposures:3}{', late' if level is late else '':6}: "
            f"recall {shown} [{seen.low:.2f}, {seen.high:.2f}]"
            f"  paraphrase {unseen.recall:.2f}  baseline {level.baseline:.2f}  n {level.n}"
        )
    recall = [level.seen.recall or 0.0 for level in levels if level.exposures]
    often = [level.seen.recall or 0.0 for level in levels if level.exposures >= 16]
    drop = max(before - after for before, after in pairwise(recall))
    loss = [row.loss for row in run.ledger][-100:]
    return [
        at_most("loss, mean of the last 100 steps, nats", sum(loss) / len(loss), 2.0),
        at_least("IOI accuracy, held-out pairs (n 300)", ioi.accuracy, 0.95),
        at_least("IOI logit difference, nats", ioi.score, 3.0),
        at_least("IOI top-1", ioi.top1, 0.95),
        at_least("IOI accuracy, held-out combinations", min(c.accuracy for c in held_out), 0.95),
        at_least("recall of facts in 16 or more documents, lowest", min(often), 0.95),
        at_least("recall of late facts (16 documents)", late.seen.recall or 0.0, 0.95),
        at_most("recall of facts in 1 document", recall[0], 0.30),
        at_most("largest drop between numbers of documents", drop, 0.0),
        at_least("best induction head, whole vocabulary", float(induction.max()), 0.75),
        at_least("best previous-token head below it", below, 0.5),
        at_least("loss saved on the second copy, nats", copying.gap, 3.0),
    ]


def at_least(name: str, value: float, asked: float) -> Criterion:
    """A lower bound."""
    return Criterion(name, value, f">= {asked:g}", value >= asked)


def at_most(name: str, value: float, asked: float) -> Criterion:
    """An upper bound."""
    return Criterion(name, value, f"<= {asked:g}", value <= asked)


if __name__ == "__main__":
    sys.exit(main())
