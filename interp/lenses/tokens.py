"""Tokens to fit a lens to, and other tokens to test it on.

The held-out region of a token store, which no step of training read, cut into windows as training
cuts them. The first part is for fitting, the last for testing, and a window between the two is left
out, so that no document's neighbour tokens lie on both sides of a cut by chance of a few words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import ModelError
from train.data import IGNORED, RecordedOrder, TokenStore, read_batch


__all__ = ["LensTokens", "held_out_tokens", "training_tokens"]

SHARE_TO_FIT = 0.7
# Below two windows to test on there is no interval.
FEWEST = 4


@dataclass(frozen=True, eq=False)
class LensTokens:
    """Windows of tokens, the first `n_fit` to fit to.

    Attributes:
        tokens: Inputs.
        next_tokens: What follows each; `objectives.IGNORED` where nothing counts.
        region: "held-out" or "training".
        fingerprint: Of the store.
        n_fit: Windows from 0 on that may be fitted to.
    """

    tokens: Int[Tensor, "window pos"]
    next_tokens: Int[Tensor, "window pos"]
    region: str
    fingerprint: str
    n_fit: int

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.tokens.shape[1]

    @property
    def largest(self) -> int:
        """The largest token id."""
        return int(self.tokens.max())

    @property
    def to_test(self) -> range:
        """Windows that nothing was fitted to; the one after `n_fit` belongs to neither side."""
        return range(self.n_fit + 1, len(self.tokens))

    def targets(self, rows: Sequence[int]) -> int:
        """Targets that count in some windows."""
        return int((self.next_tokens[list(rows)] != IGNORED).sum())

    def batch(
        self, rows: Sequence[int], device: torch.device
    ) -> tuple[Int[Tensor, "window pos"], Bool[Tensor, "window pos"]]:
        """Inputs, and which positions count."""
        counted = self.next_tokens[list(rows)] != IGNORED
        return self.tokens[list(rows)].to(device), counted.to(device)


def held_out_tokens(store: TokenStore, context: int, *, limit: int = 2048) -> LensTokens:
    """The held-out region, at most `limit` windows of it.

    Raises:
        ModelError: The store holds out fewer than four windows.
    """
    first = store.train_tokens - 1
    starts = np.arange(first, store.n_tokens - context, context)[:limit]
    if len(starts) < FEWEST:
        raise ModelError(
            f"{store.path} holds out {store.n_tokens - store.train_tokens:,} of "
            f"{store.n_tokens:,} tokens, {len(starts)} windows of {context}, and a lens needs "
            f"{FEWEST}; build the store with --held-out, or say --train-tokens to fit to tokens "
            "that the model was trained on"
        )
    return _cut(store, starts, context, "held-out")


def training_tokens(store: TokenStore, context: int, *, limit: int = 2048) -> LensTokens:
    """Windows spread evenly over the tokens that may have been trained on."""
    n_windows = (store.train_tokens - 1) // context
    if n_windows < FEWEST:
        raise ModelError(
            f"{store.path} has {store.train_tokens:,} training tokens, {n_windows} windows of "
            f"{context}, and a lens needs {FEWEST}"
        )
    chosen = np.linspace(0, n_windows - 1, min(n_windows, limit)).astype(np.int64)
    return _cut(store, chosen * context, context, "training")


def _cut(store: TokenStore, starts: np.ndarray, context: int, region: str) -> LensTokens:
    read = read_batch(store, RecordedOrder(starts[None], context), 0)
    n_fit = min(max(1, int(SHARE_TO_FIT * len(starts))), len(starts) - 3)
    return LensTokens(read.inputs, read.targets, region, store.fingerprint, n_fit)
