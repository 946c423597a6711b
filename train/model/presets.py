"""Architectures by name: published designs in full size, five of them small enough for a laptop.

A preset is a `GPTConfig`, so a recipe file can name one (`preset = "modern"`) and change fields of
it. The small ones (`-nano`, at most a million parameters) have the same parts and train on the
planted corpus in minutes. Sizes that a description leaves open are chosen here, and said so.

    retro       sinusoidal positions, ReLU, post-norm, attention written out (the original decoder)
    gpt2        learned positions, GELU, pre-norm: GPT-2 small, 124,439,808 parameters
    strawberry  retention: attention weights generated from the input; 1,818,624 parameters
    slowrun     rotary positions, U-Net skips, value residuals, head gates, exclusive attention, a
                loop of layers
    modern      rotary positions, RMSNorm, SwiGLU, attention sinks; 252,864,512 parameters

Five further names are the architectures of published families, whose weights `train.convert`
imports: what `transformers` computes for the model in brackets.

    pythia      parallel residual, a quarter of each head rotated (EleutherAI/pythia-160m)
    llama3      grouped queries, scaled rotary positions (meta-llama/Llama-3.2-1B)
    mistral     grouped queries in a sliding window (mistralai/Mistral-7B-v0.1)
    qwen2       biases of queries, keys and values (Qwen/Qwen2.5-0.5B)
    qwen3       normalised queries and keys (Qwen/Qwen3-0.6B)
"""

from dataclasses import replace
from typing import Any

from train.errors import RecipeError, nearest
from train.model.architecture import GPTConfig


__all__ = ["PRESETS", "preset"]

# The description gives 1.2 billion parameters; depth and width are chosen to have that many.
RETRO = GPTConfig(
    n_layers=22,
    n_heads=16,
    d_model=2048,
    n_ctx=1024,
    d_vocab=50257,
    position="sinusoidal",
    position_init_scale=1.0,
    norm_placement="post",
    mlp="relu",
    attention="explicit",
    vocab_multiple=64,
)

GPT2 = GPTConfig(
    n_layers=12,
    n_heads=12,
    d_model=768,
    n_ctx=1024,
    d_vocab=50257,
    mlp="gelu-tanh",
    vocab_multiple=64,
)

# Width of the heads and of the MLP are those with which the public code has the 1.8 million
# parameters of the description. With fp32 weights and two Adam moments a checkpoint takes 21.8 MB;
# the description counts 25 MB.
STRAWBERRY = GPTConfig(
    n_layers=2,
    n_heads=6,
    d_model=96,
    n_ctx=256,
    d_vocab=8192,
    d_head=64,
    d_mlp=384,
    position="rope",
    norm="rmsnorm",
    norm_gain=False,
    embed_norm=True,
    qk_norm=True,
    mlp="swiglu",
    bias=False,
    attention="retention",
    retention_chunk=64,
    aft_passes=2,
    init_std=0.1,
)

# 30 layers, of which 15 to 20 run three times: 42 blocks. The public run begins the further passes
# after half of training; here they run from the first step. Width of the MLP: 8/3 of the stream,
# rounded up to a multiple of 256.
SLOWRUN = GPTConfig(
    n_layers=42,
    n_heads=14,
    d_model=1792,
    n_ctx=2048,
    d_vocab=50257,
    d_mlp=4864,
    position="rope",
    norm="rmsnorm",
    norm_gain=False,
    embed_norm=True,
    qk_norm=True,
    mlp="swiglu",
    bias=False,
    tie=False,
    vocab_multiple=64,
    exclusive="learned",
    head_gate=True,
    value_residual=True,
    embed_mix=True,
    unet=True,
    loop_first=15,
    loop_layers=6,
    loop_passes=3,
)

MODERN = GPTConfig(
    n_layers=12,
    n_heads=16,
    d_model=1024,
    n_ctx=1024,
    d_vocab=50257,
    d_mlp=4096,
    position="rope",
    norm="rmsnorm",
    mlp="swiglu",
    bias=False,
    vocab_multiple=64,
    sinks="learned",
    n_sinks=4,
)

