"""Parts of the other architectures: each against its formula, and against the defect it had.

The public implementations of these parts have defects (a mask that hides a position from itself,
angles that are no rotation, weights that read the future). Each defect is written down here once,
and the test of the part has to tell it from the right form.
"""

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch.nn import functional

from tests.worlds.models import shaken
from train.errors import HookError, RecipeError
from train.model import GPT, PRESETS, GPTConfig, init_gpt, preset, rotate, use_kernels
from train.model.attention import Attention
from train.model.exclusive_attention import OwnValueRemoval
from train.model.positional import Llama3Scaling, Rotary
from train.recipes import PLANTED


N_CTX, VOCAB = 16, 31
PLAIN = GPTConfig(
    n_layers=4, n_heads=4, d_model=32, n_ctx=N_CTX, d_vocab=VOCAB, n_key_value_heads=2,
    position="rope", norm="rmsnorm", mlp="swiglu", bias=False, init_std=0.2,
)  # fmt: skip
SMALL = [name for name in PRESETS if name.endswith("-nano")]
every_preset = pytest.mark.parametrize("name", SMALL)


def small(name: str, **changes: object) -> GPTConfig:
    """A preset with a short context and a small vocabulary."""
    cfg = preset(name)
    sizes = {"n_ctx": N_CTX, "d_vocab": VOCAB, "init_std": 0.2}
    sizes |= {"retention_chunk": 4} if cfg.retention else {}
    return replace(cfg, **{**sizes, **changes})


def some_tokens(rows: int = 3, n_pos: int = 13) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(VOCAB, (rows, n_pos), generator=draw)


def leaks(model: GPT) -> tuple[bool, bool]:
    """Whether a logit depends on later tokens of its row, and whether on other rows."""
    tokens = some_tokens()
    with torch.inference_mode():
        before = model(tokens)
        in_row = in_others = False
        for pos in range(1, tokens.shape[1]):
            changed = tokens.clone()
            changed[0, pos] = (changed[0, pos] + 1) % VOCAB
            after = model(changed)
            in_row |= not torch.equal(before[0, :pos], after[0, :pos])
            in_others |= not torch.equal(before[1:], after[1:])
    return in_row, in_others


# Causality and independence of rows


@every_preset
def test_no_logit_depends_on_later_tokens_or_on_other_rows(name):
    assert leaks(shaken(small(name), 0.3)) == (False, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "explicit"},
        {"sinks": "logit"},
        {"sinks": "learned", "n_sinks": 3, "qk_norm": True},
        {"exclusive": "full"},
        {"unet": True, "value_residual": True},
        {"loop_first": 1, "loop_layers": 1, "loop_passes": 3, "embed_mix": True},
        {"parallel_residual": True, "rotary_channels": 4},
        {"window": 4},
        {"window": 4, "sinks": "learned", "n_sinks": 2},
    ],
)
def test_each_part_alone_is_causal(changes):
    assert leaks(shaken(replace(PLAIN, **changes), 0.3)) == (False, False)


def test_the_published_retention_reads_the_future_and_the_other_rows():
    cfg = small("strawberry-nano", attention="retention-published")
    assert leaks(shaken(cfg, 0.3)) == (True, True)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11])
def test_retention_gives_a_text_the_same_logits_at_every_length(length):
    model, tokens = shaken(small("strawberry-nano"), 0.3), some_tokens()
    shorter = model(tokens[:, :length])
    torch.testing.assert_close(model(tokens)[:, :length], shorter, rtol=0, atol=1e-4)


# Rotary positions


def test_rotated_scores_depend_on_the_distance_only_and_lengths_stay():
    rotary = Rotary(64, 8, theta=100.0)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(64)
    turned_q, turned_k = (rotate(x.expand(1, 64, 1, 8), cos, sin)[0, :, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 5, 40):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(64))


def test_the_defect_of_mixed_pairings_is_no_rotation():
    # Cosines for the pairs (2i, 2i + 1), halves swapped for the pairs (i, i + d/2).
    angle = torch.outer(torch.arange(64.0), 1 / 100 ** (torch.arange(0, 8, 2) / 8))
    cos, sin = (one.repeat_interleave(2, dim=1)[:, None] for one in (angle.cos(), angle.sin()))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(x.expand(1, 64, 1, 8), cos, sin)[0, :, 0] for x in (q, k))
    along = (turned_q @ turned_k.T).diagonal(-5)
    assert (along - along[0]).abs().max() > 0.1
    assert (turned_q.norm(dim=1) - q.norm()).abs().max() > 0.01


