"""Batches: the tensors of one training step, read from a token store in a data order.

A batch is one gather from the memory-mapped tokens. A target that is an end-of-text directly after
an end-of-text is padding and carries no loss; the tokens show this, so no mask is stored. The same
rule removes documents exactly: the tokens of a removed document become end-of-text, so its targets
carry no loss, while order, shapes, positions, steps and the divisor of the loss do not change. In a
tuning store the prompts carry no loss either (`TokenStore.carries_loss`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from train.data.data_order import Order
from train.data.document_removal import DocumentRemoval
from train.data.token_store import TokenStore
from train.errors import OrderError
from train.short_repr import short_repr


__all__ = ["IGNORED", "Batch", "batches_ahead", "read_batch"]

MOST_WORKERS = 256
IGNORED = -100  # marks a target without loss; torch's cross entropy skips it


@dataclass(frozen=True)
class Batch:
    """The windows of one step.

    Attributes:
        starts: Offset in the store at which each window begins.
        divisor: Number of targets that carry loss when no document is removed.
        digest: First 16 hex digits of the sha256 over the windows' offsets and their tokens as
            stored, before any removal.
    """

    step: int
    inputs: Int64[Tensor, "batch pos"]
    targets: Int64[Tensor, "batch pos"]
    starts: Int64[Tensor, " batch"]
    divisor: int
    digest: str

    __repr__ = short_repr

    def parts(self, size: int | None) -> Iterator["Batch"]:
        """Yield micro-batches of at most `size` windows, in order; divisor and digest stay."""
        size = size or len(self.inputs)
        for first in range(0, len(self.inputs), size):
            yield self._windows(slice(first, first + size))

    def shares(self, count: int) -> list["Batch"]:
        """Return `count` batches with neighbouring windows of this one; divisor and digest stay.

        If the windows cannot be divided evenly, the first shares have one more.
        """
        shares = torch.arange(len(self.inputs)).tensor_split(count)
        return [self._windows(slice(int(one[0]), int(one[-1]) + 1)) for one in shares]

    def to(self, device: str | torch.device) -> "Batch":
        """Return the batch with inputs and targets on `device`."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def _windows(self, which: slice) -> "Batch":
        return replace(
            self,
            inputs=self.inputs[which],
            targets=self.targets[which],
            starts=self.starts[which],
        )


def read_batch(
    store: TokenStore, order: Order, step: int, removal: DocumentRemoval | None = None
) -> Batch:
    """Read the batch of `step`; the result depends on the arguments alone.

    Examples:
        >>> batch = data.read_batch(store, run.order, 0)
        >>> batch.inputs.shape, batch.divisor
        (torch.Size([32, 64]), 2002)
        >>> batch.digest == run.ledger[0].digest
        True
    """
    starts = order.starts(step)
    offsets = starts[:, None] + np.arange(order.context + 1)
    tokens = np.asarray(store.tokens[offsets])
    digest = hashlib.sha256(starts.astype("<i8").tobytes() + tokens.tobytes())
    tokens = tokens.astype(np.int64)
    learned = store.carries_loss(offsets[:, 1:])
    divisor = int((counted_targets(tokens, store.eot) & learned).sum())
    removed = None
    if removal is not None and removal.documents:
        removed = removal.covers(store, offsets)
        tokens = removal.blanked(tokens, removed, store.eot)
    counted = counted_targets(tokens, store.eot) & learned
    if removed is not None:
        counted &= ~removed[:, 1:]
    targets = np.where(counted, tokens[:, 1:], IGNORED)
    return Batch(
        step=step,
        inputs=torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])),
        targets=torch.from_numpy(targets),
        starts=torch.from_numpy(starts.astype(np.int64)),
        divisor=max(divisor, 1),
        digest=digest.hexdigest()[:16],
    )


def batches_ahead(
    store: TokenStore,
    order: Order,
    steps: Sequence[int],
    removal: DocumentRemoval | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of `steps`, read in advance by `workers` threads (0: in this thread).

    A batch is a pure function of its step, so the number of workers does not change it.

    Raises:
        OrderError: More threads are asked for than a machine can use.

    Examples:
        >>> batches = data.batches_ahead(store, run.order, range(2))
        >>> [batch.digest == row.digest for batch, row in zip(batches, run.ledger)]
        [True, True]
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise OrderError(f"{workers} data workers are asked for; choose from 0 to {MOST_WORKERS}")
    if workers == 0:
        for step in steps:
            yield read_batch(store, order, step, removal)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for step in steps:
            pending.append(pool.submit(read_batch, store, order, step, removal))
            if len(pending) > 2 * workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def counted_targets(
    tokens: Int64[np.ndarray, "batch pos"], eot: int
) -> Bool[np.ndarray, "batch target"]:
    padding = (tokens[:, 1:] == eot) & (tokens[:, :-1] == eot)
    return ~padding
