"""Small stores of texts that can be read by eye, and a run that only knows its order."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from train.data import DataOrder, TokenStore


@dataclass(frozen=True)
class OrderedRun:
    """As much of a run as attribution asks for: a store, an order and a number of steps."""

    store: TokenStore
    order: DataOrder
    n_steps: int
    id: str = "0123456789ab"
    knowledge: str = "full"

    def steps_reading(self, document: int) -> np.ndarray:
        start = int(self.store.starts[document])
        return self.steps_reading_tokens(start, start + int(self.store.lengths[document]))

    def steps_reading_tokens(self, start: int, stop: int) -> np.ndarray:
        return self.order.steps_reading(start, stop, self.n_steps)


@pytest.fixture
def make_run() -> Callable[..., OrderedRun]:
    """`make_run(store, context, batch, n_steps)`."""

    def make(
        store: TokenStore, context: int = 4, batch: int = 2, n_steps: int | None = None
    ) -> OrderedRun:
        n_windows = (store.train_tokens - 1) // context
        epoch = -(-n_windows // batch)
        order = DataOrder(seed=1, n_windows=n_windows, context=context, batch=batch)
        return OrderedRun(store, order, 2 * epoch if n_steps is None else n_steps)

    return make


@pytest.fixture(scope="session")
def explicit_gradients() -> ModuleType:
    """`explicit_gradients.py` beside this file: gradients by autograd, one document at a time."""
    path = Path(__file__).parent / "explicit_gradients.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
