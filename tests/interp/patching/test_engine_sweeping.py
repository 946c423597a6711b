"""The patch engine computes what whole forward passes with hooks compute, to the last digits.

In fp64 the two differ by the order of sums only, so 1e-10 leaves no room for an approximation:
every site at every kind of position, places patched together across layers, shared beginnings,
metrics that read much or little, and prompts that a small memory budget cuts into slabs.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.behaviours import Behaviour
from interp.components import Component
from interp.errors import BudgetError, ModelError
from interp.metrics import Metric, custom, log_probability, logit_difference, probability
from interp.patching import engine
from interp.patching.engine import reference
from tests.worlds.models import shaken
from train.model import GPT, GPTConfig


pytestmark = pytest.mark.integration
N_POS, N_PROMPTS, VOCAB = 8, 3, 23
GPT2 = GPTConfig(
    n_layers=3, n_heads=2, d_model=16, n_ctx=N_POS, d_vocab=VOCAB, d_mlp=24, init_std=0.3,
    vocab_multiple=8,
)  # fmt: skip
LLAMA = replace(
    GPT2, n_key_value_heads=1, d_head=6, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
    tie=False,
)  # fmt: skip
MODERN = replace(LLAMA, qk_norm=True, sinks="learned", n_sinks=2)
SLOWRUN = replace(
    LLAMA, n_layers=5, qk_norm=True, exclusive="learned", head_gate=True, value_residual=True,
    embed_mix=True, unet=True, embed_norm=True, loop_first=1, loop_layers=1, loop_passes=2,
)  # fmt: skip
PYTHIA = replace(
    GPT2, position="rope", rotary_channels=4, mlp="gelu", tie=False, parallel_residual=True
)
WINDOW = replace(
    LLAMA, window=3, qkv_bias=True, rope_scaling="llama3", rope_factor=4.0, rope_original_ctx=6,
    rope_theta=100.0,
)  # fmt: skip
LAYOUTS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "post-norm": replace(GPT2, norm_placement="post", position="sinusoidal"),
    "post-norm llama": replace(LLAMA, norm_placement="post"),
    "no norm, looks ahead": replace(GPT2, norm="none", causal=False, mlp="relu", tie=False),
    "rope, looks ahead": replace(LLAMA, causal=False),
    "learned sinks": MODERN,
    "u-net": replace(LLAMA, n_layers=4, unet=True),
    "all parts of slowrun": SLOWRUN,
    "pythia": PYTHIA,
    "all parts of slowrun, parallel": replace(SLOWRUN, parallel_residual=True),
    "a window, scaled rope, biases of q, k and v": WINDOW,
    "a window and sinks": replace(MODERN, window=3, rotary_channels=2),
}
EVERYWHERE = (None, 4, N_POS - 1, (0, 2, 5))
every_layout = pytest.mark.parametrize("cfg", LAYOUTS.values(), ids=LAYOUTS.keys())


def prompted(*, shared: int = 0, seed: int = 0) -> Behaviour:
    """Random prompts that differ from position `shared` on."""
    draw = torch.Generator().manual_seed(seed)
    clean, corrupt = (torch.randint(VOCAB, (N_PROMPTS, N_POS), generator=draw) for _ in range(2))
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, shared] = (clean[:, shared] + 1) % VOCAB
    return Behaviour("random", clean, corrupt, torch.tensor([1, 2, 3]), torch.tensor([4, 5, 4]))


def every_metric(behaviour: Behaviour) -> list[Metric]:
    """Two columns of one position, the whole vocabulary, and several positions out of order."""
    return [
        logit_difference(behaviour),
        log_probability(behaviour),
        probability(behaviour),
        custom(
            "late and early", lambda x: x[:, 0].sum(1) - x[:, 1, 3], unit="x", positions=(-1, 2)
        ),
    ]


def everything(cfg: GPTConfig) -> Iterator[Component]:
    """Every component of every site, at no, one and several positions."""
    for layer, pos in product(range(cfg.n_layers), EVERYWHERE):
        for site in ("resid_pre", "resid_mid", "resid_post", "attn", "mlp"):
            if site != "resid_mid" or not cfg.parallel_residual:
                yield Component(site, layer, pos=pos)
        for site in ("head", "q", "k", "v", "pattern"):
            for head in range(cfg.n_key_value_heads if site in ("k", "v") else cfg.n_heads):
                yield Component(site, layer, head=head, pos=pos)
        yield Component("neuron", layer, neuron=cfg.d_mlp - 1, pos=pos)
    for layer, head, key in product(range(cfg.n_layers), range(cfg.n_heads), (0, 3)):
        yield Component("pattern", layer, head=head, pos=5, key=key)
        yield Component("pattern", layer, head=head, pos=None if key else (3, 6), key=key)


def agree(
    model: GPT, behaviour: Behaviour, patches: list, *, shared: int = 0, memory: int = 2 << 30
) -> engine.Patched:
    """Both ways of running the corrupt prompts with clean values; the engine's result."""
    hooks = sorted({place.hook for patch in patches for place in patch})
    with torch.inference_mode():
        _, cache = model.run_with_cache(behaviour.clean, names_filter=hooks)
    source = {name: cache[name] for name in hooks}
    metrics = every_metric(behaviour)
    expected = reference.reference_scores(model, behaviour.corrupt, patches, source, metrics)
    found = engine.scores(
        model, behaviour.corrupt, patches, source, metrics, shared=shared, memory=memory
    )
    torch.testing.assert_close(found.start, expected.start, rtol=0, atol=1e-10)
    worst = (found.scores - expected.scores).abs().amax(dim=(0, 2))
    wrong = {str(patches[i]): worst[i].item() for i in (~(worst <= 1e-10)).nonzero()[:, 0].tolist()}
    assert not wrong
    assert found.done.all()
    return found