def test_the_first_channels_are_rotated_and_the_others_stay():
    x = torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = Rotary(6, 4, theta=100.0)(6)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], rotate(x[..., :4], cos, sin))
    assert (turned[:, 1:, :, :4] - x[:, 1:, :, :4]).abs().amax(dim=(0, 2)).min() > 0.01
    # The defect: angles of the whole head's width for the few channels that turn.
    wrong = rotate(x[..., :4], *(one[..., :4] for one in Rotary(6, 8, theta=100.0)(6)))
    assert not torch.allclose(turned[..., :4], wrong)


@pytest.mark.parametrize(("factor", "low", "high", "n_ctx"), [(8.0, 1.0, 4.0, 8192),
                                                              (32.0, 0.5, 3.0, 256)])  # fmt: skip
def test_llama_3_scales_the_frequencies_as_transformers_does(factor, low, high, n_ctx):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor,
            "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": n_ctx}  # fmt: skip
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=131072
    )
    theirs, attention = rope_utils._compute_llama3_parameters(config)
    assert attention == 1.0
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    ours = Llama3Scaling(factor, low, high, n_ctx).scaled(plain)
    assert torch.equal(ours, theirs)
    kinds = [bool((ours == plain).any()), bool((ours == plain / factor).any())]
    assert kinds == [True, True]
    assert ((ours != plain) & (ours != plain / factor)).any()


# Windows


def test_a_query_attends_to_the_positions_of_its_window_only():
    model = shaken(replace(PLAIN, window=3), 0.3)
    _, cache = model.run_with_cache(some_tokens(), names_filter="blocks.0.attn.hook_pattern")
    seen = (cache["blocks.0.attn.hook_pattern"] > 0).all(dim=(0, 1))
    square = torch.ones(13, 13, dtype=torch.bool)
    assert torch.equal(seen, square.tril() & square.triu(-2))


@pytest.mark.parametrize("changes", [{}, {"sinks": "learned", "n_sinks": 2}])
def test_the_fused_kernel_and_the_written_out_form_agree_on_windows(changes):
    model, tokens = shaken(replace(PLAIN, window=4, **changes), 0.3), some_tokens()
    written_out = GPT(replace(model.cfg, attention="explicit"))
    written_out.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), written_out(tokens), rtol=0, atol=2e-5)
    with use_kernels(2):  # those of training, which know no window
        assert torch.equal(model(tokens), GPT.forward(model, tokens))
        torch.testing.assert_close(model(tokens), written_out(tokens), rtol=0, atol=2e-5)


# Parallel residual


def test_a_parallel_layer_adds_attention_and_mlp_of_the_same_stream():
    model = shaken(replace(PLAIN, parallel_residual=True), 0.3)
    _, cache = model.run_with_cache(some_tokens())
    for number, block in enumerate(model.blocks):
        x = cache["resid_pre", number]
        attended, added = block.attn(block.ln1(x), model.rotation(13)), block.mlp(block.ln2(x))
        torch.testing.assert_close(cache["attn_out", number], attended)
        torch.testing.assert_close(cache["mlp_out", number], added)
        torch.testing.assert_close(cache["resid_post", number], x + attended + added)
    serial = without(model, PLAIN)
    assert not torch.allclose(model(some_tokens()), serial(some_tokens()))


def test_there_is_no_stream_between_parallel_attention_and_mlp_and_the_error_says_why():
    model = shaken(replace(PLAIN, parallel_residual=True), 0.3)
    assert not [name for name in model.hook_dict if name.endswith("hook_resid_mid")]
    hook = ("blocks.1.hook_resid_mid", lambda value, point: None)
    for ask in (
        lambda: model.run_with_hooks(some_tokens(), fwd_hooks=[hook]),
        lambda: model.run_with_cache(some_tokens(), names_filter=[hook[0]]),
        lambda: model.run_with_cache(some_tokens())[1]["resid_mid", 1],
    ):
        with pytest.raises(HookError, match=r"resid_mid'.*parallel residual.*hook_resid_pre"):
            ask()
    with pytest.raises(HookError, match=r"did you mean 'blocks\.1\.hook_resid_mid'"):
        shaken(PLAIN).run_with_cache(some_tokens(), names_filter=["blocks.1.hook_resid_mib"])


