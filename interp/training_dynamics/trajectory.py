"""Numbers over training: what an analysis said at each checkpoint, in one tidy table.

A row of the table is one number at one step. Its interval is over the prompts of that checkpoint,
and neighbouring checkpoints share prompts and most of their weights: the intervals say how well a
point is known, not how much another seed would differ. When a curve rises is therefore given as the
pair of checkpoints between which it rose (`Onset`), not as a step.

The steps at which given documents were read can be laid beside the curves: who trained the run
knows them, and nothing else does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import EffectsError
from train import storage
from train.errors import nearest
from train.runs import Run


__all__ = ["Onset", "Trajectory", "TrajectoryPoint"]

SCHEMA = "openbook.trajectory/1"


@dataclass(frozen=True)
class TrajectoryPoint:
    """One number at one step.

    Attributes:
        step: Of the checkpoint: so many steps were done.
        tokens: Targets that had carried loss until then.
        low: Lower end of the 95 % interval; None where there is none.
        n: Prompts or targets it is a mean over; None where the analysis does not say.
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
    """Between which two checkpoints a number went `share` of the way to where it ended.

    Attributes:
        before: The last checkpoint below it, after which the number never is again.
        step: The first one above it.
        level: That was passed.
    """

    name: str
    before: int
    step: int
    level: float
    share: float


@dataclass(frozen=True)
class Trajectory:
    """What an analysis said over a run.

    Attributes:
        analysis: Its name.
        parameters: What else decides its numbers.
        run_id: Of the run.
        knowledge: `full`, `data-known` or `weights-only`.
        points: By step, then in the order of the analysis.
        refused: Steps at which the analysis gave no number, and its reason.
        checkpoints: Step and sha256 of the weights; "" for what was logged between checkpoints.
        readings: Steps at which documents were read, by label.
        versions: Of the software.
    """

    analysis: str
    parameters: dict[str, Any]
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
            f"Trajectory({self.analysis!r} over {self.run_id}: {len(self.names)} numbers at "
            f"{len(steps)} steps, {between})"
        )

    @property
    def names(self) -> list[str]:
        """What was measured, in the order of the analysis."""
        return list(dict.fromkeys(one.name for one in self.points))

    @property
    def steps(self) -> list[int]:
        """The steps at which anything was measured, ascending."""
        return sorted({one.step for one in self.points})

    def curve(self, name: str) -> list[TrajectoryPoint]:
        """One number by step.

        Raises:
            EffectsError: No such number.
        """
        found = [one for one in self.points if one.name == name]
        if not found:
            raise EffectsError(f"no {name!r} was measured over training{nearest(name, self.names)}")
        return found

    def changing(self, k: int) -> list[str]:
        """The k numbers whose values differ most between steps, most first."""
        spans = {name: np.ptp([one.value for one in self.curve(name)]) for name in self.names}
        return sorted(spans, key=lambda name: -spans[name])[:k]

    def onset(self, name: str, *, share: float = 0.5) -> Onset:
        """When a number had gone `share` of the way from its first value to its last, for good.

        Raises:
            EffectsError: It has one step, or ends where it began.
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
        """The same, with the steps at which any of these documents was read.

        A step stands there once for each document that it read.

        Raises:
            StoreError: The store has no such document.
            EffectsError: The run is another one.
        """
        if run.id != self.run_id:
            raise EffectsError(f"the curves are of run {self.run_id}, the documents of {run.id}")
        steps = [run.steps_reading(int(one)) for one in documents]
        found = tuple(sorted(int(step) for one in steps for step in one))
        return replace(self, readings={**self.readings, label: found})

    def to_frame(self) -> Any:
        """A pandas row a number: step, tokens, name, value, low, high, n.

        With readings a column each: how many readings lie before that checkpoint.
        """
        import pandas

        frame = pandas.DataFrame(
            [asdict(one) for one in self.points],
            columns=["step", "tokens", "name", "value", "low", "high", "n"],
        )
        for label, steps in self.readings.items():
            # Step s takes checkpoint s to checkpoint s + 1.
            frame[label] = np.searchsorted(np.array(steps), frame["step"].to_numpy(), side="left")
        return frame.astype({"low": float, "high": float, "n": "Int64"})

    def plot(self, names: Sequence[str] | None = None, *, log: bool = True) -> Any:
        """Curves with their intervals, and a mark at each reading.

        Args:
            names: Which numbers; None: the eight that change most.
            log: Spread early steps.
        """
        return _figure(self, list(names or self.changing(8)), log=log)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            EffectsError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise EffectsError(f"{path}: is no {SCHEMA!r}; write it with trajectory.save")
        del content["digest"]
        content["points"] = tuple(TrajectoryPoint(**one) for one in content["points"])
        for name in ("refused", "checkpoints"):
            content[name] = tuple((step, text) for step, text in content[name])
        content["readings"] = {key: tuple(steps) for key, steps in content["readings"].items()}
        return cls(**content)


def _figure(found: Trajectory, names: list[str], *, log: bool = True) -> Any:
    """Numbers by step with their intervals, and a row of marks at each step that read documents."""
    from interp import plots  # plotly takes a second

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
