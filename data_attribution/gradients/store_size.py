"""Cost estimate for collecting the gradients of many documents.

Bytes are counted. Seconds are measured: documents from all over the corpus are collected as a
sample (64, or 8 if these take over a second), and time is assumed to grow with targets. Attention
grows faster, so a corpus of long documents whose sample holds only short ones takes longer than
estimated.
"""

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from data_attribution.gradients import features, projection
from data_attribution.gradients.projection import RANK
from data_attribution.gradients.weight_selection import Selection
from train.data import TokenStore
from train.model import GPT
from train.progress import count


__all__ = ["SAMPLE", "StoreSize", "numbers", "plan_gradient_store", "size"]

SAMPLE, FEW = 64, 8  # documents that are timed; only a few of them if these take long
LONG = 1.0  # seconds


@dataclass(frozen=True)
class StoreSize:
    """The cost of collecting and storing gradients.

    Attributes:
        targets: Tokens that carry loss, over all documents.
        numbers: Numbers stored per document.
        bytes: Bytes on disk.
        seconds: Seconds on this machine, under its load during the measurement.
        sampled: Number of documents that were timed.
    """

    documents: int
    targets: int
    numbers: int
    sites: int
    bytes: int
    seconds: float
    sampled: int

    def __str__(self) -> str:
        took = (
            f"{self.seconds / 3600:.1f} hours" if self.seconds > 3600 else f"{self.seconds:.0f} s"
        )
        return (
            f"{count(self.documents, 'document')}, {count(self.targets, 'target')}, "
            f"{count(self.sites, 'site')}: "
            f"{count(self.numbers, 'number')} a document, {self.bytes / 2**20:,.1f} MiB, about "
            f"{took} ({count(self.sampled, 'document')} timed)"
        )


def plan_gradient_store(
    model: GPT,
    store: TokenStore,
    documents: Int64[np.ndarray, " document"],
    selection: Selection,
    *,
    rank: int = RANK,
) -> StoreSize:
    """Count the bytes, and time a sample of documents: fewer if eight of them take over a second.

    Examples:
        >>> selection = gradients.select_weights(model.cfg)
        >>> size = gradients.plan_gradient_store(model, store, np.arange(1000), selection)
        >>> size.documents, size.targets, size.bytes
        (1000, 19318, 5651000)
    """
    targets = store.lengths[documents] + 1

    def timed(n: int) -> tuple[Int64[np.ndarray, " some"], float]:
        some = np.unique(np.linspace(0, len(documents) - 1, n).astype(np.int64))
        begin = time.perf_counter()
        features.document_features(model, store, documents[some], selection, rank=rank)
        return some, time.perf_counter() - begin

    timed(1)  # the first call of a process is slower
    some, seconds = timed(FEW)
    if seconds < LONG and len(documents) > FEW:
        some, seconds = timed(SAMPLE)
    seconds *= float(targets.sum() / targets[some].sum())
    return StoreSize(
        documents=len(documents),
        targets=int(targets.sum()),
        numbers=numbers(selection, rank),
        sites=len(selection.sites),
        bytes=size(selection, len(documents), rank=rank),
        seconds=seconds,
        sampled=len(some),
    )


def numbers(selection: Selection, rank: int = RANK) -> int:
    """Return how many numbers a document takes."""
    return sum(int(np.prod(projection.shape(site, rank))) for site in selection.sites)


def size(selection: Selection, documents: int, *, rank: int = RANK) -> int:
    """Return the bytes on disk without the manifest.

    That is fp16 numbers, one exponent per site, and an 8-byte index per document.
    """
    return documents * (2 * numbers(selection, rank) + len(selection.sites) + 8)
