"""Removal curves: the effect of retraining without the first k documents of a ranking, by k.

One retraining answers many queries: the first k documents of all cases are removed at once, and the
query of each case is measured. So the cases are chosen such that no document states two of them
(`apart`), by the truth table and before any list is drawn. Their lists may still overlap. No case
is dropped for that, because that would choose by outcome; every point says whose lists overlap. For
comparison, as many random documents, matched one by one, are removed with several seeds, and so are
the first k of other rankings.

The ratio divides what a case loses without its documents by what it *moves* without random ones
(its absolute change, mean over seeds): chance moves it up as often as down, so a mean of signed
changes would make the ratio look too good. The interval is Fieller's over cases
(`train.statistics.intervals`). Cases are treated as independent although all of them share one
retraining and its controls; the variation over other draws of random documents is not included. If
the movement by random documents cannot be distinguished from zero, the lower end is the lower end
of the loss divided by the upper end of the movement, and there is no upper end; if the loss cannot
be distinguished from zero either, there is no ratio.

That an unrelated query does not move beyond its noise says little if its noise is large. So its
effect is also given as a share of what the cases lose, with the interval that follows from both: a
share that may be large was not shown to be small.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float64

from data_attribution import counterfactuals, queries
from data_attribution.counterfactuals import Change, Retrainings
from data_attribution.evaluation.facts import FactCase
from data_attribution.queries import Query
from train.data import Together
from train.html_panel import html_repr
from train.progress import Progress
from train.short_repr import short_repr
from train.statistics import mean_interval, ratio_estimate


__all__ = ["CurvePoint", "Ratio", "RemovalCurves", "apart", "removal_curves_of"]

Answers = Float64[np.ndarray, "_"]  # by prompt; queries have any number of prompts


@dataclass(frozen=True)
class Ratio:
    """One number over another, with its 95 % interval; `high` is None if there is no upper end."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """One retraining for a ranking and k, and its controls.

    Attributes:
        method: Method whose first k documents of every case were removed.
        removed: Number of documents removed over all cases, copies included.
        change: Answer without them minus answer of the full run, mean over prompts, per case.
        random: The same without as many matched random documents, per seed; no two seeds remove
            the same ones.
        unrelated: Changes of unrelated queries; rows of one prompt are averaged, so n counts
            prompts.
        overlaps: Whether the removed documents of a case and of another one overlap, per case.
        documents: The removed documents, ascending.
        controls: The documents of each control instead, per seed.
    """

    method: str
    k: int
    removed: int
    change: Float64[np.ndarray, " case"]
    random: Float64[np.ndarray, "seed case"]
    unrelated: tuple[Change, ...] = ()
    overlaps: Bool[np.ndarray, " case"] | None = None
    documents: tuple[int, ...] = ()
    controls: tuple[tuple[int, ...], ...] = ()

    __repr__ = short_repr

    @property
    def overlapping(self) -> int:
        """Return how many cases share a document of their lists with another."""
        return 0 if self.overlaps is None else int(self.overlaps.sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the interval of the mean change over cases."""
        return mean_interval(self.change)

    @property
    def random_interval(self) -> tuple[float, float] | None:
        """Return the interval over cases of the mean change without random documents."""
        return mean_interval(self.random.mean(axis=0)) if len(self.random) else None

    @property
    def ratio(self) -> Ratio | None:
        """Return the loss over what random documents move.

        It is None without controls or with a single case, and if neither end is bounded.
        """
        loss, moved = -self.change, np.abs(self.random).mean(axis=0) if len(self.random) else None
        if moved is None or len(loss) < 2 or not moved.mean() > 0:
            return None
        value, found = float(loss.mean() / moved.mean()), ratio_estimate(loss, moved)
        if found.low is not None:
            return Ratio(value, found.low, found.high)
        least, most = mean_interval(loss), mean_interval(moved)
        # If the loss may be below 0, dividing by almost nothing leaves no lower end either.
        return Ratio(value, least[0] / most[1], None) if least and most and least[0] >= 0 else None

    def share_of_loss(self, unrelated: Change) -> Ratio | None:
        """Return an unrelated effect over what the cases lose, from the far ends of both intervals.

        It is None without either interval, or if the cases may have lost nothing.
        """
        effect, change = unrelated.effect, self.interval
        if effect.low is None or effect.high is None or change is None or not change[1] < 0:
            return None
        losses = (-change[1], -change[0])
        low = min(effect.low / one for one in losses)
        high = max(effect.high / one for one in losses)
        return Ratio(effect.mean / -float(self.change.mean()), low, high)


@dataclass(frozen=True, eq=False)
class RemovalCurves:
    """All points, in the requested order, over the same cases."""

    meaning: ClassVar[str] = (
        "A removal curve shows what training without the first documents of a ranking does to a "
        "query; it does not show what each of them did alone."
    )

    cases: tuple[str, ...]
    unit: str
    points: tuple[CurvePoint, ...]

    __repr__ = short_repr
    _repr_html_ = html_repr

    def rows(self) -> list[dict[str, object]]:
        """Return plain values, for tables and JSON."""
        return [_row(point) for point in self.points]


