"""Every architecture is causal, keeps rows apart, and computes the same whoever is looking."""

import hashlib
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch.nn import functional

from train.errors import DamagedError, RecipeError, TokenizerError, TrainError
from train.model import GPT, GPTConfig, gpt_with_weights, init_gpt, rotate
from train.model.positional import Rotary, sinusoids


AXES = {
    "position": ["learned", "sinusoidal", "rope", "none"],
    "norm": ["layernorm", "rmsnorm", "none"],
    "norm_placement": ["pre", "post"],
    "mlp": ["gelu", "gelu-tanh", "relu", "swiglu"],
    "n_key_value_heads": [4, 2, 1],
    "bias": [True, False],
    "tie": [True, False],
    "vocab_multiple": [1, 16],
}


def pairwise() -> list[dict]:
    """Few choices in which every pair of values of any two axes meets at least once."""
    rows = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
    pairs = [frozenset(combinations(row.items(), 2)) for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(rows)), key=lambda i: len(pairs[i] & missing))
        chosen.append(rows[best])
        missing -= pairs[best]
    return chosen


def name(choice: dict) -> str:
    return "-".join(str(value) for value in choice.values())


def tiny(**choice) -> GPTConfig:
    # init_std .2: at .02 a two-layer toy is nearly linear and hides mistakes.
    return GPTConfig(
        n_layers=2, n_heads=4, d_model=24, n_ctx=12, d_vocab=37, init_std=0.2, **choice
    )


@pytest.fixture(scope="module", params=pairwise(), ids=name)
def model(request) -> GPT:
    model = init_gpt(tiny(**request.param), seed=0)
    with torch.no_grad():  # biases and gains that are not 0 and 1
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                generator = torch.Generator().manual_seed(number)
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(0))


def test_the_covering_set_holds_every_pair_and_is_small():
    assert len(pairwise()) <= 24


def test_a_token_changes_no_logit_before_it(model, tokens):
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 37
    assert torch.equal(model(tokens)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(tokens)[:, 5:], model(changed)[:, 5:])


def test_a_row_changes_no_other_row(model, tokens):
    changed = tokens.clone()
    changed[1] = (changed[1] + 1) % 37
    assert torch.equal(model(tokens)[[0, 2]], model(changed)[[0, 2]])


def test_looking_at_every_place_changes_nothing(model, tokens):
    seen, cache = model.run_with_cache(tokens, names_filter=lambda _: True)
    assert set(cache) == set(model.hook_dict)
    torch.testing.assert_close(seen, model(tokens), rtol=1e-5, atol=1e-5)


def test_the_fused_attention_equals_the_sum_written_out(model, tokens):
    attention = model.blocks[1].attn
    _, fused = model.run_with_cache(tokens, names_filter=["blocks.1.attn.hook_z"])
    _, written = model.run_with_cache(tokens, names_filter=lambda name: ".attn.hook_" in name)
    torch.testing.assert_close(fused["z", 1], written["z", 1], rtol=1e-5, atol=1e-5)
    pattern, v = written["pattern", 1], written["v", 1]
    assert (pattern.triu(1) == 0).all()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 4, 9))
    shared_by = attention.n_heads // attention.n_key_value_heads
    v = v.repeat_interleave(shared_by, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    torch.testing.assert_close(z, written["z", 1], rtol=1e-5, atol=1e-5)
    turned = "rot_" if model.cfg.position == "rope" else ""
    q = written[f"{turned}q", 1]
    k = written[f"{turned}k", 1].repeat_interleave(shared_by, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).tril() / 6**0.5
    torch.testing.assert_close(scores, written["attn_scores", 1].tril(), rtol=1e-5, atol=1e-5)


def test_the_sum_written_out_in_bf16_equals_the_fused_kernel(model, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: ".attn.hook_" in name)
    turned = "rot_" if model.cfg.position == "rope" else ""
    q, k, v = (cache[name, 1].transpose(1, 2) for name in (f"{turned}q", f"{turned}k", "v"))
    assert q.dtype == torch.bfloat16
    shared_by = model.cfg.n_heads // k.shape[1]
    k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)
    fused = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    # bf16 keeps 8 bits: the pattern and the sum are each rounded to one part in 2^8.
    torch.testing.assert_close(cache["z", 1], fused, rtol=2**-6, atol=2**-7 * v.abs().max().item())


