"""Training asks the C library to keep freed memory, and to return it at the end.

What that saves is measured by `benchmarks/training.py`. Page faults are not counted here: whether
the kernel counts them, and how large a page is, differs from machine to machine.
"""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from train.allocator import (
    ADAPTED_MMAP,
    ADAPTED_TRIM,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    MOST,
    memory_reuse,
)
from train.numerics import Numerics, applied


KEEP = [("mallopt", M_MMAP_THRESHOLD, MOST), ("mallopt", M_TRIM_THRESHOLD, MOST)]
RETURN = [
    ("mallopt", M_MMAP_THRESHOLD, ADAPTED_MMAP),
    ("mallopt", M_TRIM_THRESHOLD, ADAPTED_TRIM),
    ("malloc_trim", 0),
]


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the C library, in order."""
    made: list[tuple] = []
    library = SimpleNamespace(
        mallopt=lambda *values: made.append(("mallopt", *values)) or 1,
        malloc_trim=lambda *values: made.append(("malloc_trim", *values)) or 1,
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return made


def test_freed_memory_is_kept_during_training_and_returned_at_the_end(calls):
    with applied(Numerics("cpu", "fp32", 1)):
        assert calls == KEEP
    assert calls == [*KEEP, *RETURN]


def test_the_last_of_several_users_returns_the_memory(calls):
    with memory_reuse():
        with memory_reuse():
            pass
        assert calls == KEEP
    assert calls == [*KEEP, *RETURN]


def test_an_error_returns_the_memory_too(calls):
    with pytest.raises(KeyError), memory_reuse():
        raise KeyError
    assert calls == [*KEEP, *RETURN]


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with memory_reuse():
        assert torch.ones(3).sum() == 3
