"""Layouts of foreign checkpoints: how they name, transpose and split the same weights.

Hugging Face's GPT-2 stores its four matrices as [in, out] (OpenAI's Conv1D); nanoGPT uses the same
names with [out, in]; Llama has three matrices instead of our one `qkv`; GPT-NeoX has one whose rows
are query, key and value of the first head, then of the second, and so on. A layout is a list of
correspondences that is used in both directions, so import and export cannot disagree.

Mistral, Qwen2 and Qwen3 are Llama with one part more each: a window, biases of queries, keys and
values, and normalised queries and keys.

Sources: `modeling_*.py` and `configuration_*.py` of gpt2, llama, gpt_neox, mistral, qwen2 and qwen3
and `modeling_rope_utils.py` of transformers 5.23, nanoGPT's `model.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train.convert.foreign_config import HARMLESS, ONLY, ForeignConfig, Keys
from train.convert.foreign_weights import Weights
from train.errors import RecipeError, TrainError, nearest
from train.model import GPTConfig
from train.short_repr import short_repr


__all__ = ["LAYOUTS", "Layout", "check_shapes", "copy_theirs", "gpt2_places", "layout_of"]
__all__ += ["to_theirs"]

# Names of equal formulas (transformers' `activations.py`). quick_gelu and others differ.
ACTIVATION_NAMES = {
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_python_tanh": "gelu-tanh",
    "gelu_accurate": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}
GATES = {"silu": "swiglu", "swish": "swiglu"}
GPT2_KEYS = Keys(
    read=frozenset(
        ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner",
         "activation_function", "layer_norm_epsilon", "tie_word_embeddings")
    ),
    only=ONLY
    | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "n_special": 0},
    # Dropout is off in evaluation, and the summary belongs to another head.
    harmless=HARMLESS
    | {"attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn",
       # Of older files, and of those of gpt2-medium and larger ones; nothing reads them.
       "n_ctx", "output_past", "predict_special_tokens", "summary_activation",
       "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"},
    other_names={"max_position_embeddings": "n_positions",
                 "hidden_size": "n_embd", "num_attention_heads": "n_head",
                 "num_hidden_layers": "n_layer"},
)  # fmt: skip
# Of Llama and of the families that are Llama with one part more.
OF_LLAMAS = frozenset(
    ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings",
     "vocab_size", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
     "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings")
)  # fmt: skip
LLAMA_KEYS = Keys(
    read=OF_LLAMAS | {"attention_bias", "mlp_bias"},
    only=ONLY
    | {"is_llama_config": True, "partial_rotary_factor": 1.0, "rope_interleaved": False,
       "sliding_window": None, "use_sliding_window": False},
    # With `pretraining_tp` the products are cut into parts, which changes no number.
    harmless=HARMLESS | {"attention_dropout", "max_sequence_length", "pretraining_tp"},
)  # fmt: skip
MISTRAL_KEYS = Keys(
    read=OF_LLAMAS | {"sliding_window"},
    only=ONLY | {"partial_rotary_factor": 1.0},
    harmless=HARMLESS | {"attention_dropout"},
)
QWEN2_KEYS = Keys(
    read=OF_LLAMAS | {"layer_types"},
    only=ONLY | {"partial_rotary_factor": 1.0, "use_sliding_window": False, "use_mrope": False},
    # Without `use_sliding_window` no layer reads the window and from where on it holds.
    harmless=HARMLESS | {"attention_dropout", "max_window_layers", "sliding_window"},
)
QWEN3_KEYS = replace(QWEN2_KEYS, read=QWEN2_KEYS.read | {"attention_bias"})
NEOX_KEYS = Keys(
    read=frozenset(
        ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings",
         "vocab_size", "intermediate_size", "hidden_act", "layer_norm_eps", "rotary_pct",
         "rotary_emb_base", "partial_rotary_factor", "rope_theta", "rope_scaling",
         "rope_parameters", "attention_bias", "use_parallel_residual", "tie_word_embeddings")
    ),
    only=ONLY,
    # The names of older files for what is off in evaluation, and nothing reads them.
    harmless=HARMLESS
    | {"attention_dropout", "hidden_dropout", "attention_probs_dropout_prob",
       "hidden_dropout_prob"},
)  # fmt: skip
# transformers 5 has base and scaling in `rope_parameters`; transformers 4 has the base outside of
# it, and the scaling in `rope_scaling`, at first with the key `type`.
ROPE_KEYS = Keys(
    read=frozenset(("rope_theta",)),
    only={"rope_type": "default", "type": "default", "factor": 1.0, "partial_rotary_factor": 1.0},
)
LLAMA3_READ = frozenset(
    ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
)
LLAMA3_ONLY = {"rope_type": "llama3", "type": "llama3"}
# GPT-NeoX rotates a share of the channels.
NEOX_ROPE_KEYS = Keys(
    read=ROPE_KEYS.read | {"partial_rotary_factor"},
    only={key: one for key, one in ROPE_KEYS.only.items() if key != "partial_rotary_factor"},
)
GPT2_PARTS = {
    "ln1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "ln2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
LLAMA_PARTS = {
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out": ("self_attn.o_proj",),
    "mlp.up": ("mlp.up_proj",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.down": ("mlp.down_proj",),
}
NEOX_PARTS = {
    "ln1": "input_layernorm",
    "attn.qkv": "attention.query_key_value",
    "attn.out": "attention.dense",
    "ln2": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
# Parts that are neither in a family here nor at their default keep a model from being exported.
IN_A_FAMILY = {
    "causal", "attention", "parallel_residual", "rotary_channels", "rope_scaling", "rope_factor",
    "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_ctx", "window", "qkv_bias",
    "qk_norm",
}  # fmt: skip
# The part that each family has more than Llama.
MORE_THAN_LLAMA = {"window": "mistral", "qkv_bias": "qwen2", "qk_norm": "qwen3"}


@dataclass(frozen=True)
class Place:
    """One of our tensors, and the foreign tensors whose rows it concatenates.

    Attributes:
        turned: Whether the foreign tensors are transposed.
        heads: Heads whose queries, keys and values alternate in the rows of the foreign tensor; 0:
            its rows are in our order.
    """

    ours: str
    theirs: tuple[str, ...]
    turned: bool = False
    heads: int = 0


@dataclass(frozen=True)
class Layout:
    """A Hugging Face model type: how to convert its configuration and its weights.

    Attributes:
        class_name: Its class in `transformers`.
        keys: What the keys of its configuration mean.
        architecture: Function from its checked configuration to ours.
        config: Function from our configuration to its.
        places: Function from our configuration to the correspondences of the tensors.
        always_biased: Whether the class has biases in any case.
        base: Prefix that the base model, saved without its head, lacks.
        table: Name of its embedding in the base model.
        unembed: Name of its unembedding in files; here it is `lm_head.weight` in all of them.
        without: Function from its checked configuration and ours to the biases that it does not
            have and that are zero here.
    """

    class_name: str
    keys: Keys
    architecture: Callable[[ForeignConfig], GPTConfig]
    config: Callable[[GPTConfig], dict[str, object]]
    places: Callable[[GPTConfig], Iterator[Place]]
    always_biased: bool
    base: str
    table: str
    without: Callable[[ForeignConfig, GPTConfig], list[str]]
    unembed: str = "lm_head.weight"

    __repr__ = short_repr


def layout_of(cfg: GPTConfig) -> str:
    """Return the Hugging Face model type that computes the same as this architecture.

    Raises:
        RecipeError: There is none.
    """
    if added := [name for name in cfg.added_parts if name not in IN_A_FAMILY]:
        raise RecipeError(
            f"no Hugging Face class of {', '.join(LAYOUTS)} computes "
            f"{cfg.attention if cfg.retention else ', '.join(added)}; the model can be opened with "
            "openbook only"
        )
    parts = [name for name in MORE_THAN_LLAMA if getattr(cfg, name)]
    pre = cfg.norm_placement == "pre" and cfg.causal
    whole = cfg.n_key_value_heads == cfg.n_heads and cfg.n_heads * cfg.d_head == cfg.d_model
    if pre and (cfg.position, cfg.norm, cfg.mlp) == ("rope", "rmsnorm", "swiglu"):
        # The families with a part more have no other biases.
        if not (cfg.parallel_residual or cfg.rotary_channels or parts):
            return "llama"
        if not (cfg.parallel_residual or cfg.rotary_channels or parts[1:] or cfg.bias):
            return MORE_THAN_LLAMA[parts[0]]
    elif pre and whole and not parts and cfg.norm == "layernorm" and not cfg.gated_mlp:
        if cfg.position == "rope":
            return "gpt_neox"
        if cfg.position == "learned" and not cfg.parallel_residual:
            return "gpt2"
    has = [*parts, *(["parallel_residual"] if cfg.parallel_residual else [])]
    has += ["rotary_channels"] if cfg.rotary_channels else []
    raise RecipeError(
        f"no Hugging Face class computes position={cfg.position}, norm={cfg.norm_placement}-"
        f"{cfg.norm}, mlp={cfg.mlp}, {cfg.n_key_value_heads}/{cfg.n_heads} key-value heads"
        f"{''.join(f', {name}' for name in has)}; gpt2 is learned, pre-layernorm, gelu or relu, "
        "gpt_neox the same with rope, llama is rope, pre-rmsnorm, swiglu, and "
        f"{', '.join(f'{kind} has {part}' for part, kind in MORE_THAN_LLAMA.items())} besides"
    )


def check_shapes(
    places: Sequence[Place], theirs: Weights, expected: Mapping[str, Sequence[int]]
) -> None:
    """Check that the foreign tensors are there, and that they give ours with the expected shapes.

    Raises:
        TrainError: One is missing, or has another shape.
    """
    for place in places:
        for name in place.theirs:
            if name not in theirs:
                raise TrainError(f"the tensor {name} is missing{nearest(name, theirs)}")
    for place in places:
        shapes = [theirs[name].shape for name in place.theirs]
        if place.turned:
            shapes = [shape[::-1] for shape in shapes]
        rows = sum(shape[0] if shape else 1 for shape in shapes)
        found = {(rows, *shape[1:]) for shape in shapes}
        if found != {tuple(expected[place.ours])}:
            raise TrainError(
                f"{place.ours} has shape {' or '.join(map(str, sorted(found)))}, the configuration "
                f"says {tuple(expected[place.ours])}"
            )


def copy_theirs(places: Sequence[Place], theirs: Weights, ours: Mapping[str, Tensor]) -> None:
    """Copy the foreign tensors, one after the other, into ours, whose shapes were checked.

    Raises:
        DamagedError: A number is not finite.
    """
    for place in places:
        sizes = [theirs[name].shape[-1 if place.turned else 0] for name in place.theirs]
        for name, part in zip(place.theirs, ours[place.ours].split(sizes), strict=True):
            if place.heads:  # a view of ours in their order: by head, then query, key and value
                part = part.unflatten(0, (3, place.heads, -1)).transpose(0, 1)
            theirs[name].copy_to(part.T if place.turned else part)


def _in_their_order(rows: Tensor, place: Place) -> Tensor:
    """Return one of our tensors with rows by head, then query, key and value, if they do so."""
    if place.heads:
        return rows.unflatten(0, (3, place.heads, -1)).transpose(0, 1).flatten(0, 2)
    return rows.T if place.turned else rows


def to_theirs(
    cfg: GPTConfig, places: Iterator[Place], ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the foreign state dictionary, without padding and with zeros for missing biases.

    No two tensors share memory.
    """
    theirs = {}
    key_value = cfg.n_key_value_heads * cfg.d_head
    for place in places:
        value = ours.get(place.ours)
        if value is None:
            value = torch.zeros(
                len(ours[place.ours.removesuffix("bias") + "weight"]), dtype=torch.float32
            )
        if place.ours in ("embed.weight", "unembed.weight"):
            value = value[: cfg.d_vocab]
        sizes = [len(value)]
        if len(place.theirs) == 3:
            sizes = [cfg.n_heads * cfg.d_head, key_value, key_value]
        for name, part in zip(place.theirs, value.split(sizes), strict=True):
            theirs[name] = _in_their_order(part, place).detach().cpu().contiguous().clone()
    return theirs


