"""Evaluation of every attribution method on the same facts with the same tests.

    first n, distinct texts, recall,     ranking against planted truth (`retrieval_metrics`)
    reciprocal rank
    tail patch                           effect of a step on its first documents (`tail_patch`)
    removal                              effect of retraining without them (`removal_curves`)
    LDS                                  prediction of removing random subsets (`lds`)

Retraining is expensive, so removal and LDS run only on request; everything else takes minutes. Each
number has its n and its 95 % interval, and the row `random` shows the effect of documents without
evidence. Two rows show what a ranking is worth that knows nothing of facts: `random order` of all
documents that were read, and `distractors first`, which puts the documents that name the words and
state nothing before the others: recall@10 hardly sees them, the first n does. Gradients are
compared for the documents that words preselected, so `gradient` and `localised` owe something to
words; `gradient (all)` and `localised (all)` rank all documents and owe them nothing. Facts on
which components are chosen are not evaluated. Replay is evaluated on fewer facts and on the last
steps alone; rows `replayed` restrict every method to these facts and to the documents that these
steps read (`scope`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import Float64

from data_attribution import (
    attribution,
    gradients,
    lexical,
    metagradients,
    queries,
    token_index,
)
from data_attribution.attribution import Method
from data_attribution.counterfactuals import Retrainings
from data_attribution.errors import EvidenceError
from data_attribution.evaluation import (
    facts,
    lds,
    removal_curves,
    result,
    retrieval_metrics,
    scope,
    tail_patch,
)
from data_attribution.evaluation.facts import KINDS, FactCase
from data_attribution.evaluation.lds import Subset
from data_attribution.evaluation.result import Evaluation, Row
from data_attribution.evaluation.scope import CaseRankings, Scope
from data_attribution.request import Candidates
from interp import behaviours, patching
from train.progress import Progress
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import wilson


__all__ = ["EvaluationOptions", "evaluate", "localised", "rankings_by_method"]

# Largest number of documents used of a ranking; facts are stated 128 times at most.
DEPTH = 200
PATCHED = 6  # facts of each kind for the tail patch
PLACES = 5  # number of components that localised gradients are restricted to
COLUMNS = ("first_n", "distinct_texts", "recall", "reciprocal_rank")
TITLES = {
    "first_n": "in first n",
    "distinct_texts": "distinct texts",
    "recall": "recall@{k}",
    "reciprocal_rank": "MRR",
}
NULLS = ("random order", "distractors first")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        n: Number of facts of each kind.
        least: Smallest number of documents that state a fact; from 8 on, a fact of the planted
            corpus that has distractors has eight of them.
        k: Number of documents used for recall, tail patch and removal.
        each: Number of candidates per fact whose gradients are compared.
        unselected: Compare gradients of all documents too, in rows of their own.
        replayed: Number of facts of each kind for which replay is computed. The most stated ones
            are used, because few steps read documents of the others. Each costs about three times
            the training of `steps`.
        kind: Kind of comparison of gradients; None: that of `attribution.default_methods`.
        patched: Number of facts of each kind for the tail patch; 0 skips it. None: `PATCHED`, or 0
            if the last checkpoint has no optimizer.
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
    unselected: bool = False
    replayed: int = 0
    patched: int | None = None
    kind: str | None = None
    removal: int = 0
    unrelated: tuple[str, ...] = ("ioi", "induction")
    subsets: int = 0
    steps: int = 100
    seed: int = 0

    __repr__ = short_repr


def evaluate(
    run: Run,
    options: EvaluationOptions | None = None,
    *,
    within: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
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
    options = options or EvaluationOptions()
    if options.patched is None:
        resumable = run.saved_at(None).resumable
        options = replace(options, patched=PATCHED if resumable else 0)
    cases = facts.planted_facts(run, n=options.n, least=options.least, seed=options.seed)
    # Checked before anything expensive, because it depends on the truth table alone.
    removable = _removable(cases, options.k) if options.removal else []
    span = metagradients.span(run, options.steps)
    names = tuple(within) if within is not None else localised(run, cases, progress=progress)
    rankings = rankings_by_method(
        run,
        cases,
        each=options.each,
        unselected=options.unselected,
        within=names,
        replayed=scope.most_stated(cases, options.replayed),
        steps=options.steps,
        kind=options.kind,
        seed=options.seed,
        progress=progress,
    )
    scopes = scope.of(cases, rankings)
    rows = [row for part in scopes for row in _recalls(run, part, rankings, options)]
    if options.patched:
        rows += [row for part in scopes for row in _patched(run, part, rankings, options, progress)]
    if options.removal:
        rows += _removed(run, removable, rankings, options, out, progress)
    if options.subsets:
        rows += _foretold(run, scopes, rankings, options, span, out, progress)
    provenance = {
        "run": run.id,
        "store": run.store.fingerprint,
        "facts": [case.name for case in cases],
        # Gradients rank all candidates, and the same ones for every fact.
        "candidates": len(rankings["gradient"].by_case[cases[0].name].documents),
        "documents": run.store.n_documents,
        "within": list(names),
        "seconds": {name: round(one.seconds, 2) for name, one in rankings.items()},
        "asked": vars(options),
        "steps": [*span] if options.subsets or options.replayed else None,
    }
    if len(scopes) > 1:
        provenance["replayed"] = scopes[-1].described()
    return Evaluation(tuple(rows), provenance)


def rankings_by_method(
    run: Run,
    cases: Sequence[FactCase],
    *,
    each: int = 300,
    unselected: bool = False,
    within: Sequence[str] = (),
    replayed: Sequence[FactCase] = (),
    steps: int | None = None,
    kind: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, CaseRankings]:
    """Rank the documents for every fact by every method.

    Methods that search for words rank the whole store. Gradients are compared for the documents
    that words name for any of the facts, and with `unselected` also for all; replay ranks the
    documents that its steps read.

    Args:
        each: Number of candidates per fact; gradients are collected for those of all facts.
        unselected: Rank all documents by gradients too, as `gradient (all)` and
            `localised (all)`; `fused` uses the preselected ones.
        within: Components of the localised gradients; without any, these are left out.
        replayed: Facts for which replay is computed too; each costs about three times the training
            of `steps`.
        steps: Number of last steps that replay covers; None: one epoch, at most 1000.
        kind: Kind of comparison of gradients; None: that of `attribution.default_methods`.
        seed: Seed of the projections.
    """

    def ranked(
        method: Method, cases: Sequence[FactCase] = cases, candidates: Candidates = None
    ) -> CaseRankings:
        begin = perf_counter()
        rankings = attribution.rank_many(
            run,
            [case.behaviour for case in cases],
            methods=[method],
            candidates=candidates,
            seed=seed,
            progress=progress,
        )
        by_case = {case.name: one[method.name] for case, one in zip(cases, rankings, strict=True)}
        return CaseRankings(by_case, perf_counter() - begin)

    index = token_index.open(run.store)
    requests = [attribution.make_request(run, case.behaviour, index=index) for case in cases]
    named = [lexical.candidates(request, limit=each) for request in requests]
    candidates = np.unique(np.concatenate(named))
    rankings = {
        "bm25": ranked(attribution.BM25()),
        "lexical": ranked(attribution.Lexical()),
    }
    by_gradients = {"gradient": _gradient(run, kind)}
    if within:
        by_gradients["localised"] = replace(by_gradients["gradient"], within=tuple(within))
    for name, method in by_gradients.items():
        rankings[name] = ranked(method, candidates=candidates)
        if unselected:
            every = gradients.trained_documents(run)
            rankings[f"{name} (all)"] = ranked(method, candidates=every)
    if replayed:
        rankings["replay"] = ranked(attribution.Replay(steps=steps), replayed)
    parts = {name: rankings[name] for name in attribution.DEFAULT}
    fused = {
        case.name: attribution.fuse({name: one.by_case[case.name] for name, one in parts.items()})
        for case in cases
    }
    rankings["fused"] = CaseRankings(fused, sum(one.seconds for one in parts.values()))
    return rankings


def _gradient(run: Run, kind: str | None) -> attribution.Gradient:
    if kind is not None:
        return attribution.Gradient(kind=kind)
    methods, _ = attribution.default_methods(run, words=False)
    return next(one for one in methods if isinstance(one, attribution.Gradient))


def localised(
    run: Run,
    cases: Sequence[FactCase],
    *,
    k: int = PLACES,
    least: int = 16,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Return the k heads and MLPs whose patching restores facts most, on facts not in `cases`.

    Raises:
        EvidenceError: No other fact is stated `least` times and recalled.
    """
    model = run.load()
    effects: dict[str, list[float]] = {}
    others = [
        case
        for case in facts.other_facts(run, tuple(cases), least=least)
        if behaviours.measure(model, case.behaviour).accuracy > 0.5
    ]
    if not others:
        raise EvidenceError(
            f"the run recalls no fact stated {least} times or more that is not evaluated, so its "
            "components cannot be found by patching; name some"
        )
    for done, case in enumerate(others):
        for sweep in (patching.heads, patching.mlps):
            sweep_effects = sweep(model, case.behaviour)
            for name in sweep_effects.names:
                effects.setdefault(name, []).append(float(sweep_effects[name]))
        if progress:
            progress("components of other facts", done + 1, len(others))
    return tuple(sorted(effects, key=lambda name: -np.mean(effects[name]))[:k])