def test_heads_and_bias_sum_to_the_output(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.startswith("blocks.0."))
    by_weights = torch.einsum("bphd,hdm->bphm", cache["z", 0], model.W_O[0])
    torch.testing.assert_close(cache["result", 0], by_weights, rtol=1e-5, atol=1e-5)
    out = cache["result", 0].sum(2) + model.b_O[0]
    torch.testing.assert_close(cache["attn_out", 0], out, rtol=1e-5, atol=1e-5)


def test_named_weights_give_the_named_activations(model, tokens):
    _, cache = model.run_with_cache(tokens)
    pre = model.cfg.norm_placement == "pre"
    x = cache["out", 1, "ln1"] if pre else cache["resid_pre", 1]
    for letter, weight, bias in (
        ("q", model.W_Q, model.b_Q),
        ("k", model.W_K, model.b_K),
        ("v", model.W_V, model.b_V),
    ):
        value = torch.einsum("bpm,hmd->bphd", x, weight[1]) + bias[1]
        cached = cache[letter, 1].repeat_interleave(4 // cache[letter, 1].shape[2], dim=2)
        torch.testing.assert_close(cached, value, rtol=1e-5, atol=1e-5)
    x = cache["out", 1, "ln2"] if pre else cache["resid_mid", 1]
    linear = cache["pre_linear", 1] if model.cfg.gated_mlp else cache["pre", 1]
    torch.testing.assert_close(linear, x @ model.W_in[1] + model.b_in[1], rtol=1e-5, atol=1e-5)
    out = cache["post", 1] @ model.W_out[1] + model.b_out[1]
    torch.testing.assert_close(cache["mlp_out", 1], out, rtol=1e-5, atol=1e-5)
    assert (model.W_gate is None) != model.cfg.gated_mlp
    assert model.W_E.shape == (37, 24)
    assert model.W_U.shape == (24, 37)


def test_the_residual_stream_is_a_sum(model, tokens):
    _, cache = model.run_with_cache(tokens)
    start = cache["embed"] + (cache["pos_embed"] if "hook_pos_embed" in cache else 0)
    assert torch.equal(cache["resid_pre", 0], start)
    assert torch.equal(cache["resid_pre", 1], cache["resid_post", 0])
    if model.cfg.norm_placement == "pre":
        assert torch.equal(cache["resid_mid", 1], cache["resid_pre", 1] + cache["attn_out", 1])
        assert torch.equal(cache["resid_post", 1], cache["resid_mid", 1] + cache["mlp_out", 1])
    else:
        block = model.blocks[1]
        mid = block.ln1(cache["resid_pre", 1] + cache["attn_out", 1])
        torch.testing.assert_close(cache["resid_mid", 1], mid, rtol=1e-5, atol=1e-5)
        post = block.ln2(cache["resid_mid", 1] + cache["mlp_out", 1])
        torch.testing.assert_close(cache["resid_post", 1], post, rtol=1e-5, atol=1e-5)


def test_parameters_are_counted_without_padding(model):
    padding = (model.cfg.rows - 37) * 24 * (1 if model.cfg.tie else 2)
    assert sum(p.numel() for p in model.parameters()) == model.cfg.n_params + padding


def test_every_parameter_that_is_seen_gets_a_gradient(model, tokens):
    model.zero_grad()
    functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_bf16_on_cpu_computes_alike_hooked_or_not(tokens):
    model = init_gpt(tiny(), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        seen, _ = model.run_with_cache(tokens, names_filter=lambda name: "hook_pattern" in name)
        assert torch.equal(seen, model(tokens))  # the same code runs: see parts/attention.py
    torch.testing.assert_close(seen.float(), model(tokens), rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    ("cfg", "count"),
    [
        (GPTConfig(12, 12, 768, 1024, 50257), 124_439_808),  # GPT-2 small
        (GPTConfig(12, 12, 768, 1024, 50257, vocab_multiple=64), 124_439_808),
        (GPTConfig(24, 16, 1024, 1024, 50257), 354_823_168),  # GPT-2 medium
        (GPTConfig(2, 4, 128, 64, 700), 494_592),  # the planted recipe
        (
            GPTConfig(
                22, 32, 2048, 2048, 32000, n_key_value_heads=4, d_mlp=5632, position="rope",
                norm="rmsnorm", mlp="swiglu", bias=False, tie=False,
            ),
            1_100_048_384,  # TinyLlama 1.1B
        ),
    ],
)  # fmt: skip
def test_published_models_have_their_published_size(cfg, count):
    assert cfg.n_params == count


def test_padding_the_vocabulary_changes_no_logit_and_no_gradient(tokens):
    plain, padded = init_gpt(tiny(), 0), init_gpt(tiny(vocab_multiple=64), 0)
    assert padded.embed.weight.shape == (64, 24)
    assert padded(tokens).shape == (3, 9, 37)
    torch.testing.assert_close(plain(tokens), padded(tokens), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        padded.embed.weight[37:] = 1e6
    torch.testing.assert_close(plain(tokens), padded(tokens), rtol=1e-6, atol=1e-6)
    padded(tokens).logsumexp(-1).sum().backward()
    assert not padded.embed.weight.grad[37:].any()
    assert padded.W_E.shape == (37, 24)


def test_rotation_keeps_length_and_depends_on_distance_only():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))
    cos, sin = Rotary(200, 8, theta=10_000.0)(200)
    at = [rotate(torch.cat([q, k], dim=2), cos[n : n + 1], sin[n : n + 1]) for n in range(200)]
    lengths = torch.stack([one.norm(dim=-1).flatten() for one in at])
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
    for distance in (0, 5, 50):
        scores = torch.stack(
            [at[n + distance][0, 0, 0] @ at[n][0, 0, 1] for n in range(0, 150, 10)]
        )
        torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-4)
    assert torch.equal(at[0][:, :, :1], q)


