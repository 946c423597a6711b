"""Trajectory: the results of an analysis at each checkpoint of a run, in one tidy table.

A row of the table is one number at one step. Its interval is over prompts. Neighbouring checkpoints
share the prompts and most of their weights, so the intervals show how precisely each point is
known, not how much a run with another seed would differ. The time at which a curve rises is given
as the two checkpoints between which it rose (`Onset`), not as a single step.

The steps at which given documents were read can be shown beside the curves. They are known only for
runs whose data order is recorded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interp import plots
from interp.errors import EffectsError
from interp.results import Result
from train import storage
from train.errors import nearest
from train.progress import count
from train.runs import Run


if TYPE_CHECKING:
    import pandas

__all__ = ["Onset", "Trajectory", "TrajectoryPoint"]

SCHEMA = "openbook.trajectory/1"


@dataclass(frozen=True)
class TrajectoryPoint:
    """One number at one step.

    Attributes:
        step: Number of training steps done at the checkpoint.
        tokens: Number of targets with loss until then.
        name: Name of the number.
        value: Value of the number.
        low: Lower end of the 95 % interval; None if there is no interval.
        high: Upper end of the interval.
        n: Number of prompts or targets that it is a mean over; None if the analysis gives none.
    """

    step: int
    tokens: int
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Onset:
    """Pair of checkpoints between which a number passed a level for good.

    Attributes:
        name: Name of the number.
        before: Step of the last checkpoint at which the number had not reached the level.
        step: Step of the next checkpoint, from which on the number stays past the level.
        level: The level: first value + share * (last value - first value).
        share: Share of the way from the first to the last value.
    """

    name: str
    before: int
    step: int
    level: float
    share: float


@dataclass(frozen=True)
class Trajectory(Result):
    """Results of an analysis over a run.

    Attributes:
        analysis: Name of the analysis.
        parameters: Parameters that determine its numbers, besides the name.
        run_id: Id of the run.
        knowledge: What is known of the run's training: `full`, `data-known` or `weights-only`.
        points: Numbers by step, then in the order of the analysis.
        refused: Steps at which the analysis gave no number, each with the reason.
        checkpoints: Step and sha256 of the weights of each checkpoint; empty for numbers that were
            logged or replayed between checkpoints.
        readings: Steps at which documents were read, by label.
        versions: Versions of the software.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A trajectory shows between which checkpoints of one run a number changed; it does "
        "not show why, nor when it changes under another seed."
    )

    analysis: str
    parameters: dict[str, object]
    run_id: str
    knowledge: str
    points: tuple[TrajectoryPoint, ...]
    refused: tuple[tuple[int, str], ...] = ()
    checkpoints: tuple[tuple[int, str], ...] = ()
    readings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps = self.steps
        between = f"{steps[0]} to {steps[-1]}" if steps else "none"
        return (
            f"Trajectory({self.analysis!r} over {self.run_id}: "
            f"{count(len(self.names), 'number')} at {count(len(steps), 'step')}, {between})"
        )

    @property
    def names(self) -> list[str]:
        """Names of the numbers, in the order of the analysis."""
        return list(dict.fromkeys(one.name for one in self.points))

    @property
    def steps(self) -> list[int]:
        """Steps with at least one number, ascending."""
        return sorted({one.step for one in self.points})

    def curve(self, name: str) -> list[TrajectoryPoint]:
        """Return the points of one number, by step.

        Raises:
            EffectsError: There is no such number.
        """
        found = [one for one in self.points if one.name == name]
        if not found:
            raise EffectsError(f"no {name!r} was measured over training{nearest(name, self.names)}")
        return found

    def changing(self, k: int) -> list[str]:
        """Return the names of the k numbers with the largest range over steps, largest first."""
        spans = {name: np.ptp([one.value for one in self.curve(name)]) for name in self.names}
        return sorted(spans, key=lambda name: -spans[name])[:k]

    def onset(self, name: str, *, share: float = 0.5) -> Onset:
        """Find when a number had gone `share` of the way from its first to its last value for good.

        Raises:
            EffectsError: There is no such number, or its first and last values are equal.
        """
        curve = self.curve(name)
        first, last = curve[0].value, curve[-1].value
        if first == last:
            raise EffectsError(
                f"{name!r} is {first:.3g} at step {curve[0].step} and at step {curve[-1].step}; "
                "what does not move has no onset"
            )
        level = first + share * (last - first)
        below = [i for i, one in enumerate(curve) if (one.value - level) * (last - first) < 0]
        at = below[-1] if below else 0
        return Onset(name, curve[at].step, curve[at + 1].step, level, share)

    def reading(self, run: Run, documents: Iterable[int], *, label: str = "read") -> "Trajectory":
        """Return a copy with the steps at which any of these documents was read.

        A step is listed once for each of the documents that was read at it.

        Raises:
            StoreError: The token store has no such document.
            EffectsError: `run` is not the run of this trajectory.
        """
        if run.id != self.run_id:
            raise EffectsError(f"the curves are of run {self.run_id}, the documents of {run.id}")
        steps = [run.steps_reading(int(one)) for one in documents]
        found = tuple(sorted(int(step) for one in steps for step in one))
        return replace(self, readings={**self.readings, label: found})

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per number and step.

        The columns are step, tokens, name, value, low, high and n, and one for each label of
        `readings`: the number of readings before that checkpoint.
        """
        import pandas

        frame = pandas.DataFrame(
            [asdict(one) for one in self.points],
            columns=["step", "tokens", "name", "value", "low", "high", "n"],
        )
        for label, steps in self.readings.items():
            # Training step s leads from checkpoint s to checkpoint s + 1, so readings at steps
            # below s come before checkpoint s.
            frame[label] = np.searchsorted(np.array(steps), frame["step"].to_numpy(), side="left")
        return frame.astype({"low": float, "high": float, "n": "Int64"})

    def plot(self, names: Sequence[str] | None = None, *, log: bool = True) -> "plots.Figure":
        """Plot curves with their intervals, and a mark at each step that read the documents.

        Args:
            names: Names of the numbers to plot; None: the eight that change most.
            log: Use a logarithmic axis for steps.
        """
        names = [names] if isinstance(names, str) else names
        return _figure(self, list(names or self.changing(8)), log=log)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Trajectory":
        """Return the result that `to_dict` turned into plain values."""
        content["points"] = tuple(TrajectoryPoint(**one) for one in content["points"])
        for name in ("refused", "checkpoints"):
            content[name] = tuple((step, text) for step, text in content[name])
        content["readings"] = {key: tuple(steps) for key, steps in content["readings"].items()}
        return cls(**content)


def _figure(found: Trajectory, names: list[str], *, log: bool = True) -> "plots.Figure":
    """Plot numbers by step with their intervals, and a row of marks for each label of readings."""
    figure = plots.figure()
    for index, name in enumerate(names):
        curve = found.curve(name)
        steps = [one.step for one in curve]
        shown = {"color": plots.COLOURS[index % len(plots.COLOURS)]}
        bounds = [(one.step, one.low, one.high) for one in curve if one.low is not None]
        figure.add_scatter(
            x=[step for step, _, _ in bounds] + [step for step, _, _ in reversed(bounds)],
            y=[round(high or 0.0, 4) for _, _, high in bounds]
            + [round(low or 0.0, 4) for _, low, _ in reversed(bounds)],
            fill="toself", opacity=0.2, line={**shown, "width": 0}, mode="lines",
            hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        values = [round(one.value, 4) for one in curve]
        figure.add_scatter(x=steps, y=values, name=name, line=shown, legendgroup=name)
    for index, (label, steps) in enumerate(found.readings.items()):
        figure.add_scatter(
            x=sorted(set(steps)), y=[label] * len(set(steps)), yaxis="y2", mode="markers",
            marker={"symbol": "line-ns-open", "color": plots.COLOURS[-1 - index %
            len(plots.COLOURS)]}, name=label, showlegend=False,
        )  # fmt: skip
    marked = 0.08 * len(found.readings)
    figure.update_layout(yaxis={"domain": [marked, 1.0]})
    if marked:
        figure.update_layout(yaxis2={"domain": [0.0, marked - 0.03], "anchor": "x"})
    axis = {"type": "log", "dtick": 1} if log else {}
    figure.update_xaxes(title="step" + (", from 1" if log else ""), **axis)
    return plots.framed(figure, f"{found.analysis} over run {found.run_id}")
