"""Numbers are computed as they were asked for, or not at all."""

import pytest
import torch

from train import numerics
from train.errors import RecipeError
from train.numerics import Numerics


GPU = Numerics("cuda", "fp32", 1)


@pytest.mark.parametrize("found", [None, "", ":0:0"])
def test_a_gpu_without_a_fixed_workspace_is_refused_in_one_line(monkeypatch, found):
    if found is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", found)
    before = torch.are_deterministic_algorithms_enabled()
    applied = numerics.applied(GPU)
    with pytest.raises(RecipeError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:8 .* before Python"):
        applied.__enter__()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_the_environment_is_left_as_it_is(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with numerics.applied(Numerics("cpu", "fp32", 1)):
        assert torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in numerics.os.environ


def test_a_device_that_is_not_here_becomes_the_cpu_for_looking_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert numerics.on_this_machine(GPU) == Numerics("cpu", "fp32", 1)
    with pytest.raises(RecipeError, match="has no CUDA device"):
        numerics.refuse_missing("cuda:1")
