"""Whatever hangs on a model is computed by whole passes, or refused; the engine never skips it."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from interp import attribution_patching, circuits, heads, patching
from interp.behaviours import Behaviour
from interp.circuits import edge_attribution_patching
from interp.components import Component
from interp.errors import ModelError
from interp.hooked_model import HookedGPT
from interp.metrics import logit_difference
from interp.patching import engine
from interp.patching.engine import reference
from tests.worlds.models import shaken
from train.model import GPT, GPTConfig, attachments


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=23, init_std=0.3)


class Adapter(nn.Module):
    """A LoRA-like wrapper that shows `weight` and `bias` of the layer that it wraps."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base: Any = base
        out, width = base.weight.shape
        draw = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(0.3 * torch.randn(2, width, generator=draw))
        self.up = nn.Parameter(0.3 * torch.randn(out, 2, generator=draw))

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def wrap(path: str) -> Callable[[GPT], object]:
    def attach(model: GPT) -> None:
        parent, name = path.rsplit(".", 1)
        place = model.get_submodule(parent)
        setattr(place, name, Adapter(getattr(place, name)))

    return attach


def overridden(model: GPT) -> None:
    mlp: Any = model.blocks[1].mlp
    forward = type(mlp).forward
    mlp.forward = types.MethodType(lambda self, x: -forward(self, x), mlp)


ATTACHED: dict[str, Callable[[GPT], object]] = {
    "an adapter on the queries, keys and values": wrap("blocks.1.attn.qkv"),
    "an adapter on the output of attention": wrap("blocks.0.attn.out"),
    "an adapter on an MLP": wrap("blocks.1.mlp.up"),
    "a torch hook": lambda model: model.blocks[0].mlp.register_forward_hook(
        lambda _module, _args, value: 2 * value
    ),
    "a torch hook before": lambda model: model.blocks[1].attn.register_forward_pre_hook(
        lambda _module, args: (2 * args[0], *args[1:])
    ),
    "a hook at a hook point": lambda model: model.hook_dict["blocks.0.hook_mlp_out"].fwd.append(
        lambda value, _point: 2 * value
    ),
    "a parametrization": lambda model: parametrize.register_parametrization(
        model.blocks[1].mlp.down, "weight", Doubled()
    ),
    "an overridden method": overridden,
    "another class": lambda model: setattr(model.blocks[0], "ln2", nn.Identity()),
}
every_attachment = pytest.mark.parametrize("name", ATTACHED)


def prompted() -> Behaviour:
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(23, (6, 8), generator=draw) for _ in range(2))
    with torch.no_grad():
        model = shaken(CFG)
        last = model(clean)[:, -1]
    return Behaviour("random", clean, corrupt, last.argmax(-1), last.argmin(-1))


@pytest.fixture
def attached(name: str) -> GPT:
    model = shaken(CFG)
    ATTACHED[name](model)
    return model


def test_nothing_hangs_on_a_model_as_it_was_loaded():
    assert attachments(shaken(CFG)) == []


@every_attachment
def test_an_attachment_is_noticed_and_sweeps_are_whole_passes(name, attached):
    assert attachments(attached)
    behaviour = prompted()
    sites = ("resid_pre", "resid_mid", "attn", "mlp")
    patches = [[Component(site, layer)] for site in sites for layer in range(2)]
    patches += [[Component(site, 1, head=0)] for site in ("head", "q", "k", "v")]
    hooks = sorted({place.hook for patch in patches for place in patch})
    metrics = [logit_difference(behaviour)]
    with torch.no_grad():
        _, cache = attached.run_with_cache(behaviour.clean, names_filter=hooks)
        source = {hook: cache[hook] for hook in hooks}
        found = engine.scores(attached, behaviour.corrupt, patches, source, metrics).scores
        wanted = reference.reference_scores(attached, behaviour.corrupt, patches, source, metrics)
        plain = engine.scores(shaken(CFG), behaviour.corrupt, patches, source, metrics).scores
    assert torch.equal(found, wanted.scores)
    assert (found - plain).abs().max() > 1e-3  # it does change the numbers


@every_attachment
def test_what_reads_the_weights_refuses_an_attachment_by_name(name, attached):
    behaviour, what = prompted(), attachments(attached)[0]
    calls: list[Callable[[], object]] = [
        lambda: circuits.graph_of(attached),
        lambda: patching.senders(attached, behaviour),
        lambda: heads.ov_copying(attached, [1, 2, 3, 4]),
        lambda: heads.decompose_logits(attached, behaviour),
        lambda: patching.causal_trace(attached, behaviour, damage="noised"),
    ]
    for call in calls:
        with pytest.raises(ModelError) as refusal:
            call()
        assert what in str(refusal.value)


@pytest.mark.parametrize("name", [one for one in ATTACHED if "hook point" not in one])
def test_what_reads_the_weights_behind_a_cache_refuses_an_attachment_by_name(name, attached):
    tokens, what = prompted().clean, attachments(attached)[0]
    _, cache = HookedGPT.of(shaken(CFG)).run_with_cache(tokens)
    cache.model = attached
    for call in (
        lambda: cache["result", 0],
        cache.compute_head_results,
        lambda: cache.stack_head_results(),
        lambda: cache.get_neuron_results(0),
        lambda: cache.stack_neuron_results(),
        lambda: cache.get_full_resid_decomposition(),
        lambda: cache.logit_attrs(cache["resid_post", 0], 3),
    ):
        with pytest.raises(ModelError) as refusal:
            call()
        assert what in str(refusal.value)


def test_a_hook_on_every_module_is_noticed():
    model = shaken(CFG)
    handle = register_module_forward_hook(lambda _module, _args, value: value)
    try:
        assert attachments(model) == ["a torch hook on all modules"]
    finally:
        handle.remove()
    assert attachments(model) == []


def test_gradients_are_the_same_inside_inference_mode():
    model, behaviour = shaken(CFG), prompted()
    outside = attribution_patching.attribution(model, behaviour)
    edges = edge_attribution_patching.edge_scores(model, behaviour)
    with torch.inference_mode():
        inside = attribution_patching.attribution(model, prompted())
        edges_inside = edge_attribution_patching.edge_scores(model, prompted())
    assert torch.equal(outside.values, inside.values)
    assert torch.equal(edges, edges_inside)
