"""The state of training: weights, optimizer, step and average, and how it is saved and loaded.

There is no random state, so training continues from a loaded state exactly as from the original.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from train import runs
from train.data import read_batch
from train.errors import DamagedError, DivergedError, TrainError, UnequalRanksError
from train.model import GPT, init_gpt
from train.numerics import Numerics, refuse_missing
from train.recipes import Recipe
from train.runs import Run
from train.short_repr import short_repr
from train.trainer import evaluation
from train.trainer.optimizer import load_optimizer_state, new_optimizer, optimizer_state
from train.trainer.ranks import Ranks
from train.trainer.weight_average import begin_average


__all__ = [
    "TrainState",
    "check_ranks",
    "first_state",
    "gathered_optimizer",
    "initial_state",
    "keep_own_shard",
    "load_state",
    "save",
]


@dataclass
class TrainState:
    """The whole state of training.

    Attributes:
        step: Number of the next step, which is also the number of steps done.
        tokens: Number of targets that have carried loss so far.
        average: Moving average of the weights by name, if the recipe has an `ema_decay`.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    step: int
    tokens: int
    average: dict[str, Tensor] | None = None

    __repr__ = short_repr


def initial_state(recipe: Recipe, numerics: Numerics) -> TrainState:
    """Return the state before the first step, with weights drawn from the recipe's seed.

    Raises:
        RecipeError: This machine lacks the device.
    """
    refuse_missing(numerics.device)
    model = init_gpt(recipe.model, recipe.init_seed).to(numerics.device)
    average = begin_average(model) if recipe.ema_decay else None
    return TrainState(model, new_optimizer(model, recipe), step=0, tokens=0, average=average)


def first_state(run: Run) -> TrainState:
    """Return the state before the first step of a run: a tuned run begins with its base's weights.

    Raises:
        TrainError: The base of a tuned run is missing.
        DamagedError: The base is another run, or its weights differ from their digest.
        RecipeError: This machine lacks the device.
    """
    state = initial_state(run.recipe, run.numerics)
    if run.base:
        state.model.load_state_dict(run.open_base().load(run.base.step).state_dict())
        if state.average is not None:
            state.average = begin_average(state.model)
    return state


def load_state(run: Run, step: int, numerics: Numerics) -> TrainState:
    """Load the newest checkpoint at or before `step` that has its optimizer.

    Raises:
        TrainError: There is no such checkpoint.
        DamagedError: A file of the checkpoint differs from its digest, or holds tensors of another
            shape or type than the model.
        RecipeError: This machine lacks the device.
    """
    refuse_missing(numerics.device)
    usable = [one for one in run.saved if one.resumable and one.step <= step]
    if not usable:
        parent = run.predicate["parent"]
        left = (
            f"; it left run {parent['run_id']} at step {parent['step']}, ask that" if parent else ""
        )
        raise TrainError(f"the run {run.path} keeps no optimizer at or before step {step}{left}")
    saved = usable[-1]
    model = GPT(run.recipe.model)
    runs.load_weights(model, run.path, saved, "model.safetensors")
    model = model.to(numerics.device)
    optimizer = new_optimizer(model, run.recipe)
    moments = runs.read_tensors(run.path, saved, "optimizer.safetensors")
    try:
        load_optimizer_state(model, optimizer, moments)
    except DamagedError as error:
        raise DamagedError(f"{run.path / saved.folder}/optimizer.safetensors: {error}") from None
    tokens = int(runs.read_counters(run.path, saved)["tokens"])
    average = None
    if run.recipe.ema_decay:
        kept = runs.read_tensors(run.path, saved, runs.EMA)
        for name, one in model.named_parameters():
            if name not in kept or (kept[name].dtype, kept[name].shape) != (one.dtype, one.shape):
                raise DamagedError(
                    f"{run.path / saved.folder}/{runs.EMA}: {name} is missing or not {one.dtype} "
                    f"{list(one.shape)}"
                )
        average = {name: one.to(numerics.device) for name, one in kept.items()}
    return TrainState(model, optimizer, saved.step, tokens, average)


