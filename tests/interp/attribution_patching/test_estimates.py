"""Estimates are exact where the model is linear, and say how wrong they are where it is not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp import attribution_patching
from interp.attribution_patching import Agreement, estimates
from interp.behaviours import Behaviour
from interp.components import parse
from interp.errors import BehaviourError, EffectsError, ModelError, UninformativeWarning
from interp.metrics import custom
from interp.patching import Effects, activation_patching
from interp.results import ABSOLUTE
from tests.worlds.behaviours import moved_by
from tests.worlds.known import known
from tests.worlds.models import Hooked, points
from train.model import GPT, GPTConfig, init_gpt


pytestmark = pytest.mark.integration
KINDS = {
    "gpt2": {},
    "llama": {
        "position": "rope",
        "n_key_value_heads": 1,
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "bias": False,
        "tie": False,
    },
    "parallel": {
        "position": "rope",
        "rotary_channels": 4,
        "mlp": "gelu",
        "tie": False,
        "parallel_residual": True,
    },
    "normalised queries and keys in a window": {
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "qk_norm": True,
        "window": 3,
    },
}
VOCAB = 30


def decoder(kind: str = "gpt2", n_layers: int = 3, init_std: float = 0.3) -> GPT:
    cfg = GPTConfig(
        n_layers=n_layers,
        n_heads=2,
        d_model=16,
        n_ctx=12,
        d_vocab=VOCAB,
        init_std=init_std,
        **KINDS[kind],
    )
    return init_gpt(cfg, seed=0).eval()


def contrast(model: GPT, n: int = 6) -> Behaviour:
    """Random prompts that differ at position 3; answer and foil follow from what the model says."""
    clean = torch.randint(VOCAB, (n, 8), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + 1) % VOCAB
    return moved_by(model, clean, corrupt)


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> GPT:
    return decoder(request.param)


class Adding(Hooked):
    """Three layers of two heads that each add a fixed share of the first token to every position.

    Everything is a sum, so a first-order estimate has nothing to be wrong about. The shares sum to
    one, so they are the effects.
    """

    cfg = SimpleNamespace(n_layers=3, n_heads=2, d_mlp=0)
    shares = torch.tensor([[0.75, 0.125], [-0.5, 0.25], [-0.125, 0.5]])

    def run_with_hooks(self, tokens, *, fwd_hooks=()):
        point = points(fwd_hooks)
        first = torch.nn.functional.one_hot(tokens[:, :1], 4).float()
        resid = torch.zeros(*tokens.shape, 4)
        for layer, shares in enumerate(self.shares):
            z = first[:, :, None] * shares[:, None] + torch.zeros(*tokens.shape, 2, 4)
            z = point(f"blocks.{layer}.attn.hook_z", z)
            resid = resid + point(f"blocks.{layer}.hook_attn_out", z.sum(dim=2))
        return resid


def first_token() -> Behaviour:
    return Behaviour(
        name="read the first token",
        clean=torch.tensor([[0, between, 3] for between in (2, 3)]),
        corrupt=torch.tensor([[1, between, 3] for between in (2, 3)]),
        answer=torch.tensor([0, 0]),
        foil=torch.tensor([1, 1]),
    )


def test_in_a_sum_the_estimate_is_the_effect():
    estimate = attribution_patching.attribution(Adding(), first_token())
    torch.testing.assert_close(estimate.values, Adding.shares)
    exact = activation_patching.heads(Adding(), first_token())
    torch.testing.assert_close(estimate.values, exact.values)
    assert (estimate.axes, estimate.unit, estimate.names) == (exact.axes, exact.unit, exact.names)


def test_in_a_sum_dropping_gradients_leaves_the_size_of_the_effect():
    # Two of three passes see each head, whose own layer the third drops: 2 |effect| / (3 - 1).
    estimate = attribution_patching.atp_star(Adding(), first_token(), qk_fix=False)
    torch.testing.assert_close(estimate.values, Adding.shares.abs())
    assert ABSOLUTE in estimate.notes


def test_signs_that_all_prompts_decided_leave_no_half_that_is_independent():
    """Without an effect, half of the estimates of either half lie beyond 0: theirs all above it."""
    estimate = attribution_patching.atp_star(Adding(), first_token(), qk_fix=False)
    noise = np.random.default_rng(0).normal(size=(400, 64))
    signed = noise * np.sign(noise.mean(axis=1, keepdims=True))  # as GradDrop takes them
    assert (signed[:, :32].mean(axis=1) > 0).mean() > 0.7
    assert (noise[:, :32].mean(axis=1) > 0).mean() == pytest.approx(0.5, abs=0.08)
    with pytest.raises(EffectsError, match="the halves are not independent"):
        estimate.held_out()


@pytest.mark.parametrize("over", estimates.OVER)
@pytest.mark.parametrize("positions", ["each", "together"])
def test_an_estimate_has_the_cells_of_the_exact_sweep(model, over, positions):
    behaviour = contrast(model)
    exact = getattr(activation_patching, over)(model, behaviour, positions=positions)
    for estimate in (
        attribution_patching.attribution(model, behaviour, over=over, positions=positions),
        attribution_patching.atp_star(model, behaviour, over=over, positions=positions),
    ):
        assert (estimate.axes, estimate.names) == (exact.axes, exact.names)
        assert estimate.values.shape == exact.values.shape
        assert (estimate.clean, estimate.corrupt) == (exact.clean, exact.corrupt)


@pytest.mark.parametrize("over", estimates.OVER)
def test_an_estimate_is_the_slope_of_a_small_step_towards_the_source(model, over):
    behaviour = contrast(model)
    found = attribution_patching.attribution(model, behaviour, over=over, positions="each")
    exact = GPT(model.cfg)
    exact.load_state_dict(model.state_dict())
    exact = exact.double().eval()
    step, whole = 1e-5, found.clean - found.corrupt
    for name in found.top(3) + found.top(9)[-2:]:
        place = parse(name)
        with torch.no_grad():
            _, cache = exact.run_with_cache(behaviour.clean, names_filter=[place.hook])

            def towards(value, point, at=place.index, source=cache[place.hook]):
                value = value.clone()
                value[at] += step * (source[at] - value[at])
                return value

            stepped = exact.run_with_hooks(behaviour.corrupt, fwd_hooks=[(place.hook, towards)])
            change = behaviour.score(stepped) - behaviour.score(exact(behaviour.corrupt))
        expected = change.mean().item() / step / whole
        assert found[name] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("positions", ["each", "together"])
def test_the_qk_fix_is_the_patched_pattern_times_its_gradient(model, site, positions):
    """Against the pattern of a run that was really patched, layer 1, by autograd."""
    behaviour = contrast(model)
    over = {"q": "queries", "k": "keys"}[site]
    found = attribution_patching.atp_star(
        model, behaviour, over=over, positions=positions, grad_drop=False
    )
    name, pattern = f"blocks.1.attn.hook_{site}", "blocks.1.attn.hook_pattern"
    with torch.no_grad():
        _, source = model.run_with_cache(behaviour.clean, names_filter=[name])
    slope, before = _pattern_and_gradient(model, behaviour, pattern)
    whole = found.clean - found.corrupt
    for head in range(source[name].shape[2]):
        for pos in range(8) if positions == "each" else [slice(None)]:

            def replace_one(value, point, at=(slice(None), pos, head)):
                value = value.clone()
                value[at] = source[name][at]
                return value

            kept = []
            with torch.no_grad():
                model.run_with_hooks(
                    behaviour.corrupt,
                    fwd_hooks=[(name, replace_one), (pattern, lambda v, _, to=kept: to.append(v))],
                )
            expected = ((kept[0] - before) * slope).sum().item() / len(behaviour.clean) / whole
            at = (1, head, pos) if positions == "each" else (1, head)
            assert found.values[at].item() == pytest.approx(expected, abs=1e-5)


def test_the_qk_fix_of_normalised_queries_and_keys_needs_no_rotation(monkeypatch):
    monkeypatch.setitem(KINDS, "normalised", {"qk_norm": True})
    for site in "qk":
        test_the_qk_fix_is_the_patched_pattern_times_its_gradient(
            decoder("normalised"), site, "each"
        )


def _pattern_and_gradient(model, behaviour, name):
    kept = []
    logits = model.run_with_hooks(
        behaviour.corrupt, fwd_hooks=[(name, lambda value, point: kept.append(value))]
    )
    (slope,) = torch.autograd.grad(behaviour.score(logits).sum(), kept)
    return slope, kept[0].detach()


def test_dropping_a_layer_is_the_gradient_with_what_it_writes_held_fixed(model):
    """GradDrop against three models in which one layer's output is a constant."""
    behaviour = contrast(model)
    found = attribution_patching.atp_star(model, behaviour, over="heads", qk_fix=False)
    name = "blocks.0.attn.hook_z"
    with torch.no_grad():
        _, source = model.run_with_cache(behaviour.clean, names_filter=[name])
    total = torch.zeros(2)
    for layer in range(3):
        kept = []
        held = [
            (f"blocks.{layer}.{site}", lambda value, point: value.detach())
            for site in ("hook_attn_out", "hook_mlp_out")
        ]
        logits = model.run_with_hooks(
            behaviour.corrupt, fwd_hooks=[(name, lambda v, _, to=kept: to.append(v)), *held]
        )
        score = behaviour.score(logits).sum()
        (slope,) = torch.autograd.grad(score, kept, allow_unused=True, materialize_grads=True)
        change = ((source[name] - kept[0].detach()) * slope).sum(dim=(1, 3)).mean(dim=0)
        total += change.abs()
    expected = total / (3 - 1) / abs(found.clean - found.corrupt)
    torch.testing.assert_close(found.values[0], expected, atol=1e-5, rtol=1e-4)


