"""Muon makes the published update, and a run with it stops, resumes and replays like any other."""

import copy
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.worlds.stops import check_resumed
from train import recipes, runs, trainer
from train.errors import DamagedError, RecipeError
from train.model import GPTConfig, init_gpt
from train.recipes import CODE_MEDIUM, CODE_SMALL, PLANTED, Recipe
from train.trainer import optimizer


RECIPE = Recipe(
    name="muon", batch_size=4, steps=24, lr=1e-2, min_lr=1e-3, warmup_steps=2, optimizer="muon",
    weight_decay=0.3, muon_lr=0.05, muon_momentum=0.9,
    model=GPTConfig(
        n_layers=2, n_heads=4, d_model=16, n_ctx=16, d_vocab=60, n_key_value_heads=2, mlp="swiglu",
        init_std=0.1,
    ),
)  # fmt: skip
BLOCK = ("attn.qkv", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
QKV = [16, 8, 8]  # rows of the queries, and of two heads each of keys and values


def a_model(dtype=torch.float32):
    return init_gpt(RECIPE.model, seed=1).to(dtype)


def gradients_of(step, model):
    """Random gradients whose matrices have singular values from 1 to 1/1000."""
    draw = torch.Generator().manual_seed(step)
    found = {}
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        if drawn.ndim == 2:
            drawn = drawn * torch.logspace(0, -3, drawn.shape[1], dtype=torch.float64)
        found[name] = drawn.to(parameter.dtype)
    return found


def step_with(model, optimizer, step, lr):
    for name, gradient in gradients_of(step, model).items():
        model.get_parameter(name).grad = gradient
    trainer.set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()


def polynomial(matrix):
    """The five iterations in float64, on the singular values alone."""
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u @ torch.diag(values) @ v


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
def test_newton_schulz_brings_every_singular_value_near_one(shape):
    drawn = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(drawn, full_matrices=False)
    some = u * torch.linspace(1, 0.1, 24) @ v
    found = optimizer.orthogonalised(some)
    values = torch.linalg.svdvals(found)
    assert 0.65 < values.min() < values.max() < 1.2
    torch.testing.assert_close(
        found.double(), torch.stack([*map(polynomial, some)]), rtol=0, atol=2e-5
    )


def test_a_matrix_of_zeros_stays_one():
    assert not optimizer.orthogonalised(torch.zeros(1, 4, 4)).any()


def reference(names, weights, lr):
    """Three steps of Muon in float64, one matrix at a time."""
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(3):
        found = gradients_of(step, a_model())
        for name in names:
            gradient = found[name].double()
            momenta[name] = 0.9 * momenta[name] + 0.1 * gradient
            ahead = 0.9 * momenta[name] + 0.1 * gradient
            rows = QKV if "qkv" in name else [len(ahead)]
            update = [
                polynomial(part) * max(1, part.shape[0] / part.shape[1]) ** 0.5
                for part in ahead.split(rows)
            ]
            weights[name] = weights[name] * (1 - lr * 0.3) - lr * torch.cat(update)
    return weights


def matrices():
    return [f"blocks.{layer}.{name}.weight" for layer in range(2) for name in BLOCK]


def test_an_update_is_the_published_formula_and_queries_keys_and_values_are_three_matrices():
    model = a_model()
    before = {name: model.get_parameter(name).double() for name in matrices()}
    expected = reference(matrices(), before, lr=0.05 * 0.5)
    muon = optimizer.new_optimizer(model, RECIPE)
    for step in range(3):
        step_with(model, muon, step, RECIPE.lr * 0.5)
    for name in matrices():
        found = model.get_parameter(name).double()
        torch.testing.assert_close(found, expected[name], rtol=0, atol=2e-5, msg=name)


def test_an_update_is_that_of_torch_within_the_precision_of_its_bf16():
    model, other = a_model(), a_model()
    names = [name for name in matrices() if "qkv" not in name]
    muon = optimizer.new_optimizer(model, RECIPE)
    theirs = torch.optim.Muon(
        [other.get_parameter(name) for name in names],
        lr=0.05, momentum=0.9, weight_decay=0.3, adjust_lr_fn="original",
    )  # fmt: skip
    for step in range(3):
        step_with(model, muon, step, RECIPE.lr)
        for name, gradient in gradients_of(step, other).items():
            other.get_parameter(name).grad = gradient
        theirs.step()
    for name in names:
        before = a_model().get_parameter(name)
        found, expected = model.get_parameter(name) - before, other.get_parameter(name) - before
        assert (found - expected).norm() < 0.03 * expected.norm(), name


def test_an_update_in_bf16_is_that_of_torch_to_the_bit():
    """torch.optim.Muon orthogonalises in bf16, one matrix at a time; here it is a batch of all."""
    model, other = a_model(), a_model()
    names = [name for name in matrices() if "qkv" not in name]
    muon = optimizer.Muon(model, RECIPE, precision=torch.bfloat16)
    theirs = torch.optim.Muon(
        [other.get_parameter(name) for name in names],
        lr=0.05, momentum=0.9, weight_decay=0.3, adjust_lr_fn="original",
    )  # fmt: skip
    step_with(model, muon, 0, RECIPE.lr)
    for name, gradient in gradients_of(0, other).items():
        other.get_parameter(name).grad = gradient
    theirs.step()
    for name in names:
        assert torch.equal(model.get_parameter(name), other.get_parameter(name)), name


def test_on_a_cpu_nothing_is_computed_in_bf16(monkeypatch):
    """A processor without bf16 emulates it; `benchmarks/muon.py` has the times."""
    seen = set()
    product = torch.baddbmm

    def spied(*tensors, **options):
        seen.update(tensor.dtype for tensor in tensors)
        return product(*tensors, **options)

    monkeypatch.setattr(torch, "baddbmm", spied)
    model = a_model()
    step_with(model, optimizer.new_optimizer(model, RECIPE), 0, 1e-2)
    assert seen == {torch.float32}


def test_weight_decay_is_held_and_then_goes_linearly_to_its_share():
    recipe = replace(RECIPE, steps=11, weight_decay_end=0.5, weight_decay_hold=0.5)
    found = [trainer.weight_decay_at(recipe, step) for step in range(11)]
    assert found == pytest.approx([0.3] * 6 + [0.27, 0.24, 0.21, 0.18, 0.15])
    assert {trainer.weight_decay_at(RECIPE, step) for step in range(24)} == {0.3}
    rising = replace(recipe, weight_decay_end=1.5)
    assert trainer.weight_decay_at(rising, 10) == pytest.approx(0.45)
    with pytest.raises(RecipeError, match=r"weight_decay_hold=0\.5 and weight_decay_end=1\.0"):
        replace(RECIPE, weight_decay_hold=0.5)


def test_vectors_never_decay_and_matrices_of_both_groups_do():
    muon = optimizer.new_optimizer(a_model(), RECIPE)
    trainer.set_weight_decay(muon, 0.7)
    assert [group["weight_decay"] for group in muon.param_groups] == [0.7, 0.7, 0.0]


def test_all_other_parameters_take_the_steps_of_adamw_to_the_bit():
    model, other = a_model(), a_model()
    muon = optimizer.new_optimizer(model, RECIPE)
    others = {"muon_lr": PLANTED.muon_lr, "muon_momentum": PLANTED.muon_momentum}
    adamw = optimizer.new_optimizer(other, replace(RECIPE, optimizer="adamw", **others))
    for step in range(3):
        step_with(model, muon, step, 1e-3)
        step_with(other, adamw, step, 1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)) == (name not in matrices()), name


