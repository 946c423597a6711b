"""The state of training: weights, optimizer and step, and how it is saved and loaded.

There is no random state, so training continues from a loaded state exactly as from the original.
"""

import math
from dataclasses import dataclass

import torch

from train import runs
from train.data import read_batch
from train.errors import DivergedError, TrainError
from train.model import GPT, init_gpt
from train.numerics import Numerics, refuse_missing
from train.recipes import Recipe
from train.runs import Run
from train.short_repr import short_repr
from train.trainer import evaluation
from train.trainer.optimizer import new_optimizer, read_state, write_state


__all__ = ["TrainState", "first_state", "initial_state", "load_state", "save"]


@dataclass
class TrainState:
    """The whole state of training.

    Attributes:
        step: Number of the next step, which is also the number of steps done.
        tokens: Number of targets that have carried loss so far.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    step: int
    tokens: int

    __repr__ = short_repr


def initial_state(recipe: Recipe, numerics: Numerics) -> TrainState:
    """Return the state before the first step, with weights drawn from the recipe's seed.

    Raises:
        RecipeError: This machine lacks the device.
    """
    refuse_missing(numerics.device)
    model = init_gpt(recipe.model, recipe.init_seed).to(numerics.device)
    return TrainState(model, new_optimizer(model, recipe), step=0, tokens=0)


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
    return state


def load_state(run: Run, step: int, numerics: Numerics) -> TrainState:
    """Load the newest checkpoint at or before `step` that has its optimizer.

    Raises:
        TrainError: There is no such checkpoint.
        DamagedError: A file of the checkpoint differs from its digest.
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
    model.load_state_dict(runs.read_tensors(run.path, saved, "model.safetensors"))
    model = model.to(numerics.device)
    optimizer = new_optimizer(model, run.recipe)
    read_state(model, optimizer, runs.read_tensors(run.path, saved, "optimizer.safetensors"))
    tokens = int(runs.read_counters(run.path, saved)["tokens"])
    return TrainState(model, optimizer, saved.step, tokens)


def save(run: Run, state: TrainState) -> None:
    """Write a checkpoint of the state; the newest checkpoint always has its optimizer.

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
    runs.write_checkpoint(
        run.path,
        state.step,
        model={
            name: one.detach().cpu().contiguous() for name, one in state.model.state_dict().items()
        },
        optimizer=write_state(state.model, state.optimizer),
        state={"tokens": state.tokens, "fixed_loss": fixed},
        keep_optimizer_of=keep,
    )
