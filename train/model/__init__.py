"""A decoder-only transformer with a hook point at every activation, built from a `GPTConfig`."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.model.architecture import GPTConfig
    from train.model.attached_code import adds_calls, attachments
    from train.model.attention import Attention, key_hook
    from train.model.gpt import GPT, Block, gpt_with_weights, init_gpt
    from train.model.gradient_mode import with_gradients
    from train.model.hooks import Cache, Hook, HookedModule, HookPoint, Hooks, NamesFilter
    from train.model.kernels import use_kernels
    from train.model.layers import Linear, Norm
    from train.model.positional import rotate
    from train.model.presets import PRESETS, preset

__all__ = [
    "GPT",
    "PRESETS",
    "Attention",
    "Block",
    "Cache",
    "GPTConfig",
    "Hook",
    "HookPoint",
    "HookedModule",
    "Hooks",
    "Linear",
    "NamesFilter",
    "Norm",
    "adds_calls",
    "attachments",
    "gpt_with_weights",
    "init_gpt",
    "key_hook",
    "preset",
    "rotate",
    "use_kernels",
    "with_gradients",
]

__getattr__ = names_on_first_use(__name__, __file__)