def test_a_copy_of_the_state_takes_the_same_step_and_leaves_the_original():
    """As `tail_patch_changes` copies a state for every document."""
    model = a_model()
    muon = optimizer.new_optimizer(model, RECIPE)
    step_with(model, muon, 0, 1e-2)
    before = {name: one.clone() for name, one in optimizer.optimizer_state(model, muon).items()}
    copied, its_muon = copy.deepcopy((model, muon))
    step_with(copied, its_muon, 1, 1e-2)
    after = optimizer.optimizer_state(model, muon)
    assert all(torch.equal(before[name], after[name]) for name in before)
    step_with(model, muon, 1, 1e-2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, copied.get_parameter(name)), name


def test_a_state_goes_by_name_and_one_that_lacks_a_momentum_is_refused():
    model = a_model()
    muon = optimizer.new_optimizer(model, RECIPE)
    assert not optimizer.optimizer_state(model, muon)
    step_with(model, muon, 0, 1e-2)
    state = optimizer.optimizer_state(model, muon)
    momenta = {name for name in state if name.endswith(".momentum_buffer")}
    assert momenta == {f"{name}.momentum_buffer" for name in matrices()}
    others = {name.rpartition(".")[0] for name in state if name.endswith(".exp_avg_sq")}
    assert others == {name for name, _ in model.named_parameters()} - {*matrices()}
    del state["blocks.1.mlp.up.weight.momentum_buffer"]
    with pytest.raises(DamagedError, match=r"lacks 'blocks\.1\.mlp\.up\.weight\.momentum_buffer'"):
        optimizer.load_optimizer_state(model, muon, state)


