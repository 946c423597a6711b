"""An untrained model moves nothing of what a trained one does, and the control says how little."""

import numpy as np
import pytest

from interp import behaviours, models, patching
from interp.behaviours import Behaviour
from interp.errors import EffectsError
from interp.patching import controls
from train.model import GPT


@pytest.fixture(scope="module")
def asked(lookup_run, lookup_behaviour):
    return models.load(lookup_run), behaviours.read(lookup_behaviour)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_what_carries_a_learned_answer_carries_nothing_before_training(
    asked: tuple[GPT, Behaviour], direction
):
    effects = controls.untrained_control(*asked, patching.residual(*asked, direction=direction))
    assert effects.values.max() > 0.9
    assert effects.control is not None
    assert effects.control.abs().max() < 0.1
    assert np.abs(effects.to_frame()["control"]).max() < 0.1


def test_a_model_is_its_own_control_when_it_is_the_untrained_one(asked, monkeypatch):
    """The control's machinery gives the trained model's own effects when handed its weights."""
    model, behaviour = asked
    monkeypatch.setattr(controls, "init_gpt", lambda cfg, seed: model)
    for effects in (
        patching.heads(model, behaviour, positions="each"),
        patching.mlps(model, behaviour, window=1),
        patching.together(model, behaviour, [["L0H0", "L0.mlp@2"], ["L0H1"]]),
    ):
        again = controls.untrained_control(model, behaviour, effects)
        assert again.control is not None
        assert (again.control - effects.values).abs().max() < 1e-5


def test_a_control_survives_saving(asked: tuple[GPT, Behaviour], tmp_path):
    effects = controls.untrained_control(*asked, patching.heads(*asked))
    effects.save(tmp_path / "e.json")
    assert type(effects).load(tmp_path / "e.json").to_dict() == effects.to_dict()


def test_effects_of_paths_and_of_other_prompts_are_refused(asked):
    model, behaviour = asked
    with pytest.raises(EffectsError, match="effects of paths"):
        controls.untrained_control(model, behaviour, patching.senders(model, behaviour))
    parts = ("clean", "corrupt", "answer", "foil")
    fewer = Behaviour("fewer", *(getattr(behaviour, part)[:6] for part in parts))
    with pytest.raises(EffectsError, match="other prompts"):
        controls.untrained_control(model, fewer, patching.heads(model, behaviour))
