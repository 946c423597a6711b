"""Patching finds the place where the answer is planted, and only there."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data_attribution import attribution
from interp import behaviours, metrics, patching
from interp.activations.capture import located
from interp.behaviours import Behaviour
from interp.cli.patch import effects_text
from interp.errors import BehaviourError, CapabilityError, ContrastError
from interp.patching import Effects
from tests.worlds.behaviours import moved_by
from tests.worlds.models import Hooked, points
from train.model import GPT, GPTConfig, init_gpt


VOCAB = 4
# The idle parts of the planted model hold the same on every prompt, which the sweeps say.
pytestmark = pytest.mark.filterwarnings("ignore::interp.errors.UninformativeWarning")


class Carriers(Hooked):
    """Two layers of two heads; some heads of layer 0 carry the first token to the last position.

    The logits at the end read what arrived: the largest of what the carriers bring, so that either
    of two carriers suffices. Layer 1 and both MLPs idle.
    """

    cfg = SimpleNamespace(n_layers=2, n_heads=2)

    def __init__(self, *carriers: int, loud: float = 1.0) -> None:
        self.carriers = carriers
        self.scale = torch.tensor([loud, 1, 1, 1])  # of token 0

    def run_with_hooks(self, tokens, *, fwd_hooks=()):
        point = points(fwd_hooks)
        resid = torch.nn.functional.one_hot(tokens, VOCAB) * self.scale
        for layer in range(2):
            block = f"blocks.{layer}."
            resid = point(block + "hook_resid_pre", resid)
            z = torch.zeros(*resid.shape[:2], 2, VOCAB)
            for head in self.carriers if layer == 0 else ():
                z[:, -1, head] = resid[:, 0]
            z = point(block + "attn.hook_z", z)
            resid = resid + point(block + "hook_attn_out", z.amax(dim=2))
            resid = resid + point(block + "hook_mlp_out", torch.zeros_like(resid))
        return resid


def contrast(clean_first: int = 0, corrupt_first: int = 1) -> Behaviour:
    return Behaviour(
        name="copy the first token",
        clean=torch.tensor([[clean_first, between, 3] for between in (2, 3)]),
        corrupt=torch.tensor([[corrupt_first, between, 3] for between in (2, 3)]),
        answer=torch.tensor([0, 0]),
        foil=torch.tensor([1, 1]),
    )


def test_the_effect_follows_the_answer_from_its_source_to_the_readout():
    effects = patching.residual(Carriers(1), contrast())
    expected = torch.tensor([
        # pos 0  1  2
        [1.0, 0, 0],  # before layer 0 the answer is at its source
        [0.0, 0, 1],  # before layer 1 it has been moved to the end
    ])  # fmt: skip
    torch.testing.assert_close(effects.values, expected)
    assert set(effects.top(2)) == {"L0.resid_pre@0", "L1.resid_pre@2"}
    assert (effects.clean, effects.corrupt, effects.n_prompts) == (1.0, -1.0, 2)


def test_the_head_that_carries_the_answer_is_the_only_one_found():
    effects = patching.heads(Carriers(1), contrast())
    expected = torch.tensor([
        # H0 H1
        [0.0, 1],  # L0H1 carries
        [0.0, 0],
    ])  # fmt: skip
    torch.testing.assert_close(effects.values, expected)
    assert effects.top(1) == ["L0H1"]
    # Its effect is the same on every prompt, which leaves no interval.
    assert effects.interval("L0H1") is None
    assert (
        f"L0H1                1.000  the same on all {effects.n_prompts} prompts"
        in effects_text(effects, top=1)
    )


def test_one_prompt_has_an_effect_and_no_interval():
    both = contrast()
    parts = ("clean", "corrupt", "answer", "foil")
    # Asked twice it is still one prompt.
    alone = replace(both, **{part: getattr(both, part)[[0, 0]] for part in parts})
    effects = patching.heads(Carriers(1), alone)
    assert (effects["L0H1"], effects.interval("L0H1"), effects.n_prompts) == (1.0, None, 1)
    assert "L0H1                1.000  one prompt, no interval" in effects_text(effects, top=1)


def test_of_two_heads_that_each_suffice_denoising_finds_both_and_noising_none():
    either = Carriers(0, 1, loud=999.0)
    # One clean head brings 999 and one corrupt head 1: 998 on a scale from -1 to 999.
    denoised = patching.heads(either, contrast()).values
    torch.testing.assert_close(denoised, torch.tensor([[0.999, 0.999], [0, 0]]))
    noised = patching.heads(either, contrast(), direction="noising").values
    torch.testing.assert_close(noised, torch.tensor([[0.001, 0.001], [0, 0]]))


def test_attention_carries_and_mlps_idle():
    attention = patching.attention(Carriers(1), contrast())
    mlps = patching.mlps(Carriers(1), contrast())
    assert attention.values.tolist() == [1.0, 0.0]
    assert mlps.values.tolist() == [0.0, 0.0]
    assert attention.top(1) == ["L0.attn"]
    each = patching.attention(Carriers(1), contrast(), positions="each")
    assert each.values.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_progress_is_told_place_by_place():
    told = []
    patching.heads(Carriers(1), contrast(), progress=lambda *step: told.append(step))
    assert told[0] == ("patching", 1, 4)
    assert told[-1] == ("patching", 4, 4)


# What is refused


def test_prompts_the_model_does_not_tell_apart_are_refused():
    with pytest.raises(ContrastError, match="scores 1 on clean and 1 on corrupt"):
        patching.heads(Carriers(), same_at_the_end())


def same_at_the_end() -> Behaviour:
    """Clean and corrupt differ, but a model without carriers reads the last token only."""
    return Behaviour(
        name="read the last token",
        clean=torch.tensor([[0, 2]]),
        corrupt=torch.tensor([[1, 2]]),
        answer=torch.tensor([2]),
        foil=torch.tensor([0]),
    )


def test_a_behaviour_the_model_cannot_do_is_refused_with_the_numbers():
    with pytest.raises(CapabilityError, match=r"accuracy 0.00 .* on 2 prompts"):
        patching.residual(Carriers(1), contrast(1, 0))


def test_misspelt_options_are_refused():
    with pytest.raises(BehaviourError, match="did you mean 'noising'"):
        patching.heads(Carriers(1), contrast(), direction="nosing")
    with pytest.raises(BehaviourError, match="no positions are called 'all'"):
        patching.mlps(Carriers(1), contrast(), positions="all")


# Laws on a real decoder with random weights


@pytest.fixture(scope="module")
def model() -> GPT:
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=12, d_vocab=30, init_std=0.3)
    return init_gpt(cfg, seed=0).eval()


@pytest.fixture(scope="module")
def random_contrast(model) -> Behaviour:
    """Random prompts that differ at position 3; answer and foil follow from what the model says."""
    clean = torch.randint(30, (6, 8), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + 1) % 30
    return moved_by(model, clean, corrupt)


def test_before_the_prompts_differ_nothing_has_an_effect_and_where_they_differ_everything(
    model, random_contrast
):
    effects = patching.residual(model, random_contrast)
    assert effects.values[:, :3].abs().max() == 0
    assert effects.values[0, 3].item() == pytest.approx(1.0, abs=1e-6)
    assert effects.values[0, 4:].abs().max() == 0, "layer 0 reads embeddings, which are equal there"


def test_one_name_is_one_component_wherever_several_are_taken(model, random_contrast):
    one = patching.together(model, random_contrast, "L0H1")
    listed = patching.together(model, random_contrast, [["L0H1"]])
    assert one.names == ["L0H1"]
    assert one["L0H1"] == listed["L0H1"]
    assert attribution.Gradient(within="L0H1").components == ("L0H1",)
    (site,) = located(model, "L0H1")
    assert site.name == "L0H1"


def test_all_heads_of_a_layer_together_are_its_attention(model, random_contrast):
    name = "blocks.0.attn.hook_z"
    with torch.inference_mode():
        _, cache = model.run_with_cache(random_contrast.clean, names_filter=[name])
        logits = model.run_with_hooks(
            random_contrast.corrupt, fwd_hooks=[(name, lambda value, point: cache[name])]
        )
    effects = patching.attention(model, random_contrast)
    score = random_contrast.score(logits).mean().item()
    expected = (score - effects.corrupt) / (effects.clean - effects.corrupt)
    assert effects["L0.attn"] == pytest.approx(expected, abs=1e-5)


def test_noising_is_denoising_with_the_roles_exchanged(model, random_contrast):
    exchanged = Behaviour(
        "exchanged",
        random_contrast.corrupt,
        random_contrast.clean,
        random_contrast.foil,
        random_contrast.answer,
    )
    if behaviours.measure(model, exchanged).accuracy <= 0.5:
        pytest.skip("this random model does not prefer the foil on corrupt prompts")
    noised = patching.heads(model, random_contrast, direction="noising")
    denoised = patching.heads(model, exchanged)
    torch.testing.assert_close(noised.values, denoised.values)


def test_the_model_is_left_as_it_was(model, random_contrast):
    before = model(random_contrast.clean)
    patching.mlps(model, random_contrast, positions="each")
    assert torch.equal(model(random_contrast.clean), before)
    assert not any(point.hooked for point in model.hook_dict.values())


def test_the_same_seed_gives_the_same_file(model, random_contrast, tmp_path):
    for name in ("one", "two"):
        patching.heads(model, random_contrast).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert Effects.load(tmp_path / "one").provenance.behaviour == "random"


def test_a_metric_that_cannot_see_any_patch_is_refused(model, random_contrast):
    early = metrics.custom("first", lambda logits: logits[:, 0, 0], unit="nats", positions=(4,))
    for sweep, positions in ((patching.residual, [5, 7]), (patching.mlps, [(5, 6)])):
        with pytest.raises(BehaviourError, match="reaches position 4, which is all that the metr"):
            sweep(model, random_contrast, positions=positions, metric=early)
    with pytest.raises(BehaviourError, match="none of the 1 patches reaches position 7"):
        patching.together(model, random_contrast, [["L1.mlp@3"]])
    assert patching.together(model, random_contrast, [["L1H0.v@4"]]).values.abs().max() > 0
