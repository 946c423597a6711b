"""A model means the same on both sides of a border: Hugging Face, nanoGPT, TransformerLens."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worlds.models import shaken
from train import convert
from train.data import Tokenizer, gpt2_tokenizer, train_bpe, train_words
from train.errors import DamagedError, RecipeError, TokenizerError, TrainError
from train.model import GPT, GPTConfig, init_gpt, preset


GPT2 = GPTConfig(n_layers=2, n_heads=4, d_model=24, n_ctx=12, d_vocab=37, init_std=0.2)
LLAMA = replace(
    GPT2, n_key_value_heads=2, d_mlp=40, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
    tie=False, norm_eps=1e-6, rope_theta=500.0,
)  # fmt: skip
PYTHIA = replace(
    GPT2, d_model=32, d_head=8, d_mlp=128, position="rope", rotary_channels=2, mlp="gelu",
    tie=False, parallel_residual=True,
)  # fmt: skip
CROSSING = {
    "gpt2": GPT2,
    "gpt2, exact gelu": replace(GPT2, mlp="gelu"),
    "gpt2, relu, wide": replace(GPT2, mlp="relu", d_mlp=56),
    "gpt2, untied": replace(GPT2, tie=False),
    "gpt2, padded": replace(GPT2, vocab_multiple=16),
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tie=True, n_key_value_heads=4),
    "llama, one key, biases, other head width": replace(
        LLAMA, n_key_value_heads=1, bias=True, d_head=8
    ),
    "llama, scaled rope": replace(
        LLAMA, rope_scaling="llama3", rope_factor=4.0, rope_original_ctx=9, rope_theta=100.0
    ),
    "pythia": PYTHIA,
    "gpt_neox, 30 of 44 channels rotated": replace(
        PYTHIA, n_heads=2, n_key_value_heads=2, d_model=88, d_head=44, rotary_channels=30
    ),
    "gpt_neox, serial, tied, whole heads rotated": replace(
        PYTHIA, parallel_residual=False, tie=True, rotary_channels=0, mlp="gelu-tanh", d_mlp=40
    ),
    "mistral": replace(LLAMA, window=4),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True, d_head=8, tie=True),
}


@pytest.fixture(params=CROSSING.values(), ids=list(CROSSING))
def model(request) -> GPT:
    return shaken(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_words([" ".join(f"w{n:02}" for n in range(36))])


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# --- Hugging Face --------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_equal_those_of_the_hugging_face_class(model, tokens):
    close(convert.to_huggingface(model)(tokens).logits, model(tokens))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_written_by_transformers_is_read(kind, tokens, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=37, n_positions=12, n_embd=24, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        theirs = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=37, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=12,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )  # fmt: skip
        theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path)
    imported = convert.import_huggingface(tmp_path)
    close(imported.model(tokens), theirs.eval()(tokens).logits)
    assert imported.tokenizer is None
    assert imported.description.startswith(f"Hugging Face {kind} folder")
    assert imported.description.endswith("and no merges.txt); weights only")
    assert imported.model.cfg.n_params == theirs.num_parameters()


@torch.no_grad()
def test_transformers_reads_the_folder_we_write(model, tokens, words, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    out = convert.export_huggingface(model, words, tmp_path / "out")
    both: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    theirs, loading = both
    assert not any(loading.values())
    close(theirs.eval()(tokens).logits, model(tokens))
    # transformers 5.23 takes every tokenizer of a qwen2 folder for Qwen's own.
    qwen2 = theirs.config.model_type == "qwen2"
    tokenizers = PreTrainedTokenizerFast if qwen2 else AutoTokenizer
    assert tokenizers.from_pretrained(out)("w03 w07").input_ids == [4, 8]


def test_out_and_in_again_keeps_every_bit(model, words, tmp_path):
    out = convert.export_huggingface(model, words, tmp_path / "out")
    back = convert.import_huggingface(out)
    assert back.tokenizer == words
    ours, theirs = model.state_dict(), back.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name][: len(value)], value), name
    kept = {"init_std": 0.02, "vocab_multiple": 1}  # how weights began is not in the folder
    assert back.model.cfg == replace(model.cfg, **kept)
    again = convert.export_huggingface(back.model, words, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@torch.no_grad()
def test_missing_biases_cross_as_zeros(tokens, tmp_path):
    model = shaken(replace(GPT2, bias=False))
    out = convert.export_huggingface(model, None, tmp_path / "out")
    back = convert.import_huggingface(out).model
    assert back.cfg.bias
    assert not any(v.any() for k, v in back.state_dict().items() if k.endswith("bias"))
    close(back(tokens), model(tokens))
    close(convert.to_huggingface(model)(tokens).logits, model(tokens))


@torch.no_grad()
def test_the_two_gelus_are_told_apart_by_name_and_differ_in_value(tokens, tmp_path):
    exact, tanh = (shaken(replace(GPT2, mlp=mlp)) for mlp in ("gelu", "gelu-tanh"))
    assert (exact(tokens) - tanh(tokens)).abs().max() > 1e-4
    for model, name in ((exact, "gelu"), (tanh, "gelu_new")):
        out = convert.export_huggingface(model, None, tmp_path / name)
        assert json.loads((out / "config.json").read_text())["activation_function"] == name
        assert convert.import_huggingface(out).model.cfg.mlp == model.cfg.mlp


def folder(tmp_path: Path, cfg: GPTConfig, **changed) -> Path:
    """An exported folder whose config.json says something else."""
    out = convert.export_huggingface(init_gpt(cfg, 0), None, tmp_path / "out")
    config = json.loads((out / "config.json").read_text()) | changed
    config = {key: value for key, value in config.items() if value != "absent"}
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("cfg", "changed", "said"),
    [
        (GPT2, {"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is True"),
        (GPT2, {"model_type": "gpt_neo"}, "is a 'gpt_neo' model, which .*; gpt2, llama, gpt_neox"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)  # fmt: skip
def test_an_architecture_we_do_not_compute_is_refused(cfg, changed, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        convert.import_huggingface(folder(tmp_path, cfg, **changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_embd": "absent"}, "config.json: n_embd is missing"),
        ({"n_layer": 3}, "the tensor transformer.h.2.ln_1.weight is missing"),
        ({"n_layer": 1}, "12 tensors have no place in this architecture: transformer.h.1."),
        ({"n_positions": 13}, r"pos_embed.weight has shape \(12, 24\).*says \(13, 24\)"),
        ({"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
    ],
)
def test_weights_that_contradict_the_configuration_are_refused(changed, said, tmp_path):
    with pytest.raises(DamagedError, match=said):
        convert.import_huggingface(folder(tmp_path, GPT2, **changed))


def test_a_damaged_or_missing_file_is_named(tmp_path):
    out = folder(tmp_path, GPT2)
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match=r"model.safetensors: not readable as safetensors"):
        convert.import_huggingface(out)
    weights.write_bytes(pickle.dumps({"transformer.wte.weight": 1}))
    with pytest.raises(DamagedError, match=r"model.safetensors: not readable as safetensors"):
        convert.import_huggingface(out)
    weights.unlink()
    with pytest.raises(DamagedError, match=r"model.safetensors: the file is missing"):
        convert.import_huggingface(out)
    with pytest.raises(TrainError, match="is no folder"):
        convert.import_huggingface(tmp_path / "nowhere")


class Bomb:
    """What a malicious pickle does: here it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("place", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_unread(place, tmp_path):
    out, trace = folder(tmp_path, GPT2), tmp_path / "it ran"
    (out / "model.safetensors").unlink()
    (out / place).write_bytes(pickle.dumps(Bomb(trace)))
    for offered in (out, out / place):
        with pytest.raises(DamagedError, match=r"a pickle.*safetensors is accepted"):
            convert.import_huggingface(offered)
    with pytest.raises(
        DamagedError, match=r"restricted reader refuses it.*safetensors is accepted"
    ):
        convert.import_nanogpt(out / place)
    torch.save({"model": Bomb(trace)}, out / place)
    with pytest.raises(
        DamagedError, match=r"restricted reader refuses it.*safetensors is accepted"
    ):
        convert.import_nanogpt(out / place)
    assert not trace.exists()


def test_a_tokenizer_larger_than_the_model_is_left_out_and_said(words, tmp_path):
    out = convert.export_huggingface(
        init_gpt(replace(GPT2, d_vocab=30), 0), words, tmp_path / "out"
    )
    imported = convert.import_huggingface(out)
    assert imported.tokenizer is None
    assert "has 37 tokens, the model 30" in imported.model.no_tokenizer


def test_a_tokenizer_we_cannot_read_is_left_out_and_said(tmp_path):
    from tokenizers import Tokenizer, models

    out = convert.export_huggingface(init_gpt(GPT2, 0), None, tmp_path / "out")
    Tokenizer(models.Unigram()).save(str(out / "tokenizer.json"))
    imported = convert.import_huggingface(out)
    assert imported.tokenizer is None
    assert "a Unigram tokenizer" in imported.description
    with pytest.raises(TokenizerError, match=r"has none .*a Unigram tokenizer.*--tokenizer FILE"):
        imported.model.to_tokens("a")
    run = convert.import_run(out, out=tmp_path / "run")
    with pytest.raises(TokenizerError, match=r"has none .*a Unigram tokenizer"):
        run.load().to_tokens("a")


GPT2_HUB = {
    "as the hub serves it": lambda c: (
        c["model"].pop("type"),
        c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]]),
    ),
    "without a pre-tokenizer": lambda c: c.pop("pre_tokenizer"),
    "with a null pre-tokenizer": lambda c: c.update(pre_tokenizer=None),
}


