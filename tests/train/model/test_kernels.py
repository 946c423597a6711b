"""The kernels of training compute what torch's own compute, and only where a run says so."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from train import numerics, trainer
from train.errors import RecipeError
from train.model import PRESETS, GPTConfig, init_gpt, kernels, preset
from train.numerics import Numerics
from train.runs import open as open_run
from train.trainer import next_token_loss


NEW = Numerics("cpu", "fp32", 1, kernels=2)
SMALL: dict[str, Any] = {
    "n_layers": 2, "n_heads": 2, "d_model": 16, "n_ctx": 100, "d_vocab": 50, "init_std": 0.2
}  # fmt: skip
CONFIGS = {
    "gpt2": GPTConfig(**SMALL),
    "post-norm": GPTConfig(**SMALL, norm_placement="post", mlp="gelu"),
    "grouped": GPTConfig(**SMALL, n_key_value_heads=1, position="rope", norm="rmsnorm"),
    "parts": GPTConfig(**SMALL, qk_norm=True, exclusive="learned", head_gate=True),
    "sinks": GPTConfig(**SMALL, sinks="logit"),
    "all see all": GPTConfig(**SMALL, causal=False),
}
# The presets whose networks train in a test; the large ones differ from them in size only.
CONFIGS |= {
    name: replace(cfg, n_ctx=100, d_vocab=50)
    for name in PRESETS
    if (cfg := preset(name)).n_layers * cfg.d_model**2 < 3e5 and cfg.n_ctx >= 64
}


def gradients(model, number, precision="fp32"):
    """Return loss and gradients of one batch with the kernels of this number."""
    length = model.cfg.n_ctx + 1
    tokens = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(1))
    how = replace(NEW, precision=precision)
    with numerics.applied(how), how.autocast(), kernels.use_kernels(number):
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:], 300)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.detach(), dict(zip(parameters, found, strict=True))


def distance(one, other=None):
    """Return the norm of the difference of two gradients, or of one."""
    pairs = [(one[key], other[key] if other else 0.0) for key in one if one[key] is not None]
    return sum(float((left - right).square().sum()) for left, right in pairs) ** 0.5


def rounding(one, other):
    """Return the largest difference as a share of the largest value.

    What is nearly zero is a difference of larger values, and depends on the processor.
    """
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_torch(name):
    model = init_gpt(CONFIGS[name], 0)
    (loss, old), (other, new) = gradients(model, 1), gradients(model, 2)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
    if distance(old, new) > 1e-6 * distance(old):
        # fp32 itself is further from the exact gradient: retention adds exponentials of keys.
        _, exact = gradients(model.double(), 1)
        assert distance(exact, new) < 1.5 * distance(exact, old)


def test_bf16_differs_by_its_rounding_alone():
    # 200 positions, because a block has 128.
    x = torch.randn(3, 2, 2, 200, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = x
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    found = kernels.causal_attention(*x.bfloat16())
    assert (found - exact).norm() < 0.01 * exact.norm()
    model = init_gpt(replace(CONFIGS["gpt2"], n_ctx=200), 0)
    (_, exact), (_, old), (_, new) = (
        gradients(model, number, precision)
        for number, precision in ((1, "fp32"), (1, "bf16"), (2, "bf16"))
    )
    assert distance(exact, new) < 1.5 * distance(exact, old)


def test_the_kernels_are_used_where_they_save_and_nowhere_else(monkeypatch):
    calls = []
    for name in ("causal_attention", "gelu_tanh"):
        plain = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *x, name=name, plain=plain: calls.append(name) or plain(*x)
        )
    model = init_gpt(CONFIGS["gpt2"], 0)
    tokens = torch.zeros(1, 100, dtype=torch.long)
    model(tokens)
    assert not calls
    with kernels.use_kernels(2):
        model(tokens)
        assert calls == ["causal_attention", "gelu_tanh"] * 2
        calls.clear()
        model(tokens[:, :64])
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, _: None)])
    assert calls == ["gelu_tanh"] * 3 + ["causal_attention", "gelu_tanh"]


def test_hooks_read_and_replace_the_same_values():
    model, tokens = init_gpt(CONFIGS["gpt2"], 0), torch.arange(50).repeat(2)[None]
    _, plain = model.run_with_cache(tokens)
    with kernels.use_kernels(2):
        _, cache = model.run_with_cache(
            tokens, names_filter=lambda name: not name.endswith(("hook_pattern", "hook_result"))
        )
        silent = model.run_with_hooks(
            tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, _: torch.zeros_like(x))]
        )
    for name, value in cache.items():
        assert rounding(value, plain[name]) < 1e-5, name
    expected = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, _: torch.zeros_like(x))]
    )
    assert rounding(silent, expected) < 1e-5


@pytest.fixture(scope="module")
def long_run(tiny_recipe, tiny_store, tmp_path_factory):
    """Return a run with more positions than a block."""
    model = replace(tiny_recipe.model, n_ctx=80)
    sizes = {"steps": 8, "checkpoint_every": 4, "optimizer_every": 4}
    recipe = replace(tiny_recipe, model=model, **sizes)
    out = tmp_path_factory.mktemp("kernels") / "run"
    return trainer.train(recipe, tiny_store, out=out, numerics=NEW)


def test_a_run_records_its_kernels_and_replays_with_them(long_run):
    run = open_run(long_run.path)
    assert run.predicate["numerics"]["kernels"] == 2
    assert run.numerics == NEW
    assert trainer.replay(run, 4, 7).exact
    losses = []
    for number in (1, 2):
        state = trainer.initial_state(run.recipe, NEW)
        how = replace(NEW, kernels=number)
        with numerics.applied(how):
            rows = trainer.training_steps(state, run.recipe, run.store, run.order, how, 8)
            losses.append([(row.loss, row.grad_norm) for row in rows])
    assert losses[1] == [(row.loss, row.grad_norm) for row in run.ledger]
    assert losses[0] != losses[1]
    assert losses[0] == [pytest.approx(pair, rel=1e-4) for pair in losses[1]]


def test_older_runs_keep_their_kernels_and_new_ones_take_the_newest():
    assert Numerics("cpu", "fp32", 1).kernels == 1
    assert "kernels" not in Numerics("cpu", "fp32", 1).to_dict()
    assert numerics.choose(device="cpu", precision="fp32", threads=1).kernels == 2
    with pytest.raises(RecipeError, match="kernels are 3, and this version of openbook has 1 to 2"):
        Numerics("cpu", "fp32", 1, kernels=3)
