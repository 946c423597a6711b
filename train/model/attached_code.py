"""Finding code that was attached to a model: modules, torch hooks, parametrizations, methods.

Code that computes with the weights of a model, and not by calling it, does not see these. It asks
`attachments` first, and then calls the model or refuses.
"""

from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from train.model.architecture import GPTConfig
from train.model.gpt import GPT
from train.model.hooks import HookPoint


__all__ = ["adds_calls", "attachments"]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# A module may carry these from elsewhere; they change no value.
PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
Model = TypeVar("Model", bound=GPT)
# Classes of models whose pass over tokens is that of `GPT`.
_SAME_PASS: set[type[GPT]] = {GPT}


def adds_calls(subclass: type[Model]) -> type[Model]:
    """Declare, as a class decorator, that a model of this class computes logits as a `GPT` does.

    Such a class adds ways to call a model, and `attachments` does not count it.

    Examples:
        >>> from train.model import GPT, adds_calls, attachments
        >>> @adds_calls
        ... class Named(GPT):
        ...     name = "mine"
        ...
        >>> attachments(Named(model.cfg))
        []
    """
    _SAME_PASS.add(subclass)
    return subclass


def attachments(model: GPT, *, hook_points: bool = True) -> list[str]:
    """Return what makes a forward pass of `model` differ from that of its weights, one line each.

    Args:
        hook_points: Count hooks at hook points (`model.hooks`) as well.

    Examples:
        >>> from train.model import attachments
        >>> attachments(model)
        []
    """
    expected = _types(model.cfg)
    there = dict(model.named_modules(remove_duplicate=False))
    found = [f"{name} is missing" for name in expected if name not in there]
    for name, module in there.items():
        said = name or "the model"
        if name not in expected:
            found.append(f"{said} was added")
        elif type(module) is not expected[name] and (name or type(module) not in _SAME_PASS):
            found.append(f"{said} is a {type(module).__name__}")
        if any(getattr(module, hooks, None) for hooks in HOOKS):
            found.append(f"a torch hook on {said}")
        methods = _methods(type(module))
        if not methods.isdisjoint(vars(module)) and not isinstance(module, HookPoint):
            found += [f"{said}.{key} was replaced" for key in vars(module) if key in methods]
        found += [
            f"{said}.{key} is a {type(value).__name__}"
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None and type(value) not in PLAIN_TENSORS
        ]
    for kind in ("forward", "forward_pre"):
        if getattr(torch_module, f"_global_{kind}_hooks", None):
            found.append("a torch hook on all modules")
    points = model.hook_dict.items() if hook_points else ()
    found += [f"a hook at {name}" for name, point in points if point.hooked]
    found += [
        f"the factor of blocks.{number}"
        for number, block in enumerate(model.blocks)
        if getattr(block, "scale", None) is not None
    ]
    return found


@lru_cache(maxsize=64)
def _methods(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names of what can be called in a class of modules."""
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))


@lru_cache(maxsize=32)
def _types(cfg: GPTConfig) -> dict[str, type[nn.Module]]:
    """Return the class of every module of a new model."""
    with torch.device("meta"):
        return {
            name: type(module) for name, module in GPT(cfg).named_modules(remove_duplicate=False)
        }