def test_sinusoids_are_what_the_planted_recipe_says():
    table = sinusoids(64, 128, base=64.0)
    t, k = 37, 11
    frequency = torch.tensor(64.0 ** (-k / 64), dtype=torch.float64)
    assert table[t, k] == torch.sin(t * frequency).float()
    assert table[t, 64 + k] == torch.cos(t * frequency).float()


def digest(model: GPT) -> str:
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(key.encode() + value.numpy().tobytes())
    return total.hexdigest()


PLANTED = {"init_std": 0.05, "position_init": "sinusoids", "position_init_scale": 0.15}


def test_the_first_weights_are_pinned():
    """If this changes, every run's `init` changes: old checkpoints no longer replay from step 0."""
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=4, d_vocab=10, **PLANTED)
    golden = "90f91816f91f03a633d9f0f66bf5d03b973c0ab4596b4bf356259390e22ae08c"
    assert digest(init_gpt(cfg, seed=0)) == golden


def test_a_seed_decides_every_byte_and_touches_no_global_state():
    cfg, before = tiny(), torch.random.get_rng_state()
    assert digest(init_gpt(cfg, 3)) == digest(init_gpt(cfg, 3)) != digest(init_gpt(cfg, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_layer_more_changes_no_draw_of_the_others():
    two, three = (
        init_gpt(GPTConfig(n, 2, 16, 8, 11, position="rope", tie=False), 0).state_dict()
        for n in (2, 3)
    )
    for key, value in two.items():
        scaled = key.endswith(("attn.out.weight", "mlp.down.weight"))
        torch.testing.assert_close(three[key] * (3 / 2) ** 0.5 if scaled else three[key], value,
                                   rtol=1e-6 if scaled else 0, atol=0)  # fmt: skip


def test_the_first_weights_have_their_deviations():
    cfg = GPTConfig(2, 4, 128, 64, 700, **PLANTED)
    weights = init_gpt(cfg, 0).state_dict()
    expected = {
        "embed.weight": 0.05,
        "blocks.0.attn.qkv.weight": 0.05,
        "blocks.0.attn.out.weight": 0.025,
        "blocks.1.mlp.up.weight": 0.05,
        "blocks.1.mlp.down.weight": 0.025,
    }
    for key, std in expected.items():
        assert weights[key].std().item() == pytest.approx(std, rel=0.02)
        assert abs(weights[key].mean().item()) < std / 50
    assert torch.equal(weights["pos_embed.weight"], 0.15 * sinusoids(64, 128, base=64.0))
    assert not any(value.any() for key, value in weights.items() if key.endswith("bias"))
    assert all((value == 1).all() for key, value in weights.items() if ".ln1.weight" in key)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"mlp": "gelu_new"}, "no mlp is called 'gelu_new', did you mean 'gelu'"),
        ({"position": "alibi"}, "no position is called 'alibi'"),
        ({"n_key_value_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"d_head": 5, "position": "rope"}, "d_head is 5; make it even"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": 5}, "d_model 24 is no multiple of 5 heads"),
    ],
)
def test_a_contradictory_architecture_is_refused(choice, said):
    sizes = {"n_layers": 2, "n_heads": 4, "d_model": 24, "n_ctx": 12, "d_vocab": 37}
    with pytest.raises(RecipeError, match=said):
        GPTConfig(**(sizes | choice))


