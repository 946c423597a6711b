"""Direct logit attribution: how much each component writes into the logit difference.

The output of the last layer is a sum: embedding, position embedding, every head, every MLP, and the
biases of the attention outputs. If the scale of the final norm is frozen, the logit difference is
linear in that sum, so it is the sum of the parts' projections on one direction (nostalgebraist
2020; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). The parts add up to
the logit difference up to rounding; if they do not, an error is raised.

Only *direct* contributions count: a head that acts through later layers contributes nothing here.

The control is the same decomposition of an untrained model.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp import behaviours, plots
from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of, read_weights
from interp.errors import BehaviourError, EffectsError, ModelError
from interp.results import Provenance, Result, TopNames, provenance
from train import storage
from train.errors import nearest
from train.model import GPT, attachments, init_gpt
from train.progress import count
from train.statistics import Average, over_prompts


if TYPE_CHECKING:
    import pandas

__all__ = ["OVER", "UNIT", "Contributions", "decompose_logits", "readout"]

SCHEMA = "openbook.contributions/1"
UNIT = "share of the logit difference that a part writes, in logits"
OVER = ("parts", "sources")
# Largest allowed gap between the sum and the logit difference, relative to the largest logit
# difference if that exceeds 1. In fp32 with 12 layers a gap of 1e-5 was measured.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Contributions(Result):
    """Contribution of each part to the logit of the answer minus that of the foil.

    Contributions are those at the last position.

    Attributes:
        names: Names of the parts: `embed`, `pos_embed`, `L0H1`, `L0.attn.bias`, `L0.mlp`,
            `ln_final.bias`. With "sources" a head is split by the position it reads: `L0H1<3`.
        average: Mean contribution over prompts, [part].
        control: Mean contribution in an untrained model, [part].
        score: The logit difference, to which the parts add up.
        gap: Largest difference, over prompts, between the sum of the parts and the logit
            difference.
        over: "parts" or "sources".
        provenance: Model, behaviour and software that the result was computed from.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A contribution shows what a part writes directly into the logits; it does not show "
        "what the part does through later layers, nor what the score would be without it."
    )

    names: tuple[str, ...]
    average: Average
    control: Average
    score: Average
    gap: float
    over: str
    provenance: Provenance

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {self[name]:.2f}" for name in self.top(3))
        parts = f"{len(self.names)} {self.over}"
        about = f"{self.provenance.behaviour!r}, {parts}, {count(self.n, 'prompt')}"
        return f"Contributions({about}; of {self.score.values.item():.2f}: {best})"

    def __getitem__(self, name: str) -> float:
        return self.average.values[self._index(name)].item()

    @property
    def n(self) -> int:
        """Number of distinct prompts."""
        return self.average.n

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of one part; None with one prompt.

        It holds for one that was named beforehand, not for the largest of many.
        """
        one = self.average.at(self._index(name))
        if one.low is None or one.high is None or one.low.isnan():
            return None
        return one.low.item(), one.high.item()

    def top(self, k: int) -> TopNames:
        """Return the names of the k parts that write most for the answer, largest first."""
        order = self.average.values.argsort(descending=True, stable=True)[:k]
        names = [self.names[i] for i in order.tolist()]
        return TopNames(names, {name: self[name] for name in names})

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per part: contribution and control, each with low and high."""
        import pandas

        columns = {**self.average.columns("logits"), **self.control.columns("control")}
        return pandas.DataFrame({"part": list(self.names), **columns})

    def plot(self, k: int = 20) -> "plots.Figure":
        """Plot bars of the k parts with the largest absolute contributions, and of the control."""
        order = self.average.values.abs().argsort(descending=True, stable=True)[:k].tolist()
        order.sort(key=lambda i: -self.average.values[i].item())
        about = f"{self.provenance.behaviour}: direct contributions, n={self.n}"
        return plots.columns(
            [self.names[i] for i in order],
            {"trained": self.average.at(order), "never trained": self.control.at(order)},
            title=f"{about}; {len(order)} of {count(len(self.names), 'part')}",
            unit="logits written for answer minus foil",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        parts = {name: getattr(self, name).to_dict() for name in ("average", "control", "score")}
        return {
            "schema": SCHEMA,
            "unit": UNIT,
            "over": self.over,
            "n": self.n,
            "names": list(self.names),
            **parts,
            "gap": self.gap,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Contributions":
        """Return the result that `to_dict` turned into plain values."""
        return cls(
            tuple(content["names"]),
            *(Average.from_dict(content[name]) for name in ("average", "control", "score")),
            gap=content["gap"],
            over=content["over"],
            provenance=Provenance(**content["provenance"]),
        )

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise EffectsError(f"no part is called {name!r}{nearest(name, self.names)}")
        return self.names.index(name)


def decompose_logits(
    model: HookedModel, behaviour: Behaviour, *, over: str = "parts", seed: int = 0
) -> Contributions:
    """Split the logit difference on the clean prompts into the contributions of all components.

    Costs two forward passes over the clean prompts, one of them of the control, besides the check
    of the behaviour.

    Args:
        model: A pre-norm model, from `interp.models.load`.
        behaviour: The behaviour whose clean prompts, answers and foils are used.
        over: "parts", or "sources" to split each head by the position whose value it reads.
        seed: Seed of the control's weights.

    Raises:
        CapabilityError: The model does not do the behaviour.
        BehaviourError: `over` has an unknown value.
        ModelError: The residual stream of the model is not a sum of parts (post-norm, U-Net,
            retention); or the parts do not add up to the logit difference.

    Examples:
        >>> parts = heads.decompose_logits(model, ioi)
        >>> parts.names[:4]
        ('embed', 'pos_embed', 'L0H0', 'L0H1')
        >>> parts.top(1), abs(parts.gap) < 0.001
        ([L1.mlp 6.43], True)
    """
    if over not in OVER:
        raise BehaviourError(f"nothing is split over {over!r}{nearest(over, OVER)}")
    model = read_weights(model, "direct logit attribution")
    if found := attachments(model):
        raise ModelError(f"{found[0]}, which the weights do not show; take the model without it")
    if model.cfg.no_residual_sum:
        raise ModelError(
            f"the logits of this model are no sum of what its parts write: "
            f"{model.cfg.no_residual_sum}; patch it instead"
        )
    parts_of_heads = [part for part in model.cfg.attention_parts if part != "qk_norm"]
    if over == "sources" and parts_of_heads:
        raise ModelError(
            "the output of a head is not the sum of the values that it attends to in a model with "
            f"{', '.join(parts_of_heads)}; leave out over='sources'"
        )
    behaviours.check(model, behaviour)
    untrained = init_gpt(model.cfg, seed).to(device_of(model)).eval()
    names, found, score = split_logits(model, behaviour, over)
    gap = float(np.abs(found.sum(axis=0) - score).max())
    if not gap <= TOLERANCE * max(1.0, float(np.abs(score).max())):
        raise ModelError(
            f"the {len(names)} parts add up to within {gap:.2g} of the logit difference, and "
            f"{TOLERANCE:g} is allowed; is a hook left in the model, or its precision low?"
        )
    prompts = np.array(behaviour.cases)
    control = split_logits(untrained, behaviour, over)[1]
    return Contributions(
        names,
        *(over_prompts(one, prompts) for one in (found, control, score)),
        gap=gap,
        over=over,
        provenance=provenance(model, behaviour, seed=seed),
    )


@torch.inference_mode()
def split_logits(
    model: GPT, behaviour: Behaviour, over: str
) -> tuple[tuple[str, ...], Float[np.ndarray, "part prompt"], Float[np.ndarray, " prompt"]]:
    """Return the names of the parts, their contributions, and the logit differences."""
    tokens = behaviour.clean.to(device_of(model))
    logits, cache = model.run_with_cache(tokens, names_filter=_hooks(model, over))
    # In fp64 from here on: in fp32 the error of summing some thousand terms would exceed the errors
    # of the terms themselves.
    last = {name: value.double() for name, value in cache.items()}
    direction, bias = readout(model, behaviour, last)
    parts: dict[str, Tensor] = {}
    for name, written in _written(model, last, over):
        parts[name] = einsum(written, direction, "prompt d_model, prompt d_model -> prompt")
    if bias is not None:
        parts["ln_final.bias"] = bias
    found = torch.stack(list(parts.values())).cpu().numpy()
    return tuple(parts), found, behaviour.score(logits).double().cpu().numpy()


def _hooks(model: GPT, over: str) -> list[str]:
    per_layer = ["hook_mlp_out", *(["attn.hook_z"] if over == "parts" else [])]
    per_layer += ["attn.hook_pattern", "attn.hook_v"] if over == "sources" else []
    layers = range(model.cfg.n_layers)
    names = ["hook_embed", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    if model.cfg.position in ("learned", "sinusoidal"):
        names.append("hook_pos_embed")
    return [*names, *(f"blocks.{layer}.{name}" for layer in layers for name in per_layer)]


def readout(
    model: GPT, behaviour: Behaviour, cache: dict[str, Tensor]
) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " prompt"] | None]:
    """Return the direction along which the final norm and unembedding read answer minus foil.

    Also returns the constant that the norm's bias adds, or None. With resid the last residual
    stream, the logit difference is resid . direction + constant, where

        direction = centred(gain * (W_U[answer] - W_U[foil])) / scale of resid

    and centring is left out for RMSNorm.

    Args:
        model: The model.
        behaviour: The behaviour whose answers and foils are read.
        cache: Activations on the clean prompts, with `blocks.<last>.hook_resid_post`.

    Examples:
        >>> hook = "blocks.1.hook_resid_post"
        >>> logits, cache = model.run_with_cache(ioi.clean, names_filter=[hook])
        >>> cache = {hook: cache[hook].double()}
        >>> direction, constant = heads.readout(model, ioi, cache)
        >>> score = (cache[hook][:, -1] * direction).sum(dim=1) + constant
        >>> torch.allclose(score.float(), ioi.score(logits), atol=1e-3)
        True
    """
    norm = model.ln_final
    # Only the needed rows are converted: all of W_U in fp64 takes 309 MB for GPT-2.
    if behaviour.has_several:
        columns, contrast = (one.to(device_of(model)) for one in behaviour.contrast())
        apart = contrast.double() @ model.W_U.T[columns].double()
    else:
        answer, foil = (one.to(device_of(model)) for one in (behaviour.answer, behaviour.foil))
        apart = model.W_U.T[answer].double() - model.W_U.T[foil].double()
    bias = None if norm.bias is None else apart @ norm.bias.double()
    resid = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][:, -1]
    if norm.kind == "none":
        return apart, bias
    apart = apart if norm.weight is None else apart * norm.weight.double()
    if norm.centred:
        # Centring is linear and symmetric: centre the direction once instead of every part.
        resid = resid - resid.mean(-1, keepdim=True)
        apart = apart - apart.mean(-1, keepdim=True)
    scale = (resid.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    return apart / scale, bias


def _written(
    model: GPT, cache: dict[str, Tensor], over: str
) -> Iterator[tuple[str, Float[Tensor, "prompt d_model"]]]:
    """Yield the name and value of every part of the residual stream at the last position."""
    yield "embed", cache["hook_embed"][:, -1]
    if "hook_pos_embed" in cache:
        yield "pos_embed", cache["hook_pos_embed"][:, -1]
    for layer in range(model.cfg.n_layers):
        attention = model.blocks[layer].attn
        for head, out in enumerate(attention.W_O.double()):
            for name, z in _mixed(cache, f"blocks.{layer}.attn", head, over):
                yield f"L{layer}H{head}{name}", z @ out
        if attention.out.bias is not None:
            bias = attention.out.bias.double()
            yield f"L{layer}.attn.bias", bias.expand_as(cache["hook_embed"][:, -1])
        yield f"L{layer}.mlp", cache[f"blocks.{layer}.hook_mlp_out"][:, -1]


def _mixed(
    cache: dict[str, Tensor], attention: str, head: int, over: str
) -> Iterator[tuple[str, Float[Tensor, "prompt d_head"]]]:
    """Yield a head's z at the last position: whole, or one term per position that it reads."""
    if over == "parts":
        yield "", cache[f"{attention}.hook_z"][:, -1, head]
        return
    pattern, values = cache[f"{attention}.hook_pattern"], cache[f"{attention}.hook_v"]
    # Several heads may share a value (Ainslie et al. 2023).
    shared = head // (pattern.shape[1] // values.shape[2])
    for pos in range(values.shape[1]):
        yield f"<{pos}", pattern[:, head, -1, pos, None] * values[:, pos, shared]
