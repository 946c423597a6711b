"""Windows of tokens to fit a lens to, and others to test it on.

By default they come from the held-out region of a token store, which no training step read, cut
into windows as training cuts them. The first 70 % are for fitting and the last for testing. One
window between the two is left out, so that adjacent tokens of a document are not on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import ModelError
from train.data import IGNORED, RecordedOrder, TokenStore, read_batch
from train.short_repr import short_repr


__all__ = ["LensTokens", "held_out_tokens", "training_tokens"]

SHARE_TO_FIT = 0.7
# Minimum number of windows: with fewer than two to test on there is no interval.
FEWEST = 4


@dataclass(frozen=True, eq=False)
class LensTokens:
    """Windows of tokens, of which the first `n_fit` are for fitting.

    Attributes:
        tokens: Input tokens.
        next_tokens: Target of each input token; `train.data.IGNORED` where there is no loss.
        region: "held-out" or "training".
        fingerprint: Fingerprint of the token store.
        n_fit: Number of windows, from the first on, that are for fitting.
    """

    tokens: Int[Tensor, "window pos"]
    next_tokens: Int[Tensor, "window pos"]
    region: str
    fingerprint: str
    n_fit: int

    __repr__ = short_repr

    @property
    def context(self) -> int:
        """Number of tokens in a window."""
        return self.tokens.shape[1]

    @property
    def largest(self) -> int:
        """Largest token id."""
        return int(self.tokens.max())

    @property
    def to_test(self) -> range:
        """Indices of the windows for testing; window `n_fit` belongs to neither side."""
        return range(self.n_fit + 1, len(self.tokens))

    def targets(self, rows: Sequence[int]) -> int:
        """Count the targets with loss in some of the windows."""
        return int((self.next_tokens[list(rows)] != IGNORED).sum())

    def batch(
        self, rows: Sequence[int], device: torch.device
    ) -> tuple[Int[Tensor, "window pos"], Bool[Tensor, "window pos"]]:
        """Return the inputs of some windows, and which of their positions have a target."""
        counted = self.next_tokens[list(rows)] != IGNORED
        return self.tokens[list(rows)].to(device), counted.to(device)


def held_out_tokens(store: TokenStore, context: int, *, limit: int = 2048) -> LensTokens:
    """Cut the held-out region of a token store into at most `limit` windows.

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
    """Choose at most `limit` windows, spread evenly over the training tokens of a token store.

    Raises:
        ModelError: The training tokens are fewer than four windows.

    Examples:
        >>> windows = lenses.training_tokens(store, 64, limit=16)
        >>> windows.region, tuple(windows.tokens.shape), windows.n_fit
        ('training', (16, 64), 11)
    """
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
