"""Ablation: what is taken away is missed exactly as much as it is used."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import metrics
from interp.behaviours import Behaviour
from interp.errors import BehaviourError, EffectsError, ModelError
from interp.patching import ablation, effects
from interp.patching.engine import scheduler
from tests.worlds.behaviours import said_by
from train.model import GPTConfig, init_gpt
from train.statistics import mean_interval


N_POS, VOCAB = 7, 30


@pytest.fixture(scope="module")
def model():
    cfg = GPTConfig(n_layers=2, n_heads=4, d_model=32, n_ctx=8, d_vocab=VOCAB, init_std=0.2)
    return init_gpt(cfg, seed=0).eval()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    """Random prompts; the answers are what the model says, so that it does the behaviour."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(VOCAB, (6, N_POS), generator=draw)
    corrupt = (clean + 1) % VOCAB
    return said_by(model, clean, corrupt)


def plain(model, behaviour, hook: str, head: int | None, standin) -> np.ndarray:
    """Change on every prompt by a forward pass with a hook; `standin` maps values to values."""

    def replace(value, point):
        value = value.clone()
        at = (slice(None), slice(None)) if head is None else (slice(None), slice(None), head)
        value[at] = standin(value[at])
        return value

    with torch.no_grad():
        intact = behaviour.score(model(behaviour.clean))
        ablated = model.run_with_hooks(behaviour.clean, fwd_hooks=[(hook, replace)])
        return (behaviour.score(ablated) - intact).numpy()


PLACES = {"L0H2": ("blocks.0.attn.hook_z", 2), "L1.mlp": ("blocks.1.hook_mlp_out", None)}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(
    ("standin", "value"),
    [("zero", torch.zeros_like), ("mean", lambda x: x.mean(dim=0, keepdim=True).expand_as(x))],
)
def test_zero_and_mean_ablation_equal_a_pass_with_a_hook(model, behaviour, name, standin, value):
    found = ablation.ablate(model, behaviour, [[name]], standin=standin)
    hook, head = PLACES[name]
    expected = plain(model, behaviour, hook, head, value)
    np.testing.assert_allclose(found.per_prompt[0], expected, atol=1e-5)
    assert found[name] == pytest.approx(expected.mean(), abs=1e-5)


def test_the_paired_corrupt_value_is_noising_by_another_name(model, behaviour):
    from interp import patching

    found = ablation.ablate(model, behaviour, standin="corrupt")
    noised = patching.heads(model, behaviour, direction="noising")
    for head in noised.names:
        whole = noised.corrupt - noised.clean
        assert found[head] == pytest.approx(noised[head] * whole, abs=1e-4)


def test_resampling_takes_another_prompt_and_says_how_often(model, behaviour):
    found = ablation.ablate(model, behaviour, [["L0H2"]], standin="resample", draws=4, seed=1)
    again = ablation.ablate(model, behaviour, [["L0H2"]], standin="resample", draws=4, seed=1)
    assert found.draws == 4
    assert found["L0H2"] == again["L0H2"]
    assert not found.notes


def test_a_prompt_beside_many_foils_counts_once(model, behaviour):
    twice = [0, 0, 1, 2, 3, 4, 5]
    doubled = Behaviour(
        "doubled", *(getattr(behaviour, x)[twice] for x in ("clean", "corrupt", "answer", "foil"))
    )
    one = ablation.ablate(model, behaviour, [["L0H2"]], standin="mean")
    other = ablation.ablate(model, doubled, [["L0H2"]], standin="mean")
    assert other.n_prompts == 6
    assert other["L0H2"] == pytest.approx(one["L0H2"], abs=1e-5)


def test_everything_at_once_is_one_set(model, behaviour):
    found = ablation.ablate(model, behaviour, [["L0H2", "L1.mlp"], ["L1.mlp"]], standin="zero")
    assert found.names == ("L0H2 + L1.mlp", "L1.mlp")
    assert found.top(1) == [found.names[int(found.change.argmin())]]
    assert list(found.to_frame()["n"]) == [6, 6]


def test_one_name_is_not_read_letter_by_letter(model, behaviour):
    found = ablation.ablate(model, behaviour, "L0H2", standin="zero")
    assert found.names == ("L0H2",)
    listed = ablation.ablate(model, behaviour, ["L0H2"], standin="zero")
    assert found["L0H2"] == listed["L0H2"]


