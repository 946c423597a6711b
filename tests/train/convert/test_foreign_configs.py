"""A foreign configuration gives the logits of `transformers`, or is refused by name; never others.

Every case is a model of `transformers` with random weights, saved by it and changed as a user's
folder may be.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train import convert
from train.errors import DamagedError, RecipeError, TrainError


transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(37, (2, 12), generator=torch.Generator().manual_seed(0))
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 24, "n_positions": 12, "vocab_size": 37,
        "initializer_range": 0.2}  # fmt: skip
LLAMA = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 24, "vocab_size": 37,
         "intermediate_size": 40, "max_position_embeddings": 12,
         "initializer_range": 0.2}  # fmt: skip
NEOX = {**LLAMA, "hidden_size": 32}  # so that a quarter of a head's channels is even
GROUPED = {**LLAMA, "num_key_value_heads": 2}
SIZES = {"gpt2": GPT2, "llama": LLAMA, "gpt_neox": NEOX, "mistral": GROUPED, "qwen2": GROUPED,
         "qwen3": {**GROUPED, "head_dim": 6}}  # fmt: skip


def saved(folder: Path, kind: str, **choice) -> torch.Tensor:
    """Save a random model of a family, and return its logits."""
    torch.manual_seed(0)
    # A copy, because transformers fills in the rotation of what it is given.
    config = transformers.AutoConfig.for_model(kind, **deepcopy({**SIZES[kind], **choice}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # biases and norms, too
        logits = model(TOKENS).logits
    model.save_pretrained(folder)
    return logits


def change(folder: Path, **keys) -> None:
    """Change keys of config.json; `...` removes one."""
    content = json.loads((folder / "config.json").read_text())
    content |= keys
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))


def equal(folder: Path, logits: torch.Tensor) -> None:
    with torch.no_grad():
        found = convert.import_huggingface(folder).model(TOKENS)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)


# --- equal ---------------------------------------------------------------------------------------

GPT2_CHOICES = [
    {"activation_function": name, "tie_word_embeddings": tied, **more}
    for (name, tied), more in product(
        product(
            ("gelu_new", "gelu", "relu", "gelu_pytorch_tanh", "gelu_fast", "gelu_python",
             "gelu_accurate", "gelu_python_tanh"),
            (True, False),
        ),
        ({}, {"n_inner": 52, "layer_norm_epsilon": 1e-3}),
    )
]  # fmt: skip
LLAMA_CHOICES = [
    {"num_key_value_heads": few, "attention_bias": of_attention, "mlp_bias": of_mlps, **more}
    for few, of_attention, of_mlps, more in product(
        (4, 2, 1),
        (False, True),
        (False, True),
        ({}, {"head_dim": 8, "hidden_act": "swish", "tie_word_embeddings": True},
         {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
    )
]  # fmt: skip


@pytest.mark.parametrize("choice", GPT2_CHOICES, ids=str)
def test_every_gpt2_that_is_opened_computes_the_same(choice, tmp_path):
    equal(tmp_path, saved(tmp_path, "gpt2", **choice))


@pytest.mark.parametrize("choice", LLAMA_CHOICES, ids=str)
def test_every_llama_that_is_opened_computes_the_same(choice, tmp_path):
    equal(tmp_path, saved(tmp_path, "llama", **choice))


NEOX_CHOICES = [
    {"use_parallel_residual": parallel, "tie_word_embeddings": tied, **more}
    for parallel, tied, more in product(
        (True, False),
        (True, False),
        ({}, {"rotary_pct": 1.0, "hidden_act": "gelu_new"}, {"rotary_pct": 0.5,
         "rotary_emb_base": 300.0}, {"attention_bias": False, "layer_norm_eps": 1e-3}),
    )
]  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 9}  # fmt: skip
FAMILY_CHOICES = [
    *(("gpt_neox", choice) for choice in NEOX_CHOICES),
    *((kind, {"rope_parameters": LLAMA3}) for kind in SIZES if kind != "gpt2"),
    ("llama", {"rope_parameters": {**LLAMA3, "factor": 8.0, "low_freq_factor": 0.5}}),
    ("gpt_neox", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}),
    *(("mistral", {"sliding_window": window}) for window in (1, 4, 11, 12, 4096, None)),
    ("mistral", {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    ("qwen2", {"sliding_window": 4, "max_window_layers": 1}),  # not used without a switch
    ("qwen3", {}),
    ("qwen3", {"head_dim": 10, "attention_bias": True}),
    ("qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("kind", "choice"), FAMILY_CHOICES, ids=str)
def test_every_model_of_another_family_that_is_opened_computes_the_same(kind, choice, tmp_path):
    equal(tmp_path, saved(tmp_path, kind, **choice))


OLDER = {
    # As Pythia's files are on the hub.
    "gpt_neox": ({"rope_parameters": ..., "attention_bias": ..., "attention_dropout": ...,
                  "rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float16"},),
    # As transformers 4 writes them.
    "llama": ({"rope_parameters": ..., "rope_theta": 100.0,
               "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
              {"rope_parameters": ..., "rope_theta": 100.0, "rope_scaling": LLAMA3}),
    "mistral": ({"rope_parameters": ..., "rope_theta": 10000.0, "head_dim": ...},),
    "qwen2": ({"rope_parameters": ..., "rope_theta": 10000.0, "rope_scaling": None,
               "layer_types": ..., "sliding_window": 32768, "max_window_layers": 21,
               "use_mrope": False},),
    "qwen3": ({"rope_parameters": ..., "rope_theta": 10000, "layer_types": ...},),
}  # fmt: skip


@pytest.mark.parametrize("kind", OLDER)
def test_files_of_before_transformers_5_are_read(kind, tmp_path):
    logits = saved(tmp_path, kind, **({"rope_parameters": LLAMA3} if kind == "llama" else {}))
    for keys in OLDER[kind]:
        change(tmp_path, **keys)
        equal(tmp_path, logits)


def test_a_window_that_a_file_does_not_give_is_that_of_the_class(tmp_path):
    logits = saved(tmp_path, "mistral", sliding_window=4)
    change(tmp_path, sliding_window=...)
    model = convert.import_huggingface(tmp_path).model
    assert model.cfg.window == 4096
    change(tmp_path, sliding_window=None)
    assert convert.import_huggingface(tmp_path).model.cfg.window == 0
    change(tmp_path, sliding_window=4)
    equal(tmp_path, logits)


def test_pythias_older_weights_with_masks_and_angles_are_read(tmp_path):
    logits = saved(tmp_path, "gpt_neox")
    rewrite(
        tmp_path,
        lambda w: (
            w
            | {
                "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 12, 12, dtype=torch.bool),
                "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
                "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
            }
        ),
    )
    equal(tmp_path, logits)
    rewrite(tmp_path, lambda w: {"lm_head.weight": w.pop("embed_out.weight"), **w})
    equal(tmp_path, logits)


HARMLESS = {
    "keys of training": {"attn_pdrop": 0.3, "use_cache": False, "gradient_checkpointing": True},
    "keys of a trainer's own": {"_name_or_path": "gpt2", "unsloth_version": "2025.1"},
    "keys of gpt2-medium to gpt2-xl": {
        "n_special": 0,
        "predict_special_tokens": True,
        "output_past": True,
        "n_ctx": 12,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {}},
    },
    "tokens of other tokenizers": {"mask_token_id": 3, "cls_token_id": 2, "unk_token_id": 1},
    "the loss of a trainer": {"loss_type": "ForCausalLM"},
    "no activation": {"activation_function": ...},
    "unknown and null": {"sliding_window_pattern": None, "max_position_embeddings": None},
    "an older n_ctx, which nothing reads": {"n_ctx": 1024},
    "the names of other families": {"num_hidden_layers": 2, "hidden_size": 24, "n_ctx": 12},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_keys_that_change_nothing_are_accepted(name, tmp_path):
    logits = saved(tmp_path, "gpt2")
    change(tmp_path, **HARMLESS[name])
    equal(tmp_path, logits)


def test_transformers_4_and_5_write_the_base_of_the_rotation_in_two_places(tmp_path):
    logits = saved(tmp_path, "llama", rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    change(tmp_path, rope_parameters=..., rope_theta=300.0, rope_scaling=None)
    equal(tmp_path, logits)
    change(tmp_path, rope_scaling={"type": "default"})
    equal(tmp_path, logits)


def test_two_places_with_different_rotations_are_refused(tmp_path):
    saved(tmp_path, "llama", rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    change(tmp_path, rope_scaling={"type": "default"})
    with pytest.raises(RecipeError, match="rope_scaling and rope_parameters differ"):
        convert.import_huggingface(tmp_path)


# --- refused -------------------------------------------------------------------------------------

SCALED = [
    {place: {key: kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    for place, key, kind in product(
        ("rope_scaling", "rope_parameters"),
        ("type", "rope_type"),
        ("linear", "dynamic", "yarn", "longrope", "su", "new"),
    )
]
OTHERS = {
    "llama": [
        *SCALED,
        {"rope_scaling": {"factor": 4.0}},
        {"rope_scaling": LLAMA3},  # beside other rope_parameters
        {"rope_parameters": {**LLAMA3, "type": "yarn"}},
        {"rope_parameters": {**LLAMA3, "attention_factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"rope_interleaved": True},
        {"sliding_window": 4},
        {"hidden_act": "gelu"},
        {"logits_scaling": 8.0},
        {"final_logit_softcapping": 30.0},
        {"residual_multiplier": 0.2},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}},
        {"num_local_experts": 8},
        {"no_rope_layers": [0, 1]},
    ],
    "gpt_neox": [
        {"hidden_act": "silu"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "mscale": 0.4}},
        {"rope_theta": 300.0},
        {"partial_rotary_factor": 0.5},
        {"position_embedding_type": "alibi"},
        {"use_qk_norm": True},
    ],
    "mistral": [
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"attention_bias": True},
        {"num_local_experts": 8},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"partial_rotary_factor": 0.5},
    ],
    "qwen2": [
        {"use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": "full_attention"},
        {"attention_bias": False},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"use_mrope": True},
    ],
    "qwen3": [
        {"use_sliding_window": True},
        {"layer_types": ["chunked_attention", "full_attention"]},
        {"num_experts": 8},
        {"qk_layernorm": True},
    ],
    "gpt2": [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"activation_function": "quick_gelu"},
        {"activation_function": "gelu_10"},
        {"max_position_embeddings": 6},
        {"hidden_size": 48},
        {"position_embedding_type": "alibi"},
        {"pruned_heads": {"0": [1]}},
        {"mup_width_scale": 2.0},
    ],
}


@pytest.mark.parametrize(
    ("kind", "keys"), [(kind, keys) for kind, every in OTHERS.items() for keys in every], ids=str
)
def test_a_key_that_changes_the_computation_is_refused_by_name(kind, keys, tmp_path):
    saved(tmp_path, kind)
    change(tmp_path, **keys)
    name = next(iter(keys))
    with pytest.raises(RecipeError, match=rf"config\.json.*{name}") as refusal:
        convert.import_huggingface(tmp_path)
    assert "\n" not in str(refusal.value)


KNOWN = ("gpt_neox", "mistral", "qwen2", "qwen3")
FAMILIES = (
    *KNOWN, "gpt_neo", "gptj", "opt", "bloom", "falcon", "mixtral", "qwen2_moe", "qwen3_moe",
    "gemma", "gemma2", "phi", "phi3", "olmo", "olmo2", "stablelm", "starcoder2", "cohere",
    "granite", "nemotron", "mpt",
)  # fmt: skip


@pytest.mark.parametrize("disguise", [None, "llama", "gpt2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_is_refused_also_under_a_known_name(family, disguise, tmp_path):
    content = transformers.AutoConfig.for_model(family).to_dict()
    content["model_type"] = disguise or family
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(TrainError) as refusal:
        convert.import_huggingface(tmp_path)
    assert "\n" not in str(refusal.value)
    if disguise is None:
        missing = isinstance(refusal.value, DamagedError) and "is missing" in str(refusal.value)
        assert missing if family in KNOWN else repr(family) in str(refusal.value)


WRONG = [
    {"n_layer": "two"}, {"n_layer": 0}, {"n_layer": True}, {"n_layer": 2.5}, {"n_layer": []},
    {"n_embd": 10**30}, {"n_positions": 10**15}, {"vocab_size": -1}, {"vocab_size": ...},
    {"layer_norm_epsilon": "small"}, {"tie_word_embeddings": "yes"},
]  # fmt: skip


@pytest.mark.parametrize("keys", WRONG, ids=str)
def test_a_value_of_another_kind_is_named(keys, tmp_path):
    saved(tmp_path, "gpt2")
    change(tmp_path, **keys)
    with pytest.raises(DamagedError, match=rf"config\.json: {next(iter(keys))} is"):
        convert.import_huggingface(tmp_path)


# --- weights -------------------------------------------------------------------------------------


def rewrite(folder: Path, turn: Callable[[dict], dict]) -> None:
    path = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in turn(load_file(path)).items()}, path)


def test_one_of_two_tied_tensors_is_enough(tmp_path):
    logits = saved(tmp_path, "gpt2")
    rewrite(tmp_path, lambda w: {"lm_head.weight": w.pop("transformer.wte.weight"), **w})
    equal(tmp_path, logits)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_base_model_and_a_wrapped_model_are_read(kind, tmp_path):
    logits = saved(tmp_path, kind, tie_word_embeddings=True)
    base = {"gpt2": "transformer.", "llama": "model.", "gpt_neox": "gpt_neox."}[kind]
    rewrite(tmp_path, lambda w: {name.removeprefix(base): value for name, value in w.items()})
    equal(tmp_path, logits)
    rewrite(tmp_path, lambda w: {f"_orig_mod.{name}": value for name, value in w.items()})
    equal(tmp_path, logits)


def test_two_values_for_one_tensor_are_refused_and_two_copies_are_read(tmp_path):
    logits = saved(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    parts = [{name: weights[name] for name in names[number::2]} for number in range(2)]
    parts[1][names[0]] = weights[names[0]].clone()
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"part-{number}.safetensors")
    equal(tmp_path, logits)
    parts[1][names[0]] += 1
    save_file(parts[1], tmp_path / "part-1.safetensors")
    with pytest.raises(DamagedError, match=f"part-1.*{names[0]} has another value"):
        convert.import_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (lambda w: w | {"transformer.ln_f.bias": w["transformer.ln_f.bias"] * torch.nan}, "NaN"),
        (lambda w: w | {"transformer.ln_f.bias": torch.ones(24, dtype=torch.int32)}, "int32"),
        (lambda w: w | {"transformer.ln_f.bias": torch.ones(24, dtype=torch.bool)}, "bool"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(turn, said, tmp_path):
    saved(tmp_path, "gpt2")
    rewrite(tmp_path, turn)
    with pytest.raises(DamagedError, match=rf"ln_f\.bias holds {said}"):
        convert.import_huggingface(tmp_path)


@pytest.mark.parametrize(
    "content",
    [{}, [], 3, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}},
     {"weight_map": {"a": "../b.safetensors"}}, {"weight_map": {"a": "/etc/passwd"}}],
)  # fmt: skip
def test_an_index_of_another_form_is_refused(content, tmp_path):
    saved(tmp_path, "gpt2")
    (tmp_path / "model.safetensors").unlink()
    listing = tmp_path / "model.safetensors.index.json"
    listing.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"index\.json: "):
        convert.import_huggingface(tmp_path)


STAND_INS = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n": "git-lfs pointer",
    "\n<!DOCTYPE html><html><body>log in</body></html>": "HTML page",
    "": "empty|not readable",
}


@pytest.mark.parametrize("place", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("text", STAND_INS, ids=["git-lfs", "html", "empty"])
def test_a_file_that_stands_in_for_another_is_named(place, text, tmp_path):
    saved(tmp_path, "gpt2")
    (tmp_path / place).write_text(text)
    with pytest.raises(DamagedError, match=rf"{place}: .*({STAND_INS[text]})"):
        convert.import_huggingface(tmp_path)


def test_a_million_positions_cost_nothing_until_they_are_asked_for(tmp_path):
    logits = saved(tmp_path, "llama", max_position_embeddings=1 << 20)
    model = convert.import_huggingface(tmp_path).model
    assert len(model.rotary.cos) < 10_000
    equal(tmp_path, logits)


def test_more_positions_than_at_first_are_those_of_a_whole_table(monkeypatch):
    from train.model import positional

    whole = positional.Rotary(64, 8, theta=100.0)
    monkeypatch.setattr(positional, "FIRST_POSITIONS", 4)
    grown = positional.Rotary(64, 8, theta=100.0).double()
    with torch.inference_mode():
        for n_pos in (3, 5, 64):
            for one, other in zip(grown(n_pos), whole(n_pos), strict=True):
                assert one.dtype == torch.float64
                assert torch.equal(one.float(), other)
    assert not grown.cos.is_inference()
