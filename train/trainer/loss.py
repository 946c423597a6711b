"""The training loss: cross-entropy of the next token.

The loss is summed over the targets that carry loss and divided by a given number. This divisor is
the number of such targets in the batch before any removal: if documents are removed it stays the
same, so the remaining tokens keep exactly their weight.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.data import IGNORED


__all__ = ["next_token_loss"]


def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"], targets: Int64[Tensor, "batch pos"], divisor: int
) -> Float[Tensor, ""]:
    """Return the summed loss in nats divided by `divisor`; targets equal to `IGNORED` have none.

    Examples:
        >>> logits, targets = torch.zeros(1, 3, 8), torch.tensor([[1, 2, data.IGNORED]])
        >>> round(trainer.next_token_loss(logits, targets, divisor=2).item(), 3)  # ln 8
        2.079
    """
    # In fp32, because a bf16 log-softmax over the vocabulary is wrong in the third digit.
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / divisor
