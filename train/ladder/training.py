"""Training and measuring the members of a ladder, by as many processes as share its folder.

A process claims a training by a lock, which ends with the process. If a process dies, another one
continues its run from the newest checkpoint. Who trains a member does not change its bits.
"""

import math
import statistics
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from train import numerics, runs, storage
from train.data import RecordedOrder, TokenStore, read_batch
from train.errors import DamagedError, DivergedError, RecipeError, TrainError
from train.ladder.plan import Ladder, Trial, seconds_per_step
from train.model import GPT
from train.progress import Progress, count
from train.runs import Run
from train.short_repr import short_repr
from train.trainer import held_out_loss, resume, train


__all__ = ["Measurement", "climb", "measurements"]

# Held-out tokens on which a member is measured, if the store has as many.
HELD_OUT_TOKENS = 2**18
PASSES = 20
SECONDS_BETWEEN_LOOKS = 2.0


class TakenError(TrainError):
    """Another process has the lock."""


@dataclass(frozen=True)
class Measurement:
    """What was measured on a trained member.

    Attributes:
        member: Name of the member.
        seed: Number of the seed, from 0.
        run: Id of the run.
        weights: sha256 of the last weights.
        loss: Held-out loss in nats per target; None if the training diverged.
        bits_per_byte: The same loss in bits per byte of the held-out text.
        targets: Number of held-out targets.
        tokens_per_second: Targets of a step, over the time of the median step.
        milliseconds: Time of a forward pass over one window, the least of 20.
        processor: Name of the processor.
        failure: Why the training diverged; "" if it did not.
    """

    member: str
    seed: int
    run: str
    weights: str = ""
    loss: float | None = None
    bits_per_byte: float | None = None
    targets: int = 0
    tokens_per_second: float | None = None
    milliseconds: float | None = None
    processor: str = ""
    failure: str = ""

    __repr__ = short_repr


def climb(ladder: Ladder, *, progress: Progress | None = None) -> int:
    """Train and measure all members, and wait for those that other processes train.

    Returns the number of trainings that this process finished.

    A stopped ladder continues when it is called again. A training that diverges is recorded as
    such.

    Args:
        progress: Called with (text, steps done, number of steps), over all trainings.

    Raises:
        RecipeError: The folder of a training holds the run of another recipe.
    """
    n_finished = 0
    while missing := ladder.missing:
        worked = sum(_train_if_free(ladder, trial, progress) for trial in missing)
        n_finished += worked
        if not worked:
            if progress:
                n_trials, steps = len(ladder.trials), ladder.start.steps
                what = f"waiting for {count(len(missing), 'training')} of other processes"
                progress(what, (n_trials - len(missing)) * steps, n_trials * steps)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return n_finished


def measurements(ladder: Ladder) -> dict[Trial, Measurement]:
    """Read what was measured so far."""
    by_trial = {}
    for trial in ladder.trials:
        path = ladder.measured_path(trial)
        if path.exists():
            content = storage.read_sealed(path)
            with storage.reading(path):
                del content["digest"]
                by_trial[trial] = Measurement(**content)
    return by_trial


def _train_if_free(ladder: Ladder, trial: Trial, progress: Progress | None) -> bool:
    """Train and measure a member unless another process does; return whether it was done here."""
    try:
        with storage.hold_lock(ladder.lock_path(trial.name), TakenError(f"{trial.name} is taken")):
            if ladder.measured_path(trial).exists():
                return False
            content = asdict(_measured(ladder, trial, progress))
            storage.write_json(ladder.measured_path(trial), storage.seal(content))
            return True
    except TakenError:
        return False


def _measured(ladder: Ladder, trial: Trial, progress: Progress | None) -> Measurement:
    try:
        run = _trained(ladder, trial, progress)
    except DivergedError as error:
        run = runs.open(ladder.run_path(trial), store=ladder.store.path)
        return Measurement(trial.member, trial.seed, run.id, failure=str(error))
    recipe, model = run.recipe, run.load().to(ladder.numerics.device)
    starts = _held_out_starts(ladder.store, recipe.model.n_ctx)
    whole = replace(recipe, eval_windows=len(starts))
    loss = held_out_loss(model, ladder.store, whole, ladder.numerics)
    if loss is None:
        raise DamagedError(f"{ladder.store.path}: its held-out tokens are gone")
    order = RecordedOrder(starts[None], recipe.model.n_ctx)
    targets = read_batch(ladder.store, order, 0).divisor
    n_bytes = _held_out_bytes(ladder.store, len(starts) * recipe.model.n_ctx)
    return Measurement(
        member=trial.member,
        seed=trial.seed,
        run=run.id,
        weights=run.saved[-1].files["model.safetensors"],
        loss=loss,
        bits_per_byte=loss * targets / n_bytes / math.log(2),
        targets=targets,
        tokens_per_second=_tokens_per_second(run, ladder),
        milliseconds=1000 * _seconds_per_pass(model, ladder),
        processor=str(numerics.environment()["processor"]),
    )


def _trained(ladder: Ladder, trial: Trial, progress: Progress | None) -> Run:
    recipe, path = ladder.recipe(trial), ladder.run_path(trial)
    n_trials = len(ladder.trials)
    before = (n_trials - len(ladder.missing)) * recipe.steps

    def of_all(what: str, done: int, total: int | None) -> None:
        if progress:
            progress(f"{trial.name}: {what}", before + done, n_trials * recipe.steps)

    if not (path / runs.MANIFEST).exists():
        return train(recipe, ladder.store, out=path, numerics=ladder.numerics, progress=of_all)
    there = runs.open(path, store=ladder.store.path)
    if there.recipe != recipe or there.numerics != ladder.numerics:
        raise RecipeError(
            f"{path} holds a run of another recipe or other numerics, not {trial.name}; remove it"
        )
    return resume(path, store=ladder.store.path, progress=of_all)


def _held_out_starts(store: TokenStore, context: int) -> np.ndarray:
    """Return where the windows begin that `held_out_loss` reads."""
    n_windows = min(store.n_tokens - store.train_tokens, max(HELD_OUT_TOKENS, context)) // context
    return store.train_tokens - 1 + np.arange(n_windows) * context


def _held_out_bytes(store: TokenStore, n_tokens: int) -> int:
    """Return the number of bytes of the text of the first held-out tokens."""
    first, end = store.train_tokens, store.train_tokens + n_tokens
    owners = np.unique(store.document_at(np.arange(first, end)))
    total = 0
    for document in owners[owners >= 0]:
        begin = int(store.starts[document])
        stop = min(begin + int(store.lengths[document]), end)
        total += len(store.tokenizer.decode(store.tokens[max(begin, first) : stop]).encode())
    return total


def _tokens_per_second(run: Run, ladder: Ladder) -> float:
    """Return the speed of the median step of a training."""
    if run.numerics.device == "cpu":
        seconds = statistics.median(row.seconds for row in run.ledger)
    else:  # The steps of a ledger are those of the processor, which does not wait for the GPU.
        seconds = seconds_per_step(run.recipe, ladder)
    return run.recipe.tokens_per_step / seconds


@torch.inference_mode()
def _seconds_per_pass(model: GPT, ladder: Ladder) -> float:
    """Return the time of a forward pass over one window, the least of several."""
    tokens = torch.zeros((1, model.cfg.n_ctx), dtype=torch.long, device=model.device)
    times = []
    with numerics.applied(ladder.numerics), ladder.numerics.autocast():
        for _ in range(PASSES):
            begin = time.perf_counter()
            model(tokens)[0, -1, 0].item()  # the item waits for a GPU
            times.append(time.perf_counter() - begin)
    return min(times)
