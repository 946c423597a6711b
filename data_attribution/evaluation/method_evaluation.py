"""Evaluation of every attribution method on the same facts with the same tests.

    recall, reciprocal rank, first n     ranking against planted truth (`retrieval_metrics`)
    tail patch                           effect of a step on its first documents (`tail_patch`)
    removal                              effect of retraining without them (`removal_curves`)
    LDS                                  prediction of removing random subsets (`lds`)

Retraining is expensive, so removal and LDS run only on request; everything else takes minutes. Each
number has its n and its 95 % interval, and the row `random` shows the effect of documents without
evidence. Facts on which components are chosen are not evaluated. Replay is evaluated on fewer facts
and on the last steps alone; rows `replayed` restrict every method to these facts and to the
documents that these steps read (`scope`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data_attribution import metagradients, queries
from data_attribution.counterfactuals import Retrainings
from data_attribution.errors import EvidenceError
from data_attribution.evaluation import (
    batch_rankings,
    facts,
    lds,
    removal_curves,
    result,
    retrieval_metrics,
    scope,
    tail_patch,
)
from data_attribution.evaluation.batch_rankings import Ranked
from data_attribution.evaluation.facts import KINDS, FactCase
from data_attribution.evaluation.lds import Subset
from data_attribution.evaluation.result import Evaluation, Row
from data_attribution.evaluation.scope import Scope
from interp import behaviours, patching
from interp.statistics import wilson
from train.runs import Run


__all__ = ["Asked", "evaluate", "localised"]

# Largest number of documents used of a ranking; facts are stated 128 times at most.
DEPTH = 200
PLACES = 5  # number of components that localised gradients are restricted to
COLUMNS = ("recall", "reciprocal_rank", "first_n")
TITLES = {"recall": "recall@{k}", "reciprocal_rank": "MRR", "first_n": "in first n"}

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class Asked:
    """Settings of an evaluation.

    Attributes:
        n: Number of facts of each kind.
        least: Smallest number of documents that state a fact; from 8 on, a fact of the planted
            corpus that has distractors has eight of them.
        k: Number of documents used for recall, tail patch and removal.
        each: Number of candidates per fact whose gradients are compared.
        replayed: Number of facts of each kind for which replay is computed. The most stated ones
            are used, because few steps read documents of the others. Each costs about three times
            the training of `steps`.
        patched: Number of facts of each kind for the tail patch; 0 skips it.
        removal: Number of random controls for the removal of the first k; 0 skips it.
        unrelated: Behaviours that the removal should leave unchanged.
        subsets: Number of random subsets for the LDS; 0 skips it.
        steps: Number of last steps before the last checkpoint that replay and LDS cover; fewer if
            no checkpoint before them kept its optimizer.
        seed: Random seed of every draw.
    """

    n: int = 24
    least: int = 8
    k: int = 10
    each: int = 300
    replayed: int = 0
    patched: int = 6
    removal: int = 0
    unrelated: tuple[str, ...] = ("ioi", "induction")
    subsets: int = 0
    steps: int = 100
    seed: int = 0


def evaluate(
    run: Run,
    asked: Asked | None = None,
    *,
    within: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress = None,
) -> Evaluation:
    """Evaluate every method on the same facts with the same tests.

    Args:
        within: Components of the localised gradients; default: `localised`.
        out: Folder for the weights of retrained models.

    Raises:
        EvidenceError: The run's corpus is not planted, or no fact is stated often enough to be
            removed.
        IndexMissing: The run's token store has no index.
    """
    asked = asked or Asked()
    chosen = facts.planted_facts(run, n=asked.n, least=asked.least, seed=asked.seed)
    # Checked before anything expensive, because it depends on the truth table alone.
    removable = _removable(chosen, asked.k) if asked.removal else []
    span = metagradients.span(run, asked.steps)
    names = tuple(within) if within is not None else localised(run, chosen, progress=progress)
    found = batch_rankings.by_method(
        run,
        chosen,
        each=asked.each,
        within=names,
        replayed=scope.most_stated(chosen, asked.replayed),
        span=span,
        seed=asked.seed,
        progress=progress,
    )
    exams = scope.of(chosen, found)
    rows = [row for exam in exams for row in _recalls(run, exam, found, asked.k)]
    if asked.patched:
        rows += [row for exam in exams for row in _patched(run, exam, found, asked, progress)]
    if asked.removal:
        rows += _removed(run, removable, found, asked, out, progress)
    if asked.subsets:
        rows += _foretold(run, exams, found, asked, span, out, progress)
    provenance = {
        "run": run.id,
        "store": run.store.fingerprint,
        "facts": [case.name for case in chosen],
        "candidates": found["gradient"].n_documents,
        "within": list(names),
        "seconds": {name: round(one.seconds, 2) for name, one in found.items()},
        "asked": vars(asked),
        "steps": [*span] if asked.subsets or asked.replayed else None,
    }
    if len(exams) > 1:
        provenance["replayed"] = exams[-1].described()
    return Evaluation(tuple(rows), provenance)


def localised(
    run: Run,
    chosen: Sequence[FactCase],
    *,
    k: int = PLACES,
    least: int = 16,
    progress: Progress = None,
) -> tuple[str, ...]:
    """Return the k heads and MLPs whose patching restores facts most, on facts not in `chosen`.

    Raises:
        EvidenceError: No other fact is stated `least` times and recalled.
    """
    model = run.load()
    effects: dict[str, list[float]] = {}
    others = [
        case
        for case in facts.other_facts(run, tuple(chosen), least=least)
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


def _recalls(run: Run, exam: Scope, found: Mapping[str, Ranked], k: int) -> Iterator[Row]:
    for method, top in exam.tops(run, found, exam.cases, first=DEPTH).items():
        for kind in KINDS:
            measured = retrieval_metrics.retrieval_measures(top, exam.of_kind(kind), k=k)
            for what in COLUMNS if len(measured.cases) else ():
                mean = measured.mean(what)
                title = TITLES[what].format(k=k)
                bounds = mean.low, mean.high
                yield result.row(method, kind + exam.label, title, mean.value, bounds, mean.n)


def _patched(
    run: Run, exam: Scope, found: Mapping[str, Ranked], asked: Asked, progress: Progress
) -> Iterator[Row]:
    """Yield the mean effect of a step on the first k documents, with intervals over facts."""
    some = [case for kind in KINDS for case in exam.of_kind(kind, asked.patched)]
    random = exam.random(run, first=asked.k, seed=asked.seed)
    heads = exam.tops(run, found, some, first=asked.k)
    heads["random"] = dict.fromkeys((case.name for case in some), random)
    union = {case.name: sorted({d for head in heads.values() for d in head.get(case.name, ())})
             for case in some}  # fmt: skip
    patched = tail_patch.tail_patch_changes(
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
                for case in exam.of_kind(kind, asked.patched)
                if head.get(case.name)
            ]
            yield from result.mean_row(method, kind + exam.label, "tail patch", np.array(values))


def _removable(chosen: Sequence[FactCase], k: int) -> list[FactCase]:
    """Return facts stated by at least `k` documents, such that no document states two of them."""
    some = removal_curves.apart([case for case in chosen if len(case.relevant) >= k])
    if not some:
        raise EvidenceError(
            f"none of the {len(chosen)} facts is stated by {k} documents that were read, so "
            "removing as many says nothing of it; take more facts or a smaller k"
        )
    return some


def _removed(
    run: Run,
    some: Sequence[FactCase],
    found: Mapping[str, Ranked],
    asked: Asked,
    out: Path | None,
    progress: Progress,
) -> Iterator[Row]:
    """Yield the facts' loss without their first k documents, and its ratio to random controls."""
    methods = [name for name in ("fused", "bm25", "gradient") if name in found]
    tops = {
        name: batch_rankings.shared_read(run, found[name].by_case, first=asked.k)
        for name in methods
    }
    unrelated = [
        queries.query_of_behaviour(behaviours.load(name, run, n_prompts=32))
        for name in asked.unrelated
    ]
    curves = removal_curves.removal_curves_of(
        Retrainings(run, "blank", None, out),
        some,
        tops,
        ks=(asked.k,),
        seeds=asked.removal,
        unrelated=unrelated,
        progress=progress,
    )
    for point in curves.points:
        yield result.row(
            point.method, "both", "removal", float(point.change.mean()), point.interval, len(some)
        )
        share = point.overlapping / len(some)
        bounds = wilson(share, len(some))
        yield result.row(point.method, "both", "lists that overlap", share, bounds, len(some))
        if point.ratio:
            bounds = point.ratio.low, point.ratio.high
            yield result.row(
                point.method, "both", "times random", point.ratio.value, bounds, len(some)
            )
    for one in curves.points[0].unrelated:
        effect = one.effect
        yield result.row(
            methods[0], one.name, "removal", effect.mean, (effect.low, effect.high), effect.n
        )
        if share := curves.points[0].share_of_loss(one):
            yield result.row(
                methods[0], one.name, "of the loss", share.value, (share.low, share.high), effect.n
            )
    yield from result.mean_row("random", "both", "removal", curves.points[0].random.mean(axis=0))


