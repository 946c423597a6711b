"""Weights of an ensemble, learned on held-out tokens.

The weights are w = softmax(a), and a minimises the mean of -log sum_i w_i p_i(token) from a = 0 on,
by 300 steps of AdamW at a rate of 0.5 (NanoGPT Slowrun). The best weights of all steps are kept and
a = 0 is among them, so on the tokens that they were learned on they never do worse than equal
weights. On other tokens they may.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64

from train.errors import TrainError


__all__ = ["learn_weights"]

STEPS, RATE = 300, 0.5


def learn_weights(values: Float[np.ndarray, "member token"]) -> Float64[np.ndarray, " member"]:
    """Return the weights that give these tokens the highest probability.

    Args:
        values: Log-probabilities in nats that each member gives to each token.

    Raises:
        TrainError: There is no token, or a value is not finite.

    Examples:
        >>> right, wrong = np.log([[0.9, 0.8], [0.1, 0.2]])
        >>> ensembles.learn_weights(np.stack([right, wrong])).round(2).tolist()
        [1.0, 0.0]
    """
    n_members, n_tokens = values.shape
    if not n_tokens or not np.isfinite(values).all():
        raise TrainError(
            f"weights were to be learned from {n_tokens} tokens, "
            f"{int((~np.isfinite(values)).any(axis=0).sum())} of them with a probability of 0 or "
            "none; at least 1 is needed, and finite values"
        )
    terms = torch.from_numpy(values.astype(np.float64))
    scores = torch.zeros(n_members, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([scores], lr=RATE)
    best, least = scores.detach().softmax(0), float("inf")
    for _ in range(STEPS + 1):
        loss = -(terms + scores.log_softmax(0)[:, None]).logsumexp(0).mean()
        if loss.item() < least:
            best, least = scores.detach().softmax(0), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best.numpy()