# Attention sinks


def support(attn: Attention, x: torch.Tensor, rotation: tuple | None) -> torch.Tensor:
    """Which keys each query attends to: the sinks first, then the positions."""
    seen = {}
    for name in ("hook_pattern", "hook_sink_pattern"):
        getattr(attn, name).fwd.append(lambda value, point, name=name: seen.update({name: value}))
    attn(x, rotation)
    both = torch.cat([seen["hook_sink_pattern"], seen["hook_pattern"]], dim=-1)
    torch.testing.assert_close(both.sum(-1), torch.ones_like(both[..., 0]))
    return (both > 0).all(dim=(0, 1))


@pytest.mark.parametrize(("kind", "n"), [("learned", 3), ("logit", 0)])
def test_a_query_attends_to_the_sinks_and_to_every_position_up_to_its_own(kind, n):
    model = shaken(replace(PLAIN, sinks=kind, n_sinks=n), 0.3)
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    seen = support(model.blocks[0].attn, x, model.rotation(6))
    n_sinks = max(n, 1)
    assert seen[:, :n_sinks].all()
    assert torch.equal(seen[:, n_sinks:], torch.ones(6, 6, dtype=torch.bool).tril())


def test_the_defect_of_a_prepended_sink_hides_every_position_from_itself():
    # A sink before the keys, and the fused kernel's causal mask, aligned at the top left.
    q, k = torch.randn(2, 1, 1, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    k = torch.cat([torch.zeros(1, 1, 1, 4), k], dim=2)
    eye = torch.eye(7)[None, None]
    pattern = functional.scaled_dot_product_attention(q, k, eye, is_causal=True)[0, 0]
    assert not (pattern[:, 1:].diagonal() > 0).any()


@pytest.mark.parametrize("changes", [{"sinks": "learned", "n_sinks": 2}, {"sinks": "logit"}])
def test_the_fused_kernel_and_the_written_out_form_agree_on_sinks(changes):
    model, tokens = shaken(replace(PLAIN, **changes, qk_norm=True), 0.3), some_tokens()
    written_out = GPT(replace(model.cfg, attention="explicit"))
    written_out.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), written_out(tokens), rtol=0, atol=2e-5)


def test_sinks_far_below_every_score_are_plain_attention():
    model, plain = shaken(replace(PLAIN, sinks="logit"), 0.3), shaken(PLAIN, 0.3)
    state = model.state_dict()
    plain.load_state_dict({name: value for name, value in state.items() if "sinks" not in name})
    with torch.no_grad():
        for block in model.blocks:
            block.attn.sinks.weight.fill_(-1e4)
    torch.testing.assert_close(model(some_tokens()), plain(some_tokens()))


def test_learned_sinks_are_keys_and_values_of_their_vectors():
    model = shaken(replace(PLAIN, sinks="learned", n_sinks=2, position="none"), 0.3)
    attn, x = model.blocks[0].attn, torch.randn(1, 5, 32)
    # The same attention over a sequence that begins with the sinks, each visible to every query.
    both = torch.cat([attn.sinks.weight[None], x], dim=1)
    q, k, v = attn.qkv(both).split(attn.widths, dim=-1)
    q, k, v = (rearrange(one, "b p (h d) -> b h p d", d=attn.d_head) for one in (q, k, v))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, :, 2:]
    torch.testing.assert_close(attn(x), attn.out(rearrange(z, "b h p d -> b p (h d)")))


# Exclusive attention


def test_exclusive_attention_is_orthogonal_to_the_own_value_and_plain_at_zero():
    draw = torch.Generator().manual_seed(0)
    y, v = torch.randn(2, 2, 5, 4, 8, generator=draw, dtype=torch.float64).unbind()
    z = OwnValueRemoval(4, learned=False)(y, v)
    assert (z * v).sum(-1).abs().max() < 1e-12 < (y * v).sum(-1).abs().max()
    assert torch.equal(OwnValueRemoval(4, learned=True).double()(y, v), y)
    # A value of zero has no direction, and nothing is removed.
    assert torch.equal(OwnValueRemoval(4, learned=False)(y, torch.zeros_like(v)), y)


def test_the_head_that_attends_to_itself_alone_writes_nothing():
    model = shaken(replace(PLAIN, exclusive="full"), 0.3)
    _, cache = model.run_with_cache(some_tokens())
    first = cache["blocks.0.attn.hook_z"][:, 0]
    assert first.abs().max() < 1e-5 < cache["blocks.0.attn.hook_z"][:, 1:].abs().max()


