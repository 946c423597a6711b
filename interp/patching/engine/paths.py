"""Paths for path patching: the receivers' inputs when only the sender's output is changed.

Path patching (Wang et al. 2022, https://arxiv.org/abs/2211.00593, section 3.1) takes two runs. In
the first, the sender's output is patched, all heads between sender and receiver are frozen, and the
receiver's query, key or value is recorded. In the second, only the receivers are patched, with the
recorded values. Since the residual stream is a sum, the first run needs no forward pass: the
receiver in layer l reads

    resid_pre(l) of the base run + (z' - z) W_O of the sender + sum of MLP changes on the way,

where the last term is 0 if MLPs are frozen, and otherwise mlp(ln2(resid_mid + change so far)) - mlp
for each MLP between sender and receiver. With a parallel residual an MLP reads resid_pre, so that
of the sender's own layer lies on no path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import SITES, Component
from interp.patching.engine.base_run import BaseRun
from train.model import GPT


__all__ = ["Path", "arriving", "hooks_read", "patch_of"]


@dataclass(frozen=True)
class Path:
    """Path from the output of a head to queries, keys and values of later heads, or to the logits.

    Attributes:
        sender: A component of the site `head`, at all positions.
        receivers: Components of the sites q, k and v; () for the logits.
    """

    sender: Component
    receivers: tuple[Component, ...] = ()


def patch_of(path: Path, n_layers: int) -> list[Component]:
    """Return the components that the second run patches.

    Examples:
        >>> path = engine.Path(components.parse("L0H1"), (components.parse("L1H0.q"),))
        >>> [str(place) for place in engine.patch_of(path, n_layers=2)]
        ['L1H0.q']
    """
    return list(path.receivers) or [Component("resid_post", n_layers - 1)]


def hooks_read(model: GPT, paths: Sequence[Path], *, mlps: bool) -> list[str]:
    """Return the hook names that a base run must keep for `arriving`.

    Examples:
        >>> path = engine.Path(components.parse("L0H1"), (components.parse("L1H0.q"),))
        >>> engine.hooks_read(model, [path], mlps=False)
        ['blocks.0.attn.hook_z', 'blocks.1.hook_resid_pre']
    """
    names = {path.sender.hook for path in paths}
    for path in paths:
        layers = {receiver.layer for receiver in path.receivers}
        names |= {f"blocks.{layer}.hook_resid_pre" for layer in layers}
        if mlps:
            between = range(path.sender.layer, max(layers, default=model.cfg.n_layers))
            into = SITES[_into_mlp(model)]
            names |= {f"blocks.{layer}.{into}" for layer in between}
            names |= {f"blocks.{layer}.hook_mlp_out" for layer in between}
    return sorted(names)


def arriving(
    base: BaseRun, path: Path, source: Mapping[str, Tensor], *, mlps: bool
) -> dict[str, Tensor]:
    """Return the receivers' queries, keys and values, by hook name.

    Without receivers, return the last residual stream, which the logits read.
    """
    sender = path.sender
    block = base.block(sender.layer)
    changed = source[sender.hook] - base.at(sender.layer, "head")
    written = changed[:, :, sender.head] @ block.attn.W_O[sender.head]
    layers = sorted({receiver.layer for receiver in path.receivers}) or [base.n_layers]
    found: dict[str, Tensor] = {}
    layer = sender.layer
    # Invariant: `written` is the change of resid_mid(layer). Attention is frozen, so above the
    # sender's layer it is also the change of resid_pre(layer).
    for goal in layers:
        while layer < goal:
            if mlps and not (block.parallel and layer == sender.layer):
                written = written + _by_mlp(base, layer, written)
            layer += 1
        if goal == base.n_layers:
            return {f"blocks.{goal - 1}.hook_resid_post": base.final + written}
        _receive(base, goal, written, [one for one in path.receivers if one.layer == goal], found)
    return found


def _into_mlp(model: GPT) -> str:
    """Return the site of the stream that MLPs read."""
    return "resid_pre" if model.cfg.parallel_residual else "resid_mid"


def _by_mlp(
    base: BaseRun, layer: int, written: Float[Tensor, "prompt pos d_model"]
) -> Float[Tensor, "prompt pos d_model"]:
    """Return the change of an MLP's output when `written` is added to its input."""
    block = base.block(layer)
    read = base.at(layer, _into_mlp(base.model)) + written
    return block.mlp(block.ln2(read)) - base.at(layer, "mlp")


def _receive(
    base: BaseRun,
    layer: int,
    written: Float[Tensor, "prompt pos d_model"],
    receivers: Sequence[Component],
    found: dict[str, Tensor],
) -> None:
    """Compute the receivers of one layer into `found`, in copies of the base run's values."""
    block = base.block(layer)
    attn = block.attn
    read = block.ln1(base.at(layer, "resid_pre") + written)
    offset = {"q": 0, "k": attn.widths[0], "v": sum(attn.widths[:2])}
    for place in receivers:
        assert place.head is not None
        value = found.setdefault(place.hook, base.at(layer, place.site).clone())
        begin = offset[place.site] + place.head * attn.d_head
        rows = slice(begin, begin + attn.d_head)
        bias = None if attn.qkv.bias is None else attn.qkv.bias[rows]
        value[:, :, place.head] = torch.nn.functional.linear(read, attn.qkv.weight[rows], bias)