@pytest.mark.parametrize("harm", GPT2_HUB)
def test_gpt2_itself_opens_with_its_tokenizer(harm, tmp_path):
    cfg = replace(GPT2, d_vocab=50257)
    out = convert.export_huggingface(init_gpt(cfg, 0), gpt2_tokenizer(), tmp_path / "out")
    content = json.loads((out / "tokenizer.json").read_text())
    GPT2_HUB[harm](content)
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert convert.import_huggingface(out).tokenizer == gpt2_tokenizer()


def test_a_folder_with_its_own_vocabulary_and_merges_opens_with_them(tmp_path):
    words = train_bpe(["the cat sat on the mat"] * 9, 265)
    out = convert.export_huggingface(
        init_gpt(replace(GPT2, d_vocab=265), 0), words, tmp_path / "out"
    )
    model = json.loads((out / "tokenizer.json").read_text())["model"]
    (out / "tokenizer.json").unlink()
    (out / "vocab.json").write_text(json.dumps(model["vocab"]))
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    found = convert.import_huggingface(out).tokenizer
    assert found == words
    (out / "vocab.json").unlink()
    assert "sha256" in convert.import_huggingface(out).model.no_tokenizer  # not OpenAI's


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "{}", '{"model": 3}', '{"model": {"vocab": 3, "merges": 3}}',
                '{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}',
                '{"model": {"type": "BPE", "vocab": {"<|endoftext|>": 0}, "merges": ["a"]}}',
                "[" * 10**5, "9" * 5000]
)  # fmt: skip
def test_a_broken_tokenizer_never_takes_the_weights_with_it(content, tmp_path):
    out = convert.export_huggingface(init_gpt(GPT2, 0), None, tmp_path / "out")
    (out / "tokenizer.json").write_text(content)
    imported = convert.import_huggingface(out)
    assert imported.tokenizer is None
    assert "tokenizer.json: " in imported.model.no_tokenizer
    assert "\n" not in imported.model.no_tokenizer


