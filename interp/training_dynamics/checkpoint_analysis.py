"""Any analysis over training: one call, one table by step, nothing computed twice.

An analysis is a name, what decides its numbers, and a function of a model and its step. Its numbers
at a checkpoint are a function of the weights, so they are kept by the sha256 of the weights: a
second call, a longer one, and one that Ctrl-C ended all compute only what is missing.

    RUN/emergence/<analysis>-<digest of its parameters>.jsonl    chained rows
    (`train.storage.chained_jsonl`)

That the components of a circuit appear at like token counts over model sizes, and change places
while the algorithm stays, was found by such tables (Tigges et al. 2024,
https://arxiv.org/abs/2407.10827). What a checkpoint cannot do yet is no number: where patching
refuses a model that is not above chance, the step is listed with the reason.

Between two checkpoints a run can be looked into as well: it is trained again, bit for bit.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import CapabilityError, ContrastError, EffectsError, InterruptedWarning
from interp.patching import provenance
from interp.statistics import wilson
from interp.training_dynamics.trajectory import Trajectory, TrajectoryPoint
from train import numerics, runs, storage, trainer
from train.errors import TrainError
from train.model import GPT
from train.runs import Checkpoint, MonitorScore, Origin, Run


__all__ = ["FOLDER", "Analysis", "chosen_steps", "logged", "over_training", "read_between"]
__all__ += ["replayed"]

FOLDER = "emergence"
SCHEMA = "openbook.emergence/1"
Progress = Callable[[str, int, int | None], None]
# Columns of a result's frame that can be its value, the first that is there.
VALUES = ("effect", "score", "value", "mean")


@dataclass(frozen=True)
class Analysis:
    """Something to ask of every checkpoint.

    Attributes:
        name: Letters, digits, `-`, `:` and `.`; part of a file name.
        measure: From a model and its step to a mapping of names to numbers (or `Score`s), or to a
            result with `to_frame` and places, such as `Effects`.
        parameters: What else decides the numbers, as JSON; with the name they are the key by which
            rows are found again, so what is not in them must not change.
    """

    name: str
    measure: Callable[[GPT, int], Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """12 hex digits over name and parameters."""
        asked = {"name": self.name, "parameters": dict(self.parameters)}
        return sha256(storage.canonical_json(asked).encode()).hexdigest()[:12]


def over_training(
    run: Run,
    analysis: Analysis | Callable[[GPT, int], Any],
    *,
    steps: str | Sequence[int] = "all",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """What an analysis says at the checkpoints of a run.

    Args:
        run: A run; an import has one checkpoint.
        analysis: From `interp.training_dynamics.analysis`, or your own; a bare function is computed
            each time, because nothing says when another function of its name is the same.
        steps: `all`, `log:40` (at most 40, spread by ratio), or steps of checkpoints ("0,100").
        out: Folder of the rows; default: `emergence` inside the run.
        progress: Told how many checkpoints are done.

    Raises:
        TrainError: The run has no such checkpoint, or another process keeps the same rows.
        EffectsError: The analysis gives something that is no number; a bare function was to be
            kept.
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
    analysis: Analysis | Callable[[GPT, int], Any],
    first: int,
    last: int,
    *,
    every: int = 10,
    progress: Progress | None = None,
) -> Trajectory:
    """What an analysis says between checkpoints: the steps are trained again and looked into.

    Nothing of it is kept. `parameters["exact"]` says whether every step gave the ledger's loss,
    gradient norm and digest to the last bit; then these are the weights that the run passed
    through. On another machine they are near them.

    Args:
        run: A run trained here.
        analysis: As for `over_training`.
        first: Step to begin at; from the newest checkpoint below that kept its optimizer.
        last: Step to end at, which is looked at too.
        every: Steps between looks.

    Raises:
        TrainError: The run has no such steps, or keeps no optimizer before them.
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
            replay = trainer.training_steps(
                state, run.recipe, run.store, run.order, how, stop, run.removal
            )
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
    """The steps that `all`, `log:n` or a list asks for among those of the checkpoints.

    Raises:
        TrainError: Nothing is there, or `steps` says nothing.
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
    # The nearest by ratio; step 0 lies one step before step 1.
    wanted = np.geomspace(1, there[-1] + 1, int(count))
    logs = np.log(np.array(there) + 1.0)
    return sorted({there[int(np.abs(logs - one).argmin())] for one in np.log(wanted)})


def logged(run: Run) -> Trajectory:
    """What was logged while the run was trained (`train.trainer.monitoring`); nothing is computed.

    Raises:
        EffectsError: The run was not watched.
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


def read_between(run: Run, first: int, last: int) -> Any:
    """The documents read between two checkpoints, as a pandas frame: document, readings.

    The most read come first; the steps are first, first + 1 ... last - 1.

    Raises:
        TrainError: The run has no such steps.
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
    """What an analysis says of one model."""
    points, reason = [], None
    try:
        with warnings.catch_warnings():
            # A sweep that Ctrl-C ended returns its finished part, and that is no row to keep.
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


def _flattened(result: Any) -> list[list[Any]]:
    """Rows of name, value, low, high, n."""
    if isinstance(result, Mapping):
        return [[str(name), *_bounded(str(name), one)] for name, one in result.items()]
    if not hasattr(result, "to_frame"):
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


def _bounded(name: str, one: Any) -> tuple[float, float | None, float | None, int | None]:
    """Value, interval and n; of shares Wilson's interval, of means Student's."""
    if not isinstance(one, MonitorScore):
        return float(one), None, None, None
    if one.error is None:
        return one.value, None, None, one.n
    if name.endswith("accuracy"):
        return one.value, *wilson(one.value, one.n), one.n
    from scipy.special import stdtrit

    half = float(stdtrit(one.n - 1, 0.975)) * one.error
    return one.value, one.value - half, one.value + half, one.n


def _or_none(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _point(step: int, tokens: int, name: str, value: float, *rest: Any) -> TrajectoryPoint:
    return TrajectoryPoint(step, tokens, name, value, *rest)


@contextmanager
def _rows(run: Run, analysis: Analysis, out: str | Path | None) -> Iterator[storage.ChainWriter]:
    """The rows kept of an analysis, the first saying which it is."""
    folder = run.path / FOLDER if out is None else Path(out)
    name = analysis.name.replace(":", "-").replace("/", "-")
    header = {"schema": SCHEMA, "analysis": analysis.name, "parameters": dict(analysis.parameters)}
    folder.mkdir(parents=True, exist_ok=True)
    with storage.ChainWriter(folder / f"{name}-{analysis.key}.jsonl") as writer:
        if not writer.rows:
            writer.append(header)
        yield writer