def test_a_name_alone_is_a_set_of_one(model, behaviour):
    found = ablation.ablate(model, behaviour, ["L0H2", ["L1.mlp"]], standin="zero")
    listed = ablation.ablate(model, behaviour, [["L0H2"], ["L1.mlp"]], standin="zero")
    assert found.to_dict() == listed.to_dict()


def test_a_result_survives_saving(model, behaviour, tmp_path):
    found = ablation.ablate(model, behaviour, [["L0H2"]])
    found.save(tmp_path / "a.json")
    again = ablation.Ablation.load(tmp_path / "a.json")
    assert again.to_dict() == found.to_dict()
    assert again.interval("L0H2") == found.interval("L0H2")


def test_the_largest_loss_is_measured_on_prompts_that_did_not_choose_it(model, behaviour):
    """L0H0 falls on the choosing half alone, by chance; L0H1 on all prompts, but less."""
    found = ablation.ablate(model, behaviour, ["L0H0", "L0H1", "L0H2"])
    choosing, judging = effects.halves(6, seed=3)
    assert sorted([*choosing, *judging]) == list(range(6))
    per_prompt = np.zeros((3, 6))
    per_prompt[0, choosing] = -9
    per_prompt[1] = [-3, -4, -5, -3, -4, -5]
    per_prompt[2, judging] = -99
    made = replace(found, per_prompt=per_prompt).held_out(2, seed=3)
    assert list(made) == ["L0H0", "L0H1"]
    assert made["L0H0"].value == 0
    assert made["L0H1"].value == per_prompt[1, judging].mean()
    assert (made["L0H1"].low, made["L0H1"].high) == mean_interval(per_prompt[1, judging])
    stopped = replace(found, per_prompt=np.where([[True], [False], [False]], np.nan, per_prompt))
    assert list(stopped.held_out(3, seed=3)) == ["L0H1", "L0H2"]
    with pytest.raises(EffectsError, match="3 prompts cannot be halved; give at least 4"):
        replace(found, n_prompts=3).held_out()
    for k in (0, -1):
        with pytest.raises(EffectsError, match=f"the first {k} of a ranking are none"):
            found.held_out(k)


def test_what_cannot_be_ablated_is_refused(model, behaviour):
    with pytest.raises(BehaviourError, match="no stand-in is called 'zeros'"):
        ablation.ablate(model, behaviour, [["L0H2"]], standin="zeros")
    with pytest.raises(ModelError, match="L0H9 is head 9 of a model that has 4"):
        ablation.ablate(model, behaviour, [["L0H9"]])
    with pytest.raises(EffectsError, match="'L0H3' was not ablated"):
        ablation.ablate(model, behaviour, [["L0H2"]])["L0H3"]
    single = Behaviour(
        "single", *(getattr(behaviour, x)[:1] for x in ("clean", "corrupt", "answer", "foil"))
    )
    with pytest.raises(BehaviourError, match="has 1 prompt"):
        ablation.ablate(model, single, [["L0H2"]])


def test_right_and_wrong_do_not_depend_on_what_is_scored(model, behaviour):
    asked = {"sets": [["L0H2"], ["L1.mlp"]], "standin": "zero"}
    plain_score = ablation.ablate(model, behaviour, **asked)
    other = ablation.ablate(model, behaviour, metric=metrics.log_probability(behaviour), **asked)
    assert other.accuracy.tolist() == plain_score.accuracy.tolist()
    assert other.intact_accuracy == 1.0


def test_an_interrupted_draw_is_left_out_and_the_count_says_so(model, behaviour, monkeypatch):
    whole, calls = scheduler.scores, []

    def stops_in_the_third(*arguments, **options):
        found = whole(*arguments, **options)
        calls.append(found)
        if len(calls) < 3:
            return found
        return replace(found, done=torch.zeros_like(found.done))

    monkeypatch.setattr(scheduler, "scores", stops_in_the_third)
    found = ablation.ablate(model, behaviour, [["L0H2"]], standin="resample", draws=9)
    assert (len(calls), found.draws) == (3, 2)
    assert not np.isnan(found["L0H2"])