def test_many_prompts_are_taken_in_parts_with_the_same_result(model, monkeypatch):
    behaviour = contrast(model, n=7)
    whole = attribution_patching.atp_star(model, behaviour, over="keys", positions="each")
    monkeypatch.setattr("interp.attribution_patching.grad_drop.TOKENS", 16)
    parts = attribution_patching.atp_star(model, behaviour, over="keys", positions="each")
    torch.testing.assert_close(parts.values, whole.values, atol=1e-6, rtol=1e-5)


def test_noising_takes_the_gradient_in_the_other_run(model):
    behaviour = contrast(model)
    denoised = attribution_patching.attribution(model, behaviour, direction="denoising")
    noised = attribution_patching.attribution(model, behaviour, direction="noising")
    assert (denoised.direction, noised.direction) == ("denoising", "noising")
    assert not torch.allclose(denoised.values, noised.values)


def test_the_model_is_left_as_it_was_and_inference_mode_is_no_obstacle(model):
    behaviour = contrast(model)
    expected = attribution_patching.attribution(model, behaviour)
    with torch.inference_mode():
        found = attribution_patching.attribution(model, behaviour)
    torch.testing.assert_close(found.values, expected.values)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(point.hooked for point in model.hook_dict.values())


def test_frozen_weights_are_no_obstacle(model):
    behaviour = contrast(model)
    expected = attribution_patching.attribution(model, behaviour)
    frozen = GPT(model.cfg)
    frozen.load_state_dict(model.state_dict())
    found = attribution_patching.attribution(frozen.eval().requires_grad_(False), behaviour)
    torch.testing.assert_close(found.values, expected.values)


