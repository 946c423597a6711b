"""Memory plan of the engine: prompts are processed in slabs and patched runs in chunks."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from interp.components import Component
from interp.errors import BudgetError
from interp.patching.engine import base_run
from train.model import GPT, GPTConfig


__all__ = ["MEMORY", "bytes_per_position", "rows_in_flight", "slabs"]

MEMORY = 2 << 30  # bytes above the weights
# Positions (rows of the matrix products) per chunk of patched runs. On a CPU a product reaches full
# speed at about a thousand rows, and more rows only take memory. A GPU needs more of them.
ROWS = {"cpu": 2048, "cuda": 1 << 16}
# Ratio of the memory that the operating system sees to the sum of the tensor sizes. It exceeds 1
# because tensors are freed in another order than they are made, which leaves gaps. With 3, the
# computed size is at least the size seen by the kernel, for five sweeps of GPT-2 small with 512 MB
# and with 2 GB (benchmarks/patching_memory.py).
IN_PRACTICE = 3.0


def slabs(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    memory: int,
    also_kept: Sequence[str],
) -> list[slice]:
    """Split the prompts into slabs, each as large as fits with one patched run of every prompt.

    The bytes per prompt are n_pos * (element size * numbers kept per position of base and source
    run + bytes of one position of a patched run).

    Raises:
        BudgetError: Not even one prompt fits.
    """
    n_prompts, n_pos = tokens.shape
    cfg = model.cfg
    # Activations kept of the base run, then those kept of the source run to patch in.
    names = [*{*base_run.hooks_needed(model, patches), *also_kept}]
    names += {place.hook for patch in patches for place in patch}
    # Both runs also return their last residual stream.
    kept = sum(_width(cfg, name, n_pos) for name in names) + 2 * cfg.d_model
    each = n_pos * (model.W_E.element_size() * kept + bytes_per_position(model))
    if each > memory:
        raise BudgetError(
            f"one patch of one prompt of {n_pos} tokens takes {each / 2**20:.1f} MB and "
            f"{memory / 2**20:.1f} MB are allowed; allow more, or patch fewer layers at a time"
        )
    # More prompts than one product runs fast with would only take memory, out of the caches.
    many = min(n_prompts, memory // each, max(rows_in_flight(model) // n_pos, 1))
    return [slice(i, min(i + many, n_prompts)) for i in range(0, n_prompts, many)]


def _width(cfg: GPTConfig, name: str, n_pos: int) -> int:
    """Return how many numbers per position a hook point holds."""
    if name.endswith("hook_pattern"):
        return cfg.n_heads * n_pos
    if name.endswith("mlp.hook_post"):
        return cfg.d_mlp
    if ".attn.hook_" in name or name.endswith("attn.k_norm.hook_out"):
        few = name.endswith(("hook_k", "hook_rot_k", "hook_v", "k_norm.hook_out"))
        return (cfg.n_key_value_heads if few else cfg.n_heads) * cfg.d_head
    return cfg.d_model


def bytes_per_position(model: GPT) -> int:
    """Return the bytes of one position of one patched run at the widest moment of a layer."""
    cfg = model.cfg
    wired = (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
    # In attention: residual stream and its norm; queries, keys and values in three layouts; and the
    # base run's keys and values, repeated for every run, which on average doubles them. In the MLP:
    # residual stream and its norm, and the hidden layer.
    attending = 3 * cfg.d_model + 3 * wired + 2 * cfg.n_heads * cfg.d_head
    thinking = 3 * cfg.d_model + (3 if cfg.gated_mlp else 2) * cfg.d_mlp
    # With a parallel residual, what attention writes is kept until the MLP has run.
    thinking += cfg.d_model if cfg.parallel_residual else 0
    # Outputs of encoders that a U-Net adds again are kept until then.
    sources = {cfg.skip_source(layer) for layer in range(cfg.n_layers)} - {None}
    kept = len(sources) * cfg.d_model
    return int(IN_PRACTICE * model.W_E.element_size() * (kept + max(attending, thinking)))


def rows_in_flight(model: GPT) -> int:
    """Return how many positions of patched runs are computed at a time on the model's device."""
    return ROWS.get(model.device.type, ROWS["cpu"])
