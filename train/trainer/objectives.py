"""What a training step minimises, as a function of the model and a part of the batch.

Training, replay and retraining all ask `objective_of` for the objective of a run, so a run is
repeated with the loss that it was trained on. An objective depends on the weights, the part and the
step alone; if it draws at random, its draws are keyed by `Batch.step`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import runs
from train.data import Batch
from train.model import GPT
from train.recipes import Recipe
from train.runs import Run
from train.short_repr import short_repr
from train.trainer import distillation, stochastic_depth
from train.trainer.loss import next_token_loss
from train.trainer.preferences import pair_log_probs, preference_loss


__all__ = ["Forward", "Objective", "TrainingMethods", "next_token", "objective_of"]

Forward = Callable[[Int64[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]
# Model and part of a batch (both on one device) -> the part's share of the loss of the whole batch.
Objective = Callable[[Forward, Batch], Float[Tensor, ""]]


def next_token(forward: Forward, part: Batch) -> Float[Tensor, ""]:
    """Return the cross-entropy of the next token, divided by the divisor of the whole batch."""
    return next_token_loss(forward(part.inputs), part.targets, part.divisor)


@dataclass(frozen=True, eq=False)
class TrainingMethods:
    """The cross-entropy of the next token with the methods that a recipe adds to it.

    With weights a = `distill_weight` and w = `mtp_weight`, temperature T, and the layers that
    stochastic depth leaves out at this step, the loss is

        (1 - a) (cross-entropy of token t + 1 + w cross-entropy of token t + 2) + a T^2 KL

    where every term is summed over its targets and divided by the divisor of the batch.

    Attributes:
        teacher: Model whose probabilities are distilled; None: no distillation.
    """

    recipe: Recipe
    teacher: GPT | None = None

    __repr__ = short_repr

    def __call__(self, forward: Forward, part: Batch) -> Float[Tensor, ""]:
        """Return the loss of a part of the batch."""
        recipe, model = self.recipe, cast("GPT", getattr(forward, "_orig_mod", forward))
        with stochastic_depth.layers_left_out(model, recipe, part.step):
            if recipe.mtp_weight:
                # These parts of the model run by themselves, so torch.compile has no say in them.
                resid = model.run_blocks(model.embed_tokens(part.inputs))
                logits, ahead = model.to_logits(resid), model.predict_ahead(resid, part.inputs)
            else:
                logits, ahead = forward(part.inputs), None
        loss = next_token_loss(logits, part.targets, part.divisor)
        if ahead is not None:
            second = next_token_loss(ahead, part.targets[:, 1:], part.divisor)
            loss = loss + recipe.mtp_weight * second
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher.to(part.inputs.device)(part.inputs)
        distilled = distillation.distillation_loss(
            logits, taught, part.targets, part.divisor, recipe.distill_temperature
        )
        return (1 - recipe.distill_weight) * loss + recipe.distill_weight * distilled


def objective_of(run: Run) -> Objective:
    """Return what the steps of a run minimise.

    For instructions it is the loss of the next token, because their prompts carry none.

    Raises:
        TrainError: The run's teacher is not where it was, or another run is there.
        DamagedError: The weights of the teacher are not those that taught the run, or the reference
            of a DPO run is missing or differs from its digest.

    Examples:
        >>> trainer.objective_of(run).__name__
        'next_token'
    """
    if run.recipe.objective == "dpo":
        return _preferences(run)
    teacher = distillation.teacher_model(run)
    if teacher is None and not run.recipe.methods:
        return next_token
    return TrainingMethods(run.recipe, teacher)


def _preferences(run: Run) -> Objective:
    """Return the mean DPO loss over the pairs of a batch.

    A removed pair has the loss 0, and the divisor stays the same.
    """
    recipe, base = run.recipe, run.base
    assert base is not None
    reference = torch.from_numpy(runs.read_reference(run.path, base))

    def preferences(forward: Forward, part: Batch) -> Float[Tensor, ""]:
        found, there = pair_log_probs(forward, part)
        expected = reference[part.starts // part.inputs.shape[1]].to(found.device)
        losses = preference_loss(found, expected, recipe.dpo_beta)
        return torch.where(there, losses, 0.0).sum() / recipe.batch_size

    return preferences