@every_layout
@pytest.mark.parametrize("shared", [0, 3])
def test_one_place_at_a_time_is_a_forward_pass_with_a_hook(cfg, shared):
    patches = [(place,) for place in everything(cfg)]
    found = agree(shaken(cfg, 0.3).double(), prompted(shared=shared), patches, shared=shared)
    moved = (found.scores - found.start[:, None]).abs().amax(dim=(0, 2))
    assert (moved > 1e-3).float().mean() > 0.4, "the two agree on patches that do something"


@every_layout
def test_places_of_all_layers_and_sites_together_are_one_forward_pass(cfg):
    places, draw = list(everything(cfg)), torch.Generator().manual_seed(1)
    sizes = torch.randint(2, 7, (60,), generator=draw).tolist()
    patches = [
        tuple(places[i] for i in torch.randint(len(places), (size,), generator=draw).tolist())
        for size in sizes
    ]
    agree(shaken(cfg, 0.3).double(), prompted(), patches)


@pytest.fixture(scope="module")
def cfg_small() -> tuple[GPT, Behaviour]:
    return shaken(GPT2, 0.3).double(), prompted()


@pytest.fixture(scope="module")
def heads_and_streams() -> list[tuple[Component]]:
    heads = [(Component("head", layer, head=head),) for layer in range(3) for head in range(2)]
    return heads + [
        (Component("resid_pre", layer, pos=pos),) for layer in range(3) for pos in range(N_POS)
    ]


@pytest.fixture(scope="module")
def least(cfg_small: tuple[GPT, Behaviour], heads_and_streams) -> int:
    """The smallest budget that is not refused, within a hundredth."""
    low, high = 1 << 10, 1 << 18
    while high > 1.01 * low:
        middle = (low + high) // 2
        try:
            slabs_seen(*cfg_small, heads_and_streams, middle)
            high = middle
        except BudgetError:
            low = middle
    return high


@pytest.mark.parametrize("times", [1, 1.5])
def test_a_small_budget_cuts_the_prompts_and_changes_no_number(
    cfg_small: tuple[GPT, Behaviour], heads_and_streams, least, times
):
    # A metric has to keep track of which prompt a row belongs to.
    memory = int(times * least)
    n_slabs = len(slabs_seen(*cfg_small, heads_and_streams, memory))
    assert n_slabs == N_PROMPTS if times == 1 else 1 < n_slabs <= N_PROMPTS
    agree(*cfg_small, heads_and_streams, memory=memory)


