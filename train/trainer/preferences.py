"""Direct preference optimisation (DPO; Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).

    loss = -log sigmoid(beta * (ratio(chosen) - ratio(rejected)))
    ratio(response) = log p(response) - log r(response)

p is the model and r the reference: the run that training began with. The log-probability of a
response is the sum over its tokens and the end-of-text behind it. The reference does not change, so
its log-probabilities are computed once, before the first step, and stored with the run. Where the
model is the reference, both differences are 0 and the loss is log 2, whatever the pair is; without
the reference (as in a published trainer) it is not.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from train import numerics
from train.data import IGNORED, Batch, RecordedOrder, TokenStore, read_batch
from train.model import GPT, use_kernels
from train.numerics import Numerics
from train.recipes import Recipe


__all__ = [
    "pair_log_probs",
    "preference_loss",
    "reference_log_probs",
    "response_log_probs",
]


def response_log_probs(
    logits: Float[Tensor, "row pos vocab"], targets: Int64[Tensor, "row pos"]
) -> Float[Tensor, " row"]:
    """Return the summed log-probability of each row's targets, in nats; `IGNORED` adds nothing.

    Examples:
        >>> logits, targets = torch.zeros(1, 3, 8), torch.tensor([[data.IGNORED, 1, 2]])
        >>> round(trainer.response_log_probs(logits, targets).item(), 3)  # 2 * -ln 8
        -4.159
    """
    # In fp32, as in `train.trainer.loss`.
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape).sum(dim=1)


def preference_loss(
    model: Float[Tensor, "pair 2"], reference: Float[Tensor, "pair 2"], beta: float
) -> Float[Tensor, " pair"]:
    """Return the DPO loss of each pair, in nats.

    Args:
        model: Log-probability of the chosen and of the rejected response.
        reference: The same under the reference.

    Examples:
        >>> log_probs = torch.tensor([[-3.0, -5.0]])
        >>> round(trainer.preference_loss(log_probs, log_probs, beta=0.1).item(), 4)  # log 2
        0.6931
    """
    ratios = model - reference
    return -functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))


def pair_log_probs(
    forward: Callable[[Int64[Tensor, "row pos"]], Float[Tensor, "row pos vocab"]],
    batch: Batch,
) -> tuple[Float[Tensor, "pair 2"], Bool[Tensor, " pair"]]:
    """Return the log-probabilities of both responses of every pair of a batch.

    Returns:
        The log-probabilities in nats, and whether a pair has targets: a removed one has none.
    """
    n_pairs, width = batch.targets.shape
    targets = batch.targets.reshape(2 * n_pairs, width // 2)
    found = response_log_probs(forward(batch.inputs.reshape(targets.shape)), targets)
    return found.view(-1, 2), (targets != IGNORED).any(dim=1).view(-1, 2).any(dim=1)


@torch.no_grad()
def reference_log_probs(
    model: GPT, store: TokenStore, recipe: Recipe, how: Numerics, *, limit: int | None = None
) -> Float32[np.ndarray, "pair 2"]:
    """Return the log-probabilities of both responses of the pairs that training may read.

    The pairs pass through the model in parts of the size of the training, so that on a CPU the
    first step finds the same numbers to the last bit.

    Args:
        limit: Number of pairs, from the beginning; None: all.
    """
    window = store.window(recipe.model.n_ctx)
    size = recipe.micro_batch_size or recipe.batch_size
    n_pairs = int(store.manifest["counts"]["train_documents"])
    found = np.empty((n_pairs, 2), dtype=np.float32)
    wanted = n_pairs if limit is None else min(limit, n_pairs)
    model = model.to(how.device).eval()
    with numerics.applied(how), how.autocast(), use_kernels(how.kernels):
        for first in range(0, wanted, size):
            # The last part is filled up with pairs from the beginning.
            pairs = np.arange(first, first + size) % n_pairs
            rows = RecordedOrder((pairs * window)[None], window)
            batch = read_batch(store, rows, 0)
            log_probs, _ = pair_log_probs(model, batch.to(how.device))
            found[pairs] = log_probs.float().cpu().numpy()
    return found[:wanted]