# Identities: a part at its neutral setting is the plain model, bit for bit


def without(model: GPT, cfg: GPTConfig) -> GPT:
    """The same weights in a plainer architecture, which has no place for some of them."""
    plain = GPT(cfg)
    names = plain.state_dict().keys()
    plain.load_state_dict({n: one for n, one in model.state_dict().items() if n in names})
    return plain


def setting(model: GPT, name: str, value: float) -> torch.Tensor:
    """Logits with every hook point whose name ends in `name` set to a value."""
    hook = (lambda one: one.endswith(name), lambda x, point: torch.full_like(x, value))
    return model.run_with_hooks(some_tokens(), fwd_hooks=[hook])


@pytest.mark.parametrize(
    ("changes", "hook", "value"),
    [
        ({"exclusive": "learned"}, "hook_coefficient", 0.0),
        ({"head_gate": True}, "head_gate.hook_gate", 1.0),
        ({"unet": True}, "hook_skip", 0.0),
        ({"value_residual": True}, "value_residual.hook_out", 0.0),
    ],
)
def test_a_part_at_its_neutral_value_is_the_plain_model(changes, hook, value):
    model = shaken(replace(PLAIN, **changes), 0.3)
    plain = without(model, PLAIN)(some_tokens())
    assert torch.equal(setting(model, hook, value), plain)
    assert not torch.equal(model(some_tokens()), plain)


@pytest.mark.parametrize("changes", [{"window": 13}, {"rotary_channels": 8}, {"qkv_bias": True}])
def test_a_setting_that_changes_nothing_is_the_plain_model(changes):
    plain = shaken(PLAIN, 0.3)
    model = GPT(replace(PLAIN, **changes))
    model.load_state_dict(plain.state_dict(), strict="qkv_bias" not in changes)
    assert torch.equal(model(some_tokens()), plain(some_tokens()))


def test_a_u_net_with_scale_zero_is_the_plain_model():
    model = shaken(replace(PLAIN, unet=True), 0.3)
    with torch.no_grad():
        for block in model.blocks[2:]:
            block.entry.skip_scale.zero_()
    assert torch.equal(model(some_tokens()), without(model, PLAIN)(some_tokens()))


def test_a_mix_that_keeps_the_stream_is_the_plain_model():
    model = shaken(replace(PLAIN, embed_mix=True), 0.3)
    with torch.no_grad():
        for block in model.blocks:
            block.entry.stream_scale.fill_(1.0)
            block.entry.embed_scale.zero_()
    assert torch.equal(model(some_tokens()), without(model, PLAIN)(some_tokens()))


def test_a_gate_starts_at_one_half_and_a_value_residual_at_one():
    model = init_gpt(replace(PLAIN, head_gate=True, value_residual=True), seed=0)
    _, cache = model.run_with_cache(some_tokens())
    assert (cache["blocks.1.attn.head_gate.hook_gate"] == 0.5).all()
    assert (cache["blocks.1.attn.value_residual.hook_gate"] == 1.0).all()
    assert "blocks.0.attn.value_residual.hook_gate" not in cache


# U-Net wiring


@pytest.mark.parametrize(
    ("n_layers", "sources"),
    [(2, [None, 0]), (4, [None, None, 1, 0]), (5, [None, None, None, 1, 0])],
)
def test_a_decoder_adds_the_output_of_its_mirror_image(n_layers, sources):
    cfg = replace(PLAIN, n_layers=n_layers, unet=True)
    assert [cfg.skip_source(layer) for layer in range(n_layers)] == sources
    model = shaken(cfg, 0.3)
    _, cache = model.run_with_cache(some_tokens())
    for layer, source in enumerate(sources):
        if source is None:
            assert f"blocks.{layer}.entry.hook_skip" not in cache
            continue
        added = model.blocks[layer].entry.skip_scale * cache[f"blocks.{source}.hook_resid_post"]
        torch.testing.assert_close(cache[f"blocks.{layer}.entry.hook_skip"], added)
        # The defect: the skips of the first decoders in the order of the encoders.
        wrong = cache[f"blocks.{n_layers // 2 - 1 - source}.hook_resid_post"]
        if n_layers > 3:
            assert not torch.allclose(added, model.blocks[layer].entry.skip_scale * wrong)
    before = cache[f"blocks.{n_layers - 2}.hook_resid_post"]
    last = cache[f"blocks.{n_layers - 1}.entry.hook_skip"]
    torch.testing.assert_close(cache[f"blocks.{n_layers - 1}.hook_resid_pre"], before + last)