def slabs_seen(model: GPT, behaviour: Behaviour, patches: list, memory: int) -> list[slice]:
    """The prompts that the source is asked for, one slab after the other."""
    asked: list[slice] = []
    hooks = sorted({place.hook for patch in patches for place in patch})

    def source(slab: slice) -> dict[str, torch.Tensor]:
        asked.append(slab)
        _, cache = model.run_with_cache(behaviour.clean[slab], names_filter=hooks)
        return {name: cache[name] for name in hooks}

    metrics = [logit_difference(behaviour)]
    engine.scores(model, behaviour.corrupt, patches, source, metrics, memory=memory)
    return asked


def test_any_values_can_be_written_in_not_only_another_runs(cfg_small):
    model, behaviour = cfg_small
    patches = [
        (Component("head", 1, head=1),),
        (Component("mlp", 0, pos=3),),
        (Component("pattern", 2, head=0),),
    ]
    draw = torch.Generator().manual_seed(2)
    shapes = {"mlp": (N_PROMPTS, N_POS, 16), "head": (N_PROMPTS, N_POS, 2, 8)}
    shapes["pattern"] = (N_PROMPTS, 2, N_POS, N_POS)
    source = {
        place.hook: torch.randn(shapes[place.site], generator=draw, dtype=torch.float64)
        for (place,) in patches
    }
    metrics = every_metric(behaviour)
    expected = reference.reference_scores(model, behaviour.corrupt, patches, source, metrics)
    found = engine.scores(model, behaviour.corrupt, patches, source, metrics)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.moved, expected.moved)


def test_writing_what_is_there_changes_nothing_and_says_so(cfg_small):
    model, behaviour = cfg_small
    behaviour = replace(behaviour, corrupt=behaviour.clean.roll(1, dims=0))
    patches = [(place,) for place in everything(GPT2)]
    hooks = sorted({place.hook for (place,) in patches})
    _, cache = model.run_with_cache(behaviour.corrupt, names_filter=hooks)
    source = {name: cache[name].detach() for name in hooks}
    found = engine.scores(model, behaviour.corrupt, patches, source, every_metric(behaviour))
    # An attention pattern is computed in the same order only when somebody looks at it.
    assert found.moved.max() < 1e-12
    torch.testing.assert_close(
        found.scores, found.start[:, None].expand_as(found.scores), rtol=0, atol=1e-12
    )


def test_hooks_of_the_users_own_are_part_of_the_model_that_is_patched(cfg_small):
    model, behaviour = cfg_small
    patches = [(Component("head", 1, head=head),) for head in range(2)]
    hooks = sorted({place.hook for (place,) in patches})
    _, cache = model.run_with_cache(behaviour.clean, names_filter=hooks)
    source = {name: cache[name].detach() for name in hooks}
    metrics = [logit_difference(behaviour)]
    before = engine.scores(model, behaviour.corrupt, patches, source, metrics)
    with model.hooks([("blocks.0.hook_mlp_out", lambda value, point: 0 * value)]):
        steered = engine.scores(model, behaviour.corrupt, patches, source, metrics)
        expected = reference.reference_scores(model, behaviour.corrupt, patches, source, metrics)
    torch.testing.assert_close(steered.scores, expected.scores, rtol=0, atol=1e-12)
    assert (steered.scores - before.scores).abs().min() > 1e-6
    again = engine.scores(model, behaviour.corrupt, patches, source, metrics)
    assert torch.equal(again.scores, before.scores)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Component("resid_pre", 3), "layer 3 of a model that has 3"),
        (Component("head", 0, head=2), "head 2 of a model that has 2"),
        (Component("head", 0), "needs a head"),
        (Component("mlp", 0, pos=N_POS), f"position {N_POS} of a model that has {N_POS}"),
        (Component("neuron", 0, neuron=24), "neuron 24 of a model that has 24"),
        (Component("pattern", 0, head=0, key=N_POS), f"key position {N_POS}"),
        (Component("resid_pree", 0), "did you mean 'resid_pre'"),
    ],
)
def test_a_place_that_is_not_there_is_refused_before_anything_runs(cfg_small, place, said):
    model, behaviour = cfg_small
    metrics = [logit_difference(behaviour)]
    with pytest.raises(ModelError, match=said):
        engine.scores(model, behaviour.corrupt, [(place,)], {}, metrics)


