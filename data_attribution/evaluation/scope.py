"""Which facts methods are compared on, and among which documents.

Replay is dear and looks at some of the last steps alone: it is asked of few facts, and knows no
document but those that these steps read. Beside numbers of all facts over the whole store, its own
would come from another exam. So where it is asked, the other methods sit its exam too: the same
facts, and of their rankings the documents that replay knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from data_attribution.evaluation import batch_rankings
from data_attribution.evaluation.batch_rankings import Ranked
from data_attribution.evaluation.facts import FactCase
from train.runs import Run


__all__ = ["REPLAYED", "Scope", "most_stated", "of"]

REPLAYED = ", replayed"


@dataclass(frozen=True, eq=False)
class Scope:
    """One exam.

    Attributes:
        label: What stands behind a kind of fact in the table.
        cases: The facts; of their documents and distractors those that are among the ones below.
        methods: Those that ranked documents for every one of them.
        among: Documents that may be named; None: all that were read.
    """

    label: str
    cases: tuple[FactCase, ...]
    methods: tuple[str, ...]
    among: frozenset[int] | None = None

    def of_kind(self, kind: str, n: int | None = None) -> list[FactCase]:
        """The first n cases of a kind; default: all."""
        return [case for case in self.cases if case.kind == kind][:n]

    def described(self) -> dict[str, Any]:
        """Plain values, for the provenance of a table."""
        return {
            "facts": [case.name for case in self.cases],
            "documents": None if self.among is None else len(self.among),
            "stating": sum(len(case.relevant) for case in self.cases),
            "distractors": sum(len(case.distractors) for case in self.cases),
        }

    def tops(
        self, run: Run, found: Mapping[str, Ranked], cases: Sequence[FactCase], *, first: int
    ) -> dict[str, dict[str, list[int]]]:
        """By method and case the first documents of its ranking that were read."""
        return {
            method: batch_rankings.shared_read(
                run,
                {case.name: found[method].by_case[case.name] for case in cases},
                first=first,
                among=self.among,
            )
            for method in self.methods
        }

    def random(self, run: Run, *, first: int, seed: int) -> list[int]:
        """Documents that nothing points at."""
        drawn = np.random.default_rng(seed).permutation(run.store.n_documents).tolist()
        return list(islice(batch_rankings.was_read(run, drawn, self.among), first))


def of(chosen: Sequence[FactCase], found: Mapping[str, Ranked]) -> tuple[Scope, ...]:
    """All facts by every method but replay; and, where it was asked, its facts by every method."""
    whole = Scope("", tuple(chosen), tuple(name for name in found if name != "replay"))
    replay = found.get("replay")
    if replay is None or replay.reached is None:
        return (whole,)
    some = tuple(
        replace(
            case,
            relevant=case.relevant & replay.reached,
            distractors=case.distractors & replay.reached,
        )
        for case in chosen
        if case.name in replay.by_case
    )
    return whole, Scope(REPLAYED, some, tuple(found), replay.reached)


def most_stated(chosen: Sequence[FactCase], n: int) -> list[FactCase]:
    """The n cases of each kind with the most documents: what a few steps are sure to have read."""
    kinds = dict.fromkeys(case.kind for case in chosen)
    by_kind = ([case for case in chosen if case.kind == kind] for kind in kinds)
    return [
        case for some in by_kind for case in sorted(some, key=lambda one: -len(one.relevant))[:n]
    ]