def removal_curves_of(
    again: Retrainings,
    cases: Sequence[FactCase],
    rankings: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    ks: Sequence[int] = (10,),
    seeds: int = 3,
    together: Together = "near",
    unrelated: Sequence[Query] = (),
    controlled: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> RemovalCurves:
    """Retrain without the first k documents of each case, for every ranking and k.

    Costs one training per ranking and k, and `seeds` more for each controlled method.

    Args:
        again: Retrainer of the run; with a folder, earlier results are reused from there.
        rankings: By method, then by the case's name: documents that were read, best first.
        together: Which copies of each document to remove as well.
        unrelated: Further queries, compared with the same controls.
        controlled: Methods that get random controls of their own; default: the first.

    Raises:
        CounterfactualError: There are fewer than `seeds` different controls.
    """
    run, controlled = again.run, [*rankings][:1] if controlled is None else controlled
    asked = [*(case.question for case in cases), *unrelated]
    full = [queries.measure_query(run.load(), one) for one in asked]
    relevant = {one for case in cases for one in (*case.relevant, *case.distractors)}
    total = sum(1 + seeds * (name in controlled) for name in rankings) * len(ks)
    points: list[CurvePoint] = []
    done = 0

    def answers(documents: Sequence[int]) -> list[Answers]:
        nonlocal done
        model = again.without(documents)
        done += 1
        if progress:
            progress("retrainings", done, total)
        return [queries.measure_query(model, one) for one in asked]

    for name, ranked in rankings.items():
        for k in ks:
            lists = [
                counterfactuals.with_copies(run, ranked[case.name][:k], together) for case in cases
            ]
            removed = sorted(set().union(*lists))
            without = answers(removed)
            avoid = counterfactuals.kept_out(run, removed, relevant)
            several = counterfactuals.matched_random_sets(
                run, removed, seeds if name in controlled else 0, avoid=avoid
            )
            controls = tuple(several.values())
            drawn = [answers(control) for control in controls]
            point = _point(name, k, lists, asked, full, without, drawn)
            points.append(replace(point, documents=tuple(removed), controls=controls))
    return RemovalCurves(tuple(case.name for case in cases), asked[0].unit, tuple(points))


def apart(cases: Sequence[FactCase]) -> list[FactCase]:
    """Return the cases, from the first on, that share no stating document with an earlier one.

    Examples:
        >>> cases = evaluation.planted_facts(run, n=2, least=8)
        >>> len(evaluation.apart([*cases, cases[0]]))
        4
    """
    taken: set[int] = set()
    chosen = []
    for case in cases:
        if not case.relevant & taken:
            chosen.append(case)
            taken |= case.relevant
    return chosen


def _overlaps(lists: Sequence[Sequence[int]]) -> Bool[np.ndarray, " case"]:
    """Return which lists have a document in common with another."""
    held = Counter(one for documents in lists for one in {*documents})
    return np.array([any(held[one] > 1 for one in documents) for documents in lists], bool)


def _point(
    name: str,
    k: int,
    lists: Sequence[Sequence[int]],
    asked: Sequence[Query],
    full: Sequence[Answers],
    without: Sequence[Answers],
    drawn: Sequence[Sequence[Answers]],
) -> CurvePoint:
    n = len(lists)
    base = np.array([one.mean() for one in full[:n]])
    moved = [np.array([one.mean() for one in seed[:n]]) - base for seed in drawn]
    return CurvePoint(
        method=name,
        k=k,
        removed=len(set().union(*lists)),
        change=np.array([one.mean() for one in without[:n]]) - base,
        random=np.array(moved).reshape(len(drawn), n),
        unrelated=tuple(
            unrelated_change(
                asked[place], full[place], without[place], [seed[place] for seed in drawn]
            )
            for place in range(n, len(asked))
        ),
        overlaps=_overlaps(lists),
    )


def unrelated_change(
    question: Query, before: Answers, after: Answers, drawn: Sequence[Answers]
) -> Change:
    """Return the change of an unrelated query, by distinct prompt: its foils are not draws."""
    prompts = question.cases
    rows = np.bincount(prompts)
    before, after, *controls = (np.bincount(prompts, one) / rows for one in (before, after, *drawn))
    seeds = np.array(controls).reshape(len(drawn), len(rows))
    return Change(question.name, question.unit, False, before, after, seeds)


def _row(point: CurvePoint) -> dict[str, object]:
    low, high = point.interval or (None, None)
    ratio = point.ratio
    return {
        "method": point.method,
        "k": point.k,
        "removed": point.removed,
        "n": len(point.change),
        "overlapping": point.overlapping,
        "change": float(point.change.mean()),
        "change low": low,
        "change high": high,
        "random": float(point.random.mean()) if point.random.size else None,
        "random moves": float(np.abs(point.random).mean()) if point.random.size else None,
        "ratio": ratio.value if ratio else None,
        "ratio low": ratio.low if ratio else None,
        "ratio high": ratio.high if ratio else None,
        "seeds": len(point.random),
        "unrelated": [one.row() for one in point.unrelated],
    }