def test_a_stream_between_attention_and_mlp_is_refused_where_there_is_none():
    model, behaviour = shaken(PYTHIA, 0.3), prompted()
    place = Component("resid_mid", 1)
    with pytest.raises(ModelError, match=r"L1\.resid_mid does not exist: .*parallel residual"):
        engine.scores(model, behaviour.corrupt, [(place,)], {}, [logit_difference(behaviour)])


def test_shared_keys_are_counted_as_they_are_stored():
    model, behaviour = shaken(LLAMA, 0.3).double(), prompted()
    with pytest.raises(ModelError, match="head 1 of a model that has 1"):
        engine.scores(
            model,
            behaviour.corrupt,
            [(Component("k", 0, head=1),)],
            {},
            [logit_difference(behaviour)],
        )


# Any decoder


@st.composite
def configurations(draw: st.DrawFn) -> GPTConfig:
    shared = draw(st.sampled_from([1, 2]))
    heads = shared * draw(st.integers(1, 2))
    n_layers, pre, causal = draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans())
    sinks = draw(st.sampled_from(["none", "none", "learned", "logit"]))
    looped = n_layers > 2 and draw(st.booleans())
    exclusive = draw(st.sampled_from(["none", "learned", "full"])) if causal else "none"
    position = draw(st.sampled_from(["learned", "sinusoidal", "rope", "none"]))
    return GPTConfig(
        parallel_residual=pre and draw(st.booleans()),
        window=draw(st.sampled_from([0, 0, 1, 3])) if causal else 0,
        rotary_channels=2 if position == "rope" and draw(st.booleans()) else 0,
        qkv_bias=draw(st.booleans()),
        loop_first=n_layers - 3 if looped else 0,
        loop_layers=int(looped),
        loop_passes=1 + looped,
        n_layers=n_layers,
        sinks=sinks,
        n_sinks=2 if sinks == "learned" else 0,
        exclusive=exclusive,
        qk_norm=draw(st.booleans()),
        head_gate=draw(st.booleans()),
        value_residual=pre and draw(st.booleans()),
        embed_mix=pre and draw(st.booleans()),
        embed_norm=pre and draw(st.booleans()),
        unet=pre and n_layers - looped > 1 and draw(st.booleans()),
        norm_gain=draw(st.booleans()),
        n_heads=heads,
        n_key_value_heads=heads // shared,
        d_head=draw(st.sampled_from([2, 4])),
        d_model=8,
        d_mlp=draw(st.sampled_from([4, 12])),
        n_ctx=N_POS,
        d_vocab=VOCAB,
        position=position,
        norm=draw(st.sampled_from(["layernorm", "rmsnorm", "none"])),
        norm_placement="pre" if pre else "post",
        mlp=draw(st.sampled_from(["gelu", "gelu-tanh", "relu", "swiglu"])),
        bias=draw(st.booleans()),
        tie=draw(st.booleans()),
        causal=causal,
        init_std=0.4,
    )


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(cfg=configurations(), shared=st.integers(0, N_POS - 1), seed=st.integers(0, 99))
def test_whatever_the_decoder_the_engine_agrees(cfg, shared, seed):
    places, draw = list(everything(cfg)), torch.Generator().manual_seed(seed)
    patches = [
        tuple(places[i] for i in torch.randint(len(places), (size,), generator=draw).tolist())
        for size in (1, 1, 1, 1, 1, 1, 2, 3, 4)
    ]
    agree(shaken(cfg, 0.3).double(), prompted(shared=shared, seed=seed), patches, shared=shared)
