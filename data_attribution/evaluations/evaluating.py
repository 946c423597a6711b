"""Every method of attribution put to the same facts and to the same tests.

    recall, reciprocal rank, first n     against planted truth (`recalls`)
    tail patch                           what a step on its first documents does (`tail_patches`)
    removal                              what training without them does (`removal_curves`)
    LDS                                  what its scores foretell of random subsets (`lds`)

Retraining is dear, so removal and LDS are asked for by name; everything else takes minutes. Each
number stands with its n and its 95 % interval, and the row `random` says what documents that
nothing points at do. Facts that components are chosen on are not among those evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_attribution import questions
from data_attribution.errors import EvidenceError
from data_attribution.evaluations import (
    cases,
    lds,
    recalls,
    removal_curves,
    shared_rankings,
    tables,
    tail_patches,
)
from data_attribution.evaluations.cases import KINDS, Case
from data_attribution.evaluations.retrainings import Retrainings
from data_attribution.evaluations.shared_rankings import Ranked
from data_attribution.evaluations.tables import Evaluation, Row
from interp import behaviours, intervals, patching
from train.runs import Run


__all__ = ["Asked", "evaluate", "localised"]

# Documents of a ranking that are looked at; facts are stated 128 times at most.
DEPTH = 200
PLACES = 5  # components that localised gradients are restricted to
COLUMNS = ("recall", "reciprocal_rank", "first_n")
TITLES = {"recall": "recall@{k}", "reciprocal_rank": "MRR", "first_n": "in first n"}

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class Asked:
    """What an evaluation is made of.

    Attributes:
        n: Facts of each kind.
        k: Documents that count as found, patched and removed.
        each: Candidates a fact whose gradients are looked at.
        replayed: Facts, of each kind, that replay is asked of; each costs about three times the
            training of `steps`.
        patched: Facts of each kind whose first documents are patched in; 0: none.
        removal: Seeds of random controls for the removal of the first k; 0: none.
        unrelated: Behaviours that the removal should leave as they are.
        subsets: Random subsets for the LDS; 0: none.
        steps: Last steps of the run that replay and LDS are about.
    """

    n: int = 24
    k: int = 10
    each: int = 300
    replayed: int = 0
    patched: int = 6
    removal: int = 0
    unrelated: tuple[str, ...] = ("ioi", "induction")
    subsets: int = 0
    steps: int = 300
    seed: int = 0


def evaluate(
    run: Run,
    asked: Asked | None = None,
    *,
    within: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress = None,
) -> Evaluation:
    """Put every method to the same facts, and to the same tests.

    Args:
        within: Components of the localised gradients; default: `localised`.
        out: Folder for the weights of what is trained again.

    Raises:
        EvidenceError: The run is of no planted corpus.
        IndexMissing: Its store has no index.
    """
    asked = asked or Asked()
    chosen = cases.planted(run, n=asked.n, seed=asked.seed)
    names = tuple(within) if within is not None else localised(run, chosen, progress=progress)
    found = shared_rankings.by_method(
        run,
        chosen,
        each=asked.each,
        within=names,
        replayed=_most_stated(chosen, asked.replayed),
        span=(max(run.steps_done - asked.steps, 0), run.steps_done - 1),
        seed=asked.seed,
        progress=progress,
    )
    rows = [*_recalls(run, chosen, found, asked.k)]
    if asked.patched:
        rows += _patched(run, chosen, found, asked, progress)
    if asked.removal:
        rows += _removed(run, chosen, found, asked, out, progress)
    if asked.subsets:
        rows += _foretold(run, chosen, found, asked, out, progress)
    provenance = {
        "run": run.id,
        "store": run.store.fingerprint,
        "facts": [case.name for case in chosen],
        "candidates": max(one.n_documents or 0 for one in found.values()),
        "within": list(names),
        "seconds": {name: round(one.seconds, 2) for name, one in found.items()},
        "asked": vars(asked),
    }
    return Evaluation(tuple(rows), provenance)


def localised(
    run: Run,
    chosen: Sequence[Case],
    *,
    k: int = PLACES,
    least: int = 16,
    progress: Progress = None,
) -> tuple[str, ...]:
    """The k heads and MLPs that restore facts most when patched, on facts not in `chosen`.

    Raises:
        EvidenceError: No other fact is stated `least` times and recalled.
    """
    model = run.load()
    effects: dict[str, list[float]] = {}
    others = [
        case
        for case in cases.others(run, tuple(chosen), least=least)
        if behaviours.measure(model, case.behaviour).accuracy > 0.5
    ]
    if not others:
        raise EvidenceError(
            f"the run recalls no fact stated {least} times or more that is not evaluated, so its "
            "components cannot be found by patching; name some"
        )
    for done, case in enumerate(others):
        for sweep in (patching.heads, patching.mlps):
            found = sweep(model, case.behaviour)
            for name in found.names:
                effects.setdefault(name, []).append(float(found[name]))
        if progress:
            progress("components of other facts", done + 1, len(others))
    return tuple(sorted(effects, key=lambda name: -np.mean(effects[name]))[:k])


def _recalls(
    run: Run, chosen: Sequence[Case], found: Mapping[str, Ranked], k: int
) -> Iterator[Row]:
    for method, ranked in found.items():
        top = shared_rankings.read(run, ranked.by_case, first=DEPTH)
        for kind in KINDS:
            there = [case for case in _of(chosen, kind) if case.name in top]
            measured = recalls.measure(top, (ranked.within_reach(case) for case in there), k=k)
            for what in COLUMNS if len(measured.cases) else ():
                mean = measured.mean(what)
                title = TITLES[what].format(k=k)
                yield tables.row(method, kind, title, mean.value, (mean.low, mean.high), mean.n)


def _patched(
    run: Run,
    chosen: Sequence[Case],
    found: Mapping[str, Ranked],
    asked: Asked,
    progress: Progress,
) -> Iterator[Row]:
    """What a step on the first k documents does, mean over them; interval over facts."""
    some = [case for kind in KINDS for case in _spread(_of(chosen, kind), asked.patched)]
    heads = _heads(run, some, found, asked)
    union = {case.name: sorted({d for head in heads.values() for d in head.get(case.name, ())})
             for case in some}  # fmt: skip
    patched = tail_patches.changes(
        run, [(case.question, union[case.name]) for case in some], progress=progress
    )
    moved = {
        case.name: dict(zip(union[case.name], values.tolist(), strict=True))
        for case, values in zip(some, patched, strict=True)
    }
    for method, head in heads.items():
        for kind in KINDS:
            values = [
                np.mean([moved[case.name][one] for one in head[case.name]])
                for case in _of(some, kind)
                if head.get(case.name)
            ]
            yield from tables.mean_row(method, kind, "tail patch", np.array(values))


def _removed(
    run: Run,
    chosen: Sequence[Case],
    found: Mapping[str, Ranked],
    asked: Asked,
    out: Path | None,
    progress: Progress,
) -> Iterator[Row]:
    """What facts lose without their first k documents, and how often what random ones move."""
    methods = [name for name in ("fused", "bm25", "gradient") if name in found]
    tops = {name: shared_rankings.read(run, found[name].by_case, first=asked.k) for name in methods}
    stated = [case for case in chosen if len(case.relevant) >= asked.k]
    some = removal_curves.apart(stated)
    unrelated = [
        questions.of_behaviour(behaviours.load(name, run, n_prompts=32)) for name in asked.unrelated
    ]
    curves = removal_curves.measure(
        Retrainings(run, "blank", None, out),
        some,
        tops,
        ks=(asked.k,),
        seeds=asked.removal,
        unrelated=unrelated,
        progress=progress,
    )
    for point in curves.points:
        yield tables.row(
            point.method, "both", "removal", float(point.change.mean()), point.interval, len(some)
        )
        share = point.overlapping / len(some)
        bounds = intervals.wilson(share, len(some))
        yield tables.row(point.method, "both", "lists that overlap", share, bounds, len(some))
        if point.ratio:
            bounds = point.ratio.low, point.ratio.high
            yield tables.row(
                point.method, "both", "times random", point.ratio.value, bounds, len(some)
            )
    for one in curves.points[0].unrelated:
        effect = one.effect
        yield tables.row(
            methods[0], one.name, "removal", effect.mean, (effect.low, effect.high), effect.n
        )
        if share := curves.points[0].share_of_loss(one):
            yield tables.row(
                methods[0], one.name, "of the loss", share.value, (share.low, share.high), effect.n
            )
    yield from tables.mean_row("random", "both", "removal", curves.points[0].random.mean(axis=0))


def _foretold(
    run: Run,
    chosen: Sequence[Case],
    found: Mapping[str, Ranked],
    asked: Asked,
    out: Path | None,
    progress: Progress,
) -> Iterator[Row]:
    """LDS over random subsets of what was read last, mean over facts; interval over facts."""
    first = max(run.steps_done - asked.steps, 0)
    read = np.unique(
        np.concatenate([run.documents_read(step) for step in range(first, run.steps_done)])
    )
    subsets = lds.draw(read, n=asked.subsets, seed=asked.seed)
    actual = lds.retrained(
        run, subsets, [case.question for case in chosen], out=out, first=first, progress=progress
    )
    draw, n = np.random.default_rng(asked.seed), run.store.n_documents
    for method in (*found, "random"):
        for kind in KINDS:
            rhos = []
            for place, case in enumerate(chosen):
                if case.kind != kind or (
                    method in found and case.name not in found[method].by_case
                ):
                    continue
                scores = draw.standard_normal(n)
                if method in found:
                    ranking = found[method].by_case[case.name]
                    scores = lds.spread(ranking.documents, ranking.scores, n)
                if np.ptp(lds.predicted_change(scores, subsets)) > 0:
                    rhos.append(lds.score(scores, subsets, actual[place]).rho)
            yield from tables.mean_row(method, kind, "LDS", np.array(rhos))


def _heads(
    run: Run, some: Sequence[Case], found: Mapping[str, Ranked], asked: Asked
) -> dict[str, dict[str, list[int]]]:
    """By method and case the first k documents that were read, and as many random ones."""
    names = {case.name for case in some}
    heads = {
        method: shared_rankings.read(
            run, {name: one for name, one in ranked.by_case.items() if name in names}, first=asked.k
        )
        for method, ranked in found.items()
    }
    draw = np.random.default_rng(asked.seed)
    read = [one for one in draw.permutation(run.store.n_documents).tolist()[: 4 * asked.k]
            if len(run.steps_reading(one))]  # fmt: skip
    return heads | {"random": {name: read[: asked.k] for name in sorted(names)}}


def _of(chosen: Sequence[Case], kind: str) -> list[Case]:
    return [case for case in chosen if case.kind == kind]


def _most_stated(chosen: Sequence[Case], n: int) -> list[Case]:
    """The n cases of each kind with the most documents."""
    return [
        case
        for kind in KINDS
        for case in sorted(_of(chosen, kind), key=lambda one: -len(one.relevant))[:n]
    ]


def _spread(chosen: Sequence[Case], n: int) -> list[Case]:
    """The first n: cases are dealt by exposures in turn, and a stride would meet one of them."""
    return list(chosen[:n])