# --- GPT-2 ---------------------------------------------------------------------------------------


def gpt2_places(cfg: GPTConfig, *, turned: bool = True) -> Iterator[Place]:
    """Yield the correspondences of GPT-2's layout.

    With `turned` the matrices are [in, out], as in Hugging Face; in nanoGPT they are [out, in].
    """
    yield Place("embed.weight", ("transformer.wte.weight",))
    yield Place("pos_embed.weight", ("transformer.wpe.weight",))
    for layer in range(cfg.n_layers):
        for ours, theirs in GPT2_PARTS.items():
            name = f"transformer.h.{layer}.{theirs}"
            matrix = turned and not ours.startswith("ln")
            yield Place(f"blocks.{layer}.{ours}.weight", (f"{name}.weight",), matrix)
            if cfg.bias:
                yield Place(f"blocks.{layer}.{ours}.bias", (f"{name}.bias",))
    yield Place("ln_final.weight", ("transformer.ln_f.weight",))
    if cfg.bias:
        yield Place("ln_final.bias", ("transformer.ln_f.bias",))
    if not cfg.tie:
        yield Place("unembed.weight", ("lm_head.weight",))


def _gpt2_architecture(config: ForeignConfig) -> GPTConfig:
    d_model = config.integer("n_embd")
    return GPTConfig(
        n_layers=config.integer("n_layer"),
        n_heads=config.integer("n_head"),
        d_model=d_model,
        n_ctx=config.integer("n_positions"),
        d_vocab=config.integer("vocab_size"),
        d_mlp=config.integer("n_inner", 4 * d_model),
        mlp=config.name("activation_function", ACTIVATION_NAMES, "gelu_new"),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        tie=config.flag("tie_word_embeddings", default=True),
    )


