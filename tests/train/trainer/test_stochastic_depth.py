"""A step leaves out layers by draws that depend on seed, step and layer alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worlds.stops import check_done_again, check_resumed
from train import trainer
from train.data import read_batch
from train.errors import RecipeError
from train.model import preset
from train.trainer.stochastic_depth import layers_left_out


LAYERS = 3


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return replace(
        tiny_recipe, model=replace(tiny_recipe.model, n_layers=LAYERS), stochastic_depth=0.5
    )


@pytest.fixture(scope="module")
def run(recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    return trainer.train(
        recipe, tiny_store, out=tmp_path_factory.mktemp("depth") / "r", numerics=one_thread_numerics
    )


def test_layers_are_left_out_as_often_as_the_formula_says_and_their_mean_is_the_whole(recipe):
    scales = np.array([trainer.layer_scales(recipe, step) for step in range(4000)])
    for layer, probability in enumerate((0.0, 0.25, 0.5)):
        left_out = (scales[:, layer] == 0).mean()
        assert left_out == pytest.approx(probability, abs=0.03)
        assert scales[:, layer].mean() == pytest.approx(1, abs=0.06)
        assert set(scales[:, layer]) <= {0.0, 1 / (1 - probability)}
    # Layers are drawn apart from each other.
    assert abs(np.corrcoef(scales[:, 1], scales[:, 2])[0, 1]) < 0.05
    other = [trainer.layer_scales(replace(recipe, order_seed=1), step) for step in range(4000)]
    assert (np.array(other) != scales).any()


def test_a_layer_that_is_left_out_passes_the_stream_on_and_stays_whole_afterwards(run, recipe):
    model, tokens = run.load(), torch.arange(8)[None]
    step = next(one for one in range(99) if trainer.layer_scales(recipe, one)[2] == 0)
    whole = model(tokens)
    with layers_left_out(model, recipe, step):
        logits, cache = model.run_with_cache(tokens)
    assert torch.equal(cache["resid_post", 2], cache["resid_pre", 2])
    assert not torch.equal(logits, whole)
    assert torch.equal(model(tokens), whole)


@pytest.mark.integration
def test_a_probability_of_0_is_the_plain_run_and_so_is_one_that_never_leaves_out(
    recipe, run, tiny_store, tmp_path
):
    """The second takes the way through the scales, all of which are 1."""
    ledgers, weights = [], []
    for number, depth in enumerate((0.0, 1e-300)):
        plain = trainer.train(
            replace(recipe, stochastic_depth=depth), tiny_store, out=tmp_path / str(number),
            numerics=run.numerics,
        )  # fmt: skip
        ledgers.append(plain.ledger)
        weights.append([plain.saved_at(step).files for step in plain.steps])
        used = trainer.objective_of(plain) is not trainer.next_token
        assert used == (depth > 0)
    assert all(a.agrees(b) for a, b in zip(*ledgers, strict=True))
    assert [{**one, "state.json": ""} for one in weights[0]] == [
        {**one, "state.json": ""} for one in weights[1]
    ]
    assert not all(a.agrees(b) for a, b in zip(run.ledger, ledgers[0], strict=True))


@pytest.mark.integration
def test_the_bits_do_not_depend_on_micro_batches_and_processes_draw_alike(run):
    """Every process draws for itself, and its share holds other windows than the others'."""
    batch, objective, model = read_batch(run.store, run.order, 5), trainer.objective_of(run), run
    losses = []
    for pieces in ([batch], batch.shares(2), [*batch.parts(1)]):
        loaded = model.load()
        losses.append(sum(objective(loaded, piece) for piece in pieces))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


@pytest.mark.integration
@pytest.mark.parametrize("stop", [9, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(run, tmp_path, stop):
    check_resumed(run, tmp_path / "r", stop)


@pytest.mark.integration
def test_replay_verification_and_retraining_are_exact(run, tmp_path):
    check_done_again(run, tmp_path / "c")


def test_what_has_no_layer_to_leave_out_is_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"stochastic_depth=0\.1 and 1 layer"):
        replace(tiny_recipe, stochastic_depth=0.1)
    with pytest.raises(RecipeError, match=r"stochastic_depth=0\.1 and attention='retention'"):
        replace(tiny_recipe, model=preset("strawberry-nano"), stochastic_depth=0.1)
