"""What the gradients of many documents will take, before they are collected.

Bytes are counted, seconds are measured: some documents from all over the corpus are collected, and
time is taken to grow with targets (attention grows faster; a corpus of long documents whose sample
holds only short ones takes longer than is said here).
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


__all__ = ["SAMPLE", "Plan", "numbers", "plan_gradient_store", "size"]

SAMPLE = 64


@dataclass(frozen=True)
class Plan:
    """The cost of collecting and keeping gradients.

    Attributes:
        targets: Tokens that carry loss, over all documents.
        numbers: Of one document.
        bytes: On disk.
        seconds: On this machine, as it was busy when it was measured.
        sampled: Documents that were timed.
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
            f"{self.documents:,} documents, {self.targets:,} targets, {self.sites} sites: "
            f"{self.numbers:,} numbers a document, {self.bytes / 2**20:,.1f} MiB, about {took} "
            f"({self.sampled} documents timed)"
        )


def plan_gradient_store(
    model: GPT,
    store: TokenStore,
    documents: Int64[np.ndarray, " document"],
    selection: Selection,
    *,
    rank: int = RANK,
) -> Plan:
    """Count the bytes, and time some documents."""
    targets = store.lengths[documents] + 1
    some = np.unique(np.linspace(0, len(documents) - 1, SAMPLE).astype(np.int64))
    features.document_features(model, store, documents[some[:1]], selection, rank=rank)
    begin = time.perf_counter()
    features.document_features(model, store, documents[some], selection, rank=rank)
    seconds = (time.perf_counter() - begin) * float(targets.sum() / targets[some].sum())
    return Plan(
        documents=len(documents),
        targets=int(targets.sum()),
        numbers=numbers(selection, rank),
        sites=len(selection.sites),
        bytes=size(selection, len(documents), rank=rank),
        seconds=seconds,
        sampled=len(some),
    )


def numbers(selection: Selection, rank: int = RANK) -> int:
    """How many numbers a document takes."""
    return sum(int(np.prod(projection.shape(site, rank))) for site in selection.sites)


def size(selection: Selection, documents: int, *, rank: int = RANK) -> int:
    """Bytes on disk: fp16, an exponent a site and an index a document; the manifest aside."""
    return documents * (2 * numbers(selection, rank) + len(selection.sites) + 8)