# Verification


def test_verifying_everything_gives_the_exact_sweep_and_counts_what_was_found(model):
    behaviour = contrast(model)
    estimate = attribution_patching.attribution(model, behaviour, positions="each")
    exact = activation_patching.heads(model, behaviour, positions="each")
    found = attribution_patching.verify(model, behaviour, estimate, top=None)
    assert (found.n, found.n_places, found.control) == (48, 48, None)
    for place, value in zip(found.places, found.exact, strict=True):
        assert value == pytest.approx(exact[place], abs=1e-6)
    errors = [abs(estimate[place] - exact[place]) for place in exact.names]
    assert found.largest_error == pytest.approx(max(errors), abs=1e-6)
    largest = [sorted(one.names, key=lambda n: -abs(one[n]))[:10] for one in (estimate, exact)]
    assert found.recall == len(set(largest[0]) & set(largest[1])) / 10


def test_the_top_is_verified_and_others_are_its_control(model):
    behaviour = contrast(model)
    estimate = attribution_patching.attribution(model, behaviour, positions="each")
    found = attribution_patching.verify(model, behaviour, estimate, top=8)
    sizes = [abs(estimate[name]) for name in found.places]
    assert sizes == sorted(sizes, reverse=True)
    assert (found.n, found.control_n, found.recall) == (8, 8, None)
    assert found.control_place not in found.places
    low, high = known(found.interval)
    assert low <= found.spearman <= high
    assert "8 of 48 places verified on 6 prompts" in str(found)


