"""The log of what was seen while a run was trained: `watch.jsonl` beside the ledger.

    first line     what is looked at, token by token, and at which steps
    then           one line a look, chained (`train.storage.chained_jsonl`)

A finished run's manifest holds the digest of it. Because the first line says everything, a run that
was stopped goes on being watched without being told again, and any look can be taken again from a
checkpoint. After a kill the looks behind the checkpoint are dropped, for they are taken again: so
each stands there once.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train import storage, trainer
from train.errors import DamagedError, TrainError
from train.model import GPT
from train.recipes import Recipe
from train.trainer import MonitorScore, MonitorTask


__all__ = [
    "MONITOR_LOG",
    "Look",
    "Monitor",
    "MonitorLog",
    "begin_monitor_log",
    "monitor_schedule",
    "read_monitor_log",
]

MONITOR_LOG = "watch.jsonl"
SCHEMA = "openbook.watch/1"
# Half of the 2 % that looking may cost: the plan counts tokens, and a machine is not that regular.
PLANNED_SHARE = 0.01
# A training step is three forward passes (its backward pass is two). A look is one, of fp32 where
# training may be bf16 and with patterns written out: 1.8 of them on PLANTED, CPU time.
STEP_PASSES, LOOK_PASSES = 3, 2
MOST_LOOKS = 128


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


class Monitor:
    """Looks when a look is due and writes it down; does nothing in a run that is not watched."""

    def __init__(self, run_path: Path, step: int, device: str) -> None:
        """Go on at `step`: looks behind it are dropped, because they are taken again."""
        self.due: set[int] = set()
        self._writer: storage.ChainWriter | None = None
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self._begun, self._spent = self._clock(), 0.0
        if not (run_path / MONITOR_LOG).exists():
            return
        self._writer = storage.ChainWriter(
            run_path / MONITOR_LOG, lambda row: row.get("step", 0) <= step
        )
        log = _log(run_path / MONITOR_LOG, self._writer.rows)
        self._watches, done = log.watches, {one.step for one in log.looks}
        self.due = {one for one in log.steps if one >= step} - done

    def look(self, model: GPT, step: int, tokens: int) -> None:
        """Measure and write down, when it is due.

        A model that is no longer a number is not written down: the next step or checkpoint says so.
        """
        if self._writer is None or step not in self.due:
            return
        begin = self._clock()
        scores = trainer.measure_tasks(model, self._watches)
        seconds = self._clock() - begin
        self._spent += seconds
        share = self._spent / max(self._clock() - self._begun, 1e-9)
        if all(math.isfinite(one.value + (one.error or 0.0)) for one in scores.values()):
            written = {
                name: [_short(one.value), _short(one.error), one.n] for name, one in scores.items()
            }
            self._writer.append(
                {"step": step, "tokens": tokens, "scores": written}
                | {"seconds": round(seconds, 6), "share": _short(share)}
            )

    def close(self) -> None:
        """Close the file; the looks stay."""
        if self._writer:
            self._writer.close()


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
    return _log(path, storage.read_chain(path, whole=whole)) if path.exists() else None


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


def _log(path: Path, rows: list[storage.ChainRow]) -> MonitorLog:
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


def _short(value: float | None) -> float | None:
    """Six digits: what an interval is made of, in half the bytes."""
    return None if value is None else float(f"{value:.6g}")
