"""Weights of foreign files: known by name, type and shape at once, and read one piece at a time.

So a model is filled without a second copy of its weights in memory. Tensors that are no weights are
left out, and prefixes that wrappers gave to all names are removed. Numbers are checked when they
are read.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from train import storage
from train.errors import DamagedError
from train.short_repr import short_repr


__all__ = ["ForeignTensor", "Weights", "check_finite", "mapped_weights", "safetensors_weights"]
__all__ += ["zeros"]

# Masks and angles that older versions saved with the weights; the model recomputes them.
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
NOT_WEIGHTS += (".attention.bias", ".attention.masked_bias")
# Prefixes of torch.compile and of torch's wrappers for several devices.
WRAPPERS = ("_orig_mod.", "module.")
MAPPED = 1 << 25  # bytes that are read of a mapped file before it is mapped anew


@dataclass(frozen=True)
class ForeignTensor:
    """One tensor of a file.

    Attributes:
        path: The file.
        name: Its name there.
        pieces: Function that yields some rows at a time, with the number of the first one.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[tuple[int, Tensor]]]

    __repr__ = short_repr

    @torch.no_grad()
    def copy_to(self, place: Tensor) -> None:
        """Copy the numbers to a tensor of the same number of them, in its type.

        A place with other axes gets them in the same order, from one copy of the tensor in memory.

        Raises:
            DamagedError: A number is not finite; the message says how many are.
        """
        whole = None if place.shape == self.shape else torch.empty(self.shape, dtype=place.dtype)
        rows, odd = torch.atleast_1d(place if whole is None else whole), 0
        for first, piece in self.pieces():
            odd += _n_not_finite(piece)
            rows[first : first + len(piece)].copy_(piece)
        if whole is not None:
            place.copy_(whole.view(place.shape))
        if odd:
            raise _not_finite(self.path, self.name, odd, prod(self.shape))

    def equals(self, other: "ForeignTensor | Tensor") -> bool:
        """Return whether all numbers are those of another tensor, read together with this one."""
        if other.shape != self.shape:
            return False
        if isinstance(other, ForeignTensor):
            pairs = zip(self.pieces(), other.pieces(), strict=True)
            return self.dtype == other.dtype and all(
                torch.equal(one, two) for (_, one), (_, two) in pairs
            )
        rows = torch.atleast_1d(other)
        return all(
            torch.equal(piece.to(other.dtype), rows[first : first + len(piece)])
            for first, piece in self.pieces()
        )


Weights = dict[str, ForeignTensor]


@contextmanager
def safetensors_weights(paths: Sequence[Path]) -> Iterator[Weights]:
    """Yield the weights of several files. A tensor may be in two files if it is the same in both.

    Raises:
        DamagedError: A file is missing or no safetensors, two files have one tensor with two
            values, or a weight is no floating-point tensor.
    """
    found: Weights = {}
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(storage.TensorFile(path))
            for name, entry in file.entries.items():
                pieces = partial(file.pieces, name)
                one = ForeignTensor(path, name, entry.dtype, entry.shape, pieces)
                if name in found and not found[name].equals(one):
                    raise DamagedError(
                        f"{path}: {name} has another value here than in another shard"
                    )
                found[name] = one
        yield _weights_among(found)


def mapped_weights(path: Path, read: Callable[[], Mapping[str, Tensor]]) -> Weights:
    """Return the weights of a pickle that `read` opens and maps into memory.

    It is called again after every 32 MB, because pages stay in memory while they are mapped.

    Raises:
        DamagedError: A weight is no floating-point tensor, or is not stored as such.
    """
    mapped = _Mapped(read, again=zipfile.is_zipfile(path))
    for name, one in mapped.tensors.items():
        if one.layout is not torch.strided or one.device.type != "cpu":
            raise DamagedError(
                f"{path}: {name} is a {one.layout} tensor on {one.device}, not dense"
            )
    found = {
        name: ForeignTensor(path, name, one.dtype, tuple(one.shape), partial(mapped.pieces, name))
        for name, one in mapped.tensors.items()
    }
    return _weights_among(found)


def zeros(path: Path, name: str, n_rows: int) -> ForeignTensor:
    """Return a vector of zeros that stands for a bias that a file does not have."""
    return ForeignTensor(
        path,
        name,
        torch.float32,
        (n_rows,),
        lambda: iter([(0, torch.zeros(n_rows, dtype=torch.float32))]),
    )


def check_finite(weights: Tensor, name: str, path: Path) -> None:
    """Raise a DamagedError, which says how many are not, unless all numbers are finite."""
    if odd := _n_not_finite(weights):
        raise _not_finite(path, name, odd, weights.numel())


def _n_not_finite(weights: Tensor) -> int:
    weights = weights.float()
    if weights.sum().isfinite():
        return 0
    # A sum of finite numbers may not be finite, either.
    return weights.numel() - int(weights.isfinite().sum())


def _not_finite(path: Path, name: str, n_odd: int, n_all: int) -> DamagedError:
    return DamagedError(f"{path}: {name} holds NaN or infinite numbers ({n_odd:,} of {n_all:,})")


class _Mapped:
    def __init__(self, read: Callable[[], Mapping[str, Tensor]], *, again: bool) -> None:
        self.read, self.again = read, again  # files of torch's older form are not mapped
        self.tensors, self.n_read = read(), 0

    def pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        n_rows = len(torch.atleast_1d(self.tensors[name]))
        most = max(1, MAPPED * n_rows // max(1, self.tensors[name].nbytes))
        for first in range(0, n_rows, most):
            if self.again and self.n_read >= MAPPED:
                self.tensors = {}  # unmapped, before it is mapped anew
                self.tensors, self.n_read = self.read(), 0
            piece = torch.atleast_1d(self.tensors[name])[first : first + most]
            self.n_read += piece.nbytes
            yield first, piece


def _weights_among(tensors: Weights) -> Weights:
    """Return the weights among some tensors, without the prefix of a wrapper."""
    kept = {name: one for name, one in tensors.items() if not name.endswith(NOT_WEIGHTS)}
    for prefix in WRAPPERS:
        if kept and all(name.startswith(prefix) for name in kept):
            kept = {name.removeprefix(prefix): one for name, one in kept.items()}
    for name, one in kept.items():
        if not one.dtype.is_floating_point:
            kind = str(one.dtype).removeprefix("torch.")
            raise DamagedError(f"{one.path}: {name} holds {kind}, and weights are floating-point")
    return kept