def _recalls(
    run: Run, part: Scope, rankings: Mapping[str, CaseRankings], options: EvaluationOptions
) -> Iterator[Row]:
    tops = part.tops(run, rankings, part.cases, first=DEPTH)
    tops |= null_rankings(run, part, seed=options.seed)
    relevant = sorted(set().union(*(case.relevant for case in part.cases)))
    texts = {one: run.store.document(one).sha256 for one in relevant}
    for method, top in tops.items():
        for kind in KINDS:
            measured = retrieval_metrics.retrieval_measures(
                top, part.of_kind(kind), k=options.k, texts=texts
            )
            for what in COLUMNS if len(measured.cases) else ():
                mean = measured.mean(what)
                title = TITLES[what].format(k=options.k)
                bounds = mean.low, mean.high
                yield result.row(method, kind + part.label, title, mean.value, bounds, mean.n)


def null_rankings(run: Run, part: Scope, *, seed: int = 0) -> dict[str, dict[str, list[int]]]:
    """Return the first documents of two rankings that know nothing of facts, by method and case.

    `random order` is one order of all documents for all facts. `distractors first` puts each fact's
    distractors before its statements, and those before everything else: the worst of all rankings
    that find every document that names a fact.
    """
    anything = part.random(run, first=DEPTH, seed=seed)
    order, distracted = NULLS
    return {
        order: {case.name: anything for case in part.cases},
        distracted: {
            case.name: [*sorted(case.distractors), *sorted(case.relevant)] for case in part.cases
        },
    }


