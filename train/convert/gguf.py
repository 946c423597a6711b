"""Conversion of llama.cpp's GGUF files into Hugging Face folders, which can then be imported.

A GGUF file holds weights (often in 4 or 8 bits), the configuration and the tokenizer. llama.cpp's
`gguf` package reads and dequantizes it; this module renames the parts. The weights are those that
the quantized model computes with, in fp32. Quantization cannot be undone, so a folder made from a
4-bit file is not the original model.

Only the llama architecture without scaled rotary positions is accepted; anything else is an error.

`from_pretrained(gguf_file=...)` of transformers 5.23 gives bit-identical weights on a complete and
plain file. It fills a missing tensor with random values (logits off by 4.4 in the tests' model),
drops scaled rotary positions and biases without an error, and ignores how the tokenizer splits
text: for SmolLM2, 15 of the 1,319 questions of GSM8K get other token ids.

Sources: llama.cpp's `gguf-py/gguf/constants.py` for names, `convert_hf_to_gguf.py` for the order of
query and key rows, `llama-vocab.cpp` for how a named tokenizer splits text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from train import storage
from train.convert.safe_loading import WEIGHTS
from train.errors import DamagedError, RecipeError, TokenizerError, TrainError, nearest


__all__ = ["gguf_to_huggingface"]

MAGIC = b"GGUF"
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TABLES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# How a text is split before bytes are merged, by llama.cpp's name of the pre-tokenizer.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS = {
    "gpt-2": BYTES,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
}
CONTROL = 3  # token type of special tokens such as separators


def gguf_to_huggingface(path: str | Path, out: str | Path) -> Path:
    """Convert a GGUF file into a folder with config.json, model.safetensors and tokenizer.json.

    Takes 4 bytes of disk and of memory per parameter, because weights are written in fp32. The
    folder appears completely or not at all.

    Raises:
        TrainError: `out` exists, or the `gguf` package is missing.
        DamagedError: The file is missing, or is not a complete GGUF file.
        RecipeError: The decoder does not have this architecture, or the quantization is unknown.
        TokenizerError: The kind of tokenizer is not supported.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise TrainError(f"{out} exists; choose a folder that does not")
    said, tensors = _read(path)
    try:
        config, weights = _config(said), _weights(said, tensors)
        tokenizer = _tokenizer(said)
    except KeyError as error:
        raise DamagedError(f"{path}: {error.args[0]} is missing") from None
    except (RecipeError, TokenizerError) as error:
        raise type(error)(f"{path}: {error}") from None
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    config["vocab_size"] = len(weights["model.embed_tokens.weight"])
    with storage.new_folder(out) as folder:
        storage.write_json(folder / "config.json", config)
        storage.write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
        storage.write_text(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
        storage.write_json(folder / "tokenizer_config.json", _tokenizer_config(said))
    return out


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata of the file by key, and its tensors in fp32 by llama.cpp's names."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError:
        raise DamagedError(f"{path}: the file is missing") from None
    if magic != MAGIC:
        raise DamagedError(f"{path}: begins with {magic!r}, a GGUF with {MAGIC!r}")
    try:
        from gguf import GGUFReader, quants
    except ImportError:
        raise TrainError(
            f"{path} is a GGUF, and the package that reads it is missing; install openbook[gguf]"
        ) from None
    try:
        reader = GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            # Copied, because tensors that need no dequantizing are views of the mapped file.
            one.name: torch.tensor(quants.dequantize(one.data, one.tensor_type)).float()
            for one in reader.tensors
        }
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise DamagedError(f"{path}: not readable as a GGUF ({error})") from None
    except NotImplementedError as error:
        raise RecipeError(f"{path}: its quantization cannot be undone ({error})") from None
    return said, tensors


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    kind = said["general.architecture"]
    if kind != "llama":
        raise RecipeError(f"a {kind!r} model; only 'llama' is taken")
    scaling = said.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise RecipeError(f"its rope is scaled ({scaling!r}), which is not computed here")
    head_count = said["llama.attention.head_count"]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **{ours: said[f"llama.{theirs}"] for ours, theirs in SIZES.items()},
        "num_key_value_heads": said.get("llama.attention.head_count_kv", head_count),
        "head_dim": said.get(
            "llama.attention.key_length", said["llama.embedding_length"] // head_count
        ),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 5 reads `rope_parameters`, transformers 4 `rope_theta`.
        "rope_parameters": {
            "rope_theta": said.get("llama.rope.freq_base", 10_000.0),
            "rope_type": "default",
        },
        "rope_theta": said.get("llama.rope.freq_base", 10_000.0),
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": said.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }


def _weights(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    heads = said["llama.attention.head_count"]
    few = said.get("llama.attention.head_count_kv", heads)
    weights = {}
    for name, value in tensors.items():
        ours = TABLES.get(name) or _in_block(name)
        if ".attn_q." in name:
            value = _halves(value, heads)
        if ".attn_k." in name:
            value = _halves(value, few)
        weights[ours] = value.contiguous()
    return weights


def _in_block(name: str) -> str:
    block, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    stem, _, kind = part.partition(".")
    if block != "blk" or stem not in NAMES or kind != "weight":
        raise RecipeError(f"the tensor {name} has no place in this architecture")
    return f"model.layers.{layer}.{NAMES[stem]}.weight"


def _halves(rows: Float[Tensor, "row d_model"], heads: int) -> Float[Tensor, "row d_model"]:
    """Reorder query or key rows: llama.cpp rotates pairs (2i, 2i + 1), Llama (i, i + d_head/2)."""
    return rearrange(
        rows, "(head half pair) d_model -> (head pair half) d_model", head=heads, pair=2
    )


# --- the tokenizer -------------------------------------------------------------------------------


def _tokenizer(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    kind, split = said["tokenizer.ggml.model"], said.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in SPLITS:
        raise TokenizerError(
            f"a {kind!r} tokenizer that splits like {split!r}{nearest(str(split), SPLITS)}; known "
            f"are 'gpt2' ones that split like {' or '.join(SPLITS)}"
        )
    tokens, types = said["tokenizer.ggml.tokens"], said.get("tokenizer.ggml.token_type", [])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": tokens[number], "special": True, **flags}
            for number, one in enumerate(types)
            if one == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": SPLITS[split],
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in said["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(said: Mapping[str, Any]) -> dict[str, Any]:
    tokens = said["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    for role in ("bos", "eos"):
        if (number := said.get(f"tokenizer.ggml.{role}_token_id")) is not None:
            config[f"{role}_token"] = tokens[number]
    return config
