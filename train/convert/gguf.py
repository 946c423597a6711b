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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from train import storage
from train.convert import foreign_weights
from train.convert.foreign_config import ForeignConfig, Keys
from train.convert.safe_loading import NOT_READ, WEIGHTS
from train.errors import DamagedError, RecipeError, TokenizerError, TrainError, nearest


if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor

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
# Namespaces of keys that do not say what the model computes. `split` is one of several files.
ABOUT = ("general.", "tokenizer.", "quantize.")
KEYS = Keys(
    read=frozenset(
        ("llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
         "llama.attention.head_count", "llama.attention.head_count_kv",
         "llama.attention.key_length", "llama.attention.value_length", "llama.context_length",
         "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base",
         "llama.rope.dimension_count")
    ),
    only={
        "llama.attention.causal": True,
        "llama.attention.clamp_kqv": 0.0,
        "llama.attention.max_alibi_bias": 0.0,
        "llama.attention.scale": 0.0,
        "llama.attention.sliding_window": 0,
        "llama.embedding_scale": 1.0,
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.logit_scale": 1.0,
        "llama.residual_scale": 1.0,
        "llama.rope.scale_linear": 1.0,
        "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.scaling.factor": 1.0,
        "llama.rope.scaling.type": "none",
        "llama.use_parallel_residual": False,
        "split.count": (0, 1),
    },
    harmless=frozenset(
        ("llama.vocab_size", "llama.tensor_data_layout", "llama.rope.scaling.finetuned",
         "llama.rope.scaling.original_context_length", "split.no", "split.tensors.count")
    ),
)  # fmt: skip
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

    Takes 4 bytes of disk per parameter, because weights are written in fp32, and as much memory as
    the file and its largest tensor. The folder appears completely or not at all. Of a tokenizer
    that is not known, the folder holds the reason alone, and the model is opened without it.

    Raises:
        TrainError: `out` exists, or the `gguf` package is missing.
        DamagedError: The file is missing, or is not a complete GGUF file, or a weight is not
            finite.
        RecipeError: The decoder does not have this architecture, or the quantization is unknown.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise TrainError(f"{out} exists; choose a folder that does not")
    said, tensors = _read(path)
    config = _config(said, path)
    try:
        names = {TABLES.get(name) or _in_block(name): name for name in tensors}
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if "model.embed_tokens.weight" not in names:
        raise DamagedError(f"{path}: token_embd.weight is missing")
    # llama.cpp gives the axes from the last one to the first.
    shapes = {ours: tuple(map(int, tensors[name].shape[::-1])) for ours, name in names.items()}
    config["tie_word_embeddings"] = "lm_head.weight" not in names
    config["vocab_size"] = shapes["model.embed_tokens.weight"][0]
    tokenizer = _tokenizer_files(said, path)
    with storage.new_folder(out) as folder:
        storage.write_json(folder / "config.json", config)
        storage.write_tensors(
            folder / WEIGHTS,
            shapes,
            numbers=lambda ours: _numbers(tensors[names[ours]], config, path),
            metadata={"format": "pt"},
        )
        for name, text in tokenizer.items():
            storage.write_text(folder / name, text)
    return out


def refuse_missing_reader() -> None:
    """Raise a TrainError if the package that reads GGUF files is not installed."""
    if find_spec("gguf") is None:
        raise TrainError(
            "the package that reads GGUF files is missing; run `pip install -e '.[gguf]'` in the "
            "clone of openbook"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, "ReaderTensor"]]:
    """Return the metadata of the file by key, and its tensors, not yet read, by their names."""
    with storage.open_foreign(path) as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise DamagedError(f"{path}: begins with {magic!r}, a GGUF with {MAGIC!r}")
    refuse_missing_reader()
    from gguf import GGUFReader

    with storage.reading(path, kind="as a GGUF"):
        reader = GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {one.name: one for one in reader.tensors}
    return said, tensors


def _numbers(tensor: "ReaderTensor", config: Mapping[str, Any], path: Path) -> Tensor:
    """Return the weights of a tensor in fp32, with Llama's order of query and key rows.

    Raises:
        RecipeError: The numbers are quantized in a way that cannot be undone, or are integers.
        DamagedError: They are incomplete, not finite, or of another shape.
    """
    from gguf import quants

    name = tensor.name
    try:
        # Copied, because tensors that need no dequantizing are views of the mapped file.
        value = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type)).float()
    except (ValueError, IndexError, OverflowError, OSError) as error:
        raise DamagedError(f"{path}: {name} is not readable ({error})") from None
    except NotImplementedError as error:
        raise RecipeError(
            f"{path}: {name} holds {tensor.tensor_type.name}, which is not turned into "
            f"floating-point weights ({error})"
        ) from None
    foreign_weights.check_finite(value, name, path)
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if key is None:
        return value.contiguous()
    if value.ndim != 2 or len(value) % (2 * config[key]):
        raise DamagedError(
            f"{path}: {name} has shape {tuple(value.shape)}, not that of {config[key]} heads"
        )
    return _halves(value, config[key]).contiguous()


def _config(said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        RecipeError: A key is not computed here, or is unknown.
        DamagedError: A value is missing, or has another type.
    """
    kind = said.get("general.architecture")
    if kind != "llama":
        raise RecipeError(f"{path}: a {kind!r} model; only 'llama' is taken")
    content = {
        key: value
        for key, value in said.items()
        if not key.startswith((*ABOUT, "GGUF."))  # the reader adds the header as `GGUF.`
    }
    config = ForeignConfig(content, KEYS, path)
    heads, d_model = (
        config.integer("llama.attention.head_count"),
        config.integer("llama.embedding_length"),
    )
    d_head = config.integer("llama.attention.key_length", d_model // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (found := config.integer(key, d_head)) != d_head:
            raise RecipeError(f"{path}: {key} is {found}, and only {d_head}, a head, is computed")
    theta = config.number("llama.rope.freq_base", 10_000.0)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config.integer("llama.block_count"),
        "hidden_size": d_model,
        "intermediate_size": config.integer("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("llama.attention.head_count_kv", heads),
        "head_dim": d_head,
        "max_position_embeddings": config.integer("llama.context_length"),
        "rms_norm_eps": config.number("llama.attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 5 reads `rope_parameters`, transformers 4 `rope_theta`.
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_theta": theta,
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": said.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }


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


def _tokenizer_files(said: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the files of the tokenizer by name; without a known one, none and the reason.

    Raises:
        DamagedError: A part of the tokenizer is missing, or has another type.
    """
    try:
        content, about = _tokenizer(said), _tokenizer_config(said)
    except TokenizerError as error:
        return {NOT_READ: f"{path.name}: {error}\n"}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedError(f"{path}: its tokenizer is incomplete ({error!r})") from None
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": storage.canonical_json(about),
    }


def _tokenizer(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    if "tokenizer.ggml.model" not in said:
        raise TokenizerError("the file has no tokenizer")
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
