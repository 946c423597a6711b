"""What a training step minimises, as a function of the model and a part of the batch.

Training, replay and retraining all ask `objective_of` for the objective of a run, so a run is
repeated with the loss that it was trained on. An objective depends on the weights, the part and the
step alone; if it draws at random, its generator is keyed by `Batch.step`.
"""

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor

from train.data import Batch
from train.runs import Run
from train.trainer.loss import next_token_loss


__all__ = ["Forward", "Objective", "next_token", "objective_of"]

Forward = Callable[[Int64[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]
# Model and part of a batch (both on one device) -> the part's share of the loss of the whole batch.
Objective = Callable[[Forward, Batch], Float[Tensor, ""]]


def next_token(forward: Forward, part: Batch) -> Float[Tensor, ""]:
    """Return the cross-entropy of the next token, divided by the divisor of the whole batch."""
    return next_token_loss(forward(part.inputs), part.targets, part.divisor)


def objective_of(run: Run) -> Objective:
    """Return what the steps of a run minimise.

    Examples:
        >>> trainer.objective_of(run).__name__
        'next_token'
    """
    return next_token
