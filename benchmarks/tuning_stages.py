"""What do SFT and DPO change in the planted run, and is the right stage found behind each fact?

    python benchmarks/tuning_stages.py --out runs/tuning --facts 15
    python benchmarks/tuning_stages.py --out runs/formation/gpt2-nano-1-tuned \
        --base runs/formation/gpt2-nano-1

The run that comes with openbook, or another run of the planted corpus, is tuned on the planted
instructions (SFT) and then on the planted preferences (DPO), in fp32 on one thread. The settings
were chosen on the run that comes with openbook; the second command asks whether they hold for a run
of `circuit_formation.py`, whose seeds chose nothing. Prints

1. for each stage: the share of facts that the model answers in the planted form (highest logit of
   the whole vocabulary), by the part of the facts, and the accuracy of behaviours that tuning never
   touched, with Wilson's 95 % intervals;
2. for facts that the corpus, the instructions or the preferences alone teach: how often the stage
   with the largest change is the right one, and recall at 10 and the share in the first n of the
   documents or examples that teach the fact, in a ranking of all stages together, beside a random
   order.

Fails when a stage of the lineage is not bit-exact, tuning does not teach its facts, an untouched
behaviour is lost, or stages and examples are not found.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np

from data_attribution import attribution, queries
from data_attribution.evaluation.retrieval_metrics import recall
from data_attribution.gradients import GradientOptions
from data_attribution.queries import Query
from interp import behaviours
from train import progress, released, runs, trainer
from train.data import TokenStore, open_store, tuning
from train.model import GPT
from train.numerics import Numerics
from train.runs import Run
from train.statistics import wilson


MANY = 1 << 32
STAGES = ("pretraining", "instructions", "preferences")
OTHERS = ("ioi", "induction", "capital", "maker", "trade")
SFT = {"steps": 90, "lr": 3e-4, "batch_size": 16, "checkpoint_every": 25, "optimizer_every": 25}
DPO = {**SFT, "steps": 60, "lr": 2e-4, "dpo_beta": 0.2}


@dataclass(frozen=True)
class Case:
    """A fact that one stage taught: its query, and the documents of that stage that state it.

    Documents are numbered through all stages: stage * MANY + document.
    """

    stage: int
    query: Query
    relevant: frozenset[int]


def lineage(out: Path, base: Run, *, sft: dict = SFT, dpo: dict = DPO) -> Run:
    """Tune `base` on both planted sets and return the last run; finished runs are opened again."""
    numerics = Numerics("cpu", "fp32", 1)
    run = base
    for kind, objective, changes in zip(tuning.KINDS, ("sft", "dpo"), (sft, dpo), strict=True):
        store = _store(out / kind, kind, base)
        place = out / objective
        if (place / runs.MANIFEST).exists():
            run = trainer.resume(place)
            continue
        with progress.bar(objective) as advance:
            run = trainer.tune(
                run, store, objective, out=place, numerics=numerics, progress=advance, **changes
            )
    return run


def _store(path: Path, kind: str, base: Run) -> TokenStore:
    if path.exists():
        return open_store(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return tuning.build_tuning_store(
        tuning.open_tuning_set("planted", kind),
        out=path,
        tokenizer=base.known_tokenizer(),
        context=base.config.n_ctx,
    )


def facts_of(run: Run, stage: str, part: str) -> list[dict]:
    """Return the facts of a part that one stage asks for, from the truth table of a tuned run."""
    truth = run.store.tuning_truth
    assert truth is not None
    return [one for one in truth["facts"] if (one["stage"], one["part"]) == (stage, part)]


def answered(model: GPT, run: Run, stage: str, part: str) -> tuple[float, int]:
    """Return the share of facts that a model answers in the planted form, and their number."""
    facts = facts_of(run, stage, part)
    shares = [behaviours.measure(model, behaviours.load(fact["name"], run)).top1 for fact in facts]
    return float(np.mean(shares)), len(facts)


def cases(run: Run, n: int) -> Iterator[Case]:
    """Yield `n` facts of each stage, with what states them there."""
    stages = run.lineage()
    truth = behaviours.planted_truth(stages[0])
    documents = {fact["name"]: fact["documents"] for fact in truth["facts"]}
    rows = [{int(row): at for at, row in enumerate(one.store.rows)} for one in stages]
    for number, stage in enumerate(STAGES):
        part = "new" if number else "test"
        for fact in facts_of(run, stage, part)[:n]:
            stated = fact["rows"] if number else documents[fact["name"]]
            # A fact of the corpus is asked for as the corpus states it.
            behaviour = (
                behaviours.load(fact["name"], run)
                if number
                else behaviours.load(f"fact:{fact['entity']}", stages[0])
            )
            relevant = frozenset(number * MANY + rows[number][row] for row in stated)
            yield Case(number, queries.query_of_behaviour(behaviour), relevant)


def compared(
    run: Run, asked: Sequence[Case], candidates: int, rank: int = 32
) -> list[attribution.LineageSources]:
    """Rank the examples, and documents of the corpus: all that state a fact, and some others."""
    draw = np.random.default_rng(0)
    corpus = run.lineage()[0].store
    some = draw.choice(corpus.n_documents, min(candidates, corpus.n_documents), replace=False)
    stated = [one for case in asked for one in case.relevant if one < MANY]
    documents = [np.unique([*some, *stated]), None, None]
    how = GradientOptions(kind="cosine", log_odds=None, rank=rank)
    with progress.bar("comparing") as advance:
        return attribution.across_stages(
            run, [case.query for case in asked], how=how, documents=documents, progress=advance
        )


def table(
    asked: Sequence[Case], found: Sequence[attribution.LineageSources]
) -> list[dict[str, object]]:
    """Return a row for each stage, and one for a random order of the same documents."""
    draw = np.random.default_rng(0)
    rows = []
    for number, stage in enumerate(STAGES):
        there = [pair for pair in zip(asked, found, strict=True) if pair[0].stage == number]
        named = [sources.taught_by.number == number for _, sources in there]
        for order in ("by cosine", "random"):
            at_10, first_n = [], []
            for case, sources in there:
                places = np.arange(len(sources.documents))
                places = draw.permutation(places) if order == "random" else places
                ranked = (sources.stage_of * MANY + sources.documents)[places].tolist()
                at_10.append(recall(ranked, case.relevant, 10))
                first_n.append(recall(ranked, case.relevant, len(case.relevant)))
            rows.append(
                {
                    "taught by": stage,
                    "order": order,
                    "facts": len(there),
                    "documents": len(found[0].documents),
                    "stage named": _share(named) if order == "by cosine" else "1 of 3",
                    "recall@10": _share(at_10),
                    "in the first n": _share(first_n),
                }
            )
    return rows


def _share(values: Sequence[float]) -> str:
    value = float(np.mean(values))
    low, high = wilson(value, len(values))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main() -> int:
    """Tune, verify, measure, print; 1 when a claim fails."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--base", type=Path, help="run of the planted corpus to tune")
    parser.add_argument("--facts", type=int, default=15, help="facts of each stage")
    parser.add_argument("--candidates", type=int, default=2000, help="documents of the corpus")
    arguments = parser.parse_args()
    print(machine.described("torch"))
    base = runs.open(arguments.base) if arguments.base else released.open("planted")
    last = lineage(arguments.out, base)
    failures = []
    for stage in last.lineage()[1:]:
        level = trainer.verify(stage).level
        print(f"{stage.recipe.name}, run {stage.id}: {level}")
        failures += [f"{stage.recipe.name} is {level}"] if level != "bit-exact" else []
    shown: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for stage in last.lineage():
        model = stage.load()
        for part in ("known", "new", "test"):
            for taught in STAGES:
                if (part == "test") == (taught == "pretraining"):
                    value, n = answered(model, last, taught, part)
                    low, high = wilson(value, n)
                    name = f"{part} facts, asked by {taught}" if part != "test" else "test facts"
                    shown.setdefault(f"{name} ({n})", []).append(
                        f"{value:.2f} [{low:.2f}, {high:.2f}]"
                    )
                    scores.setdefault(name, []).append(value)
        for name in OTHERS:
            found = behaviours.measure(model, behaviours.load(name, last.lineage()[0]))
            shown.setdefault(f"{name} ({found.n})", []).append(
                f"{found.accuracy:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"
            )
            scores.setdefault(name, []).append(found.accuracy)
    print(f"\n{'':40}{'pretraining':>20}{'sft':>20}{'dpo':>20}")
    for name, values in shown.items():
        print(f"{name:<40}" + "".join(f"{value:>20}" for value in values))
    for number, taught in enumerate(STAGES[1:], start=1):
        before, after = scores[f"new facts, asked by {taught}"][number - 1 : number + 1]
        if not after - before > 0.5:
            failures.append(f"{taught} moved their facts from {before:.2f} to {after:.2f} only")
    failures += [
        f"{name} fell to {min(scores[name]):.2f}"
        for name in OTHERS
        if min(scores[name]) < scores[name][0] - 0.15
    ]
    asked = list(cases(last, arguments.facts))
    found = compared(last, asked, arguments.candidates)
    rows = table(asked, found)
    print()
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))
    for row in rows[2::2]:
        named, at_10 = (float(str(row[key]).split()[0]) for key in ("stage named", "recall@10"))
        if min(named, at_10) < 0.8:
            failures.append(f"{row['taught by']}: stage named {named}, recall@10 {at_10}")
    for failure in failures:
        print(f"FAILED: {failure}")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())