def _foretold(
    run: Run,
    exams: Sequence[Scope],
    found: Mapping[str, Ranked],
    asked: Asked,
    span: tuple[int, int],
    out: Path | None,
    progress: Progress,
) -> Iterator[Row]:
    """Yield the mean LDS over facts, with intervals over facts.

    The random subsets are drawn from the documents read in the last steps.
    """
    (first, last), cases = span, exams[0].cases
    read = np.unique(np.concatenate([run.documents_read(step) for step in range(first, last + 1)]))
    subsets = lds.draw_subsets(read, n=asked.subsets, seed=asked.seed)
    retrained = lds.retrained_on_subsets(
        run, subsets, [case.question for case in cases], out=out, first=first, progress=progress
    )
    actual = {case.name: row for case, row in zip(cases, retrained, strict=True)}
    draw, n = np.random.default_rng(asked.seed), run.store.n_documents
    # All scopes cover the same steps, so a second scope with the same facts would repeat the first.
    for exam in exams[-1:] if len(exams[-1].cases) == len(cases) else exams:
        for method in (*exam.methods, "random"):
            for kind in KINDS:
                rhos = []
                for case in exam.of_kind(kind):
                    scores = draw.standard_normal(n)
                    if method in found:
                        ranking = found[method].by_case[case.name]
                        scores = lds.spread(ranking.documents, ranking.scores, n)
                    rhos.append(lds_or_zero(scores, subsets, actual[case.name]))
                yield from result.mean_row(method, kind + exam.label, "LDS", np.array(rhos))


def lds_or_zero(
    scores: Float64[np.ndarray, " store_document"],
    subsets: Sequence[Subset],
    actual: Float64[np.ndarray, " subset"],
) -> float:
    """Return the LDS, or 0 for a method that predicts the same for every subset."""
    if np.ptp(lds.predicted_change(scores, subsets)) == 0:
        return 0.0
    return lds.lds_score(scores, subsets, actual).rho
