"""Small stores of texts that can be read by eye, and a run that only knows its order."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.data_attribution.ordered_run import OrderedRun
from train.data import DataOrder, TokenStore


@pytest.fixture
def make_run() -> Callable[..., OrderedRun]:
    """`make_run(store, context, batch, steps_done)`."""

    def make(
        store: TokenStore, context: int = 4, batch: int = 2, steps_done: int | None = None
    ) -> OrderedRun:
        n_windows = (store.train_tokens - 1) // context
        epoch = -(-n_windows // batch)
        order = DataOrder(seed=1, n_windows=n_windows, context=context, batch=batch)
        return OrderedRun(store, order, 2 * epoch if steps_done is None else steps_done)

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