def test_a_configuration_survives_a_dictionary():
    from dataclasses import asdict

    cfg = tiny(n_key_value_heads=2)
    assert GPTConfig(**asdict(cfg)) == cfg
    assert (cfg.d_head, cfg.d_mlp) == (6, 96)


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(TrainError, match="13 positions do not fit a context of 12"):
        init_gpt(tiny(), 0)(torch.zeros(1, 13, dtype=torch.long))


class Letters:
    """a = 1, b = 2, ...; 0 is end-of-text."""

    eot = 0

    def encode(self, text):
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids):
        return "".join(chr(96 + token) if token else "|" for token in ids)


def test_text_becomes_tokens_with_an_end_of_text_in_front_and_back():
    model = init_gpt(tiny(), 0)
    with pytest.raises(TokenizerError, match="came without one"):
        model.to_tokens("ab")
    model.tokenizer = Letters()
    assert model.to_tokens("ab").tolist() == [[0, 1, 2]]
    assert model.to_tokens(["ab", "cd"], prepend_bos=False).tolist() == [[1, 2], [3, 4]]
    assert model.to_string(model.to_tokens("ab")) == ["|ab"]
    with pytest.raises(TokenizerError, match=r"lengths \[1, 2\]"):
        model.to_tokens(["a", "bc"])


def test_generation_is_greedy_or_seeded_and_slides_the_context(tokens):
    model = init_gpt(tiny(), 0)
    greedy = model.generate(tokens, 6)  # 9 + 6 > 12
    assert greedy.shape == (3, 15)
    assert torch.equal(greedy[:, :9], tokens)
    assert torch.equal(greedy[:, 9], model(tokens)[:, -1].argmax(-1))
    drawn = model.generate(tokens, 6, temperature=1.0, seed=1)
    assert torch.equal(drawn, model.generate(tokens, 6, temperature=1.0, seed=1))
    assert not torch.equal(drawn, model.generate(tokens, 6, temperature=1.0, seed=2))


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "sizes", "words"),
    [
        (lambda w: without(w, "embed.weight"), {}, "embed.weight is missing"),
        (lambda w: {**w, "more": w["embed.weight"]}, {}, "more is no weight"),
        (lambda w: {**w, "embed.weight": w["embed.weight"][1:]}, {}, "of shape (9, 8)"),
        (lambda w: {**w, "embed.weight": w["embed.weight"].int()}, {}, "embed.weight holds int32"),
        # Nothing of these sizes is built.
        (lambda w: w, {"d_vocab": 1 << 31}, "of shape (10, 8), and"),
        (lambda w: w, {"n_layers": 10_000}, "and 10000 layers have more"),
        (lambda w: w, {"d_mlp": 1 << 30}, "belong there"),
    ],
)
def test_weights_that_are_not_those_of_a_configuration_are_named(change, sizes, words):
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=16, d_vocab=10)
    weights = change(init_gpt(cfg, seed=0).state_dict())
    with pytest.raises(DamagedError, match=r"^here: ") as error:
        gpt_with_weights(replace(cfg, **sizes), weights, "here")
    assert words in str(error.value)