# Loops


LOOPED = replace(PLAIN, n_layers=6, loop_first=1, loop_layers=2, loop_passes=2)


def test_a_loop_runs_its_layers_again_with_the_same_weights():
    model = shaken(LOOPED, 0.3)
    unrolled = GPT(replace(PLAIN, n_layers=6))
    state = model.state_dict()
    for block in range(6):
        first = min(i for i in range(6) if LOOPED.layer_of(i) == LOOPED.layer_of(block))
        for name in [one for one in state if one.startswith(f"blocks.{first}.")]:
            state[name.replace(f"blocks.{first}.", f"blocks.{block}.", 1)] = state[name]
    unrolled.load_state_dict(state)
    assert torch.equal(model(some_tokens()), unrolled(some_tokens()))
    assert sum(one.numel() for one in model.parameters()) == LOOPED.n_params


def test_one_pass_of_a_loop_is_the_plain_model():
    with pytest.raises(RecipeError, match="at least 1 layer and 2 passes"):
        replace(PLAIN, loop_layers=2)
    model = shaken(LOOPED, 0.3)
    plain = GPT(PLAIN)
    kept = {1: 1, 2: 2, 5: 3, 0: 0}
    state = {"embed.weight": model.embed.weight, "ln_final.weight": model.ln_final.weight}
    for ours, theirs in kept.items():
        block = model.blocks[ours].state_dict()
        state |= {f"blocks.{theirs}.{name}": value for name, value in block.items()}
    plain.load_state_dict(state)
    names = [f"blocks.{block}.hook_resid_post" for block in (3, 4)]
    _, cache = model.run_with_cache(some_tokens(), names_filter="blocks.2.hook_resid_post")
    once = cache["blocks.2.hook_resid_post"]
    # The second pass replaced by what the first gave.
    skipped = model.run_with_hooks(
        some_tokens(), fwd_hooks=[(name, lambda value, point: once) for name in names]
    )
    assert torch.equal(skipped, plain(some_tokens()))


def test_the_passes_of_a_loop_have_hook_points_of_their_own():
    model = shaken(LOOPED, 0.3)
    _, cache = model.run_with_cache(some_tokens())
    assert [LOOPED.pass_of(block) for block in range(6)] == [0, 0, 0, 1, 1, 0]
    second = cache["layers.2.pass.1.hook_resid_pre"]
    assert torch.equal(second, cache["blocks.4.hook_resid_pre"])
    assert not torch.allclose(second, cache["layers.2.pass.0.hook_resid_pre"])


def test_a_looped_model_is_saved_once_and_trains_its_weights_once():
    model = shaken(LOOPED, 0.3)
    assert len(model.state_dict()) == len(list(model.parameters()))
    model(some_tokens()).sum().backward()
    other = GPT(LOOPED)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(some_tokens()), other(some_tokens()))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"embed.weight": model.embed.weight})


# Retention


def test_retention_with_nothing_generated_has_static_weights():
    model, tokens = shaken(small("strawberry-nano", aft_passes=1), 0.3), some_tokens()
    hook = (lambda name: name.endswith("hook_generated"), lambda x, point: torch.zeros_like(x))
    static = model.run_with_hooks(tokens, fwd_hooks=[hook])
    # Then the weights are the same at every position, so chunks of any length give the same. The
    # tokens fit into one chunk of the longer one, which therefore generates nothing.
    long = GPT(replace(model.cfg, retention_chunk=N_CTX - 1))
    long.load_state_dict(model.state_dict())
    torch.testing.assert_close(long.run_with_hooks(tokens, fwd_hooks=[hook]), static)
    torch.testing.assert_close(long(tokens), static)
    assert not torch.allclose(model(tokens), static)


