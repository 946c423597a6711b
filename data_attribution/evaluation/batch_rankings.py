"""Rankings of many facts by every method, with the work that facts can share done once.

`data_attribution.attribution.attribute` answers one query at a time, and collects the gradients of
up to 10,000 documents for it. Here the documents that lexical evidence names for any of the facts
are processed together: their gradients are collected once and compared with every query, and one
replay answers several queries. The numbers are those that the methods give for these candidates.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import numpy as np
from jaxtyping import Int64

from data_attribution import attribution, gradients, lexical, metagradients
from data_attribution.attribution import Method
from data_attribution.evaluation.facts import FactCase
from data_attribution.ranking import Ranking
from data_attribution.request import Request
from train.runs import Run


__all__ = ["Ranked", "by_method", "candidates", "shared_read", "was_read"]

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True, eq=False)
class Ranked:
    """One method's rankings of the facts, and the seconds it took for all of them.

    Attributes:
        n_documents: Number of documents that were scored; None: the whole store.
        reached: For replay, the documents read in the replayed steps; None: all.
    """

    by_case: dict[str, Ranking]
    seconds: float
    n_documents: int | None = None
    reached: frozenset[int] | None = None


def candidates(requests: Sequence[Request], *, each: int) -> Int64[np.ndarray, " document"]:
    """Return the documents that lexical evidence and BM25 rank first for any request, ascending."""
    found = [lexical.candidates(request, limit=each) for request in requests]
    return np.unique(np.concatenate(found))


def by_method(
    run: Run,
    cases: Sequence[FactCase],
    *,
    each: int = 300,
    within: Sequence[str] = (),
    replayed: Sequence[FactCase] = (),
    span: tuple[int, int] | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> dict[str, Ranked]:
    """Rank the documents for every fact by every method, over the candidates of all facts.

    Args:
        each: Number of candidates per fact; gradients are collected for those of all facts.
        within: Components of the localised gradients; without any, these are left out.
        replayed: Facts for which replay is computed too; each costs about three times the training
            of the steps of `span`.
        span: Steps of the replay, both included; None: all.
        seed: Seed of the projections.
    """
    requests = {one.name: attribution.ask(run, one.behaviour) for one in cases}
    documents = candidates([*requests.values()], each=each)
    found = {
        "bm25": _asked(requests, attribution.BM25()),
        "lexical": _asked(requests, attribution.Lexical()),
        "gradient": _compared(run, requests, documents, None, seed, progress),
    }
    if within:
        found["localised"] = _compared(run, requests, documents, tuple(within), seed, progress)
    if replayed:
        found["replay"] = _replayed(run, replayed, span, progress)
    parts = [found[name] for name in attribution.DEFAULT]
    fused = {
        name: attribution.fuse({part: found[part].by_case[name] for part in attribution.DEFAULT})
        for name in requests
    }
    found["fused"] = Ranked(fused, sum(one.seconds for one in parts), len(documents))
    return found


def shared_read(
    run: Run,
    found: Mapping[str, Ranking],
    *,
    first: int,
    among: Collection[int] | None = None,
) -> dict[str, list[int]]:
    """Return each case's first documents that the run read, among `among`.

    Examples:
        >>> request = attribution.ask(run, "runethi")
        >>> rankings = {"runethi": attribution.Lexical().rank_documents(request)}
        >>> read = evaluation.shared_read(run, rankings, first=3)
        >>> len(read["runethi"])
        3
    """
    return {
        name: list(islice(was_read(run, ranking.documents.tolist(), among), first))
        for name, ranking in found.items()
    }


def was_read(
    run: Run, documents: Iterable[int], among: Collection[int] | None = None
) -> Iterator[int]:
    """Yield those of the documents that the run read and that are among `among`, in their order."""
    for one in documents:
        if (among is None or one in among) and len(run.steps_learned(one)):
            yield one


def _asked(requests: Mapping[str, Request], method: Method) -> Ranked:
    begin = perf_counter()
    by_case = {name: method.rank_documents(request) for name, request in requests.items()}
    return Ranked(by_case, perf_counter() - begin)


def _compared(
    run: Run,
    requests: Mapping[str, Request],
    documents: Int64[np.ndarray, " document"],
    within: tuple[str, ...] | None,
    seed: int,
    progress: Progress,
) -> Ranked:
    begin = perf_counter()
    how = replace(gradients.DEFAULT, seed=seed)
    collected = gradients.collect(run, documents, within=within, how=how, progress=progress)
    by_case = {name: collected.ranking(request.query) for name, request in requests.items()}
    return Ranked(by_case, perf_counter() - begin, len(documents))


def _replayed(
    run: Run, cases: Sequence[FactCase], span: tuple[int, int] | None, progress: Progress
) -> Ranked:
    first, last = span or (0, None)
    asked = [case.question for case in cases]
    found = metagradients.influence(run, asked, first=first, last=last, progress=progress)
    by_case = {case.name: found.ranking(place) for place, case in enumerate(cases)}
    reached = frozenset(found.documents.tolist())
    return Ranked(by_case, found.seconds, len(reached), reached)