@pytest.mark.parametrize("key", ["average", "step", "momentum"])
@pytest.mark.parametrize("change", [lambda one: one.long(), lambda one: one[None]])
def test_a_state_of_another_type_or_shape_is_refused(key, change):
    model = a_model()
    muon = optimizer.new_optimizer(model, RECIPE)
    step_with(model, muon, 0, 1e-2)
    state = optimizer.optimizer_state(model, muon)
    name = {
        "average": next(one for one in state if one.endswith("exp_avg")),
        "step": next(one for one in state if one.endswith("step")),
        "momentum": "blocks.1.mlp.up.weight.momentum_buffer",
    }[key]
    state[name] = change(state[name])
    with pytest.raises(DamagedError, match=rf"^{re.escape(name)} is torch\.\w+ \[.*is expected"):
        optimizer.load_optimizer_state(model, muon, state)


def test_recipes_of_before_keep_their_text_and_others_say_what_they_use():
    later = {"optimizer", "muon_lr", "muon_momentum"}
    assert not later & set(recipes.to_dict(PLANTED))
    assert later <= set(recipes.to_dict(RECIPE))
    for one in (PLANTED, CODE_SMALL, CODE_MEDIUM, RECIPE):
        assert recipes.from_dict(recipes.to_dict(one), "here") == one


def weights(run):
    return run.saved_at(None).files["model.safetensors"]


@pytest.mark.integration
def test_it_learns_and_is_another_run_than_with_adamw(muon_run, tiny_run):
    losses = [row.loss for row in muon_run.ledger]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3
    assert muon_run.id != tiny_run.id
    assert [row.lr for row in muon_run.ledger] == [row.lr for row in tiny_run.ledger]


@pytest.mark.integration
@pytest.mark.parametrize("stop", [1, 9, 17, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(muon_run, tmp_path, stop):
    check_resumed(muon_run, tmp_path / "r", stop)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_uses_the_scheduled_decay_and_replays_it(kind, tiny_run, tmp_path):
    recipe = replace(
        tiny_run.recipe, optimizer=kind, weight_decay=1.6, weight_decay_end=0.0,
        weight_decay_hold=0.25,
    )  # fmt: skip
    run = trainer.train(recipe, tiny_run.store, out=tmp_path / "r", numerics=tiny_run.numerics)
    held = trainer.train(
        replace(recipe, weight_decay_end=1.0, weight_decay_hold=0.4),
        tiny_run.store, out=tmp_path / "held", numerics=tiny_run.numerics,
    )  # fmt: skip
    # 6/23 is the first share of the steps above .25, and a row holds the loss before its update.
    same = [a.agrees(b) for a, b in zip(run.ledger, held.ledger, strict=True)]
    assert same == [True] * 7 + [False] * 17
    assert trainer.verify(run).level == "bit-exact"
    assert run.load().W_E.norm() > held.load().W_E.norm()


@pytest.mark.integration
def test_spans_replay_to_the_bit(muon_run):
    assert trainer.verify(muon_run).level == "bit-exact"
    for first, last in [*pairwise([0, 7, 15]), (17, 23)]:
        assert trainer.replay(muon_run, first, last).exact
    end = trainer.replay(muon_run, 17, 23).state
    saved = runs.read_tensors(muon_run.path, muon_run.saved[-1], "optimizer.safetensors")
    found = optimizer.optimizer_state(end.model, end.optimizer)
    assert all(torch.equal(found[name], saved[name]) for name in {*saved, *found})
