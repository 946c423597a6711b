"""Analysis of checkpoints over training, with results kept on disk.

An analysis is a name, the parameters that determine its numbers, and a function of a model and its
step. Its numbers at a checkpoint depend only on the weights, so they are stored under the sha256 of
the weights. A repeated, extended or interrupted call computes only what is missing.

    RUN/emergence/<analysis>-<digest of name and parameters>.jsonl    chained rows
    (`train.storage.chained_jsonl`)

Tigges et al. (2024, https://arxiv.org/abs/2407.10827) used such tables to show that the components
of a circuit appear at similar token counts across model sizes, and that components change while the
algorithm stays the same. If a checkpoint cannot do a behaviour yet, patching raises an error; that
step gets no number and is listed with the reason.

`replayed` analyses steps between two checkpoints: it trains the run again from a checkpoint, bit
for bit.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np

from interp.errors import CapabilityError, ContrastError, EffectsError, InterruptedWarning
from interp.results import provenance
from interp.training_dynamics.trajectory import Trajectory, TrajectoryPoint
from train import numerics, runs, storage, trainer
from train.errors import TrainError
from train.model import GPT
from train.progress import Progress
from train.runs import Checkpoint, MonitorScore, Origin, Run
from train.short_repr import short_repr
from train.statistics import wilson


if TYPE_CHECKING:
    import pandas

__all__ = ["FOLDER", "Analysis", "chosen_steps", "logged", "over_training", "read_between"]
__all__ += ["replayed"]

FOLDER = "emergence"
SCHEMA = "openbook.emergence/1"
# Columns of a result's frame that can hold its value; the first of them that exists is used.
VALUES = ("effect", "score", "value", "mean")


@dataclass(frozen=True)
class Analysis:
    """Analysis to run on every checkpoint.

    Attributes:
        name: Name of letters, digits, `-`, `:` and `.`, which becomes part of a file name.
        measure: Function of a model and its step. It returns a mapping of names to numbers (or to
            `train.runs.MonitorScore`s), or a result such as `Effects` whose `to_frame` has a column
            `place`.
        parameters: Everything else that determines the numbers, as JSON. Stored rows are found
            again by name and parameters, so anything that is not in them must not change.
    """

    name: str
    measure: Callable[[GPT, int], object]
    parameters: Mapping[str, object] = field(default_factory=dict)

    __repr__ = short_repr

    @property
    def key(self) -> str:
        """First 12 hex digits of the sha256 of name and parameters."""
        asked = {"name": self.name, "parameters": dict(self.parameters)}
        return sha256(storage.canonical_json(asked).encode()).hexdigest()[:12]


def over_training(
    run: Run,
    analysis: Analysis | Callable[[GPT, int], object],
    *,
    steps: str | Sequence[int] = "all",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """Run an analysis at the checkpoints of a run.

    Args:
        run: A run; an imported run has one checkpoint.
        analysis: From `interp.training_dynamics.analysis`, or your own. The results of a bare
            function are not stored, because it cannot be told whether two functions are the same.
        steps: Checkpoints to analyse: "all", "log:40" (at most 40, spaced geometrically), or steps,
            as a list or as text such as "0,100".
        out: Folder for the stored rows; default: `emergence` inside the run.
        progress: Called with the number of checkpoints done.

    Raises:
        TrainError: The run has no such checkpoint, or another process is writing the same rows.
        EffectsError: The analysis returned something that is not a finite number, or `out` was
            given for a bare function.

    Examples:
        >>> analysis = training_dynamics.score_analysis(ioi)
        >>> trajectory = training_dynamics.over_training(run, analysis, out=folder / "rows")
        >>> trajectory.steps, trajectory.names
        ([0, 600, 800, 1000, 2100], ['ioi logit difference', 'ioi accuracy'])
        >>> trajectory.curve("ioi accuracy")[-1].value
        1.0
    """
    chosen = [run.saved_at(step) for step in chosen_steps(run.steps, steps)]
    if not isinstance(analysis, Analysis):
        if out is not None:
            raise EffectsError(
                "rows are kept by name and parameters, and a bare function has none; give "
                "Analysis(name, measure, parameters)"
            )
        return _trajectory(run, Analysis("function", analysis), chosen, None, progress)
    with _rows(run, analysis, out) as writer:
        return _trajectory(run, analysis, chosen, writer, progress)


def replayed(
    run: Run,
    analysis: Analysis | Callable[[GPT, int], object],
    first: int,
    last: int,
    *,
    every: int = 10,
    progress: Progress | None = None,
) -> Trajectory:
    """Run an analysis between checkpoints, by training these steps again.

    Nothing is stored. `parameters["exact"]` of the result is true if every step reproduced the
    ledger's loss, gradient norm and digest to the last bit. The weights are then the ones that the
    run had at these steps. On another machine they are only close to them.

    Args:
        run: A run that was trained with openbook.
        analysis: As for `over_training`.
        first: First step to analyse. Training restarts from the newest checkpoint at or before it
            that has an optimizer state.
        last: Last step to analyse.
        every: Number of steps between analyses.
        progress: Called with the number of steps done.

    Raises:
        TrainError: The run has no such steps, or no optimizer state before them.
        EffectsError: The analysis returned something that is not a finite number.
    """
    if not isinstance(analysis, Analysis):
        analysis = Analysis("function", analysis)
    ledger = run.ledger
    if not 0 <= first <= last <= len(ledger) or every < 1:
        raise TrainError(
            f"steps {first} to {last} by {every} cannot be replayed: the run did 0 to {len(ledger)}"
        )
    how = numerics.on_this_machine(run.numerics)
    state = trainer.load_state(run, first, how)
    points, refused, exact, row = [], [], how == run.numerics, {}
    with numerics.applied(how):
        for stop in sorted({*range(first, last, every), last}):
            replay = trainer.run_steps(run, state, stop, numerics=how, removal=run.removal)
            exact &= all([one.agrees(ledger[one.step]) for one in replay])
            state.model.tokenizer = run.tokenizer
            state.model.origin = Origin(run.id, stop, "", run.knowledge)
            row = _row(analysis, state.model.eval(), stop)
            points += [_point(stop, state.tokens, *one) for one in row["points"]]
            refused += [(stop, row["refused"])] if row["refused"] else []
            if progress:
                progress(analysis.name, stop - first, last - first)
    return Trajectory(
        analysis=analysis.name,
        parameters={**analysis.parameters, "replayed": [first, last, every], "exact": exact},
        run_id=run.id,
        knowledge=run.knowledge,
        points=tuple(points),
        refused=tuple(refused),
        versions=row["versions"],
    )


def chosen_steps(there: Sequence[int], steps: str | Sequence[int]) -> list[int]:
    """Return the steps that "all", "log:n", a list or text such as "0,100" selects.

    Steps that are listed explicitly need not be among those of the checkpoints.

    Raises:
        TrainError: There is no checkpoint, or `steps` cannot be parsed.
    """
    if not there:
        raise TrainError("the run has no checkpoint yet; train further")
    if not isinstance(steps, str):
        return sorted(set(steps))
    if steps == "all":
        return list(there)
    if all(one.strip().isdecimal() for one in steps.split(",")):
        return sorted({int(one) for one in steps.split(",")})
    kind, _, count = steps.partition(":")
    if kind != "log" or not count.isdecimal() or int(count) < 2:
        raise TrainError(f"steps are 'all', 'log:40' or steps such as '0,100', not {steps!r}")
    # Choose the nearest checkpoints on a logarithmic scale of step + 1, so that step 0 is included.
    wanted = np.geomspace(1, there[-1] + 1, int(count))
    logs = np.log(np.array(there) + 1.0)
    return sorted({there[int(np.abs(logs - one).argmin())] for one in np.log(wanted)})


def logged(run: Run) -> Trajectory:
    """Return the measurements logged during training, without computing anything.

    They are those of `train.trainer.monitoring`.

    Raises:
        EffectsError: The run was trained without monitoring.
    """
    log = run.watched
    if log is None:
        raise EffectsError(f"{run.path} was not watched as it was trained; measure its checkpoints")
    points = [
        _point(one.step, one.tokens, name, *_bounded(name, score))
        for one in log.looks
        for name, score in one.scores.items()
    ]
    return Trajectory("watched", {}, run.id, run.knowledge, tuple(points))


def read_between(run: Run, first: int, last: int) -> "pandas.DataFrame":
    """Return the documents read between two checkpoints as a pandas frame: document, readings.

    These are the documents of the steps first, first + 1 ... last - 1, sorted by the number of
    readings, highest first.

    Raises:
        TrainError: The run has no such steps.

    Examples:
        >>> training_dynamics.read_between(run, 0, 2).head(2)
           document  readings
        0       652         1
        1       653         1
    """
    import pandas

    read = [run.documents_read(step) for step in range(first, last)]
    if not read:
        raise TrainError(f"no step lies between checkpoint {first} and checkpoint {last}")
    documents, counts = np.unique(np.concatenate(read), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return pandas.DataFrame({"document": documents[order], "readings": counts[order]})


def _trajectory(
    run: Run,
    analysis: Analysis,
    chosen: Sequence[Checkpoint],
    writer: storage.ChainWriter | None,
    progress: Progress | None,
) -> Trajectory:
    known = {row["checkpoint_sha256"]: row for row in (writer.rows[1:] if writer else [])}
    points, refused, versions = [], [], {}
    for done, saved in enumerate(chosen):
        if progress:
            progress(analysis.name, done, len(chosen))
        digest = saved.files["model.safetensors"]
        if digest not in known:
            row = _row(analysis, run.load(saved.step), saved.step)
            known[digest] = {"checkpoint_sha256": digest, **row}
            if writer:
                writer.append(known[digest])
        row = known[digest]
        tokens = int(runs.read_counters(run.path, saved).get("tokens", 0))
        points += [_point(saved.step, tokens, *one) for one in row["points"]]
        refused += [(saved.step, row["refused"])] if row["refused"] else []
        versions = row["versions"]
    if progress:
        progress(analysis.name, len(chosen), len(chosen))
    return Trajectory(
        analysis=analysis.name,
        parameters=dict(analysis.parameters),
        run_id=run.id,
        knowledge=run.knowledge,
        points=tuple(points),
        refused=tuple(refused),
        checkpoints=tuple((one.step, one.files["model.safetensors"]) for one in chosen),
        versions=versions,
    )


def _row(analysis: Analysis, model: GPT, step: int) -> storage.ChainRow:
    """Run an analysis on one model, and return the row to store.

    Raises:
        EffectsError: The analysis returned something that is not a finite number.
        KeyboardInterrupt: The analysis was interrupted and returned only a part of its result.
    """
    points, reason = [], None
    try:
        with warnings.catch_warnings():
            # After Ctrl-C a sweep returns its finished part with a warning; do not store that part.
            warnings.simplefilter("error", InterruptedWarning)
            points = _flattened(analysis.measure(model, step))
    except InterruptedWarning:
        raise KeyboardInterrupt from None
    except (CapabilityError, ContrastError) as error:
        reason = str(error)
    for name, value, *_ in points:
        if not math.isfinite(value):
            raise EffectsError(f"{analysis.name} gives {value} for {name!r} at step {step}")
    return {
        "points": points,
        "refused": reason,
        "versions": provenance(model).versions,
    }


@runtime_checkable
class _Tabular(Protocol):
    def to_frame(self) -> "pandas.DataFrame": ...


def _flattened(result: object) -> list[list[Any]]:
    """Convert the result of an analysis to rows of name, value, low, high and n.

    Raises:
        EffectsError: The result is neither a mapping nor a frame with columns for place and value.
    """
    if isinstance(result, Mapping):
        return [[str(name), *_bounded(str(name), one)] for name, one in result.items()]
    if not isinstance(result, _Tabular):
        raise EffectsError(
            f"the analysis gave a {type(result).__name__}; give a mapping of names to numbers, or "
            "a result with places and to_frame"
        )
    frame = result.to_frame()
    value = next((name for name in VALUES if name in frame), None)
    if value is None or "place" not in frame:
        raise EffectsError(
            f"the {type(result).__name__} has columns {list(frame)}; a table over training needs "
            f"'place' and one of {', '.join(VALUES)}"
        )
    n = getattr(result, "n_prompts", getattr(result, "n", None))
    return [
        [row["place"], float(row[value]), _or_none(row.get("low")), _or_none(row.get("high")), n]
        for row in frame.to_dict("records")
    ]


def _bounded(
    name: str, one: MonitorScore | SupportsFloat
) -> tuple[float, float | None, float | None, int | None]:
    """Return value, interval and n; Wilson's interval for accuracies, Student's for means."""
    if not isinstance(one, MonitorScore):
        return float(one), None, None, None
    if one.error is None:
        return one.value, None, None, one.n
    if name.endswith("accuracy"):
        return one.value, *wilson(one.value, one.n), one.n
    from scipy.special import stdtrit

    half = float(stdtrit(one.n - 1, 0.975)) * one.error
    return one.value, one.value - half, one.value + half, one.n


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _point(step: int, tokens: int, name: str, value: float, *rest: Any) -> TrajectoryPoint:
    return TrajectoryPoint(step, tokens, name, value, *rest)


@contextmanager
def _rows(run: Run, analysis: Analysis, out: str | Path | None) -> Iterator[storage.ChainWriter]:
    """Open the stored rows of an analysis; the first row is a header with name and parameters."""
    folder = run.path / FOLDER if out is None else Path(out)
    name = analysis.name.replace(":", "-").replace("/", "-")
    header = {"schema": SCHEMA, "analysis": analysis.name, "parameters": dict(analysis.parameters)}
    folder.mkdir(parents=True, exist_ok=True)
    with storage.ChainWriter(folder / f"{name}-{analysis.key}.jsonl") as writer:
        if not writer.rows:
            writer.append(header)
        yield writer
