"""What every test may ask for."""

import os
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real corpora, which lies beside the checkout and is never part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no reference data at {SHARED_DATA.parent.name}/{SHARED_DATA.name}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests share the machine: more threads than cores makes them many times slower."""
    import torch

    torch.set_num_threads(1)
