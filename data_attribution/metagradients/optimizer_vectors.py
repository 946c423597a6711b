"""The training state as three flat vectors: weights, first moments and second moments.

AdamW treats every number separately, so flat vectors are all that its formulas need, and one file
can hold a state. The order is that of `model.parameters()`, with tied weights once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from train.short_repr import short_repr
from train.trainer import TrainState


__all__ = ["Vectors", "decayed", "flat", "of_state", "put_back", "read", "split", "write"]

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Vectors:
    """A training state, or derivatives with respect to each of its entries, one row per query."""

    weights: Float[Tensor, "*question parameter"]
    first: Float[Tensor, "*question parameter"]
    second: Float[Tensor, "*question parameter"]

    __repr__ = short_repr


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " parameter"]:
    """Return the tensors joined end to end, as one vector."""
    return torch.cat([one.detach().reshape(-1) for one in tensors])


def split(vector: Float[Tensor, " parameter"], model: nn.Module) -> list[Tensor]:
    """Return views of a vector in the shapes of the model's parameters; the inverse of `flat`."""
    parameters = list(model.parameters())
    pieces = vector.split([one.numel() for one in parameters])
    return [piece.view_as(one) for piece, one in zip(pieces, parameters, strict=True)]


def decayed(model: nn.Module) -> Bool[Tensor, " parameter"]:
    """Return which weights decay: those of two axes or more, as in `train.trainer.adamw`."""
    return flat([torch.full_like(one, one.ndim >= 2) for one in model.parameters()]).bool()


def of_state(state: TrainState) -> Vectors:
    """Return a copy of the trainer's state; moments are zero before the first step."""
    parameters = list(state.model.parameters())
    moments = (
        flat(
            [
                state.optimizer.state.get(one, {}).get(key, torch.zeros_like(one))
                for one in parameters
            ]
        )
        for key in MOMENTS
    )
    return Vectors(flat(parameters), *moments)


@torch.no_grad()
def put_back(state: TrainState, vectors: Vectors, step: int) -> None:
    """Set `state` to what it was when `vectors` were taken from it, before `step`."""
    device, count = state.model.device, torch.tensor(float(step), dtype=torch.float32)
    parts = (split(one.to(device), state.model) for one in (vectors.first, vectors.second))
    weights = split(vectors.weights, state.model)
    for parameter, weight, *moments in zip(state.model.parameters(), weights, *parts, strict=True):
        parameter.copy_(weight)
        state.optimizer.state.pop(parameter, None)
        if step:
            kept = {key: one.clone() for key, one in zip(MOMENTS, moments, strict=True)}
            state.optimizer.state[parameter] = {"step": count.to(device).clone(), **kept}
    state.step = step


def write(path: Path, vectors: Vectors) -> None:
    """Write a state to a file of three fp32 vectors; temporary, so without digest and sync."""
    with path.open("wb") as file:
        for one in (vectors.weights, vectors.first, vectors.second):
            one.detach().cpu().numpy().tofile(file)


def read(path: Path, device: torch.device | str = "cpu") -> Vectors:
    """Read what `write` wrote."""
    whole = torch.from_numpy(np.fromfile(path, dtype=np.float32)).view(3, -1)
    return Vectors(*(one.to(device) for one in whole))
