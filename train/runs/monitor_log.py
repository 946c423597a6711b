"""The log of what was seen while a run was trained: `watch.jsonl` beside the ledger.

    first line     what is looked at, token by token, and at which steps
    then           one line a look, chained (`train.storage.chained_jsonl`)

A finished run's manifest holds the digest of it. Because the first line says everything, a run that
was stopped goes on being watched without being told again, and any look can be taken again from a
checkpoint. After a kill the looks behind the checkpoint are dropped, for they are taken again: so
each stands there once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from train import storage
from train.errors import DamagedError, TrainError
from train.recipes import Recipe


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
# Half of the 2 % that looking may cost: the plan counts tokens, and a machine is not that regular.
PLANNED_SHARE = 0.01
# A training step is three forward passes (its backward pass is two). A look is one, of fp32 where
# training may be bf16 and with patterns written out: 1.8 of them on PLANTED, CPU time.
STEP_PASSES, LOOK_PASSES = 3, 2
MOST_LOOKS = 128


@dataclass(frozen=True, eq=False)
class MonitorTask:
    """Fixed tokens and what is read from them.

    Attributes:
        name: Of the prompts; it begins the names of their scores.
        reads: `copies`: an end-of-text and twice the same tokens; `context`: windows with one
            target more; `answers`: prompts that stop before the answer.
        tokens: All equally long.
        answer: Token that continues each prompt (`answers`).
        foil: Token it is compared with (`answers`).
        candidates: Among which the answer must be highest to count as right; without them it is
            enough that it beats its foil.
        eot: End-of-text; a target that is one, right behind one, is padding (`context`).
    """

    name: str
    reads: Literal["copies", "context", "answers"]
    tokens: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"] | None = None
    foil: Int[Tensor, " prompt"] | None = None
    candidates: tuple[int, ...] | None = None
    eot: int | None = None

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

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        kept = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {key: _plain(value) for key, value in kept.items()}


@dataclass(frozen=True)
class MonitorScore:
    """A mean over prompts (of `in-context`: over targets).

    Attributes:
        error: Standard error of the mean; None below two.
        n: How many.
    """

    value: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Look:
    """What was seen at a step.

    Attributes:
        step: Steps done, as of a checkpoint.
        tokens: Targets that carried loss so far.
        seconds: That it took: CPU time on a CPU, else wall time.
        share: Of all looks until here in the time since training began or was resumed.
    """

    step: int
    tokens: int
    scores: dict[str, MonitorScore]
    seconds: float
    share: float


@dataclass(frozen=True)
class MonitorLog:
    """What a run was watched for, and what was seen."""

    watches: tuple[MonitorTask, ...]
    steps: tuple[int, ...]
    looks: tuple[Look, ...]

    @property
    def summary(self) -> str:
        """How often was looked, and what share of the time it took."""
        share = self.looks[-1].share if self.looks else 0.0
        return f"{len(self.looks)} of {len(self.steps)} looks, {100 * share:.2f} % of the time"


def begin_monitor_log(run_path: Path, watches: Sequence[MonitorTask], recipe: Recipe) -> None:
    """Write into a run that is about to start what will be watched; nothing where it is nothing.

    Raises:
        TrainError: Two watches would write the same scores, or do not fit the model.
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
    """What a run was watched for and what was seen; None when it was not watched.

    Raises:
        DamagedError: The file is not what its chain says.
    """
    path = run_path / MONITOR_LOG
    return parse_log(path, storage.read_chain(path, whole=whole)) if path.exists() else None


def monitor_schedule(recipe: Recipe, watches: Sequence[MonitorTask]) -> list[int]:
    """The steps at which is looked: half of them by equal ratios, half evenly, 0 and the last.

    As many as a hundredth of training pays for, tokens passed through the model being the price,
    at most 128. Never fewer than two, whatever they cost: a run of a few steps pays more.
    """
    price = LOOK_PASSES * sum(one.tokens.numel() for one in watches)
    budget = PLANNED_SHARE * STEP_PASSES * recipe.steps * recipe.tokens_per_step
    half = int(min(budget / max(price, 1), MOST_LOOKS)) // 2
    drawn = [*np.geomspace(1, recipe.steps, half), *np.linspace(0, recipe.steps, half)]
    return sorted({0, recipe.steps} | {round(float(one)) for one in drawn})


def parse_log(path: Path, rows: list[storage.ChainRow]) -> MonitorLog:
    if not rows or rows[0].get("schema") != SCHEMA:
        raise DamagedError(f"{path}: does not begin with what was watched ({SCHEMA!r})")
    header, *looks = rows
    watches = tuple(_watch(one) for one in header["watches"])
    return MonitorLog(watches, tuple(header["steps"]), tuple(_look(row) for row in looks))


def _watch(content: dict[str, Any]) -> MonitorTask:
    tensors = ("tokens", "answer", "foil")
    lists = {key: content[key] and torch.tensor(content[key]) for key in tensors}
    candidates = content["candidates"] and tuple(content["candidates"])
    return MonitorTask(**{**content, **lists, "candidates": candidates})


def _look(row: storage.ChainRow) -> Look:
    scores = {name: MonitorScore(*one) for name, one in row["scores"].items()}
    return Look(row["step"], row["tokens"], scores, row["seconds"], row["share"])


def six_digits(value: float | None) -> float | None:
    """Six digits: what an interval is made of, in half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
