"""Weights of looped layers: the blocks of later passes use the parameters of the first.

Every block has hook points of its own, so that each pass can be read and patched by itself. A
parameter is listed, trained and saved once, under the name of the first block that uses it.
"""

from typing import Any

from torch import nn

from train.model.architecture import GPTConfig


__all__ = ["share_weights"]


def share_weights(model: nn.Module, cfg: GPTConfig) -> None:
    """Give the blocks of later passes the parameters of their layer's first pass."""
    if not cfg.loop_layers:
        return
    firsts: dict[int, int] = {}
    copies: dict[str, str] = {}
    for block in range(cfg.n_layers):
        first = firsts.setdefault(cfg.layer_of(block), block)
        if first != block:
            _share(model.get_submodule(f"blocks.{block}"), model.get_submodule(f"blocks.{first}"))
            copies[f"blocks.{block}."] = f"blocks.{first}."

    def drop_copies(module: nn.Module, content: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in list(content):
            if name.startswith(tuple(prefix + copy for copy in copies)):
                del content[name]

    def add_copies(module: nn.Module, content: dict[str, Any], prefix: str, *_: Any) -> None:
        for copy, first in copies.items():
            for name in [one for one in content if one.startswith(prefix + first)]:
                content[prefix + copy + name.removeprefix(prefix + first)] = content[name]

    model.register_state_dict_post_hook(drop_copies)
    model.register_load_state_dict_pre_hook(add_copies)


def _share(copy: nn.Module, first: nn.Module) -> None:
    originals = dict(first.named_modules())
    for path, module in copy.named_modules():
        for name in list(module._parameters):
            module._parameters[name] = originals[path]._parameters[name]
