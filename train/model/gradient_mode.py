"""The mode of torch in which gradients can be computed, whatever mode the caller is in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.errors import TrainError


__all__ = ["with_gradients"]


@contextmanager
def with_gradients(model: object) -> Iterator[None]:
    """Compute gradients inside the block, also within `torch.inference_mode()`.

    Raises:
        TrainError: The weights were made in inference mode, so they can have no gradients.

    Examples:
        >>> from train.model import with_gradients
        >>> with torch.inference_mode(), with_gradients(model):
        ...     torch.is_grad_enabled()
        ...
        True
    """
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    if any(weight.is_inference() for weight in weights):
        raise TrainError(
            "the model was loaded in torch.inference_mode(), where weights can have no gradients; "
            "load it outside of that"
        )
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield
