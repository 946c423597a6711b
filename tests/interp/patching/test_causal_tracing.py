"""Causal tracing: equal to a plain loop over whole forward passes, given the same noise."""

from itertools import product

import pytest
import torch

from interp import metrics, patching
from interp.behaviours import Behaviour
from interp.errors import BehaviourError, EffectsError, ModelError
from tests.worlds.behaviours import said_by
from train.model import GPTConfig, init_gpt


N_POS, VOCAB = 7, 30
LAYOUTS = {
    "gpt2": {},
    "llama": {
        "n_key_value_heads": 2,
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "bias": False,
        "tie": False,
    },
    "pythia": {"position": "rope", "parallel_residual": True, "rotary_channels": 2, "tie": False},
    "post-norm": {"norm_placement": "post"},
}


@pytest.fixture(params=LAYOUTS, scope="module")
def model(request):
    cfg = GPTConfig(
        n_layers=3, n_heads=4, d_model=32, n_ctx=8, d_vocab=VOCAB, init_std=0.2,
        **LAYOUTS[request.param],
    )  # fmt: skip
    return init_gpt(cfg, seed=0).eval()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    """Random prompts; the answers are what the model says, so that it does the behaviour."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(VOCAB, (4, N_POS), generator=draw)
    corrupt = clean.clone()
    corrupt[:, 2:4] = (clean[:, 2:4] + 1 + torch.arange(2)) % VOCAB
    return said_by(model, clean, corrupt, subject=(2, 4))


@torch.no_grad()
def reference(model, behaviour, site: str, window: int, noises: list[torch.Tensor], score):
    """Meng et al. 2022, section 2.1: share of the answer that one restored state brings back."""
    hooks = {"residual": "hook_resid_post", "mlps": "hook_mlp_out", "attention": "hook_attn_out"}
    names = [f"blocks.{layer}.{hooks[site]}" for layer in range(model.cfg.n_layers)]
    logits, clean = model.run_with_cache(behaviour.clean, names_filter=names)
    goal = score(logits).double().mean()
    starts, restored = [], torch.zeros(model.cfg.n_layers, behaviour.n_pos).double()
    for noise in noises:
        damage = ("hook_embed", lambda value, point, noise=noise: value + noise)
        starts.append(score(model.run_with_hooks(behaviour.clean, fwd_hooks=[damage])).mean())
        for layer, pos in product(range(model.cfg.n_layers), range(behaviour.n_pos)):

            def restore(value, point, pos=pos):
                value = value.clone()
                value[:, pos] = clean[point.name][:, pos]
                return value

            first = layer - window // 2
            around = names[max(0, first) : first + window]
            hooked = [damage, *((name, restore) for name in around)]
            moved = score(model.run_with_hooks(behaviour.clean, fwd_hooks=hooked)).mean()
            restored[layer, pos] += moved.double() / len(noises)
    start = torch.stack(starts).double().mean()
    return (restored - start) / (goal - start)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_noised_trace_equals_the_plain_loop(model, behaviour, window):
    trace = patching.causal_trace(model, behaviour, damage="noised", draws=2, window=window, seed=5)
    noises = [patching.subject_noise(model, behaviour, seed=5 * 2 + draw) for draw in range(2)]
    for what in ("residual", "mlps", "attention"):
        wide = 1 if what == "residual" else window
        expected = reference(model, behaviour, what, wide, noises, behaviour.score)
        found = getattr(trace, what)
        torch.testing.assert_close(found.values.double(), expected, atol=1e-5, rtol=0)
        assert found.window == wide


def test_it_traces_probabilities_too(model, behaviour):
    metric = metrics.probability(behaviour)
    trace = patching.causal_trace(model, behaviour, damage="noised", draws=1, metric=metric)
    noises = [patching.subject_noise(model, behaviour, seed=0)]
    expected = reference(model, behaviour, "residual", 1, noises, metric.of_logits)
    torch.testing.assert_close(trace.residual.values.double(), expected, atol=1e-5, rtol=0)


def test_a_replaced_subject_is_patching_by_another_name(model, behaviour):
    trace = patching.causal_trace(model, behaviour)
    torch.testing.assert_close(
        trace.residual.values, patching.residual(model, behaviour, site="resid_post").values
    )
    torch.testing.assert_close(
        trace.mlps.values, patching.mlps(model, behaviour, positions="each").values
    )


def test_before_the_subject_nothing_is_restored_and_in_the_end_everything_is(model, behaviour):
    trace = patching.causal_trace(model, behaviour, damage="noised", draws=2)
    assert trace.residual.values[:, :2].abs().max() == 0
    assert trace.residual.values[-1, -1].item() == pytest.approx(1, abs=1e-5)


def test_noise_lies_on_the_subject_alone_and_is_three_deviations_wide(model, behaviour):
    noise = patching.subject_noise(model, behaviour, seed=3)
    assert noise[:, :2].abs().max() == 0
    assert noise[:, 4:].abs().max() == 0
    width = 3 * model.W_E[behaviour.clean[:, 2:4]].std()
    assert noise[:, 2:4].std().item() == pytest.approx(width.item(), rel=0.1)


def test_a_trace_survives_saving_and_has_a_curve_at_the_last_token_of_its_subject(
    model, behaviour, tmp_path
):
    trace = patching.causal_trace(model, behaviour)
    trace.save(tmp_path / "trace.json")
    again = patching.Trace.load(tmp_path / "trace.json")
    assert torch.equal(again.mlps.values, trace.mlps.values)
    assert again.curve("mlps")["effect"].tolist() == trace.mlps.values[:, 3].tolist()
    with pytest.raises(EffectsError, match="no position 40"):
        trace.curve("mlps", pos=40)
    assert len(str(trace.plot().to_json())) < 100_000


def test_what_cannot_be_traced_is_refused(model, behaviour):
    nameless = Behaviour(
        "nameless", behaviour.clean, behaviour.corrupt, behaviour.answer, behaviour.foil
    )
    with pytest.raises(BehaviourError, match="names no subject"):
        patching.causal_trace(model, nameless, damage="noised")
    with pytest.raises(BehaviourError, match=r"no damage is called 'noise'.*noised"):
        patching.causal_trace(model, behaviour, damage="noise")
    with pytest.raises(ModelError, match="window of 9 layers"):
        patching.causal_trace(model, behaviour, window=9)
    with pytest.raises(BehaviourError, match="0 draws"):
        patching.causal_trace(model, behaviour, damage="noised", draws=0)
