"""Does training without the documents that attribution names take a fact away, and nothing else?

    python benchmarks/removal.py --run runs/planted

All facts of the planted run that are stated 16 times and have distractors are traced by the fused
method: chosen by the truth before any list is drawn, and none is dropped because of its list. Then
the run is trained again without the first 16 documents of every fact and their copies, all facts at
once, and again without as many random documents, by five seeds. Controls are as redundant as what
they stand beside: for every text that is removed with all its copies, another text with as many
copies is removed whole, and how many texts each set takes away whole is printed. Lists of several
facts may share a document; how many do is printed, and what those lose beside the others. Asked are
the facts themselves (logit difference), and behaviours that have nothing to do with them.

Exits with 1 when the facts lose less than 5 times what random documents move them by, when the
interval of that ratio holds 1, when an unrelated behaviour moves more than its noise, and when the
far end of its interval is more than a fifth of what the facts lose: then nothing was shown.

With --late only facts that are read late in training are asked, and only the steps from their first
reading on are trained again, so a retraining costs a third. What is removed from these steps and
was read before them, too, keeps what it taught before.

As many documents are taken as state a fact: ten of facts stated up to 128 times were tried first,
and left most of what teaches the often stated ones. Six trainings, eight minutes on two quiet
cores; with --weights, what was trained before is found again, and more --seeds cost only those.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import machine

from data_attribution import evaluation, queries, token_index
from data_attribution.counterfactuals import Change, Retrainings
from data_attribution.errors import IndexMissing
from data_attribution.evaluation import CurvePoint, Ratio, RemovalCurves
from interp import behaviours
from train import progress, runs
from train.data import document_sha256s
from train.runs import Run


TIMES = 5.0
UNRELATED = ("ioi", "induction")


def main() -> int:
    """Trace, train again, compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/planted"), help="Of openbook demo.")
    parser.add_argument("--store", type=Path, help="Its token store, when it was moved.")
    parser.add_argument("--weights", type=Path, help="Keep retrained weights in this folder.")
    parser.add_argument(
        "--k", type=int, default=16, help="Documents removed, and that state a fact."
    )
    parser.add_argument("--seeds", type=int, default=5, help="Of the controls.")
    parser.add_argument("--late", action="store_true", help="Only facts that are read late.")
    parser.add_argument("--beside", action="append", default=[], help="bm25, gradient, ...")
    arguments = parser.parse_args()
    run = runs.open(arguments.run, store=arguments.store)
    numerics = run.numerics
    print(
        f"{machine.described('torch')}; run {run.id}, {numerics.precision}, "
        f"{numerics.threads} threads"
    )
    first = run.recipe.late_begin if arguments.late else None
    found = removed(
        run,
        k=arguments.k,
        seeds=arguments.seeds,
        methods=("fused", *arguments.beside),
        weights=arguments.weights,
        first=first,
    )
    for line in redundancy(run, found.points[0], first or 0):
        print(line)
    return report(found)


def removed(
    run: Run,
    *,
    k: int,
    seeds: int,
    methods: tuple[str, ...],
    weights: Path | None,
    first: int | None = None,
) -> RemovalCurves:
    """The first k documents of every fact taken out, by each method, beside random ones.

    With `first`, of facts that are not read before that step, and from the steps after it alone.
    """
    indexed(run)
    chosen = [
        case
        for case in evaluation.planted_facts(run, least=k, most=k)
        if min(first_reading(run, one) for one in case.relevant) >= (first or 0)
    ]
    rankings = evaluation.rankings_by_method(run, chosen)
    tops = {one: evaluation.first_read(run, rankings[one].by_case, first=k) for one in methods}
    some = evaluation.apart(chosen)
    since = f" and not before step {first}" if first else ""
    print(
        f"{len(chosen)} facts are stated {k} times{since}, {len(some)} of them by documents of "
        "their own"
    )
    unrelated = [queries.query_of_behaviour(behaviours.load(one, run)) for one in UNRELATED]
    with progress.bar("training again") as advance:
        return evaluation.removal_curves_of(
            Retrainings(run, "blank", first, weights),
            some,
            tops,
            ks=(k,),
            seeds=seeds,
            unrelated=unrelated,
            progress=advance,
        )


def first_reading(run: Run, document: int) -> int:
    """The first step that read a document, which was read."""
    return int(run.steps_learned(document)[0])


