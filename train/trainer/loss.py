"""What the trainer minimises.

Cross-entropy of the next token, summed over the targets that count and divided by a number given
from outside. The divisor is a fact of the batch as the *order* gives it: when documents are taken
out of a replayed batch it stays, so the remaining tokens keep exactly their weight.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.data import IGNORED


__all__ = ["next_token_loss"]


def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"], targets: Int64[Tensor, "batch pos"], divisor: int
) -> Float[Tensor, ""]:
    """Mean loss in nats a target; targets equal to `IGNORED` carry none."""
    # fp32 here: a bf16 log-softmax over the vocabulary is off in the third digit.
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / divisor
