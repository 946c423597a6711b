"""The exponential moving average (EMA) of a run's weights, kept beside them as it trains.

After update k, counted from 1, with decay d and weights w_k,

    average_k = sum over j <= k of d^(k - j) w_j / sum over j <= k of d^(k - j)

so the weights of early steps do not count for more than their share: the average of the first
update is w_1 itself (Adam corrects its moments in the same way). As a recursion this is

    average_k = average_(k-1) + (1 - d) / (1 - d^k) (w_k - average_(k-1))

which leaves the average of constant weights at their exact bits. Nothing but the average and the
step must be saved, and the training itself does not read it.
"""

import torch
from torch import Tensor, nn


__all__ = ["begin_average", "update_average"]


def begin_average(model: nn.Module) -> dict[str, Tensor]:
    """Return the average before the first update: a copy of the weights, by parameter name.

    Examples:
        >>> list(trainer.begin_average(torch.nn.Linear(1, 1)))
        ['weight', 'bias']
    """
    return {name: one.detach().clone() for name, one in model.named_parameters()}


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], model: nn.Module, decay: float, updates: int
) -> None:
    """Add the weights after update number `updates`, counted from 1, to the average, in place.

    Examples:
        >>> linear = torch.nn.Linear(1, 1)
        >>> average = trainer.begin_average(linear)
        >>> for update, value in enumerate([1.0, 4.0], start=1):
        ...     _ = torch.nn.init.constant_(linear.weight, value)
        ...     trainer.update_average(average, linear, 0.5, update)
        >>> round(average["weight"].item(), 4)  # (0.5 * 1 + 1 * 4) / 1.5
        3.0
    """
    share = (1 - decay) / (1 - decay**updates)
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, share)