def redundancy(run: Run, point: CurvePoint, first: int) -> Iterator[str]:
    """How many texts, and copies of them, the removal and each control take away whole.

    A text that was read before the step `first` is not gone.
    """
    texts = [*document_sha256s(run.store)]
    asked = {texts[one] for some in (point.documents, *point.controls) for one in some}
    copies: dict[str, list[int]] = {text: [] for text in asked}
    # Only of these is it asked when they were read, which takes time.
    for document, text in enumerate(texts):
        if text in asked and len(run.steps_learned(document)):
            copies[text].append(document)
    late = [
        some for some in copies.values() if min(first_reading(run, one) for one in some) >= first
    ]
    names = [point.method, *(f"random {seed}" for seed in range(len(point.controls)))]
    for name, documents in zip(names, (point.documents, *point.controls), strict=True):
        held = {*documents}
        whole = [some for some in late if held.issuperset(some)]
        repeated = [len(some) for some in whole if len(some) > 1]
        yield (
            f"{name:<10} {len(documents)} documents; texts that no longer stand anywhere: "
            f"{len(whole)}, {len(repeated)} of them in several copies ({sum(repeated)} documents)"
        )
    shared = set.intersection(*map(set, point.controls)) if point.controls else set()
    yield f"documents that every control holds: {len(shared)}"


def indexed(run: Run) -> None:
    """See that the store is indexed."""
    try:
        token_index.open(run.store)
    except IndexMissing:
        token_index.build(run.store)


def report(found: RemovalCurves) -> int:
    """Every method's loss; the bounds are the first one's. 1 when one is missed."""
    for point, row in zip(found.points, found.rows(), strict=True):
        print(
            f"{point.method:<10} without the first {point.k} of {row['n']} facts ({point.removed} "
            f"documents with their copies): {row['change']:+.2f} {ends(point.interval)} "
            f"{found.unit}; the lists of {row['overlapping']} facts share a document with another's"
        )
        if point.overlaps is not None and 0 < point.overlapping < len(point.change):
            print(
                f"{'':<10} those {point.change[point.overlaps].mean():+.2f}, the others "
                f"{point.change[~point.overlaps].mean():+.2f}"
            )
    first, row = found.points[0], found.rows()[0]
    print(
        f"random     {row['seeds']} times as many: {row['random']:+.2f} "
        f"{ends(first.random_interval)}, moved by {row['random moves']:.2f}"
    )
    failed = lost_enough(first.ratio)
    for change in first.unrelated:
        failed |= moved(first, change)
    return int(failed)


def lost_enough(ratio: Ratio | None) -> bool:
    """Whether the ratio misses its bound, which is printed."""
    # As "not held": a number that is none holds no bound.
    failed = ratio is None or not (ratio.value >= TIMES and ratio.low > 1)
    value = "no ratio" if ratio is None else f"{ratio.value:.1f} {ends((ratio.low, ratio.high))}"
    print(
        f"{'MISSED' if failed else 'ok'}: {value} times what random documents move, asked "
        f"{TIMES:g} and an interval without 1"
    )
    return failed


def moved(point: CurvePoint, change: Change) -> bool:
    """Whether an unrelated behaviour moved, or may have by too much; printed."""
    effect, share = change.effect, point.share_of_loss(change)
    print(
        f"{'ok' if effect.within_noise else 'MISSED'}: {change.name} moves by {effect.mean:+.3f} "
        f"{ends((effect.low, effect.high))} {change.unit} beyond the controls, {effect.n} prompts, "
        f"{effect.seeds} seeds; before {change.before.mean():.2f}"
    )
    if share is None:
        print(f"MISSED: {change.name}: no interval of its share of what the facts lose")
        return True
    small = share.high is not None and -1 / TIMES <= share.low <= share.high <= 1 / TIMES
    print(
        f"{'ok' if small else 'MISSED'}: {change.name} moves by {share.value:+.3f} "
        f"{ends((share.low, share.high))} of what the facts lose, asked {1 / TIMES:g} at most"
    )
    return not (effect.within_noise and small)


def ends(interval: tuple[float | None, float | None] | None) -> str:
    """An interval as text; an end that is not known is left out."""
    if interval is None or interval == (None, None):
        return "[no interval]"
    low, high = ("" if end is None else f"{end:+.3f}" for end in interval)
    return f"[{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
