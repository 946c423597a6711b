"""From an order and a store to the tensors of one step.

One gather a step from the memory-mapped stream. A target that is end-of-text right after an
end-of-text is padding and carries no loss; no mask is stored, because the tokens say it. That rule
also carries the exact counterfactual: a removed document is blanked to end-of-text, so its targets
lose their weight by themselves, while order, shapes, positions, steps and the loss's divisor stay.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from train.data.data_order import Order
from train.data.token_store import TokenStore
from train.errors import StoreError


__all__ = ["IGNORED", "Batch", "DocumentRemoval", "batches_ahead", "read_batch"]

IGNORED = -100  # a target without loss: what torch's cross entropy skips


@dataclass(frozen=True)
class DocumentRemoval:
    """Documents taken out of training, and how.

    Attributes:
        documents: Indices in the document table, ascending.
        mode: `blank` turns their tokens into end-of-text, so nothing of them is seen even as
            context; `loss` leaves them as context and takes only their loss away.
    """

    documents: tuple[int, ...]
    mode: str = "blank"

    def __post_init__(self) -> None:
        if self.mode not in ("blank", "loss"):
            raise StoreError(f"documents are removed by 'blank' or 'loss', not by {self.mode!r}")
        if list(self.documents) != sorted(set(self.documents)):
            raise StoreError("the documents to remove must be ascending and without repeats")

    def joined(self, earlier: "DocumentRemoval | None") -> "DocumentRemoval":
        """This removal from a run that already lacks what `earlier` removed.

        Raises:
            StoreError: The two remove in different ways, and a run has one.
        """
        if earlier is None:
            return self
        if earlier.mode != self.mode:
            raise StoreError(
                f"the run already lacks {len(earlier.documents)} documents, removed by "
                f"{earlier.mode!r}; {len(self.documents)} more cannot be removed by {self.mode!r}: "
                f"use {earlier.mode!r}, or begin at the run it was trained from"
            )
        return DocumentRemoval(tuple(sorted({*earlier.documents, *self.documents})), self.mode)

    def covers(
        self, store: TokenStore, offsets: Int64[np.ndarray, "batch pos"]
    ) -> Bool[np.ndarray, "batch pos"]:
        """Which token offsets belong to a removed document or to the end-of-text behind it."""
        documents = np.array(self.documents, dtype=np.int64)
        starts = store.starts[documents]
        stops = starts + store.lengths[documents] + 1
        nearest = np.searchsorted(starts, offsets, side="right") - 1
        return (nearest >= 0) & (offsets < stops[nearest])


@dataclass(frozen=True)
class Batch:
    """The windows of one step.

    Attributes:
        divisor: Targets that carried loss before anything was removed.
        digest: sha256 (16 hex) of the windows' offsets and tokens as they lie in the store.
    """

    step: int
    inputs: Int64[Tensor, "batch pos"]
    targets: Int64[Tensor, "batch pos"]
    divisor: int
    digest: str

    def parts(self, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of at most `size` windows, in order."""
        size = size or len(self.inputs)
        yield from zip(self.inputs.split(size), self.targets.split(size), strict=True)


def read_batch(
    store: TokenStore, order: Order, step: int, removal: DocumentRemoval | None = None
) -> Batch:
    """The batch of `step`; the same whenever, and by whatever process, it is asked for."""
    starts = order.starts(step)
    offsets = starts[:, None] + np.arange(order.context + 1)
    tokens = np.asarray(store.tokens[offsets])
    digest = hashlib.sha256(starts.astype("<i8").tobytes() + tokens.tobytes())
    tokens = tokens.astype(np.int64)
    divisor = int(_counted(tokens, store.eot).sum())
    removed = None
    if removal is not None and removal.documents:
        removed = removal.covers(store, offsets)
        if removal.mode == "blank":
            tokens[removed] = store.eot
    counted = _counted(tokens, store.eot)
    if removed is not None:
        counted &= ~removed[:, 1:]
    targets = np.where(counted, tokens[:, 1:], IGNORED)
    return Batch(
        step=step,
        inputs=torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])),
        targets=torch.from_numpy(targets),
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
    """The batches of `steps`, read by `workers` threads ahead of the trainer (0: inline).

    A batch is a pure function of its step, so the number of workers changes no bit of it.
    """
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


def _counted(tokens: Int64[np.ndarray, "batch pos"], eot: int) -> Bool[np.ndarray, "batch target"]:
    padding = (tokens[:, 1:] == eot) & (tokens[:, :-1] == eot)
    return ~padding
