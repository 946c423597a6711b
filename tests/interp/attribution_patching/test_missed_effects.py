"""No place that was not verified does more than the bound says, as often as it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import attribution_patching, patching
from interp.attribution_patching.missed_effects import Bound
from interp.behaviours import Behaviour
from interp.errors import EffectsError
from tests.worlds.behaviours import moved_by
from tests.worlds.scripts import benchmark
from train.model import GPT, GPTConfig, init_gpt


@pytest.fixture(scope="module")
def model() -> GPT:
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=12, d_vocab=30, init_std=0.3)
    return init_gpt(cfg, seed=0).eval()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    """Random prompts that differ at position 2; answer and foil follow from what the model says."""
    clean = torch.randint(30, (6, 6), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] + 1) % 30
    return moved_by(model, clean, corrupt)


@pytest.fixture(scope="module")
def estimate(model, behaviour):
    return attribution_patching.attribution(model, behaviour, positions="each")


@pytest.fixture(scope="module")
def exact(model, behaviour):
    return patching.heads(model, behaviour, positions="each")


# The statistics


def test_every_place_is_in_the_same_number_of_sets_independently_of_the_others():
    inside = attribution_patching.sets(40, 800, 0.04, seed=0)
    assert inside[:600].sum(axis=0).tolist() == [24] * 40
    assert inside[600:].sum(axis=0).tolist() == [24] * 40
    together = np.corrcoef(inside[:600].T)[np.triu_indices(40, 1)]
    # Of 780 pairs: independent inclusion has a deviation of 1 / sqrt(599) = 0.041.
    assert abs(together.mean()) < 0.005
    assert 0.036 < together.std() < 0.046
    np.testing.assert_array_equal(inside, attribution_patching.sets(40, 800, 0.04, seed=0))
    assert not np.array_equal(inside, attribution_patching.sets(40, 800, 0.04, seed=1))


def test_a_single_place_that_does_everything_is_bounded_by_itself():
    inside = attribution_patching.sets(5, 400, 0.1, seed=0)
    above = attribution_patching.upper(inside, 0.7 * inside[:, 3], np.zeros(5))
    assert above[3] == pytest.approx(0.7)


def test_what_pairs_of_places_do_together_is_taken_out():
    """A place that every other hinders: in company it does less, and its bound is of it alone."""
    inside = attribution_patching.sets(40, 40_000, 0.04, seed=0)
    company = inside[:, 1:].sum(axis=1)
    moved = inside[:, 0] * (1.0 - 0.05 * company)
    above = attribution_patching.upper(inside, moved, np.zeros(40))
    # In sparse sets alone it would be 1 - 0.05 * 39 * 0.04 = 0.92.
    assert above[0] == pytest.approx(1.0, abs=0.03)
    assert above[0] >= 1.0


def test_a_perfect_estimate_leaves_no_doubt_and_a_wrong_one_only_widens_the_bound():
    draw = np.random.default_rng(0)
    true = 0.1 * draw.normal(size=60)
    inside = attribution_patching.sets(60, 800, 0.04, seed=0)
    largest, moved = np.abs(true).max(), inside @ true
    perfect, nothing, wrong = (
        attribution_patching.upper(inside, moved, guess).max()
        for guess in (true, 0 * true, -3 * true)
    )
    assert perfect == pytest.approx(largest)
    assert largest < nothing < wrong


def test_the_sign_of_what_is_moved_does_not_matter():
    draw = np.random.default_rng(0)
    inside = attribution_patching.sets(30, 400, 0.05, seed=0)
    moved = inside @ draw.exponential(size=30)
    above = attribution_patching.upper(inside, moved, np.zeros(30))
    np.testing.assert_allclose(attribution_patching.upper(inside, -moved, np.zeros(30)), above)


def test_more_sets_and_less_confidence_bring_the_bound_down():
    draw = np.random.default_rng(0)
    true = 0.1 * draw.normal(size=60)
    found = {}
    for draws, confidence in ((400, 0.95), (4000, 0.95), (400, 0.8)):
        inside = attribution_patching.sets(60, draws, 0.05, seed=0)
        above = attribution_patching.upper(inside, inside @ true, 0 * true, confidence=confidence)
        found[draws, confidence] = above.max()
    assert found[4000, 0.95] < found[400, 0.95]
    assert found[400, 0.8] < found[400, 0.95]


@pytest.mark.slow
def test_the_stated_rows_of_the_calibration_table_hold():
    """150 of the 1,000 cases, 10 and 30 prompts; the sampling error of so many is allowed for."""
    calibration = benchmark("calibration")
    rows = list(calibration.coverage(150, seed=7, sizes=(10, 30)))
    off = [row for row in rows if row.off(0.93, 0.97)]
    assert len(rows) == 44
    # 28 stated rows at a 95 % interval each: one or two leave the range by chance.
    assert len(off) <= 2, off
    rows = list(calibration.bounds(60, seed=7))
    assert [row for row in rows if row.off(0.95, 1.0)] == []


# On a model


def test_what_was_not_verified_does_no_more_than_the_bound(model, behaviour, estimate, exact):
    found = attribution_patching.verify(model, behaviour, estimate, top=6)
    bound = attribution_patching.missed(model, behaviour, estimate, verified=found.places)
    left = [abs(exact[name]) for name in exact.names if name not in found.places]
    assert bound.value >= max(left)
    assert (bound.n, bound.n_prompts, bound.draws) == (18, 6, 800)
    assert bound.value < max(map(abs, found.exact)), "verifying the top brings the bound down"


def test_the_control_is_what_all_places_move_together(model, behaviour, estimate):
    bound = attribution_patching.missed(model, behaviour, estimate, draws=400)
    everything = patching.together(model, behaviour, [estimate.names])
    assert bound.together == pytest.approx(everything.values.item(), abs=1e-5)
    low, high = bound.if_additive_interval
    assert low < bound.if_additive < high


def test_an_estimate_that_misses_the_largest_place_is_still_bounded(
    model, behaviour, estimate, exact
):
    values = estimate.values.clone()
    largest = int(exact.values.abs().flatten().argmax())
    values.view(-1)[largest] = 0.0
    bound = attribution_patching.missed(model, behaviour, replace(estimate, values=values))
    assert bound.value >= exact.values.abs().max().item()
    assert exact.names[largest] in bound.places[:5]


def test_the_same_seed_gives_the_same_file_and_it_reads_back(model, behaviour, estimate, tmp_path):
    for name in ("one", "two"):
        attribution_patching.missed(model, behaviour, estimate, draws=400).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = Bound.load(tmp_path / "one")
    assert read == attribution_patching.missed(model, behaviour, estimate, draws=400)
    assert "none of 24 unverified places moves more than" in str(read)
    assert read.to_frame()["upper"].is_monotonic_decreasing
    assert read.plot().data
    estimate.save(tmp_path / "estimate")
    with pytest.raises(EffectsError, match=r"is no 'openbook.bound/1'"):
        Bound.load(tmp_path / "estimate")


def test_what_cannot_be_bounded_is_refused(model, behaviour, estimate):
    with pytest.raises(EffectsError, match="leaves 0"):
        attribution_patching.missed(model, behaviour, estimate, verified=estimate.names)
    with pytest.raises(EffectsError, match="name places of the estimate"):
        attribution_patching.missed(model, behaviour, estimate, verified=["L9H9"])
    with pytest.raises(EffectsError, match="into 2 sparse ones"):
        attribution_patching.missed(model, behaviour, estimate, draws=50)
    with pytest.raises(EffectsError, match="a confidence of 95"):
        attribution_patching.missed(model, behaviour, estimate, confidence=95.0)
