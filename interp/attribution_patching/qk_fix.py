"""What attention does after a query or a key is replaced, without a forward pass.

A softmax that has made up its mind has no gradient, so a first-order estimate sees nothing where
exchanging a key would change everything. The QK fix (Kramar et al. 2024,
https://arxiv.org/abs/2403.00745, section 3.1) computes the new pattern exactly and is first-order
only behind it: (new pattern - pattern) * gradient with respect to the pattern.

Replacing one key changes one score of each row, and the new row is known in closed form: with p the
share of that key, L the log of the sum of all other exponentials and s' the new score,

    p' = sigmoid(s' - L),   all other shares are scaled by (1 - p') / (1 - p),

so that all keys of a head cost O(query * key), as much as one pattern. 1 - p has no digits left
where p is nearly 1; that is at most one key a row, whose others are summed without it.

Masked scores are the lowest number and stay it. Everything is computed in fp64.
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
    """Estimated change of the metric when all scores of one row change at once.

    The row of a patched query; or every row, when all keys of a head are patched together.
    """
    scores, gradient = scores.double(), gradient.double()
    after = (scores + change.double()).softmax(dim=-1)
    return ((after - scores.softmax(dim=-1)) * gradient).sum(dim=-1)


def by_column(
    scores: Float[Tensor, "prompt head query key"],
    change: Float[Tensor, "prompt head query key"],
    gradient: Float[Tensor, "prompt head query key"],
) -> Float[Tensor, "prompt head key"]:
    """The same when one key is patched alone, for each key, summed over the queries that see it."""
    scores, gradient = scores.double(), gradient.double()
    share = scores.softmax(dim=-1)
    mean = (share * gradient).sum(dim=-1, keepdim=True)
    top = scores.argmax(dim=-1, keepdim=True)
    # Of every key but the largest the share is at most one half, and 1 - share is safe.
    held = share.scatter(-1, top, 0.0)
    log_others = scores.logsumexp(dim=-1, keepdim=True) + torch.log1p(-held)
    mean_others = (mean - held * gradient) / (1 - held)
    without = scores.scatter(-1, top, float("-inf"))
    seen = without.amax(dim=-1, keepdim=True) > torch.finfo(torch.float32).min / 2
    log_rest = without.logsumexp(dim=-1, keepdim=True)
    # The only key that a query sees keeps all of it: there are no others to take the rest.
    rest = torch.where(seen, without, 0.0).softmax(dim=-1)
    mean_rest = (rest * gradient).sum(dim=-1, keepdim=True)
    log_others = log_others.scatter(-1, top, torch.where(seen, log_rest, float("-inf")))
    mean_others = mean_others.scatter(-1, top, torch.where(seen, mean_rest, 0.0))
    after = torch.sigmoid(scores + change.double() - log_others)
    return (after * gradient + (1 - after) * mean_others - mean).sum(dim=-2)