def _patched(
    run: Run,
    part: Scope,
    rankings: Mapping[str, CaseRankings],
    options: EvaluationOptions,
    progress: Progress | None,
) -> Iterator[Row]:
    """Yield the mean effect of a step on the first k documents, with intervals over facts."""
    some = [case for kind in KINDS for case in part.of_kind(kind, options.patched)]
    random = part.random(run, first=options.k, seed=options.seed)
    heads = part.tops(run, rankings, some, first=options.k)
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
                for case in part.of_kind(kind, options.patched)
                if head.get(case.name)
            ]
            yield from result.mean_row(method, kind + part.label, "tail patch", np.array(values))


def _removable(cases: Sequence[FactCase], k: int) -> list[FactCase]:
    """Return facts stated by at least `k` documents, such that no document states two of them."""
    some = removal_curves.apart([case for case in cases if len(case.relevant) >= k])
    if not some:
        raise EvidenceError(
            f"none of the {len(cases)} facts is stated by {k} documents that were read, so "
            "removing as many says nothing of it; take more facts or a smaller k"
        )
    return some


def _removed(
    run: Run,
    some: Sequence[FactCase],
    rankings: Mapping[str, CaseRankings],
    options: EvaluationOptions,
    out: Path | None,
    progress: Progress | None,
) -> Iterator[Row]:
    """Yield the facts' loss without their first k documents, and its ratio to random controls."""
    methods = [name for name in ("fused", "bm25", "gradient") if name in rankings]
    tops = {
        name: scope.first_read(run, rankings[name].by_case, first=options.k) for name in methods
    }
    unrelated = [
        queries.query_of_behaviour(behaviours.load(name, run, n_prompts=32))
        for name in options.unrelated
    ]
    curves = removal_curves.removal_curves_of(
        Retrainings(run, "blank", None, out),
        some,
        tops,
        ks=(options.k,),
        seeds=options.removal,
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
    scopes: Sequence[Scope],
    rankings: Mapping[str, CaseRankings],
    options: EvaluationOptions,
    span: tuple[int, int],
    out: Path | None,
    progress: Progress | None,
) -> Iterator[Row]:
    """Yield the mean LDS over facts, with intervals over facts.

    The random subsets are drawn from the documents read in the last steps.
    """
    (first, last), cases = span, scopes[0].cases
    read = np.unique(np.concatenate([run.documents_read(step) for step in range(first, last + 1)]))
    subsets = lds.draw_subsets(read, n=options.subsets, seed=options.seed)
    retrained = lds.retrained_on_subsets(
        run, subsets, [case.question for case in cases], out=out, first=first, progress=progress
    )
    actual = {case.name: row for case, row in zip(cases, retrained, strict=True)}
    draw, n = np.random.default_rng(options.seed), run.store.n_documents
    # All scopes cover the same steps, so a second scope with the same facts would repeat the first.
    for part in scopes[-1:] if len(scopes[-1].cases) == len(cases) else scopes:
        for method in (*part.methods, "random"):
            for kind in KINDS:
                rhos = []
                for case in part.of_kind(kind):
                    scores = draw.standard_normal(n)
                    if method in rankings:
                        ranking = rankings[method].by_case[case.name]
                        scores = lds.spread(ranking.documents, ranking.scores, n)
                    rhos.append(lds_or_zero(scores, subsets, actual[case.name]))
                yield from result.mean_row(method, kind + part.label, "LDS", np.array(rhos))


def lds_or_zero(
    scores: Float64[np.ndarray, " store_document"],
    subsets: Sequence[Subset],
    actual: Float64[np.ndarray, " subset"],
) -> float:
    """Return the LDS, or 0 for a method that predicts the same for every subset."""
    if np.ptp(lds.predicted_change(scores, subsets)) == 0:
        return 0.0
    return lds.lds_score(scores, subsets, actual).rho
