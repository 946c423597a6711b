"""The monitor log of a run: scores measured during training, in `watch.jsonl` beside the ledger.

    first line     the tasks, with all their tokens, and the steps at which they are measured
    further lines  one measurement each, chained (`train.storage.chained_jsonl`)

The manifest of a finished run holds the digest of this file. Because the first line is complete, a
resumed run continues its measurements without further arguments, and any measurement can be
repeated from a checkpoint. When a run resumes from a checkpoint, measurements after that checkpoint
are dropped and taken again, so each occurs once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from train import storage
from train.errors import DamagedError, TrainError
from train.recipes import Recipe
from train.short_repr import short_repr


__all__ = [
    "MONITOR_LOG",
    "Look",
    "MonitorLog",
    "MonitorScore",
    "MonitorTask",
    "begin_monitor_log",
    "monitor_schedule",
    "parse_log",
    "read_monitor_log",
    "six_digits",
]

MONITOR_LOG = "watch.jsonl"
READS = ("copies", "context", "answers")
SCHEMA = "openbook.watch/1"
# Half of the 2 % that measuring may cost, because the cost is estimated from numbers of tokens and
# actual times vary.
PLANNED_SHARE = 0.01
# Costs in forward passes of training. A training step is three (its backward pass costs two). A
# measurement is one, but in fp32 and with explicit attention patterns: 1.8 on PLANTED, in CPU time.
HEADER = {
    "steps": [int],
    "watches": [
        {
            "name": str,
            "reads": str,
            "tokens": [[int]],
            "answer": (None, [int]),
            "foil": (None, [int]),
            "candidates": (None, [int]),
            "eot": (None, int),
        }
    ],
}
ROW = {
    "step": int,
    "tokens": int,
    "scores": {str: [(None, float)]},
    "seconds": float,
    "share": float,
}
STEP_PASSES, LOOK_PASSES = 3, 2
MOST_LOOKS = 128


@dataclass(frozen=True, eq=False)
class MonitorTask:
    """Fixed tokens on which scores are measured during training.

    Attributes:
        name: Name of the task; for `answers` the names of the scores begin with it.
        reads: Kind of task. `copies`: an end-of-text and twice the same tokens; `context`: windows
            with one further target; `answers`: prompts that end before the answer.
        tokens: Token ids of the prompts or windows.
        answer: Token that continues each prompt (`answers`).
        foil: Token with which the answer is compared (`answers`).
        candidates: Tokens among which the answer must have the highest logit to count as correct.
            Without them it only needs a higher logit than its foil.
        eot: Id of end-of-text; a target that is one, directly after one, is padding (`context`).

    Raises:
        TrainError: The kind is unknown, or the tokens, answers or foils do not fit it.
    """

    name: str
    reads: Literal["copies", "context", "answers"]
    tokens: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"] | None = None
    foil: Int[Tensor, " prompt"] | None = None
    candidates: tuple[int, ...] | None = None
    eot: int | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise TrainError(f"watch {self.name!r} reads {self.reads!r}; known are {[*READS]}")
        n = len(self.tokens)
        sizes = [0 if one is None else len(one) for one in (self.answer, self.foil)]
        if self.reads == "answers" and sizes != [n, n]:
            raise TrainError(
                f"watch {self.name!r} has {n} prompts, {sizes[0]} answers and {sizes[1]} foils; "
                "give one of each a prompt"
            )
        half = (self.tokens.shape[1] - 1) // 2
        first, second = self.tokens[:, 1 : 1 + half], self.tokens[:, 1 + half :]
        if self.reads == "copies" and (half < 2 or not torch.equal(first, second)):
            raise TrainError(
                f"watch {self.name!r} reads copies, and its {self.tokens.shape[1]} tokens are not "
                "an end-of-text and two equal copies; make it with trainer.copying_task"
            )

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values for JSON."""
        kept = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {key: _plain(value) for key, value in kept.items()}


@dataclass(frozen=True)
class MonitorScore:
    """A mean over prompts; for `in-context` over targets.

    Attributes:
        error: Standard error of the mean; None if `n` is below 2.
        n: Number of prompts or targets.
    """

    value: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Look:
    """The scores measured at one step.

    Attributes:
        step: Number of steps done, as for a checkpoint.
        tokens: Number of targets that have carried loss so far.
        scores: Scores by name.
        seconds: Time that the measurement took: CPU time on a CPU, else wall time.
        share: Share of measurements in the time since training began or was resumed.
    """

    step: int
    tokens: int
    scores: dict[str, MonitorScore]
    seconds: float
    share: float

    __repr__ = short_repr