def test_in_a_sum_verification_finds_no_error():
    estimate = attribution_patching.attribution(Adding(), first_token())
    found = attribution_patching.verify(Adding(), first_token(), estimate, top=None)
    assert found.largest_error == pytest.approx(0.0, abs=1e-6)
    assert (found.spearman, found.recall) == (pytest.approx(1.0), 1.0)


def test_an_estimate_without_signs_is_compared_with_sizes():
    estimate = attribution_patching.atp_star(Adding(), first_token(), qk_fix=False)
    found = attribution_patching.verify(Adding(), first_token(), estimate, top=None)
    assert found.absolute
    assert found.largest_error == pytest.approx(0.0, abs=1e-6)
    assert min(found.exact) == -0.5


def test_a_wrong_estimate_is_found_out():
    estimate = attribution_patching.attribution(Adding(), first_token())
    wrong = replace(estimate, values=estimate.values.flip(0))
    found = attribution_patching.verify(Adding(), first_token(), wrong, top=None)
    assert found.largest_error == pytest.approx(0.875)
    assert found.spearman < 0.5
    hidden = replace(estimate, values=estimate.values * torch.tensor([[0.0, 1], [1, 1], [1, 1]]))
    found = attribution_patching.verify(Adding(), first_token(), hidden, top=3)
    assert (found.control_place, found.control) == ("L0H0", pytest.approx(0.75))


def test_results_survive_a_file(model, tmp_path):
    behaviour = contrast(model)
    estimate = attribution_patching.atp_star(model, behaviour)
    estimate.save(tmp_path / "estimate.json")
    read = Effects.load(tmp_path / "estimate.json")
    assert read.notes == estimate.notes
    found = attribution_patching.verify(model, behaviour, read, top=4)
    found.save(tmp_path / "agreement.json")
    assert Agreement.load(tmp_path / "agreement.json") == found
    assert list(found.to_frame()["place"]) == list(found.places)
    assert found.plot().data


# What is refused


def test_misspelt_options_are_refused():
    with pytest.raises(BehaviourError, match="did you mean 'queries'"):
        attribution_patching.attribution(Adding(), first_token(), over="queris")
    with pytest.raises(BehaviourError, match="no positions are called 'all'"):
        attribution_patching.attribution(Adding(), first_token(), positions="all")


def test_an_estimate_of_something_else_is_not_verified(model):
    behaviour = contrast(model)
    estimate = attribution_patching.attribution(model, behaviour)
    fewer = Behaviour(
        "fewer",
        behaviour.clean[:4],
        behaviour.corrupt[:4],
        behaviour.answer[:4],
        behaviour.foil[:4],
    )
    with pytest.raises(EffectsError, match="with other prompts"):
        attribution_patching.verify(model, fewer, estimate)
    other = custom("first logit", lambda logits: logits[:, -1, 0], unit="logits")
    with pytest.raises(EffectsError, match="is of the logit difference, and first logit"):
        attribution_patching.verify(model, behaviour, estimate, metric=other)
    with pytest.raises(EffectsError, match="top 0 verifies nothing"):
        attribution_patching.verify(model, behaviour, estimate, top=0)


def test_gradients_of_one_layer_are_not_dropped():
    model = decoder(n_layers=1)
    with pytest.raises(ModelError, match="one layer"):
        attribution_patching.atp_star(model, contrast(model))


def test_a_metric_without_gradient_is_refused(model):
    behaviour = contrast(model)
    counted = custom("count", lambda logits: (logits[:, -1] > 0).sum(-1).float(), unit="logits")
    with pytest.raises(ModelError, match="'count' has no gradient"):
        attribution_patching.attribution(model, behaviour, metric=counted)


def test_places_that_cannot_matter_are_warned_of():
    class Deaf(Adding):
        shares = torch.zeros(3, 2)

        def run_with_hooks(self, tokens, *, fwd_hooks=()):
            own = torch.nn.functional.one_hot(tokens[:, :1], 4).float()
            return super().run_with_hooks(tokens, fwd_hooks=fwd_hooks) + own

    with pytest.warns(UninformativeWarning):
        found = attribution_patching.attribution(Deaf(), first_token())
    assert found.values.abs().max() == 0