def test_retention_follows_its_formula():
    model = shaken(small("strawberry-nano"), 0.3).double()
    retention, chunk = model.blocks[0].retention, model.cfg.retention_chunk
    d, wide = model.cfg.d_model, model.cfg.n_heads * model.cfg.d_head
    x = torch.randn(1, 9, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rms = lambda one: one / (one.pow(2).mean(-1, keepdim=True) + 1e-15).sqrt()  # noqa: E731
    _, (qkv, gate, out) = retention(x)
    assert not any(one[:, 0].any() for one in (qkv, gate, out))
    for number in (1, 2):
        before = x[0, : number * chunk]
        O, A = retention.pair.weight.split(d)
        o, a = rms(rms(before) @ O.T), rms(rms(before) @ A.T)
        summary = (o.T @ a / d**0.5).softmax(-1)
        P = (summary @ retention.shape_map.weight.T).T
        torch.testing.assert_close(qkv[0, number], P[: 3 * wide])
        torch.testing.assert_close(gate[0, number].flatten(), P[3 * wide : 5 * wide].flatten())
        torch.testing.assert_close(out[0, number], P[5 * wide :])


def test_weights_that_retention_generates_are_refused_by_name():
    model = shaken(small("strawberry-nano"))
    with pytest.raises(RecipeError, match="no W_Q: retention generates"):
        _ = model.W_Q


# Sizes


@pytest.mark.parametrize("name", [*SMALL, "strawberry"])
def test_the_counted_parameters_are_those_of_the_model(name):
    cfg = replace(preset(name), vocab_multiple=1)
    assert sum(one.numel() for one in init_gpt(cfg, 0).parameters()) == cfg.n_params
    assert name == "strawberry" or cfg.n_params <= 1_000_000


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_without_gain_are_counted_too(norm, bias, gain):
    cfg = replace(PLAIN, norm=norm, bias=bias, norm_gain=gain, embed_norm=True, qk_norm=True)
    for each in (cfg, replace(cfg, qkv_bias=True)):
        assert sum(one.numel() for one in init_gpt(each, 0).parameters()) == each.n_params


@pytest.mark.parametrize("changes", [{"aft_passes": 0}, {"retention_chunk": N_CTX}])
def test_retention_whose_generated_weights_are_never_used_is_refused(changes):
    with pytest.raises(RecipeError, match="generated weights are never used"):
        small("strawberry-nano", **changes)


@pytest.mark.parametrize(
    ("name", "n_params"),
    [
        ("retro", 1_210_808_320),  # "1.2B"
        ("gpt2", 124_439_808),  # GPT-2 small
        ("strawberry", 1_818_624),  # "1.8M"
        ("slowrun", 1_398_119_903),  # "1.4B"
        ("modern", 252_864_512),  # "253M"
        # Of the safetensors files on the hub.
        ("pythia", 162_322_944),
        ("llama3", 1_235_814_400),
        ("mistral", 7_241_732_096),
        ("qwen2", 494_032_768),
        ("qwen3", 596_049_920),
    ],
)
def test_the_full_sizes_are_those_of_the_descriptions(name, n_params):
    assert preset(name).n_params == n_params


@pytest.mark.parametrize(
    "changes",
    [
        {"n_sinks": 2},
        {"sinks": "learned"},
        {"sinks": "learnt"},
        {"loop_first": 3, "loop_layers": 2, "loop_passes": 2},
        {"loop_layers": 1, "loop_passes": 1},
        {"unet": True, "norm_placement": "post"},
        {"unet": True, "n_layers": 1},
        {"attention": "retention"},
        {"attention": "retention", "retention_chunk": 4},
        {"aft_passes": 2},
        {"value_residual": True, "norm_placement": "post"},
        {"d_head": -2},
        {"n_key_value_heads": -1},
        {"init_std": -0.1},
        {"norm_eps": float("nan")},
        {"rope_theta": 0.0},
        {"exclusive": "full", "causal": False},
        {"parallel_residual": True, "norm_placement": "post"},
        {"window": -1},
        {"window": 4, "causal": False},
        {"rotary_channels": 3},
        {"rotary_channels": 10},
        {"rotary_channels": -2},
        {"rotary_channels": 2, "position": "learned"},
        {"rope_scaling": "yarn"},
        {"rope_scaling": "llama3", "position": "none"},
        {"rope_factor": 4.0},
        {"rope_scaling": "llama3", "rope_factor": 0.0},
        {"rope_scaling": "llama3", "rope_high_freq_factor": 1.0},
        {"rope_scaling": "llama3", "rope_original_ctx": 0},
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes):
    with pytest.raises(RecipeError):
        replace(PLAIN, **changes)


def test_the_planted_recipe_trains_the_small_gpt2():
    assert PLANTED.model == preset("gpt2-nano")


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match="did you mean 'slowrun-nano'"):
        preset("slorun-nano")