PYTHIA = GPTConfig(
    n_layers=12,
    n_heads=12,
    d_model=768,
    n_ctx=2048,
    d_vocab=50304,
    position="rope",
    rotary_channels=16,
    mlp="gelu",
    tie=False,
    parallel_residual=True,
)

LLAMA3 = GPTConfig(
    n_layers=16,
    n_heads=32,
    n_key_value_heads=8,
    d_model=2048,
    n_ctx=131_072,
    d_vocab=128_256,
    d_mlp=8192,
    position="rope",
    rope_theta=500_000.0,
    rope_scaling="llama3",
    rope_factor=32.0,
    norm="rmsnorm",
    mlp="swiglu",
    bias=False,
)

MISTRAL = GPTConfig(
    n_layers=32,
    n_heads=32,
    n_key_value_heads=8,
    d_model=4096,
    n_ctx=32_768,
    d_vocab=32_000,
    d_mlp=14_336,
    position="rope",
    norm="rmsnorm",
    mlp="swiglu",
    bias=False,
    tie=False,
    window=4096,
)

QWEN2 = GPTConfig(
    n_layers=24,
    n_heads=14,
    n_key_value_heads=2,
    d_model=896,
    n_ctx=32_768,
    d_vocab=151_936,
    d_mlp=4864,
    position="rope",
    rope_theta=1_000_000.0,
    norm="rmsnorm",
    norm_eps=1e-6,
    mlp="swiglu",
    bias=False,
    qkv_bias=True,
)

QWEN3 = GPTConfig(
    n_layers=28,
    n_heads=16,
    n_key_value_heads=8,
    d_model=1024,
    n_ctx=40_960,
    d_vocab=151_936,
    d_head=128,
    d_mlp=3072,
    position="rope",
    rope_theta=1_000_000.0,
    norm="rmsnorm",
    norm_eps=1e-6,
    mlp="swiglu",
    bias=False,
    qk_norm=True,
)


def _small(
    full: GPTConfig, *, d_model: int, n_layers: int, d_mlp: int, **changes: Any
) -> GPTConfig:
    """Return a small architecture with four heads and the parts of a full-size one.

    Context and vocabulary are those of the planted corpus.
    """
    return replace(
        full,
        n_layers=n_layers,
        n_heads=4,
        n_key_value_heads=4,
        d_model=d_model,
        d_head=d_model // 4,
        d_mlp=d_mlp,
        n_ctx=64,
        d_vocab=976,
        vocab_multiple=1,
        **{"init_std": 0.05, **changes},
    )


PRESETS = {
    "retro": RETRO,
    "gpt2": GPT2,
    "strawberry": STRAWBERRY,
    "slowrun": SLOWRUN,
    "modern": MODERN,
    "pythia": PYTHIA,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "retro-nano": _small(RETRO, d_model=128, n_layers=3, d_mlp=512, position_init_scale=0.175),
    "gpt2-nano": _small(
        GPT2,
        d_model=128,
        n_layers=2,
        d_mlp=512,
        position_init="sinusoids",
        position_init_scale=0.175,
    ),
    "strawberry-nano": _small(
        STRAWBERRY, d_model=96, n_layers=2, d_mlp=256, retention_chunk=32, init_std=0.1
    ),
    # 4 layers, of which the third runs three times.
    "slowrun-nano": _small(
        SLOWRUN,
        d_model=96,
        n_layers=6,
        d_mlp=256,
        rope_theta=1000.0,
        loop_first=2,
        loop_layers=1,
    ),
    "modern-nano": _small(MODERN, d_model=128, n_layers=3, d_mlp=344, rope_theta=1000.0),
}


def preset(name: str) -> GPTConfig:
    """Return the architecture of this name.

    Raises:
        RecipeError: There is none.

    Examples:
        >>> from train.model import preset
        >>> preset("gpt2").n_params, preset("modern-nano").n_layers
        (124439808, 3)
    """
    if name not in PRESETS:
        raise RecipeError(f"no architecture is called {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]