def test_shards_and_half_precision_are_read_as_one_model_in_fp32(tmp_path):
    model = shaken(LLAMA)
    convert.to_huggingface(model).half().save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    imported = convert.import_huggingface(tmp_path)
    assert "saved as float16" in imported.description
    weights = imported.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value.half().float()), name


def test_the_base_model_without_its_head_is_read(tokens, tmp_path):
    model = shaken(GPT2)
    twin: Any = convert.to_huggingface(model)
    twin.transformer.save_pretrained(tmp_path)
    close(convert.import_huggingface(tmp_path).model(tokens), model(tokens))


@pytest.mark.parametrize(
    "choice",
    [
        {"norm_placement": "post"},
        {"position": "sinusoidal"},
        {"position": "rope", "n_key_value_heads": 2},
        {"position": "rope", "window": 4},
        {"parallel_residual": True},
        {"window": 4},
        {"norm": "rmsnorm"},
        {"n_key_value_heads": 2},
        {"d_head": 8},
    ],
)
def test_what_no_hugging_face_class_computes_is_not_exported(choice, tmp_path):
    with pytest.raises(RecipeError, match="no Hugging Face class computes"):
        convert.export_huggingface(init_gpt(replace(GPT2, **choice), 0), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    with pytest.raises(TrainError, match="exists"):
        convert.export_huggingface(init_gpt(GPT2, 0), None, tmp_path)


def test_a_twin_costs_no_random_number():
    before = torch.random.get_rng_state()
    convert.to_huggingface(init_gpt(GPT2, 0))
    assert torch.equal(before, torch.random.get_rng_state())


# --- nanoGPT -------------------------------------------------------------------------------------


class NanoBlock(nn.Module):
    attn: Any  # modules without a class of their own
    mlp: Any

    def __init__(self, d: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d, bias=bias), nn.LayerNorm(d, bias=bias)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.c_attn = nn.Linear(d, 3 * d, bias=bias)
        self.attn.c_proj = nn.Linear(d, d, bias=bias)
        self.mlp.c_fc, self.mlp.c_proj = (
            nn.Linear(d, 4 * d, bias=bias),
            nn.Linear(4 * d, d, bias=bias),
        )

    def forward(self, x):
        batch, pos, d = x.shape
        q, k, v = (
            part.view(batch, pos, self.heads, d // self.heads).transpose(1, 2)
            for part in self.attn.c_attn(self.ln_1(x)).split(d, dim=2)
        )
        weights = q @ k.transpose(2, 3) / (d // self.heads) ** 0.5
        weights = weights.masked_fill(torch.ones(pos, pos).tril() == 0, float("-inf")).softmax(3)
        x = x + self.attn.c_proj((weights @ v).transpose(1, 2).reshape(batch, pos, d))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class Nano(nn.Module):
    """Written from nanoGPT's description, with its parameter names; shares no code with ours."""

    transformer: Any

    def __init__(self, args: dict) -> None:
        super().__init__()
        d = args["n_embd"]
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(args["vocab_size"], d)
        self.transformer.wpe = nn.Embedding(args["block_size"], d)
        blocks = (NanoBlock(d, args["n_head"], args["bias"]) for _ in range(args["n_layer"]))
        self.transformer.h = nn.ModuleList(blocks)
        self.transformer.ln_f = nn.LayerNorm(d, bias=args["bias"])
        self.lm_head = nn.Linear(d, args["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens):
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 12, "bias": False, "vocab_size": 40}


def nano(path: Path, *, compiled: bool = False, **args) -> Nano:
    """A random network and its ckpt.pt, as nanoGPT's train.py writes it."""
    torch.manual_seed(0)
    args = ARGS | {"dropout": 0.0} | args
    network = Nano(args)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prefix = "_orig_mod." if compiled else ""
    optimizer = torch.optim.AdamW(network.parameters())
    saved = {
        "model": {prefix + name: value for name, value in network.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 400,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "openwebtext", "compile": compiled},
    }
    torch.save(saved, path)
    return network


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_nanogpt_checkpoint_computes_what_its_network_did(bias, compiled, tokens, tmp_path):
    network = nano(tmp_path / "ckpt.pt", bias=bias, compiled=compiled)
    imported = convert.import_nanogpt(tmp_path / "ckpt.pt")
    close(imported.model(tokens), network(tokens))
    cfg = imported.model.cfg
    assert (cfg.bias, cfg.mlp, cfg.d_vocab, cfg.vocab_multiple) == (bias, "gelu", 40, 1)
    assert imported.description.startswith("nanoGPT checkpoint ckpt.pt at step 400, 2 layers")
    assert imported.description.endswith("weights only")


@torch.no_grad()
def test_nanogpts_padded_vocabulary_is_kept_inside_and_never_seen(tokens, tmp_path):
    network = nano(tmp_path / "ckpt.pt", vocab_size=50304, n_embd=4)
    model = convert.import_nanogpt(tmp_path / "ckpt.pt").model
    assert (model.cfg.d_vocab, model.cfg.rows) == (50257, 50304)
    close(model(tokens), network(tokens)[..., :50257])
    network = nano(tmp_path / "small.pt")
    model = convert.import_nanogpt(tmp_path / "small.pt", d_vocab=37).model
    close(model(tokens), network(tokens)[..., :37])
    with pytest.raises(RecipeError, match="d_vocab is 41, and the checkpoint has 40 rows"):
        convert.import_nanogpt(tmp_path / "small.pt", d_vocab=41)


@torch.no_grad()
def test_nanogpt_to_hugging_face_is_one_network(tokens, tmp_path):
    network = nano(tmp_path / "ckpt.pt", bias=False)
    model = convert.import_nanogpt(tmp_path / "ckpt.pt").model
    close(convert.to_huggingface(model)(tokens).logits, network(tokens))


def test_a_pickle_that_is_no_nanogpt_checkpoint_is_refused(tmp_path):
    path = tmp_path / "ckpt.pt"
    for content in ({"weights": torch.zeros(2)}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(DamagedError, match=r"no nanoGPT checkpoint.*safetensors is accepted"):
            convert.import_nanogpt(path)
    torch.save({"model": {}, "model_args": {"n_layer": 2}}, path)
    with pytest.raises(DamagedError, match="model_args does not say bias, block_size"):
        convert.import_nanogpt(path)
    torch.save({"model": {"a": 1}, "model_args": ARGS}, path)
    with pytest.raises(DamagedError, match="'a' in `model` is no tensor"):
        convert.import_nanogpt(path)
    nano(path, rotary=True)
    with pytest.raises(RecipeError, match=r"ckpt\.pt: the key 'rotary' \(True\) is not known"):
        convert.import_nanogpt(path)
    with pytest.raises(DamagedError, match="the file is missing"):
        convert.import_nanogpt(tmp_path / "none.pt")
    nano(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedError, match="restricted reader refuses it"):
        convert.import_nanogpt(path)


# --- TransformerLens -----------------------------------------------------------------------------

# Names whose value is ours under another name but whose replacement would mean something else
# (one of q, k, v alone; one MLP branch alone), and values that are no activations of the stream.
NOT_SHARED = ("attn.q.hook_in", "attn.k.hook_in", "attn.v.hook_in", "gate.hook_in", "hook_cos")
NOT_SHARED += ("hook_sin", "rotary_emb.hook_in", "embed.hook_in")
# The same as `q_norm.hook_out` and `k_norm.hook_out`.
NOT_SHARED += ("hook_q_normed", "hook_k_normed")


@torch.no_grad()
@pytest.mark.parametrize(
    ("cfg", "n_shared"),
    [(GPT2, 85), (LLAMA, 87), (PYTHIA, 81), (CROSSING["mistral"], 87), (CROSSING["qwen2"], 87),
     (CROSSING["qwen3"], 103)],
    ids=["gpt2", "llama", "pythia", "mistral", "qwen2", "qwen3"],
)  # fmt: skip
def test_every_activation_transformer_lens_names_is_ours(cfg, n_shared, tokens):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = shaken(cfg)
    twin = convert.to_huggingface(model)
    bridge = build_bridge_from_module(
        twin, type(twin).__name__, hf_config=twin.config, tokenizer=None
    )
    bridge.cfg.use_attn_result = True
    theirs_out, theirs = bridge.run_with_cache(tokens)
    ours_out, ours = model.run_with_cache(tokens, names_filter=lambda _: True)
    close(ours_out, theirs_out)
    shared = [name for name in theirs.keys() if name in ours]  # noqa: SIM118
    for name in shared:
        # Its normalised queries and keys are [batch head pos d_head], unlike its other ones.
        normed = ".q_norm." in name or ".k_norm." in name
        value = theirs[name].transpose(1, 2) if normed else theirs[name]
        assert ours[name].shape == value.shape, name
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-5, msg=name)
    left = {name for name in theirs.keys() if name not in ours}  # noqa: SIM118
    if cfg.gated_mlp:
        left -= {f"blocks.{layer}.mlp.in.hook_in" for layer in range(2)}
    assert [name for name in left if not name.endswith(NOT_SHARED)] == []
    # TransformerLens shows no rotated queries and keys of this class.
    more = {name for name in ours if name not in theirs.keys()}  # noqa: SIM118
    if cfg.parallel_residual:
        more -= {f"blocks.{layer}.attn.hook_rot_{part}" for layer in range(2) for part in "qk"}
    assert more == set()
    assert ("blocks.0.hook_resid_mid" in theirs) is not cfg.parallel_residual
    assert len(shared) == n_shared


def test_transformer_lens_sweeps_run_on_our_model_and_on_its_own_alike(tokens):
    from transformer_lens import patching
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = shaken(GPT2)
    twin = convert.to_huggingface(model)
    bridge = build_bridge_from_module(
        twin, "GPT2LMHeadModel", hf_config=twin.config, tokenizer=None
    )
    corrupt = tokens.clone()
    corrupt[:, 2] = (corrupt[:, 2] + 1) % 37

    def metric(logits):
        return logits[:, -1, 3].mean()

    with torch.no_grad():
        sweeps: list[Any] = [
            patching.get_act_patch_resid_pre,
            patching.get_act_patch_attn_head_out_all_pos,
        ]
        for sweep in sweeps:
            _, clean = model.run_with_cache(tokens)
            _, their_clean = bridge.run_with_cache(tokens)
            ours = sweep(model, corrupt, clean, metric)
            close(ours, sweep(bridge, corrupt, their_clean, metric))
            assert ours.std() > 0


def test_modern_without_sinks_is_llama():
    model = shaken(replace(preset("modern-nano"), sinks="none", n_sinks=0, init_std=0.2), 0.3)
    tokens = torch.randint(model.cfg.d_vocab, (2, 40), generator=torch.Generator().manual_seed(0))
    twin = convert.to_huggingface(model).eval()
    assert type(twin).__name__ == "LlamaForCausalLM"
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), twin(tokens).logits, rtol=0, atol=1e-5)


def test_sink_scores_are_those_of_gpt_oss():
    from transformers.models.gpt_oss import modeling_gpt_oss

    cfg = replace(preset("modern-nano"), sinks="logit", n_sinks=0, position="none", init_std=0.2)
    attn = shaken(cfg, 0.3).blocks[0].attn
    x = torch.randn(2, 9, cfg.d_model, generator=torch.Generator().manual_seed(0))
    q, k, v = (one.unflatten(-1, (4, 32)).transpose(1, 2) for one in attn.qkv(x).split(128, dim=-1))
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]
    module = nn.Module().eval()
    module.sinks, module.num_key_value_groups = attn.sinks.weight, 1  # type: ignore[assignment]
    z, _ = modeling_gpt_oss.eager_attention_forward(module, q, k, v, mask, scaling=32**-0.5)
    torch.testing.assert_close(attn(x), attn.out(z.flatten(-2)), rtol=0, atol=1e-5)
