"""QK fix of AtP*: the attention pattern after a query or key is patched, without a forward pass.

A saturated softmax has almost no gradient, so a first-order estimate is near 0 even if patching a
key would change the whole pattern. The QK fix (Kramar et al. 2024,
https://arxiv.org/abs/2403.00745, section 3.1) computes the new pattern exactly and is first-order
only after it: (new pattern - pattern) * gradient with respect to the pattern.

Patching one key changes one score in each row of the pattern, and the new row has a closed form.
With p the attention to that key, L the log of the sum of all other exponentials and s' the new
score,

    p' = sigmoid(s' - L),   every other weight is scaled by (1 - p') / (1 - p),

so all keys of a head together cost O(query * key), as much as one pattern. If p is nearly 1, the
difference 1 - p loses all its digits. That happens for at most one key per row, the largest, so the
sum over the other keys is computed without that key.

Masked scores are the lowest representable number and stay so. Everything is computed in fp64.
"""

import torch
from jaxtyping import Float
from torch import Tensor


__all__ = ["by_column", "by_row"]


def by_row(
    scores: Float[Tensor, "prompt head query key"],
    change: Float[Tensor, "prompt head query key"],
    gradient: Float[Tensor, "prompt head query key"],
) -> Float[Tensor, "prompt head query"]:
    """Estimate the change of the metric if all scores of a row change at once, for each row.

    A patched query changes its own row. Patching all keys of a head together changes every row.
    """
    scores, gradient = scores.double(), gradient.double()
    after = (scores + change.double()).softmax(dim=-1)
    return ((after - scores.softmax(dim=-1)) * gradient).sum(dim=-1)


def by_column(
    scores: Float[Tensor, "prompt head query key"],
    change: Float[Tensor, "prompt head query key"],
    gradient: Float[Tensor, "prompt head query key"],
) -> Float[Tensor, "prompt head key"]:
    """Estimate the change of the metric if one key is patched alone, for each key.

    With g the gradient and m = sum over keys of p g, the change per query is

        p' g + (1 - p') (mean of g over the other keys, weighted by p) - m,

    summed over the queries that attend to the key.
    """
    scores, gradient = scores.double(), gradient.double()
    share = scores.softmax(dim=-1)
    mean = (share * gradient).sum(dim=-1, keepdim=True)
    top = scores.argmax(dim=-1, keepdim=True)
    # Every key but the largest has p <= 1/2, so that 1 - p keeps its digits.
    held = share.scatter(-1, top, 0.0)
    log_others = scores.logsumexp(dim=-1, keepdim=True) + torch.log1p(-held)
    mean_others = (mean - held * gradient) / (1 - held)
    without = scores.scatter(-1, top, float("-inf"))
    seen = without.amax(dim=-1, keepdim=True) > torch.finfo(torch.float32).min / 2
    log_rest = without.logsumexp(dim=-1, keepdim=True)
    # A query that attends to a single key has no other keys: p' is 1 (L is -inf).
    rest = torch.where(seen, without, 0.0).softmax(dim=-1)
    mean_rest = (rest * gradient).sum(dim=-1, keepdim=True)
    log_others = log_others.scatter(-1, top, torch.where(seen, log_rest, float("-inf")))
    mean_others = mean_others.scatter(-1, top, torch.where(seen, mean_rest, 0.0))
    after = torch.sigmoid(scores + change.double() - log_others)
    return (after * gradient + (1 - after) * mean_others - mean).sum(dim=-2)
