"""The loaded model, and the calls of TransformerLens that it answers."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.hooked_model.cache import HookedCache
    from interp.hooked_model.hooked_config import HookedConfig
    from interp.hooked_model.hooked_gpt import HookedGPT

__all__ = ["HookedCache", "HookedConfig", "HookedGPT"]

__getattr__ = names_on_first_use(__name__, __file__)
