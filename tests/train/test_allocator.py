"""Training keeps freed memory and returns it at the end."""

import platform
import sys
from contextlib import ExitStack

import pytest
import torch

from train.allocator import memory_reuse
from train.numerics import Numerics, applied


# Above the largest block that glibc keeps of its own accord.
SIZE = 48 * 2**20


def faults(n: int = 4) -> int:
    """Page faults of allocating and freeing a large tensor `n` times, when there is room for it."""
    import resource

    for _ in range(4):
        torch.ones(SIZE // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc only"
)


@glibc
def test_freed_memory_is_used_again_and_returned_at_the_end():
    with applied(Numerics("cpu", "fp32", 1)):
        inside = faults()
    assert inside < 10
    assert faults() > 2 * inside + 20  # a page of any size is cleared each time


@glibc
def test_the_last_of_several_users_returns_the_memory():
    with ExitStack() as outer:
        outer.enter_context(memory_reuse())
        with memory_reuse():
            pass
        assert faults() < 10
    assert faults() > 40


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with memory_reuse():
        assert torch.ones(3).sum() == 3
