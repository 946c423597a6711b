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


@pytest.mark.parametrize("asked", [0, -1, 1025, 1_000_000])
@pytest.mark.parametrize("name", ["threads", "world_size"])
def test_more_threads_or_processes_than_a_machine_has_are_refused(name, asked):
    with pytest.raises(RecipeError, match=f"{asked} (threads|processes) are asked for; choose"):
        Numerics(**{"device": "cpu", "precision": "fp32", "threads": 1, name: asked})


@pytest.fixture
def products(monkeypatch):
    """Set the seconds that each product takes by its type; the result counts the products."""
    counted: list[str] = []
    clock = [0.0]
    matmul = torch.Tensor.__matmul__

    def slow_as(seconds: dict[str, float]) -> list[str]:
        def multiply(left, right):
            kind = str(left.dtype).removeprefix("torch.")
            counted.append(kind)
            clock[0] += seconds[kind] * left.numel() * right.shape[1] / (768 * 512 * 512)
            return matmul(left.float(), right.float()).to(left.dtype)

        monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
        monkeypatch.setattr(numerics.time, "process_time", lambda: clock[0])
        return counted

    slow_as.clock = clock  # pyright: ignore[reportFunctionMemberAccess]
    return slow_as


@pytest.mark.parametrize(
    ("seconds", "precision", "most_seconds"),
    [
        ({"float64": 0.02, "float32": 0.005, "bfloat16": 0.002}, "bf16", 0.25),
        ({"float64": 0.02, "float32": 0.005, "bfloat16": 0.5}, "fp32", 0.4),
        # A slow processor without bf16: a whole product of it is never begun.
        ({"float64": 0.4, "float32": 0.2, "bfloat16": 20.0}, "fp32", 1.6),
    ],
)
def test_the_measurement_of_precisions_is_bounded_on_a_slow_processor(
    products, seconds, precision, most_seconds
):
    counted = products(seconds)
    how = numerics.choose(device="cpu", threads=1)
    assert how.precision == precision
    assert 0 < products.clock[0] < most_seconds
    assert len(counted) < 80
