"""What a training step minimises, as a function of the model and a part of the batch.

Training, replay and retraining all ask `objective_of` for the objective of a run, so a run is
repeated with the loss that it was trained on. An objective depends on the weights, the part and the
step alone; if it draws at random, its generator is keyed by `Batch.step`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import runs
from train.data import Batch
from train.runs import Run
from train.trainer.loss import next_token_loss
from train.trainer.preferences import pair_log_probs, preference_loss


__all__ = ["Forward", "Objective", "next_token", "objective_of"]

Forward = Callable[[Int64[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]
# Model and part of a batch (both on one device) -> the part's share of the loss of the whole batch.
Objective = Callable[[Forward, Batch], Float[Tensor, ""]]


def next_token(forward: Forward, part: Batch) -> Float[Tensor, ""]:
    """Return the cross-entropy of the next token, divided by the divisor of the whole batch."""
    return next_token_loss(forward(part.inputs), part.targets, part.divisor)


def objective_of(run: Run) -> Objective:
    """Return what the steps of a run minimise.

    For instructions it is the loss of the next token, because their prompts carry none.

    Raises:
        DamagedError: The reference of a DPO run is missing or differs from its digest.

    Examples:
        >>> trainer.objective_of(run).__name__
        'next_token'
    """
    if run.recipe.objective == "dpo":
        return _preferences(run)
    return next_token


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
