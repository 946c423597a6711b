"""What is quick to differentiate twice is torch's own function, with both its derivatives."""

from functools import partial

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_attribution.metagradients import backward_step, double_backward, optimizer_vectors
from train.data import Batch
from train.model import GPTConfig, init_gpt


ARCHITECTURES = {
    "gpt2": GPTConfig(2, 2, 8, 6, 11, init_std=0.3),
    "planted": GPTConfig(2, 2, 8, 6, 11, init_std=0.3, mlp="gelu-tanh"),
    "no biases": GPTConfig(2, 2, 8, 6, 11, init_std=0.3, mlp="gelu-tanh", bias=False, tie=False),
    "llama": GPTConfig(
        2, 4, 16, 6, 11, norm="rmsnorm", mlp="swiglu", position="rope", tie=False, bias=False,
        n_key_value_heads=2, init_std=0.3,
    ),
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()


def checked(function, *inputs: torch.Tensor) -> bool:
    return torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(
        function, inputs
    )


def test_gelu():
    x = torch.linspace(-9, 9, 61, dtype=torch.float64, requires_grad=True)
    assert torch.equal(double_backward.gelu_tanh(x), functional.gelu(x, approximate="tanh"))
    assert checked(double_backward.gelu_tanh, x)


@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(biased):
    inputs = (drawn(2, 3, 5), drawn(5, seed=1), drawn(5, seed=2))[: 2 + biased]

    def quick(x, gain, bias=None):
        return double_backward.layer_norm(x, gain, bias, 1e-3)

    expected = functional.layer_norm(inputs[0], (5,), *inputs[1:], eps=1e-3)
    assert torch.equal(quick(*inputs), expected)
    assert checked(quick, *inputs)


def test_the_loss_of_every_target():
    logits, targets = drawn(2, 3, 7), torch.tensor([[0, 6, -100], [-100, 2, 2]])
    found = double_backward.target_losses(logits, targets)
    expected = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    assert checked(partial(double_backward.target_losses, targets=targets), logits)


def test_a_linear_map_whose_gradient_is_differentiated_and_not_read():
    inputs = drawn(2, 3, 5), drawn(4, 5, seed=1), drawn(4, seed=2)
    quick, expected = double_backward.linear(*inputs), functional.linear(*inputs)
    assert torch.equal(quick, expected)
    above = drawn(2, 3, 4, seed=3)
    read = torch.autograd.grad(quick, inputs, above, retain_graph=True)
    for one, other in zip(read, torch.autograd.grad(expected, inputs, above), strict=True):
        torch.testing.assert_close(one, other)
    _, *unread = torch.autograd.grad(quick, inputs, above, create_graph=True)
    assert all(one.isnan().all() for one in unread)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_quickened_model_has_torchs_values_gradients_and_curvature(name):
    """fp64; torch's own double backward through its own attention is the oracle."""
    plain, quick = (init_gpt(ARCHITECTURES[name], 5).double() for _ in range(2))
    double_backward.quicken(quick)
    tokens = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(3))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[1, 2] = -100
    with sdpa_kernel(SDPBackend.MATH):
        logits = plain(inputs)
        assert torch.equal(quick(inputs), logits)
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    share = torch.ones_like(losses).requires_grad_()
    loss, parameters = (losses * share).sum() / 23, list(plain.parameters())
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    pull = drawn(2, sum(one.numel() for one in parameters), seed=4).detach()
    found = backward_step.through_loss(
        quick, Batch(0, inputs, targets, torch.arange(len(inputs)), 23, ""), pull, windows=3
    )
    for direction, curved, weighed in zip(pull, *found, strict=True):
        *expected, on_targets = torch.autograd.grad(
            gradient, [*parameters, share], optimizer_vectors.split(direction, plain),
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        torch.testing.assert_close(curved, optimizer_vectors.flat(expected), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weighed, on_targets, rtol=1e-9, atol=1e-12)
    read = torch.autograd.grad(quick(inputs).square().sum(), list(quick.parameters()))
    for one, other in zip(
        read, torch.autograd.grad(plain(inputs).square().sum(), parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
