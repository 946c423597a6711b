"""Layouts of foreign checkpoints: how they name, transpose and split the same weights.

Hugging Face's GPT-2 stores its four matrices as [in, out] (OpenAI's Conv1D); nanoGPT uses the same
names with [out, in]; Llama has three matrices instead of our one `qkv`. A layout is a list of
correspondences that is used in both directions, so import and export cannot disagree.

Sources: `modeling_gpt2.py` and `modeling_llama.py` of transformers 5.23, nanoGPT's `model.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.convert.foreign_config import HARMLESS, ONLY, ForeignConfig, Keys
from train.convert.foreign_weights import Weights
from train.errors import RecipeError, TrainError, nearest
from train.model import GPTConfig


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
LLAMA_KEYS = Keys(
    read=frozenset(
        ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings",
         "vocab_size", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
         "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias",
         "mlp_bias", "tie_word_embeddings")
    ),
    only=ONLY
    | {"is_llama_config": True, "partial_rotary_factor": 1.0, "rope_interleaved": False,
       "sliding_window": None, "use_sliding_window": False},
    # With `pretraining_tp` the products are cut into parts, which changes no number.
    harmless=HARMLESS | {"attention_dropout", "max_sequence_length", "pretraining_tp"},
)  # fmt: skip
# transformers 5 has base and scaling in `rope_parameters`; transformers 4 has the base outside of
# it, and the scaling in `rope_scaling`, at first with the key `type`.
ROPE_KEYS = Keys(
    read=frozenset(("rope_theta",)),
    only={"rope_type": "default", "type": "default", "factor": 1.0, "partial_rotary_factor": 1.0},
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
        keys: What the keys of its configuration mean.
        architecture: Function from its checked configuration to ours.
        config: Function from our configuration to its.
        places: Function from our configuration to the correspondences of the tensors.
        always_biased: Whether the class has biases in any case.
        base: Prefix that the base model, saved without its head, lacks.
        table: Name of its embedding in the base model.
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
            theirs[name].copy_to(part.T if place.turned else part)


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


def _llama_architecture(config: ForeignConfig) -> GPTConfig:
    config.name("hidden_act", GATES, "silu")
    places = ("rope_parameters", "rope_scaling")
    given = [config.content[key] for key in places if config.content.get(key)]
    if len(given) == 2 and given[0] != given[1]:  # transformers 5 then reads `rope_scaling` alone
        raise RecipeError(
            f"{config.path}: rope_scaling and rope_parameters differ, and only one of them can hold"
        )
    ropes = [config.part(key, ROPE_KEYS) for key in places]
    # `rope_parameters` holds the base of transformers 5, and `rope_theta` outside it that of 4.
    theta = config.number("rope_theta", 10_000.0)
    for rope in reversed(ropes):
        theta = rope.number("rope_theta", theta)
    n_heads, d_model = config.integer("num_attention_heads"), config.integer("hidden_size")
    return GPTConfig(
        n_layers=config.integer("num_hidden_layers"),
        n_heads=n_heads,
        d_model=d_model,
        n_ctx=config.integer("max_position_embeddings"),
        d_vocab=config.integer("vocab_size"),
        n_key_value_heads=config.integer("num_key_value_heads", n_heads),
        d_head=config.integer("head_dim", d_model // n_heads),
        d_mlp=config.integer("intermediate_size"),
        position="rope",
        rope_theta=theta,
        norm="rmsnorm",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        mlp="swiglu",
        # Biases of one of them alone: those of the other are zero (`_llama_without`).
        bias=config.flag("attention_bias", default=False) or config.flag("mlp_bias", default=False),
        tie=config.flag("tie_word_embeddings", default=False),
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


def _llama_without(config: ForeignConfig, cfg: GPTConfig) -> list[str]:
    """Return the biases that a Llama lacks if only its attention, or only its MLPs, have some."""
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
    "llama": Layout(
        class_name="LlamaForCausalLM",
        keys=LLAMA_KEYS,
        architecture=_llama_architecture,
        config=_llama_config,
        places=_llama_places,
        always_biased=False,
        base="model.",
        table="embed_tokens.weight",
        without=_llama_without,
    ),
}
