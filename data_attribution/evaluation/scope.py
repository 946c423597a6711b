"""Scopes: the facts on which methods are compared, and the documents that may be ranked for them.

Replay is expensive and sees only the last training steps, so it is evaluated on few facts and on
the documents that these steps read. To keep the comparison fair, every other method is scored on
that same subset as well: the same facts, and only those documents of its rankings.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from data_attribution.evaluation.facts import FactCase
from data_attribution.ranking import Ranking
from train.runs import Run
from train.short_repr import short_repr


__all__ = ["REPLAYED", "CaseRankings", "Scope", "first_read", "most_stated", "of"]

REPLAYED = ", replayed"


@dataclass(frozen=True, eq=False)
class CaseRankings:
    """One method's rankings by name of the case, and the seconds it took for all of them."""

    by_case: dict[str, Ranking]
    seconds: float

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Scope:
    """One set of facts and documents on which methods are compared.

    Attributes:
        label: Text after the kind of fact in the table.
        cases: The facts, with their documents and distractors restricted to `among`.
        methods: Methods that ranked documents for every one of the facts.
        among: Documents that may be ranked; None: all that were read.
    """

    label: str
    cases: tuple[FactCase, ...]
    methods: tuple[str, ...]
    among: frozenset[int] | None = None

    __repr__ = short_repr

    def of_kind(self, kind: str, n: int | None = None) -> list[FactCase]:
        """Return the first n cases of a kind; default: all."""
        return [case for case in self.cases if case.kind == kind][:n]

    def described(self) -> dict[str, object]:
        """Return plain values, for the provenance of a table."""
        return {
            "facts": [case.name for case in self.cases],
            "documents": None if self.among is None else len(self.among),
            "stating": sum(len(case.relevant) for case in self.cases),
            "distractors": sum(len(case.distractors) for case in self.cases),
        }

    def tops(
        self,
        run: Run,
        rankings: Mapping[str, CaseRankings],
        cases: Sequence[FactCase],
        *,
        first: int,
    ) -> dict[str, dict[str, list[int]]]:
        """Return by method and case the first documents of its ranking that were read."""
        return {
            method: first_read(
                run,
                {case.name: rankings[method].by_case[case.name] for case in cases},
                first=first,
                among=self.among,
            )
            for method in self.methods
        }

    def random(self, run: Run, *, first: int, seed: int) -> list[int]:
        """Return random documents that were read, without any evidence for them."""
        drawn = np.random.default_rng(seed).permutation(run.store.n_documents).tolist()
        return list(islice(_read(run, drawn, self.among), first))


def first_read(
    run: Run,
    rankings: Mapping[str, Ranking],
    *,
    first: int,
    among: Collection[int] | None = None,
) -> dict[str, list[int]]:
    """Return each case's first documents that the run read, among `among` (None: all).

    Examples:
        >>> (rankings,) = attribution.rank_many(run, [fact], methods="lexical")
        >>> sources = attribution.documents(run, fact, methods="lexical", limit=1)
        >>> read = evaluation.first_read(run, {"fact": rankings["lexical"]}, first=1)
        >>> read["fact"] == [sources.items[0].document]
        True
    """
    return {
        name: list(islice(_read(run, ranking.documents.tolist(), among), first))
        for name, ranking in rankings.items()
    }


def _read(run: Run, documents: Iterable[int], among: Collection[int] | None) -> Iterator[int]:
    """Yield those of the documents that the run read and that are among `among`, in their order."""
    for document in documents:
        if (among is None or document in among) and len(run.steps_learned(document)):
            yield document


def of(cases: Sequence[FactCase], rankings: Mapping[str, CaseRankings]) -> tuple[Scope, ...]:
    """Return the scopes: all facts by all methods but replay, and replay's facts by all methods.

    The second one exists only if replay was computed. Replay ranks all documents that its steps
    read, and no other.
    """
    whole = Scope("", tuple(cases), tuple(name for name in rankings if name != "replay"))
    if "replay" not in rankings:
        return (whole,)
    by_case = rankings["replay"].by_case
    reached = frozenset(next(iter(by_case.values())).documents.tolist())
    some = tuple(
        replace(case, relevant=case.relevant & reached, distractors=case.distractors & reached)
        for case in cases
        if case.name in by_case
    )
    return whole, Scope(REPLAYED, some, tuple(rankings), reached)


def most_stated(cases: Sequence[FactCase], n: int) -> list[FactCase]:
    """Return the n cases of each kind with the most documents, which few steps surely read."""
    kinds = dict.fromkeys(case.kind for case in cases)
    by_kind = ([case for case in cases if case.kind == kind] for kind in kinds)
    return [
        case for some in by_kind for case in sorted(some, key=lambda case: -len(case.relevant))[:n]
    ]