def _gpt2_config(cfg: GPTConfig) -> dict[str, object]:
    return {
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "n_embd": cfg.d_model,
        "n_positions": cfg.n_ctx,
        "n_inner": cfg.d_mlp,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.norm_eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


# --- Llama, Mistral, Qwen2 and Qwen3 -------------------------------------------------------------


def _llama_places(cfg: GPTConfig) -> Iterator[Place]:
    yield Place("embed.weight", ("model.embed_tokens.weight",))
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        yield Place(f"{ours}ln1.weight", (f"{theirs}input_layernorm.weight",))
        yield Place(f"{ours}ln2.weight", (f"{theirs}post_attention_layernorm.weight",))
        for part, names in LLAMA_PARTS.items():
            yield Place(f"{ours}{part}.weight", tuple(f"{theirs}{n}.weight" for n in names))
            if cfg.bias or (cfg.qkv_bias and part == "attn.qkv"):
                yield Place(f"{ours}{part}.bias", tuple(f"{theirs}{n}.bias" for n in names))
        if cfg.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield Place(f"{ours}attn.{norm}.weight", (f"{theirs}self_attn.{norm}.weight",))
    yield Place("ln_final.weight", ("model.norm.weight",))
    if not cfg.tie:
        yield Place("unembed.weight", ("lm_head.weight",))


def _llama_architecture(config: ForeignConfig) -> GPTConfig:
    # Biases of one of them alone: those of the other are zero (`_without_biases`).
    bias = config.flag("attention_bias", default=False) or config.flag("mlp_bias", default=False)
    return replace(_of_llamas(config), bias=bias)


def _mistral_architecture(config: ForeignConfig) -> GPTConfig:
    # A file that gives no window has the one of transformers' class, and null stands for none.
    window = 0 if "sliding_window" in config.nulls else config.integer("sliding_window", 4096)
    return replace(_of_llamas(config, default_heads=False), window=window)


def _qwen2_architecture(config: ForeignConfig) -> GPTConfig:
    _refuse_windows(config)
    return replace(_of_llamas(config, default_heads=False), qkv_bias=True)


def _qwen3_architecture(config: ForeignConfig) -> GPTConfig:
    _refuse_windows(config)
    bias, d_head = config.flag("attention_bias", default=False), config.integer("head_dim", 128)
    cfg = _of_llamas(config, default_heads=False, d_head=d_head)
    return replace(cfg, bias=bias, qk_norm=True)


def _refuse_windows(config: ForeignConfig) -> None:
    kinds = config.content.get("layer_types") or []
    if kinds != ["full_attention"] * len(kinds if isinstance(kinds, list) else ()):
        raise RecipeError(
            f"{config.path}: layer_types names layers that are not 'full_attention', and only "
            "those are computed here"
        )


def _of_llamas(
    config: ForeignConfig, *, default_heads: bool = True, d_head: int | None = None
) -> GPTConfig:
    """Return what Llama and its relatives have in common.

    Args:
        default_heads: True if a missing number of key-value heads is that of the heads. In other
            families a missing one is a constant that fits one model, so it must be there.
        d_head: Width of a head; None: that of the file, by default its share of the stream.
    """
    config.name("hidden_act", GATES, "silu")
    n_heads, d_model = config.integer("num_attention_heads"), config.integer("hidden_size")
    known = default_heads or "num_key_value_heads" in config.nulls
    return GPTConfig(
        n_layers=config.integer("num_hidden_layers"),
        n_heads=n_heads,
        d_model=d_model,
        n_ctx=config.integer("max_position_embeddings"),
        d_vocab=config.integer("vocab_size"),
        n_key_value_heads=config.integer("num_key_value_heads", n_heads if known else None),
        d_head=d_head or config.integer("head_dim", d_model // n_heads),
        d_mlp=config.integer("intermediate_size"),
        position="rope",
        **_rope(config, config.number("rope_theta", 10_000.0))[0],
        norm="rmsnorm",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        mlp="swiglu",
        bias=False,
        tie=config.flag("tie_word_embeddings", default=False),
    )


def _rope(
    config: ForeignConfig, theta: float, share: float = 1.0, keys: Keys = ROPE_KEYS
) -> tuple[dict[str, Any], float]:
    """Return the fields of the rotation, and the share of a head's channels that it turns.

    Args:
        theta: Base of the rotation, unless the file gives it with the scaling.
        share: The share, likewise.
        keys: What the keys of a rotation that is not scaled mean.

    Raises:
        RecipeError: The scaling is another one than Llama 3's, or the file gives two of them.
    """
    places = [key for key in ("rope_scaling", "rope_parameters") if config.content.get(key)]
    if len(places) == 2 and config.content[places[0]] != config.content[places[1]]:
        raise RecipeError(
            f"{config.path}: rope_scaling and rope_parameters differ, and only one of them can hold"
        )
    if not places:
        return {"rope_theta": theta}, share
    said = config.content[places[0]]
    kinds = [said.get(key) for key in ("rope_type", "type")] if isinstance(said, dict) else []
    scaled = "llama3" in kinds
    if scaled:
        keys = replace(keys, read=keys.read | LLAMA3_READ, only={**keys.only, **LLAMA3_ONLY})
    rope = config.part(places[0], keys)
    fields = {"rope_theta": rope.number("rope_theta", theta)}
    share = rope.number("partial_rotary_factor", share)
    if not scaled:
        return fields, share
    return fields | {
        "rope_scaling": "llama3",
        "rope_factor": rope.number("factor"),
        "rope_low_freq_factor": rope.number("low_freq_factor"),
        "rope_high_freq_factor": rope.number("high_freq_factor"),
        "rope_original_ctx": rope.integer(
            "original_max_position_embeddings", config.integer("max_position_embeddings")
        ),
    }, share


def _rope_parameters(cfg: GPTConfig) -> dict[str, object]:
    if cfg.rope_scaling == "none":
        return {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    return {
        "rope_theta": cfg.rope_theta,
        "rope_type": cfg.rope_scaling,
        "factor": cfg.rope_factor,
        "low_freq_factor": cfg.rope_low_freq_factor,
        "high_freq_factor": cfg.rope_high_freq_factor,
        "original_max_position_embeddings": cfg.rope_original_ctx,
    }


def _of_llamas_config(cfg: GPTConfig) -> dict[str, object]:
    rope = _rope_parameters(cfg)
    # transformers 4 reads the scaling from `rope_scaling`.
    scaling = {} if cfg.rope_scaling == "none" else {"rope_scaling": rope}
    return {
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_key_value_heads,
        "hidden_size": cfg.d_model,
        "head_dim": cfg.d_head,
        "intermediate_size": cfg.d_mlp,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": rope,
        "rope_theta": cfg.rope_theta,
        **scaling,
    }


def _llama_config(cfg: GPTConfig) -> dict[str, object]:
    return {**_of_llamas_config(cfg), "attention_bias": cfg.bias, "mlp_bias": cfg.bias}


def _mistral_config(cfg: GPTConfig) -> dict[str, object]:
    return {**_of_llamas_config(cfg), "sliding_window": cfg.window}


def _qwen_config(cfg: GPTConfig) -> dict[str, object]:
    config = {**_of_llamas_config(cfg), "use_sliding_window": False}
    return config if cfg.qkv_bias else {**config, "attention_bias": False}


def _without_biases(config: ForeignConfig, cfg: GPTConfig) -> list[str]:
    """Return the biases that a model lacks if only its attention, or only its MLPs, have some."""
    missing = {"attn.": "attention_bias", "mlp.": "mlp_bias"}
    parts = tuple(part for part, key in missing.items() if not config.flag(key, default=False))
    return [
        name
        for place in _llama_places(cfg)
        for name in place.theirs
        if name.endswith(".bias") and place.ours.split(".", 2)[2].startswith(parts)
    ]


def _lacks_nothing(_config: ForeignConfig, _cfg: GPTConfig) -> list[str]:
    return []


# --- GPT-NeoX ------------------------------------------------------------------------------------


def _neox_places(cfg: GPTConfig) -> Iterator[Place]:
    yield Place("embed.weight", ("gpt_neox.embed_in.weight",))
    for layer in range(cfg.n_layers):
        for ours, theirs in NEOX_PARTS.items():
            for kind in ("weight", "bias") if cfg.bias else ("weight",):
                name = f"gpt_neox.layers.{layer}.{theirs}.{kind}"
                heads = cfg.n_heads if ours == "attn.qkv" else 0
                yield Place(f"blocks.{layer}.{ours}.{kind}", (name,), heads=heads)
    for kind in ("weight", "bias") if cfg.bias else ("weight",):
        yield Place(f"ln_final.{kind}", (f"gpt_neox.final_layer_norm.{kind}",))
    if not cfg.tie:
        yield Place("unembed.weight", ("lm_head.weight",))


def _neox_architecture(config: ForeignConfig) -> GPTConfig:
    n_heads, d_model = config.integer("num_attention_heads"), config.integer("hidden_size")
    if d_model % n_heads:
        raise RecipeError(f"hidden_size {d_model} is no multiple of {n_heads} heads")
    theta, share = config.number("rotary_emb_base", 10_000.0), config.number("rotary_pct", 0.25)
    rope, share = _rope(config, theta, share, NEOX_ROPE_KEYS)
    # Other names of the two numbers, which transformers 4 writes beside them and never reads.
    for key, value in {"rope_theta": rope["rope_theta"], "partial_rotary_factor": share}.items():
        if (other := config.number(key, value)) != value:
            raise RecipeError(f"{config.path}: {key} is {other}, and the rotation reads {value}")
    d_head = d_model // n_heads
    channels = int(d_head * share)
    if not 0 < channels <= d_head:
        raise RecipeError(
            f"{config.path}: rotary_pct is {share}, which are {channels} of {d_head} channels of a "
            "head, and 1 to all of them are computed here"
        )
    return GPTConfig(
        n_layers=config.integer("num_hidden_layers"),
        n_heads=n_heads,
        d_model=d_model,
        n_ctx=config.integer("max_position_embeddings"),
        d_vocab=config.integer("vocab_size"),
        d_mlp=config.integer("intermediate_size"),
        position="rope",
        **rope,
        rotary_channels=0 if channels == d_head else channels,
        norm="layernorm",
        norm_eps=config.number("layer_norm_eps", 1e-5),
        mlp=config.name("hidden_act", ACTIVATION_NAMES, "gelu"),
        parallel_residual=config.flag("use_parallel_residual", default=True),
        tie=config.flag("tie_word_embeddings", default=False),
    )


def _neox_config(cfg: GPTConfig) -> dict[str, object]:
    share = cfg.rotary_dim / cfg.d_head
    if int(cfg.d_head * share) < cfg.rotary_dim:  # transformers rounds down: 44 * (30 / 44) to 29
        share = math.nextafter(share, 1.0)
    return {
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_act": cfg.act_fn,
        "layer_norm_eps": cfg.norm_eps,
        "use_parallel_residual": cfg.parallel_residual,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "rope_parameters": {**_rope_parameters(cfg), "partial_rotary_factor": share},
        # transformers 4 reads these.
        "rotary_pct": share,
        "rotary_emb_base": cfg.rope_theta,
    }


def _neox_without(config: ForeignConfig, cfg: GPTConfig) -> list[str]:
    """Return the biases of attention if the file says that there are none."""
    if config.flag("attention_bias", default=True):
        return []
    return [
        name
        for place in _neox_places(cfg)
        for name in place.theirs
        if name.endswith(".bias") and ".attention." in name
    ]


LLAMA = Layout(
    class_name="LlamaForCausalLM",
    keys=LLAMA_KEYS,
    architecture=_llama_architecture,
    config=_llama_config,
    places=_llama_places,
    always_biased=False,
    base="model.",
    table="embed_tokens.weight",
    without=_without_biases,
)
LAYOUTS = {
    "gpt2": Layout(
        class_name="GPT2LMHeadModel",
        keys=GPT2_KEYS,
        architecture=_gpt2_architecture,
        config=_gpt2_config,
        places=gpt2_places,
        always_biased=True,
        base="transformer.",
        table="wte.weight",
        without=_lacks_nothing,
    ),
    "llama": LLAMA,
    "gpt_neox": Layout(
        class_name="GPTNeoXForCausalLM",
        keys=NEOX_KEYS,
        architecture=_neox_architecture,
        config=_neox_config,
        places=_neox_places,
        always_biased=True,
        base="gpt_neox.",
        table="embed_in.weight",
        without=_neox_without,
        unembed="embed_out.weight",
    ),
    "mistral": replace(
        LLAMA,
        class_name="MistralForCausalLM",
        keys=MISTRAL_KEYS,
        architecture=_mistral_architecture,
        config=_mistral_config,
        without=_lacks_nothing,
    ),
    "qwen2": replace(
        LLAMA,
        class_name="Qwen2ForCausalLM",
        keys=QWEN2_KEYS,
        architecture=_qwen2_architecture,
        config=_qwen_config,
        without=_lacks_nothing,
    ),
    "qwen3": replace(
        LLAMA,
        class_name="Qwen3ForCausalLM",
        keys=QWEN3_KEYS,
        architecture=_qwen3_architecture,
        config=_qwen_config,
    ),
}
