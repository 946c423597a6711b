"""A run without weights, as attribution and tracing read it."""

from dataclasses import dataclass

import numpy as np

from train.data import DocumentRemoval, Order, TokenStore


@dataclass(frozen=True)
class OrderedRun:
    """A store, an order and a number of steps. A removal is named, and its documents stay read."""

    store: TokenStore
    order: Order
    steps_done: int
    removal: DocumentRemoval | None = None
    id: str = "0123456789ab"
    knowledge: str = "full"

    def steps_reading(self, document: int) -> np.ndarray:
        start = int(self.store.starts[document])
        return self.steps_reading_tokens(start, start + int(self.store.lengths[document]))

    def steps_learned(self, document: int) -> np.ndarray:
        return self.steps_reading(document)

    def steps_reading_tokens(self, start: int, stop: int) -> np.ndarray:
        return self.order.steps_reading(start, stop, self.steps_done)
