"""Scopes: the facts on which methods are compared, and the documents that may be ranked.

Replay is expensive and sees only the last training steps, so it is evaluated on few facts and on
the documents that these steps read. To keep the comparison fair, every other method is scored on
that same subset as well: the same facts, and only those documents of its rankings.
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

    def of_kind(self, kind: str, n: int | None = None) -> list[FactCase]:
        """Return the first n cases of a kind; default: all."""
        return [case for case in self.cases if case.kind == kind][:n]

    def described(self) -> dict[str, Any]:
        """Return plain values, for the provenance of a table."""
        return {
            "facts": [case.name for case in self.cases],
            "documents": None if self.among is None else len(self.among),
            "stating": sum(len(case.relevant) for case in self.cases),
            "distractors": sum(len(case.distractors) for case in self.cases),
        }

    def tops(
        self, run: Run, found: Mapping[str, Ranked], cases: Sequence[FactCase], *, first: int
    ) -> dict[str, dict[str, list[int]]]:
        """Return by method and case the first documents of its ranking that were read."""
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
        """Return random documents that were read, without any evidence for them."""
        drawn = np.random.default_rng(seed).permutation(run.store.n_documents).tolist()
        return list(islice(batch_rankings.was_read(run, drawn, self.among), first))


def of(chosen: Sequence[FactCase], found: Mapping[str, Ranked]) -> tuple[Scope, ...]:
    """Return the scopes: all facts by all methods but replay, and replay's facts by all methods.

    The second one exists only if replay was computed.
    """
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
    """Return the n cases of each kind with the most documents, which few steps surely read."""
    kinds = dict.fromkeys(case.kind for case in chosen)
    by_kind = ([case for case in chosen if case.kind == kind] for kind in kinds)
    return [
        case for some in by_kind for case in sorted(some, key=lambda one: -len(one.relevant))[:n]
    ]