@dataclass(frozen=True)
class MonitorLog:
    """The tasks that a run measures, the steps at which it does so, and the scores so far."""

    watches: tuple[MonitorTask, ...]
    steps: tuple[int, ...]
    looks: tuple[Look, ...]

    __repr__ = short_repr

    @property
    def summary(self) -> str:
        """Number of measurements and their share of the time, as a phrase."""
        share = self.looks[-1].share if self.looks else 0.0
        return f"{len(self.looks)} of {len(self.steps)} looks, {100 * share:.2f} % of the time"


def begin_monitor_log(run_path: Path, watches: Sequence[MonitorTask], recipe: Recipe) -> None:
    """Create the monitor log of a run that is about to start; without tasks there is no log.

    Raises:
        TrainError: Two tasks would write the same scores, or a task does not fit the model.
    """
    (run_path / MONITOR_LOG).unlink(missing_ok=True)
    if not watches:
        return
    named = [one.name if one.reads == "answers" else one.reads for one in watches]
    twice = sorted({one for one in named if named.count(one) > 1})
    if twice:
        raise TrainError(
            f"{named.count(twice[0])} watches write the scores of {twice[0]!r}; keep one"
        )
    for one in watches:
        longest = recipe.model.n_ctx + (one.reads == "context")
        if one.tokens.shape[1] > longest or int(one.tokens.max()) >= recipe.model.d_vocab:
            raise TrainError(
                f"watch {one.name!r} has {one.tokens.shape[1]} tokens up to {int(one.tokens.max())}"
                f"; the model takes {longest} tokens below {recipe.model.d_vocab}"
            )
    with storage.ChainWriter(run_path / MONITOR_LOG) as writer:
        header = {"schema": SCHEMA, "steps": monitor_schedule(recipe, watches)}
        writer.append({**header, "watches": [one.to_dict() for one in watches]})


def read_monitor_log(run_path: Path, *, whole: bool = True) -> MonitorLog | None:
    """Read the monitor log of a run; None if the run has none.

    Raises:
        DamagedError: A row is unreadable or does not follow from the one before it.

    Examples:
        >>> runs.read_monitor_log(run.path) is None  # the released run comes without its log
        True
    """
    path = run_path / MONITOR_LOG
    return parse_log(path, storage.read_chain(path, whole=whole)) if path.exists() else None


def monitor_schedule(recipe: Recipe, watches: Sequence[MonitorTask]) -> list[int]:
    """Return the steps at which to measure: half spaced geometrically, half evenly.

    There are at most 128, and so many that measurements cost about 1 % of training, estimated from
    the numbers of tokens passed through the model. Step 0 and the last step are always included,
    so measurements can take a larger share of a run of few steps.
    """
    price = LOOK_PASSES * sum(one.tokens.numel() for one in watches)
    budget = PLANNED_SHARE * STEP_PASSES * recipe.steps * recipe.tokens_per_step
    half = int(min(budget / max(price, 1), MOST_LOOKS)) // 2
    drawn = [*np.geomspace(1, recipe.steps, half), *np.linspace(0, recipe.steps, half)]
    return sorted({0, recipe.steps} | {round(float(one)) for one in drawn})


def parse_log(path: Path, rows: list[storage.ChainRow]) -> MonitorLog:
    """Return the monitor log that the rows of the file at `path` hold.

    Raises:
        DamagedError: The first row is not the header of a monitor log.
    """
    if not rows or rows[0].get("schema") != SCHEMA:
        raise DamagedError(f"{path}: does not begin with what was watched ({SCHEMA!r})")
    header, *looks = rows
    storage.check_shape(header, HEADER, f"{path}: line 1")
    for number, row in enumerate(looks, 2):
        storage.check_shape(row, ROW, f"{path}: line {number}")
    with storage.reading(path):
        return _log(header, looks)


def _log(header: storage.JsonObject, looks: list[storage.ChainRow]) -> MonitorLog:
    watches = tuple(_watch(one) for one in header["watches"])
    return MonitorLog(watches, tuple(header["steps"]), tuple(_look(row) for row in looks))


def _watch(content: storage.JsonObject) -> MonitorTask:
    tensors = ("tokens", "answer", "foil")
    lists = {key: content[key] and torch.tensor(content[key]) for key in tensors}
    candidates = content["candidates"] and tuple(content["candidates"])
    return MonitorTask(**{**content, **lists, "candidates": candidates})


def _look(row: storage.ChainRow) -> Look:
    scores = {name: MonitorScore(*one) for name, one in row["scores"].items()}
    return Look(row["step"], row["tokens"], scores, row["seconds"], row["share"])


def six_digits(value: float | None) -> float | None:
    """Round to six significant digits, which are enough for intervals and take half the space.

    Examples:
        >>> runs.six_digits(0.123456789)
        0.123457
    """
    return None if value is None else float(f"{value:.6g}")


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, Tensor) else value
