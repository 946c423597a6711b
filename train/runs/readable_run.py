"""The part of a run that tells what it read and when, without its weights."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from train.data import Order, TokenStore


__all__ = ["ReadableRun"]


@runtime_checkable
class ReadableRun(Protocol):
    """A run as far as its data goes: store, order, and the steps that read a document.

    Tracing and word-based attribution need no more than this; gradients need a whole `Run`.

    Attributes:
        steps_done: Number of steps that have been done.
        removal: The `DocumentRemoval` of a counterfactual run, else None. Its type is Any, because
            type checkers do not accept a cached property here.
    """

    @property
    def id(self) -> str: ...
    @property
    def knowledge(self) -> str: ...
    @property
    def store(self) -> TokenStore: ...
    @property
    def order(self) -> Order: ...
    @property
    def steps_done(self) -> int: ...
    @property
    def removal(self) -> Any: ...

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]:
        """Return the steps done so far with a token of the document as target, ascending."""
        ...

    def steps_learned(self, document: int) -> Int64[np.ndarray, " step"]:
        """Return the steps before the last checkpoint with such a target, ascending."""
        ...

    def steps_reading_tokens(self, start: int, stop: int) -> Int64[np.ndarray, " step"]:
        """Return the steps done so far with a target in tokens [start, stop), ascending."""
        ...