def check_ranks(state: TrainState, ranks: Ranks) -> None:
    """Compare weights and optimizer of all ranks by their digests; all ranks call this together.

    An optimizer that is divided among the ranks is not compared: no two hold the same part.

    Raises:
        UnequalRanksError: A rank holds another state than rank 0.
    """
    if ranks.size == 1:
        return
    digest, tensors = sha256(), state.model.state_dict()
    if not ranks.shards_optimizer:
        tensors |= optimizer_state(state.model, state.optimizer)
    if state.average is not None:
        tensors |= {f"{name} on average": one for name, one in state.average.items()}
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().contiguous().view(-1).view(torch.uint8).numpy())
    if unequal := ranks.unequal(digest.hexdigest()):
        which = "rank" if len(unequal) == 1 else "ranks"
        raise UnequalRanksError(
            f"after {state.step} steps {which} {', '.join(map(str, unequal))} of {ranks.size} and "
            "rank 0 hold different weights or optimizer states; this checkpoint was not written: "
            "go on from the last one with `openbook run resume`, and if it happens again, test "
            "memory and devices"
        )


def keep_own_shard(state: TrainState, ranks: Ranks) -> None:
    """Drop the optimizer state of the parameters that other ranks update."""
    parameters = list(state.model.parameters())
    for parameter, owner in zip(parameters, ranks.owners(parameters), strict=True):
        if owner != ranks.rank:
            state.optimizer.state.pop(parameter, None)


def gathered_optimizer(state: TrainState, ranks: Ranks) -> dict[str, Tensor]:
    """Return the optimizer's tensors by name, on rank 0 with those that the other ranks keep.

    All ranks call this together. Besides the result, rank 0 needs memory for one parameter.
    """
    gathered = optimizer_state(state.model, state.optimizer)
    if not ranks.shards_optimizer or state.step == 0:
        return gathered
    names, parameters = zip(*state.model.named_parameters(), strict=True)
    trained = {one for group in state.optimizer.param_groups for one in group["params"]}
    for name, parameter, owner in zip(names, parameters, ranks.owners(parameters), strict=True):
        if parameter not in trained:
            continue
        own, size = state.optimizer.state.get(parameter, {}), parameter.shape
        for key, shape in (("step", ()), ("exp_avg", size), ("exp_avg_sq", size)):
            # torch gives "step" the default type of the process.
            empty = torch.empty(shape, device=parameter.device, dtype=torch.float32)
            tensor = own[key].float() if own else empty
            ranks.send_to_rank_0(tensor, owner)
            if ranks.rank == 0:
                gathered[f"{name}.{key}"] = tensor.cpu()
    return gathered


def save(run: Run, state: TrainState, optimizer: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint of the state; the newest checkpoint always has its optimizer.

    Args:
        optimizer: The optimizer's tensors by name, if `state` holds only some of them.

    Raises:
        DivergedError: A weight or the loss on the fixed batch is not finite; nothing was written.
        DiskError: The disk is full.
    """
    keep = {step for step in run.recipe.checkpoint_steps() if run.recipe.keeps_optimizer(step)}
    fixed = evaluation.fixed_loss(state.model, run.store, run.order, run.numerics)
    if not (math.isfinite(fixed) and all(one.isfinite().all() for one in state.model.parameters())):
        # The loss of a step is computed before its update, so only this check sees the last update.
        bad = evaluation.first_bad_tensor(
            state.model, read_batch(run.store, run.order, 0), run.numerics
        )
        raise DivergedError(
            f"the model after {state.step} steps is not a number; the first bad tensor is {bad}; "
            "the last good checkpoint was kept: lower the learning rate"
        )
    counters = {"tokens": state.tokens, "fixed_loss": fixed}
    if state.average is not None:
        averaged = copy.deepcopy(state.model)
        averaged.load_state_dict(state.average)
        counters["ema_loss"] = evaluation.fixed_loss(averaged, run.store, run.order, run.numerics)
    runs.write_checkpoint(
        run.path,
        state.step,
        model=_on_cpu(state.model.state_dict()),
        optimizer=optimizer or optimizer_state(state.model, state.optimizer),
        average=None if state.average is None else _on_cpu(state.average),
        state=counters,
        keep_optimizer_of=keep,
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
