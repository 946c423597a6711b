"""The configuration of a loaded model, with the attributes of TransformerLens's configurations."""

from dataclasses import fields
from typing import TYPE_CHECKING

from train.model import GPT, GPTConfig


if TYPE_CHECKING:
    import torch

__all__ = ["HookedConfig"]


class HookedConfig(GPTConfig):
    """Architecture of a loaded model, and what TransformerLens says of one.

    It equals the `GPTConfig` that it was made from. What is no field of that can be set, as
    `model.cfg.use_attn_result = True`.

    Examples:
        >>> model.cfg.n_layers, model.cfg.device, model.cfg.attn_only
        (2, 'cpu', False)
        >>> model.cfg == run.config
        True
    """

    model_name = "openbook"
    device: str = "cpu"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    dtype: "torch.dtype | None" = None
    seed: int | None = None
    default_prepend_bos = True
    tokenizer_prepends_bos = False
    attn_only = False
    final_rms = False
    use_attn_scale = True
    n_devices = 1
    # Whether `run_with_cache` keeps each head's result without being told to.
    use_attn_result = False
    # Whether `hook_mlp_in` was asked for; it can always be hooked.
    use_hook_mlp_in = False
    use_split_qkv_input = False
    use_attn_in = False

    @classmethod
    def of(cls, model: GPT) -> "HookedConfig":
        """Return the configuration of a loaded model.

        Examples:
            >>> from interp.hooked_model import HookedConfig
            >>> HookedConfig.of(model).d_model
            128
        """
        config = cls(**{one.name: getattr(model.cfg, one.name) for one in fields(GPTConfig)})
        config.follow(model)
        return config

    def follow(self, model: GPT) -> None:
        """Take over device and type of the weights."""
        self.device = str(model.device)  # pyright: ignore[reportIncompatibleMethodOverride]
        self.dtype = model.embed.weight.dtype

    @property
    def attn_scale(self) -> float:
        """Return the divisor of attention scores, sqrt(d_head)."""
        return self.d_head**0.5

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GPTConfig):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = GPTConfig.__hash__
