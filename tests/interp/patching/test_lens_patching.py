"""Every sweep equals TransformerLens' on the same weights, for every kind that it has.

`transformer_lens.patching` runs one forward pass a cell and returns the mean score; ours is a share
of the distance between the clean and the corrupt score, so it is turned back before they are
compared: within 1e-5 in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import models, patching
from interp.behaviours import Behaviour
from interp.errors import ModelError
from interp.patching import Effects
from tests.worlds.behaviours import said_by
from train.model import GPT, GPTConfig, init_gpt


# Both prompts begin with the same token, so that some places hold the same.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::interp.errors.UninformativeWarning"),
]
VOCAB, N_POS, N_PROMPTS = 37, 5, 3
GPT2 = GPTConfig(n_layers=3, n_heads=2, d_model=16, n_ctx=8, d_vocab=VOCAB, init_std=0.3)
LLAMA = replace(
    GPT2, n_key_value_heads=1, d_mlp=24, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
    tie=False, norm_eps=1e-6,
)  # fmt: skip
PYTHIA = replace(
    GPT2, position="rope", rotary_channels=4, mlp="gelu", tie=False, parallel_residual=True
)
QWEN3 = replace(LLAMA, qk_norm=True)
LAYOUTS = {"gpt2": GPT2, "llama": LLAMA, "pythia": PYTHIA, "qwen3": QWEN3}


@dataclass(frozen=True, eq=False)
class Twins:
    """One model on both sides, and what it is asked."""

    ours: GPT
    lens: Any
    behaviour: Behaviour
    clean: Any
    corrupt: Any

    def score(self, logits: Tensor) -> Tensor:
        return self.behaviour.score(logits).mean()

    def by_lens(self, name: str, *given: Any, **options: Any) -> Tensor:
        from transformer_lens import patching as lens_patching

        with torch.inference_mode():
            sweep = getattr(lens_patching, f"get_act_patch_{name}")
            return sweep(
                self.lens, self.behaviour.corrupt, self.clean, *given, self.score, **options
            )


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=list(LAYOUTS))
def twins(request) -> Twins:
    model, draw = init_gpt(request.param, seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.eval()
    clean, corrupt = (torch.randint(VOCAB, (N_PROMPTS, N_POS), generator=draw) for _ in range(2))
    corrupt[:, 0] = clean[:, 0]
    behaviour = said_by(model, clean, corrupt)
    lens = models.transformer_lens(model)
    with torch.inference_mode():
        caches = [lens.run_with_cache(tokens)[1] for tokens in (clean, corrupt)]
    return Twins(model, lens, behaviour, *caches)


def same(effects: Effects, theirs: Tensor, *order: int) -> None:
    """Shares turned back into scores, axes in the order of `theirs`."""
    shares = effects.values.permute(order) if order else effects.values
    ours = effects.corrupt + shares * (effects.clean - effects.corrupt)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (theirs - effects.corrupt).abs().max() > 0.01, "they agree on something that happens"


Sweep = Callable[..., Effects]


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid"])
def test_the_residual_stream_by_position(twins, site):
    if site == "resid_mid" and twins.ours.cfg.parallel_residual:
        assert not [name for name in twins.lens.hook_dict if name.endswith(site)]
        with pytest.raises(ModelError, match="parallel residual"):
            patching.residual(twins.ours, twins.behaviour, site=site)
        return
    same(patching.residual(twins.ours, twins.behaviour, site=site), twins.by_lens(site))


@pytest.mark.parametrize(
    ("ours", "name"), [(patching.attention, "attn_out"), (patching.mlps, "mlp_out")]
)
def test_outputs_of_attention_and_mlp_by_position(twins, ours: Sweep, name):
    same(ours(twins.ours, twins.behaviour, positions="each"), twins.by_lens(name))


VECTORS = {
    "out": patching.heads, "q": patching.queries, "k": patching.keys, "v": patching.values,
}  # fmt: skip


@pytest.mark.parametrize("part", VECTORS)
def test_heads_at_all_positions(twins, part):
    ours = VECTORS[part](twins.ours, twins.behaviour)
    same(ours, twins.by_lens(f"attn_head_{part}_all_pos"))


@pytest.mark.parametrize("part", VECTORS)
def test_heads_by_position(twins, part):
    ours = VECTORS[part](twins.ours, twins.behaviour, positions="each")
    # Theirs are over (layer, pos, head).
    same(ours, twins.by_lens(f"attn_head_{part}_by_pos"), 0, 2, 1)


def test_patterns_at_all_positions(twins):
    ours = patching.patterns(twins.ours, twins.behaviour)
    same(ours, twins.by_lens("attn_head_pattern_all_pos"))


def test_patterns_by_the_position_that_looks(twins):
    ours = patching.patterns(twins.ours, twins.behaviour, positions="each")
    same(ours, twins.by_lens("attn_head_pattern_by_pos"))


def test_patterns_by_the_position_that_looks_and_the_one_looked_at(twins):
    ours = patching.patterns(twins.ours, twins.behaviour, positions="each", keys=True)
    same(ours, twins.by_lens("attn_head_pattern_dest_src_pos"))


def padded(scores: Tensor, n_heads: int) -> Tensor:
    """Theirs fills the heads that shared keys and values do not have with zeros."""
    return torch.nn.functional.pad(scores, (0, n_heads - scores.shape[-1]))


def scores(effects: Effects) -> Tensor:
    return effects.corrupt + effects.values * (effects.clean - effects.corrupt)


def test_every_part_of_every_head_stacked(twins):
    n_heads, asked = twins.ours.cfg.n_heads, (twins.ours, twins.behaviour)
    parts = [*VECTORS.values(), patching.patterns]
    ours = torch.stack([padded(scores(part(*asked)), n_heads) for part in parts])
    theirs = twins.by_lens("attn_head_all_pos_every")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    each = [scores(part(*asked, positions="each")).transpose(1, 2) for part in parts]
    ours = torch.stack([padded(one, n_heads) for one in each])
    theirs = twins.by_lens("attn_head_by_pos_every")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_every_part_of_every_block_stacked(twins):
    asked = (twins.ours, twins.behaviour)
    parts = (
        patching.residual(*asked),
        patching.attention(*asked, positions="each"),
        patching.mlps(*asked, positions="each"),
    )
    ours = torch.stack([scores(part) for part in parts])
    torch.testing.assert_close(ours, twins.by_lens("block_every"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_direct_paths_from_head_to_head(twins, part):
    if part != "q" and twins.ours.cfg.n_key_value_heads < twins.ours.cfg.n_heads:
        pytest.skip("TransformerLens follows no path into keys and values that heads share")
    theirs = twins.by_lens("direct_path_all_sources", twins.corrupt, component=part, verbose=False)
    cfg = twins.ours.cfg
    for layer, head in product(range(cfg.n_layers - 1), range(cfg.n_heads)):
        effects = patching.receivers(twins.ours, twins.behaviour, f"L{layer}H{head}", part=part)
        # Theirs holds zeros up to the sender's own layer, ours what an unpatched run scores.
        later = theirs[layer, head, layer + 1 :]
        torch.testing.assert_close(scores(effects)[layer + 1 :], later, rtol=0, atol=1e-5)
        assert effects.values[: layer + 1].abs().max() == 0
        if layer == 0:
            moved = (theirs[0, :, 1:] - effects.corrupt).abs().max()
            assert moved > 0.01


def test_one_direct_path_is_one_cell_of_all(twins):
    theirs = twins.by_lens("direct_path", twins.corrupt, src_layer=0, src_head=1, verbose=False)
    ours = scores(patching.receivers(twins.ours, twins.behaviour, "L0H1"))
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0, atol=1e-5)


def test_no_kind_that_transformer_lens_has_is_left_out():
    from transformer_lens import patching as lens_patching

    kinds = {name for name in dir(lens_patching) if name.startswith("get_act_patch_")}
    heads = {f"attn_head_{part}_{where}" for part in VECTORS for where in ("all_pos", "by_pos")}
    heads |= {f"attn_head_pattern_{where}" for where in ("all_pos", "by_pos", "dest_src_pos")}
    heads |= {"attn_head_all_pos_every", "attn_head_by_pos_every"}
    blocks = {"resid_pre", "resid_mid", "attn_out", "mlp_out", "block_every"}
    tested = heads | blocks | {"direct_path", "direct_path_all_sources"}
    assert kinds == {f"get_act_patch_{name}" for name in tested}
