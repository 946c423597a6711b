"""How much is held at a time: prompts in slabs, patched runs in chunks."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from interp.components import Component
from interp.errors import BudgetError
from interp.patching.engine import base_run
from train.model import GPT, GPTConfig


__all__ = ["MEMORY", "bytes_per_position", "rows_in_flight", "slabs"]

MEMORY = 2 << 30  # bytes above the weights
# Positions in flight at a time: from about a thousand rows on, a product of this width runs at the
# speed of the processor, and more only take memory. A GPU needs more of them.
ROWS = {"cpu": 2048, "cuda": 1 << 16}
# What the kernel sees over what the shapes add up to: tensors are freed in another order than they
# are made, and between those that stay lie holes. With 3, what was said is at least what the kernel
# saw, for five sweeps of GPT-2 small under 512 MB and 2 GB (benchmarks/patching_memory.py).
IN_PRACTICE = 3.0


def slabs(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    memory: int,
    also_kept: Sequence[str],
) -> list[slice]:
    """Prompts that are taken at a time: as many as fit with one patched run of each.

    Raises:
        BudgetError: Not one does.
    """
    n_prompts, n_pos = tokens.shape
    cfg = model.cfg
    # The base run, and what patches write, which another run computed.
    names = [*{*base_run.hooks_needed(model, patches), *also_kept}]
    names += {place.hook for patch in patches for place in patch}
    # Either run ends in a residual stream, which is handed along.
    kept = sum(_width(cfg, name, n_pos) for name in names) + 2 * cfg.d_model
    each = n_pos * (model.W_E.element_size() * kept + bytes_per_position(model))
    if each > memory:
        raise BudgetError(
            f"one patch of one prompt of {n_pos} tokens takes {each / 2**20:.1f} MB and "
            f"{memory / 2**20:.1f} MB are allowed; allow more, or patch fewer layers at a time"
        )
    many = min(n_prompts, memory // each)
    return [slice(i, min(i + many, n_prompts)) for i in range(0, n_prompts, many)]


def _width(cfg: GPTConfig, name: str, n_pos: int) -> int:
    """Numbers a position that a hook point holds."""
    if name.endswith("hook_pattern"):
        return cfg.n_heads * n_pos
    if name.endswith("mlp.hook_post"):
        return cfg.d_mlp
    if ".attn.hook_" in name:
        few = name.endswith(("hook_k", "hook_rot_k", "hook_v"))
        return (cfg.n_key_value_heads if few else cfg.n_heads) * cfg.d_head
    return cfg.d_model


def bytes_per_position(model: GPT) -> int:
    """What one position of one patched run takes at the widest moment of a layer."""
    cfg = model.cfg
    wired = (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
    # Residual stream and its norm, queries keys and values in three layouts, or the MLP's insides;
    # `n_pos / pos` keys of the base run are repeated, which on average doubles them.
    attending = 3 * cfg.d_model + 3 * wired + 2 * cfg.n_heads * cfg.d_head
    thinking = 3 * cfg.d_model + (3 if cfg.gated_mlp else 2) * cfg.d_mlp
    return int(IN_PRACTICE * model.W_E.element_size() * max(attending, thinking))


def rows_in_flight(model: GPT) -> int:
    return ROWS.get(model.device.type, ROWS["cpu"])
