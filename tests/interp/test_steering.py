"""A direction that was planted is found, steers in proportion, and a random one does not."""

from dataclasses import replace

import pytest
import torch

from interp import steering
from interp.behaviours import Behaviour
from interp.errors import (
    BehaviourError,
    ContrastError,
    EffectsError,
    ModelError,
    UninformativeWarning,
)
from interp.steering import SteeringEffects, SteeringVector
from tests.worlds.models import silenced
from train.errors import HookError
from train.model import GPT, GPTConfig, init_gpt


VOCAB = 12


@pytest.fixture(scope="module")
def linear() -> GPT:
    """No norm, nothing written by any layer: the logits are the embedding of the last token."""
    cfg = GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=12, d_vocab=VOCAB, norm="none", position="none",
        init_std=0.5,
    )  # fmt: skip
    return silenced(init_gpt(cfg, 0))


def tokens(*last: int) -> torch.Tensor:
    return torch.tensor([[1, 2, one] for one in last])


def asks(name: str, answer: int, foil: int, *last: int) -> Behaviour:
    n, clean = len(last), tokens(*last)
    return Behaviour(name, clean, clean + 1, torch.tensor([answer] * n), torch.tensor([foil] * n))


def test_the_vector_is_the_difference_of_the_means(linear):
    found = steering.difference(linear, tokens(3, 4), tokens(5), place="L1.resid_pre")
    embed = linear.embed.weight.detach()
    expected = (embed[3] + embed[4]) / 2 - embed[5]
    torch.testing.assert_close(found.values, expected)
    assert (found.n_toward, found.n_away) == (2, 1)
    first = steering.difference(linear, tokens(3), tokens(3)[:, 1:], place="L0.resid_pre", pos=0)
    torch.testing.assert_close(first.values, embed[1] - embed[2])


def test_the_effect_is_what_the_algebra_says_and_grows_with_the_coefficient(linear):
    vector = steering.difference(linear, tokens(3), tokens(5), place="L1.resid_pre")
    behaviour = asks("three, not five", 3, 5, 6, 7, 8, 9)
    found = steering.curve(linear, vector, behaviour, coefficients=(-1.0, 0.0, 2.0))
    embed = linear.embed.weight.detach()
    slope = (vector.values @ (embed[3] - embed[5])).item()
    expected = torch.tensor([-slope, 0, 2 * slope])
    torch.testing.assert_close(found.effect.values, expected, atol=1e-4, rtol=1e-4)
    assert found.effect.values[1] == 0
    start = behaviour.score(linear(behaviour.clean)).mean().item()
    assert found.start.values.item() == pytest.approx(start, abs=1e-5)


def test_random_directions_and_an_unrelated_behaviour_move_less(linear):
    vector = steering.difference(linear, tokens(3), tokens(5), place="L1.resid_pre")
    found = steering.curve(
        linear,
        vector,
        asks("three, not five", 3, 5, 6, 7, 8, 9),
        coefficients=(1.0,),
        unrelated=asks("ten, not eleven", 10, 11, 6, 7, 8),
        n_random=16,
    )
    assert found.unrelated is not None
    effect = found.effect.values[0].item()
    # A random direction of 16 has a cosine of deviation 1/4 with the one that counts.
    assert found.control_largest[0] < effect
    assert abs(found.control.values[0]) < effect / 2
    assert abs(found.unrelated.values[0]) < effect / 2
    assert (found.n, found.control.n, found.unrelated.n) == (4, 16, 3)


def test_a_head_is_steered_at_the_positions_asked_for_and_nowhere_else(linear):
    model = init_gpt(replace(linear.cfg, init_std=0.3), 1)
    vector = steering.difference(model, tokens(3, 4), tokens(5, 6), place="L0H1")
    assert vector.values.shape == (8,)
    text = tokens(7, 8)
    plain, cache = model.run_with_cache(text, names_filter=["blocks.0.attn.hook_z"])
    with steering.steered(model, vector, coefficient=2.0, positions=(1, -1)):
        moved, after = model.run_with_cache(text, names_filter=["blocks.0.attn.hook_z"])
    change = (after["blocks.0.attn.hook_z"] - cache["blocks.0.attn.hook_z"]).detach()
    expected = torch.zeros_like(change)
    expected[:, 1:, 1] = 2 * vector.values
    torch.testing.assert_close(change, expected)
    assert torch.equal(moved[:, 0], plain[:, 0])
    assert not torch.equal(moved[:, -1], plain[:, -1])
    assert torch.equal(model(text), plain)


