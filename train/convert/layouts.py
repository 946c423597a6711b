"""Layouts of foreign checkpoints: how they name, transpose and split the same weights.

Hugging Face's GPT-2 stores its four matrices as [in, out] (OpenAI's Conv1D); nanoGPT uses the same
names with [out, in]; Llama has three matrices instead of our one `qkv`. A layout is a list of
correspondences that is used in both directions, so import and export cannot disagree.

Sources: `modeling_gpt2.py` and `modeling_llama.py` of transformers 5.23, nanoGPT's `model.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train import storage
from train.errors import RecipeError, TrainError, nearest
from train.model import GPTConfig


__all__ = ["LAYOUTS", "Layout", "from_theirs", "gpt2_places", "layout_of", "to_theirs"]

# gelu_new and gelu_pytorch_tanh are the same formula; quick_gelu, gelu_fast and others differ.
ACTIVATION_NAMES = {
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu": "gelu",
    "relu": "relu",
}
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


@dataclass(frozen=True)
class Place:
    """One of our tensors, and the foreign tensors whose rows it concatenates.

    Attributes:
        turned: Whether the foreign tensors are transposed.
    """

    ours: str
    theirs: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Layout:
    """A Hugging Face model type: how to convert its configuration and its weights.

    Attributes:
        class_name: Its class in `transformers`.
        architecture: Function from its configuration to ours.
        config: Function from our configuration to its.
        places: Function from our configuration to the correspondences of the tensors.
        always_biased: Whether the class has biases in any case.
    """

    class_name: str
    architecture: Callable[[storage.JsonObject], GPTConfig]
    config: Callable[[GPTConfig], dict[str, object]]
    places: Callable[[GPTConfig], Iterator[Place]]
    always_biased: bool


def layout_of(cfg: GPTConfig) -> str:
    """Return the Hugging Face model type that computes the same as this architecture.

    Raises:
        RecipeError: There is none.
    """
    added = [name for name in cfg.added_parts if name not in ("causal", "attention")]
    if added or cfg.retention:
        raise RecipeError(
            f"no Hugging Face class of gpt2 or llama computes {', '.join(added) or cfg.attention}; "
            "the model can be opened with openbook only"
        )
    pre = cfg.norm_placement == "pre" and cfg.causal
    if pre and (cfg.position, cfg.norm, cfg.mlp) == ("rope", "rmsnorm", "swiglu"):
        return "llama"
    whole = cfg.n_key_value_heads == cfg.n_heads and cfg.n_heads * cfg.d_head == cfg.d_model
    plain = (cfg.position, cfg.norm) == ("learned", "layernorm") and not cfg.gated_mlp
    if pre and whole and plain:
        return "gpt2"
    raise RecipeError(
        f"no Hugging Face class computes position={cfg.position}, norm={cfg.norm_placement}-"
        f"{cfg.norm}, mlp={cfg.mlp}, {cfg.n_key_value_heads}/{cfg.n_heads} key-value heads; gpt2 "
        "is learned, pre-layernorm, gelu or relu, and llama is rope, pre-rmsnorm, swiglu"
    )


def from_theirs(
    places: Iterator[Place], theirs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """Return our state dictionary in fp32, and the names of the foreign tensors used for it.

    Raises:
        TrainError: A tensor is missing.
    """
    ours, used = {}, set()
    for place in places:
        for name in place.theirs:
            if name not in theirs:
                raise TrainError(f"the tensor {name} is missing{nearest(name, theirs)}")
        parts = [theirs[name].T if place.turned else theirs[name] for name in place.theirs]
        ours[place.ours] = torch.cat([part.float() for part in parts]).contiguous()
        used |= set(place.theirs)
    return ours, used


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
            value = torch.zeros(len(ours[place.ours.removesuffix("bias") + "weight"]))
        if place.ours in ("embed.weight", "unembed.weight"):
            value = value[: cfg.d_vocab]
        sizes = [len(value)]
        if len(place.theirs) == 3:
            sizes = [cfg.n_heads * cfg.d_head, key_value, key_value]
        for name, part in zip(place.theirs, value.split(sizes), strict=True):
            theirs[name] = (part.T if place.turned else part).detach().cpu().contiguous().clone()
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


def _gpt2_architecture(config: storage.JsonObject) -> GPTConfig:
    _must_be(config, "scale_attn_weights", True)
    _must_be(config, "scale_attn_by_inverse_layer_idx", False)
    _must_be(config, "add_cross_attention", False)
    activation = config.get("activation_function")
    if activation not in ACTIVATION_NAMES:
        raise RecipeError(
            f"activation_function is {activation!r}; gelu_new (tanh) and gelu (exact) differ, so "
            f"it must be one of {', '.join(ACTIVATION_NAMES)}"
        )
    return GPTConfig(
        n_layers=config["n_layer"],
        n_heads=config["n_head"],
        d_model=config["n_embd"],
        n_ctx=config["n_positions"],
        d_vocab=config["vocab_size"],
        d_mlp=config.get("n_inner") or 0,
        mlp=ACTIVATION_NAMES[activation],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie=config.get("tie_word_embeddings", True),
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


# --- Llama ---------------------------------------------------------------------------------------


def _llama_places(cfg: GPTConfig) -> Iterator[Place]:
    yield Place("embed.weight", ("model.embed_tokens.weight",))
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        yield Place(f"{ours}ln1.weight", (f"{theirs}input_layernorm.weight",))
        yield Place(f"{ours}ln2.weight", (f"{theirs}post_attention_layernorm.weight",))
        for kind in ("weight", "bias") if cfg.bias else ("weight",):
            for part, names in LLAMA_PARTS.items():
                yield Place(f"{ours}{part}.{kind}", tuple(f"{theirs}{n}.{kind}" for n in names))
    yield Place("ln_final.weight", ("model.norm.weight",))
    if not cfg.tie:
        yield Place("unembed.weight", ("lm_head.weight",))


def _llama_architecture(config: storage.JsonObject) -> GPTConfig:
    _must_be(config, "hidden_act", "silu")
    bias = config.get("attention_bias", False)
    _must_be({"mlp_bias": False, **config}, "mlp_bias", bias)  # ours has all biases or none
    # transformers 5 has theta and scaling in rope_parameters; transformers 4 has rope_theta and
    # rope_scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _must_be(rope, "rope_type", "default")
    return GPTConfig(
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        d_model=config["hidden_size"],
        n_ctx=config["max_position_embeddings"],
        d_vocab=config["vocab_size"],
        n_key_value_heads=config.get("num_key_value_heads") or 0,
        d_head=config.get("head_dim") or 0,
        d_mlp=config["intermediate_size"],
        position="rope",
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
        norm="rmsnorm",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        mlp="swiglu",
        bias=bias,
        tie=config.get("tie_word_embeddings", False),
    )


def _llama_config(cfg: GPTConfig) -> dict[str, object]:
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
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
        "rope_theta": cfg.rope_theta,
        "attention_bias": cfg.bias,
        "mlp_bias": cfg.bias,
    }


def _must_be(config: Mapping[str, object], key: str, value: object) -> None:
    found = config.get(key, value)
    if found != value:
        raise RecipeError(f"{key} is {found!r}, and only {value!r} is supported")


LAYOUTS = {
    "gpt2": Layout("GPT2LMHeadModel", _gpt2_architecture, _gpt2_config, gpt2_places, True),
    "llama": Layout("LlamaForCausalLM", _llama_architecture, _llama_config, _llama_places, False),
}
