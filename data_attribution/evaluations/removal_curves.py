"""What training without the first k documents of a ranking does, for growing k.

One retraining answers for many questions: the first k documents of every case are left out at
once, and each case is asked for itself. Cases must therefore have no document in common; facts
about different entities have none. As many random documents, matched one by one, are left out for
comparison, by several seeds, and so are the first k of other rankings.

The ratio is of what a case loses without its documents to what it *moves* without random ones
(its absolute change, mean over seeds): chance moves it up as often as down, so a mean of signed
changes would flatter. Interval by Fieller over cases (`interp.intervals`); where what random
documents do cannot be told from nothing, the lower end is that of the loss over the upper end of
the movement, and there is no upper end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from data_attribution import questions, removals
from data_attribution.changes import Change
from data_attribution.duplicates import Together
from data_attribution.errors import CounterfactualError
from data_attribution.evaluations.cases import Case
from data_attribution.evaluations.retrainings import Retrainings
from data_attribution.questions import Question
from interp import intervals
from train.runs import Run


__all__ = ["Curves", "Point", "Ratio", "apart", "measure"]

Progress = Callable[[str, int, int | None], None] | None
Answers = Float64[np.ndarray, "_"]  # by prompt; questions have as many as they like


@dataclass(frozen=True)
class Ratio:
    """How many times more than random documents, with its 95 % interval."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True, eq=False)
class Point:
    """One retraining per ranking and k, and its controls.

    Attributes:
        method: Whose first k documents of every case were left out.
        removed: How many documents that is, over all cases, copies included.
        change: Answer without them minus answer of the full run, mean over prompts, per case.
        random: The same without as many matched random documents, per seed.
        unrelated: What else was asked.
    """

    method: str
    k: int
    removed: int
    change: Float64[np.ndarray, " case"]
    random: Float64[np.ndarray, "seed case"]
    unrelated: tuple[Change, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean change over cases."""
        return intervals.mean_interval(self.change)

    @property
    def ratio(self) -> Ratio | None:
        """Loss over what random documents move; None without controls or with a single case."""
        loss, moved = -self.change, np.abs(self.random).mean(axis=0) if len(self.random) else None
        if moved is None or len(loss) < 2 or not moved.mean() > 0:
            return None
        value = float(loss.mean() / moved.mean())
        found = intervals.ratio_interval(loss[None], moved)
        if found is not None:
            return Ratio(value, float(found[0][0]), float(found[1][0]))
        least, most = intervals.mean_interval(loss), intervals.mean_interval(moved)
        return Ratio(value, least[0] / most[1], None) if least and most else None


@dataclass(frozen=True, eq=False)
class Curves:
    """All points, in the order asked, over the same cases."""

    cases: tuple[str, ...]
    unit: str
    points: tuple[Point, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Plain values, for tables and JSON."""
        return [_row(point) for point in self.points]


def measure(
    again: Retrainings,
    cases: Sequence[Case],
    rankings: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    ks: Sequence[int] = (10,),
    seeds: int = 3,
    together: Together = "near",
    unrelated: Sequence[Question] = (),
    controlled: Sequence[str] | None = None,
    progress: Progress = None,
) -> Curves:
    """Retrain without the first k documents of each case, for every ranking and k.

    Costs a training a ranking and k, and `seeds` more where it is controlled.

    Args:
        again: Trains the run again; with a folder, what was trained before is found there.
        rankings: By method, then by the case's name: documents that were read, best first.
        together: Which copies go with a document.
        unrelated: Asked too, against the same controls.
        controlled: Methods that get random controls of their own; default: the first.

    Raises:
        CounterfactualError: Two cases would lose the same document.
    """
    run, controlled = again.run, [*rankings][:1] if controlled is None else controlled
    asked = [*(case.question for case in cases), *unrelated]
    full = [questions.measure(run.load(), one) for one in asked]
    relevant = {one for case in cases for one in (*case.relevant, *case.distractors)}
    total = sum(1 + seeds * (name in controlled) for name in rankings) * len(ks)
    points: list[Point] = []
    done = 0

    def answers(documents: Sequence[int]) -> list[Answers]:
        nonlocal done
        model = again.without(documents)
        done += 1
        if progress:
            progress("retrainings", done, total)
        return [questions.measure(model, one) for one in asked]

    for name, ranked in rankings.items():
        for k in ks:
            removed = _removed(again, cases, ranked, k, together)
            without = answers(removed)
            avoid = removals.kept_out(run, removed, relevant)
            drawn = [
                answers(removals.matched_random(run, removed, seed=seed, avoid=avoid))
                for seed in range(seeds if name in controlled else 0)
            ]
            points.append(_point(name, k, len(removed), len(cases), asked, full, without, drawn))
    return Curves(tuple(case.name for case in cases), asked[0].unit, tuple(points))


def apart(
    run: Run,
    cases: Sequence[Case],
    rankings: Mapping[str, Mapping[str, Sequence[int]]],
    k: int,
    together: Together = "near",
) -> list[Case]:
    """The cases, from the first, that share no document of their first k with an earlier one."""
    taken: set[int] = set()
    chosen = []
    for case in cases:
        firsts = {one for ranked in rankings.values() for one in ranked[case.name][:k]}
        own = {*removals.with_copies(run, sorted(firsts), together)}
        if not own & taken:
            chosen.append(case)
            taken |= own
    return chosen


def _removed(
    again: Retrainings,
    cases: Sequence[Case],
    ranked: Mapping[str, Sequence[int]],
    k: int,
    together: Together,
) -> tuple[int, ...]:
    """The first k documents of every case and their copies."""
    taken: dict[int, str] = {}
    for case in cases:
        for document in removals.with_copies(again.run, ranked[case.name][:k], together):
            if taken.setdefault(document, case.name) != case.name:
                raise CounterfactualError(
                    f"document {document} is among the first {k} of {taken[document]!r} and of "
                    f"{case.name!r}; retrain for cases one by one, or take cases apart enough"
                )
    return tuple(sorted(taken))


def _point(
    name: str,
    k: int,
    removed: int,
    n_cases: int,
    asked: Sequence[Question],
    full: Sequence[Answers],
    without: Sequence[Answers],
    drawn: Sequence[Sequence[Answers]],
) -> Point:
    base = np.array([one.mean() for one in full[:n_cases]])
    moved = [np.array([one.mean() for one in seed[:n_cases]]) - base for seed in drawn]
    unrelated = tuple(
        Change(
            asked[place].name,
            asked[place].unit,
            False,
            full[place],
            without[place],
            np.array([seed[place] for seed in drawn]).reshape(len(drawn), len(full[place])),
        )
        for place in range(n_cases, len(asked))
    )
    return Point(
        method=name,
        k=k,
        removed=removed,
        change=np.array([one.mean() for one in without[:n_cases]]) - base,
        random=np.array(moved).reshape(len(drawn), n_cases),
        unrelated=unrelated,
    )


def _row(point: Point) -> dict[str, Any]:
    low, high = point.interval or (None, None)
    ratio = point.ratio
    return {
        "method": point.method,
        "k": point.k,
        "removed": point.removed,
        "n": len(point.change),
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