def test_generation_follows_the_vector_and_is_itself_again_afterwards(linear):
    vector = steering.difference(linear, tokens(9), tokens(3), place="L1.resid_pre")
    plain = linear.generate(tokens(3), 4)
    with steering.steered(linear, vector, coefficient=50.0, positions=(-1,)):
        assert linear.generate(tokens(3), 4)[0, 3:].tolist() == [9] * 4
    assert torch.equal(linear.generate(tokens(3), 4), plain)


def test_prompts_that_made_the_vector_are_warned_about(linear):
    vector = steering.difference(linear, tokens(3, 4), tokens(5), place="L1.resid_pre")
    with pytest.warns(UninformativeWarning, match="1 of the prompts of 'it' made the steering"):
        steering.curve(linear, vector, asks("it", 3, 5, 4, 6), coefficients=(1.0,))


def test_what_points_nowhere_or_is_not_there_is_refused(linear):
    same = tokens(3, 4)
    with pytest.raises(ContrastError, match="points nowhere"):
        steering.difference(linear, same, same.flip(0), place="L1.resid_pre")
    with pytest.raises(ModelError, match=r"L2.resid_pre is layer 2 of a model that has 2"):
        steering.difference(linear, tokens(3), tokens(4), place="L2.resid_pre")
    with pytest.raises(ModelError, match="no place is called 'resid'"):
        steering.difference(linear, tokens(3), tokens(4), place="L1.resid")
    with pytest.raises(BehaviourError, match="cannot be read at 3"):
        steering.difference(linear, tokens(3), tokens(4), place="L1.resid_pre", pos=3)
    with pytest.raises(BehaviourError, match="0 prompts away"):
        steering.difference(linear, tokens(3), tokens(4)[:0], place="L1.resid_pre")
    for name in ("L1N3", "L1H0.pattern", "L1.resid_pre@2"):
        with pytest.raises(BehaviourError, match="is no vector to add"):
            steering.difference(linear, tokens(3), tokens(4), place=name)
    vector = steering.difference(linear, tokens(3), tokens(5), place="L1.resid_pre")
    behaviour = asks("it", 3, 5, 6, 7)
    with pytest.raises(BehaviourError, match="position 3 was asked to be steered"):
        steering.curve(linear, vector, behaviour, positions=(3,))
    with pytest.raises(BehaviourError, match="0 coefficients"):
        steering.curve(linear, vector, behaviour, coefficients=())
    with (
        pytest.raises(HookError, match="never fired"),
        steering.steered(linear, vector, coefficient=1.0),
    ):
        pass
    shallow = init_gpt(replace(linear.cfg, n_layers=1), 0)
    with pytest.raises(ModelError, match=r"L1.resid_pre is layer 1 of a model that has 1"):
        steering.curve(shallow, vector, behaviour)


def test_vectors_and_effects_come_back_as_they_were_written(linear, tmp_path):
    vector = steering.difference(linear, tokens(3), tokens(5), place="L1.resid_pre")
    vector.save(tmp_path / "vector.json")
    again = SteeringVector.load(tmp_path / "vector.json")
    assert torch.equal(again.values, vector.values)
    assert again.to_dict() == vector.to_dict()
    found = steering.curve(
        linear, vector, asks("it", 3, 5, 6, 7), unrelated=asks("other", 8, 9, 6, 7)
    )
    found.save(tmp_path / "found.json")
    back = SteeringEffects.load(tmp_path / "found.json")
    assert back.to_dict() == found.to_dict()
    assert repr(back) == repr(found)
    assert "unrelated_low" in back.to_frame()
    assert len(str(found.plot().to_json())) < 20_000
    with pytest.raises(EffectsError, match=r"is no 'openbook.steering_vector/1'"):
        SteeringVector.load(tmp_path / "found.json")
