"""An effect remembers what it is, on paper as in memory."""

import json
from dataclasses import replace

import pytest
import torch

from interp.errors import EffectsError
from interp.patching import Effects
from interp.results import Provenance
from train import storage
from train.errors import DamagedError


ORIGIN = Provenance("run", "ab" * 32, 7, "ioi", "cd" * 32, "full", {}, 0, "float32", "cpu")


@pytest.fixture
def effects() -> Effects:
    values = torch.tensor([
        # H0  H1
        [0.1, -0.5],
        [0.9, 0.3],
    ])  # fmt: skip
    return Effects(
        site="head",
        axes=("layer", "head"),
        values=values,
        low=values - 0.1,
        high=values + 0.2,
        clean=3.0,
        corrupt=-3.0,
        n_prompts=10,
        direction="denoising",
        provenance=ORIGIN,
    )


def test_the_largest_effects_come_first_by_name(effects):
    assert effects.top(3) == ["L1H0", "L1H1", "L0H0"]
    assert effects["L0H1"] == pytest.approx(-0.5)
    assert effects.interval("L1H0") == pytest.approx((0.8, 1.1))
    assert "highest L1H0 0.90" in repr(effects)


def test_the_largest_effects_show_their_values_and_are_still_names(effects):
    best = effects.top(2)
    assert repr(best) == f"[L1H0 0.9, L1H1 {effects['L1H1']:.3g}]"
    assert best.values == (effects["L1H0"], effects["L1H1"])
    assert [*best, *best[1:]] == ["L1H0", "L1H1", "L1H1"]
    assert json.loads(storage.canonical_json(best)) == ["L1H0", "L1H1"]


def test_an_effect_that_was_not_measured_is_refused(effects):
    with pytest.raises(EffectsError, match="no effect of 'L2H0' was measured, did you mean"):
        effects["L2H0"]


def test_a_saved_result_comes_back_whole(effects, tmp_path):
    effects.save(tmp_path / "heads.json")
    again = Effects.load(tmp_path / "heads.json")
    assert again.to_dict() == effects.to_dict()
    assert again.provenance == ORIGIN
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "heads.json").read_bytes()


def test_one_prompt_leaves_no_interval_in_file_table_or_figure(effects, tmp_path):
    changes = {"axes": ("layer",), "site": "attn", "values": effects.values[:, 0]}
    alone = replace(effects, **changes, low=None, high=None, n_prompts=1)
    alone.save(tmp_path / "alone.json")
    assert Effects.load(tmp_path / "alone.json").interval("L1.attn") is None
    assert alone.to_frame()["low"].isna().all()
    assert alone.plot().data[0].error_y.array is None


def test_the_largest_effect_is_measured_on_prompts_that_did_not_choose_it(effects, tmp_path):
    """Of equal places, one half of the prompts chooses one; the other shows no effect there."""
    draw = torch.Generator().manual_seed(3)
    part = torch.randn(12, 12, 40, generator=draw)
    noise = replace(
        effects, values=part.mean(dim=2), low=None, high=None, part=part, whole=torch.ones(40)
    )
    names = noise.names
    for seed in range(5):
        ((name, found),) = noise.held_out(1, seed=seed).items()
        rows = part.flatten(0, 1)[names.index(name)]
        # The other half's mean: what is left when the choosing half, at least as high, is removed.
        assert found.value < 2 * rows.mean().item() - 0.3
        assert found.low < 0 < found.high
    noise.save(tmp_path / "noise.json")
    assert Effects.load(tmp_path / "noise.json").held_out(1) == noise.held_out(1)


def test_effects_without_scores_of_single_prompts_choose_nothing(effects):
    with pytest.raises(EffectsError, match="hold no scores of single prompts"):
        effects.held_out()
    few = replace(effects, part=torch.ones(2, 2, 3), whole=torch.ones(3))
    with pytest.raises(EffectsError, match="3 prompts cannot be halved"):
        few.held_out()
    for k in (0, -1):
        with pytest.raises(EffectsError, match=f"the first {k} of a ranking are none"):
            replace(effects, part=torch.ones(2, 2, 4), whole=torch.ones(4)).held_out(k)


def test_a_place_that_is_the_same_on_every_prompt_has_no_interval(effects, tmp_path):
    low = effects.low.clone()
    low[1, 0] = float("nan")
    same = replace(effects, low=low, high=effects.high + low - low)
    same.save(tmp_path / "same.json")
    again = Effects.load(tmp_path / "same.json")
    assert again.interval("L1H0") is None
    assert again.interval("L0H0") == pytest.approx((0.0, 0.3))


def test_one_changed_digit_is_found(effects, tmp_path):
    path = tmp_path / "heads.json"
    effects.save(path)
    path.write_text(path.read_text().replace('"n_prompts": 10', '"n_prompts": 11'))
    with pytest.raises(DamagedError, match=r"heads\.json"):
        Effects.load(path)


def test_a_table_has_a_row_per_place(effects):
    frame = effects.to_frame()
    assert list(frame.columns) == ["layer", "head", "place", "effect", "low", "high"]
    assert frame.sort_values("effect")["place"].tolist() == ["L0H1", "L0H0", "L1H1", "L1H0"]


def test_two_axes_are_a_heat_map_centred_at_zero(effects):
    figure = effects.plot()
    heat = figure.data[0]
    assert (heat.zmin, heat.zmax) == pytest.approx((-0.9, 0.9))
    assert list(heat.x) == ["H0", "H1"]
    assert list(heat.y) == ["L0", "L1"]
    assert figure.layout.title.text == "ioi: head, denoising, n=10"


def test_positions_are_labelled_by_their_tokens_even_when_two_are_equal(effects):
    labels = ("the", "the")
    found = replace(effects, site="resid_pre", axes=("layer", "pos"), pos_labels=labels)
    assert list(found.plot().data[0].x) == ["0 the", "1 the"]
    assert found.top(1) == ["L1.resid_pre@0"]


def test_one_axis_is_bars_with_intervals(effects):
    layers = {name: getattr(effects, name)[:, 0] for name in ("values", "low", "high")}
    bars = replace(effects, site="mlp", axes=("layer",), **layers).plot().data[0]
    assert list(bars.x) == ["L0.mlp", "L1.mlp"]
    assert list(bars.error_y.array) == pytest.approx([0.2, 0.2])
    assert list(bars.error_y.arrayminus) == pytest.approx([0.1, 0.1])


def test_a_table_holds_layers_and_positions_and_not_their_indices(effects):
    places = ("L2N0@5", "L2N0@3,7", "L2N1@5", "L2N1@3,7")
    some = replace(effects, site="neuron", axes=("neuron", "pos"), places=places)
    frame = some.to_frame()
    assert frame["neuron"].tolist() == [0, 0, 1, 1]
    assert frame["pos"].tolist() == [5, "3,7", 5, "3,7"]
