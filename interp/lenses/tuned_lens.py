"""Tuned lens: one affine translator per layer, fitted on tokens that the model never trained on.

The logit lens unembeds the residual stream of a layer as if that layer used the same basis as the
last one. The tuned lens first applies an affine map, h + A h + b, one for each layer, which is
fitted to minimize KL(model || reading), the distance to the model's final output (Belrose et al.
2023, https://arxiv.org/abs/2303.08112, section 2). A and b start at 0: the logit lens.

A translator could learn to predict the output by itself instead of reading it from the layer. The
control measures how much: translators of the same size, fitted to the same outputs, on the layers
of a model that was never trained.
"""

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from interp import behaviours
from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of, read_weights
from interp.errors import EffectsError, ModelError
from interp.lenses import logit_lens
from interp.lenses.logit_lens import Readings
from interp.lenses.tokens import LensTokens
from train import storage
from train.errors import DamagedError
from train.model import GPT, init_gpt
from train.progress import Progress
from train.short_repr import short_repr


__all__ = [
    "Fit",
    "Translators",
    "TunedLens",
    "fit_tuned_lens",
    "load_tuned_lens",
    "streams",
    "tuned",
    "untrained",
]
__all__ += ["of_this"]

SCHEMA = "openbook.tuned_lens/1"
MOST_BYTES = 1 << 34  # of the weights
# Targets in one fitting step, and largest number of logits in memory: 2^24 fp32 values are 67 MB.
TARGETS_A_STEP, LOGITS_AT_ONCE = 512, 1 << 24


@dataclass(frozen=True, eq=False)
class Translators:
    """Affine maps h + h @ weight + bias, one per depth; later depths are not translated."""

    weight: Float[Tensor, "depth d_model d_model"]
    bias: Float[Tensor, "depth d_model"]

    __repr__ = short_repr

    def __call__(
        self, depth: int, stream: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """Translate the residual stream at a depth to the basis of the last layer."""
        if depth >= len(self.weight):
            return stream
        weight, bias = self.weight[depth].to(stream), self.bias[depth].to(stream)
        return stream + stream @ weight + bias


@dataclass(frozen=True)
class Fit:
    """Record of how translators were fitted.

    Attributes:
        checkpoint_sha256: Digest of the checkpoint whose layers they translate.
        store_fingerprint: Fingerprint of the token store.
        region: "held-out", or "training" if the model may have been trained on these tokens.
        windows: Number of windows fitted to; the others are left for `evaluate_lens`.
        targets: Number of targets in them.
        steps: Number of Adam steps.
        lr: Initial learning rate; it falls linearly to 0.
        seed: Random seed for the order of the windows and the weights of the untrained control.
        loss: Mean KL(model || reading) over the last tenth of the steps, in nats, one per layer.
    """

    checkpoint_sha256: str
    store_fingerprint: str
    region: str
    windows: int
    targets: int
    steps: int
    lr: float
    seed: int
    loss: tuple[float, ...] = field(default=())

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Tuned lens of a model: its translators, those of the control, and how both were fitted."""

    translators: Translators
    control: Translators
    fit: Fit

    def __repr__(self) -> str:
        n_depths, d_model = self.translators.bias.shape
        return (
            f"TunedLens({n_depths} layers of {d_model}, fitted on {self.fit.targets:,} "
            f"{self.fit.region} tokens in {self.fit.steps} steps)"
        )

    def save(self, path: str | Path) -> None:
        """Write sealed JSON to `path`, and the weights beside it.

        The name of the weights contains their digest. So an older lens stays whole until the JSON
        is replaced; then its weights are removed.

        Raises:
            EffectsError: The name does not end in .json, or another process writes this lens.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise EffectsError(f"{path}: a lens is written to a .json file; end the name in .json")
        tensors = {
            f"{side}.{name}": getattr(getattr(self, side), name).contiguous().cpu()
            for side in ("translators", "control")
            for name in ("weight", "bias")
        }
        weights = save_tensors(tensors)
        content = {"schema": SCHEMA, "fit": asdict(self.fit), "weights": _digest(weights)}
        file = _weights_path(path, content)
        refusal = EffectsError(f"{path} is being written by another process; wait for it")
        with storage.hold_build_lock(path, refusal):
            storage.write_bytes(file, weights)
            storage.write_json(path, storage.seal(content))
            pattern = f"{glob.escape(path.stem)}.{'[0-9a-f]' * 16}.safetensors"
            for other in set(path.parent.glob(pattern)) - {file}:
                other.unlink()


def load_tuned_lens(path: str | Path) -> TunedLens:
    """Read what `TunedLens.save` wrote.

    Raises:
        DamagedError: The JSON file does not match its seal.
        EffectsError: The JSON holds no tuned lens, or the weights are missing or were changed.
    """
    path = Path(path)
    content = storage.read_sealed(path)
    if content.get("schema") != SCHEMA:
        raise EffectsError(
            f"{path}: is no {SCHEMA!r}, but {storage.held_kind(content)}; `openbook lens fit` or "
            "TunedLens.save writes one"
        )
    storage.check_shape(content, {"weights": str, "fit": {"loss": [float]}}, path)
    weights_path = _weights_path(path, content)
    if not weights_path.is_file():
        weights_path = path.with_suffix(".safetensors")  # of lenses written by older versions
    weights = b""
    if weights_path.is_file():
        weights = storage.read_foreign_bytes(weights_path, most_bytes=MOST_BYTES)
    if _digest(weights) != content["weights"]:
        raise EffectsError(
            f"{weights_path}: {len(weights)} bytes whose sha256 is not the one in {path.name}; "
            "fit the lens again"
        )
    with storage.reading(weights_path):
        found = load_tensors(weights)
        sides = [
            Translators(found[f"{side}.weight"], found[f"{side}.bias"])
            for side in ("translators", "control")
        ]
    with storage.reading(path):
        about = {**content["fit"], "loss": tuple(content["fit"]["loss"])}
        return TunedLens(*sides, fit=Fit(**about))


def _weights_path(path: Path, content: Mapping[str, Any]) -> Path:
    mark = content["weights"][:16]
    if not mark.isalnum():  # it is a digest, and part of a file's name
        raise DamagedError(f"{path}: weights is {mark!r}, and a sha256 is expected")
    return path.with_suffix(f".{mark}.safetensors")


def fit_tuned_lens(
    model: HookedModel,
    windows: LensTokens,
    *,
    steps: int = 250,
    lr: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TunedLens:
    """Fit translators to the first `n_fit` of the windows; the others stay unseen.

    Each step costs a forward pass of the model and one of its control over 512 tokens, and at each
    layer the unembedding of these tokens, forward and backward. The same seed gives the same bytes
    on the same machine.

    Args:
        model: A hooked model, from `interp.models.load`.
        windows: From `held_out_tokens(run.store, context)`.
        steps: Number of Adam steps.
        lr: Initial learning rate, which falls linearly to 0. None: 1 / d_model, because the change
            that a step makes to a stream of d_model values grows with d_model (this is 0.0078 at
            128, where 0.003 to 0.01 were tried).
        seed: Random seed for the order of the windows and the weights of the control.
        progress: Called with the number of steps done.

    Raises:
        ModelError: The tokens do not fit the model's vocabulary or context, or `steps` is below 1.
    """
    model = read_weights(model, "the tuned lens")
    if steps < 1 or windows.largest >= model.cfg.d_vocab or windows.context > model.cfg.n_ctx:
        raise ModelError(
            f"{steps} steps on windows of {windows.context} tokens up to id {windows.largest}, for "
            f"a model of context {model.cfg.n_ctx} and vocabulary {model.cfg.d_vocab}; take one "
            "step or more, and windows of its own store"
        )
    control, lr = untrained(model, seed), lr or 1 / model.cfg.d_model
    n_layers, device = model.cfg.n_layers, device_of(model)
    # The control's last depth is not the model's output, so it gets a translator there too.
    sides = {"translators": (model, zero_weights(model, n_layers))}
    sides["control"] = (control, zero_weights(model, n_layers + 1))
    optimizers = [torch.optim.Adam(own.values(), lr=lr) for _, own in sides.values()]
    batches = _draws(windows.n_fit, max(1, TARGETS_A_STEP // windows.context), steps, seed)
    losses = np.zeros((steps, n_layers))
    for step, rows in enumerate(batches):
        inputs, counted = windows.batch(rows, device)
        final = streams(model, inputs, counted)[-1]
        for (features, own), optimizer in zip(sides.values(), optimizers, strict=True):
            found = backpropagate_kl(model, streams(features, inputs, counted), final, own)
            if features is model:
                losses[step] = found
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.step()
        if progress:
            progress("fitting", step + 1, steps)
    return TunedLens(
        *(_translators(own) for _, own in sides.values()),
        fit=Fit(
            checkpoint_sha256=getattr(model.origin, "checkpoint_sha256", ""),
            store_fingerprint=windows.fingerprint,
            region=windows.region,
            windows=windows.n_fit,
            targets=windows.targets(range(windows.n_fit)),
            steps=steps,
            lr=lr,
            seed=seed,
            loss=tuple(losses[-max(1, steps // 10) :].mean(axis=0).tolist()),
        ),
    )


def tuned(
    model: HookedModel,
    behaviour: Behaviour,
    lens: TunedLens,
    *,
    positions: Sequence[int] | None = (-1,),
    progress: Progress | None = None,
) -> Readings:
    """Read a behaviour's clean prompts as `lenses.logit` does, but with the tuned lens.

    Raises:
        ModelError: The lens was fitted to other weights.
        CapabilityError: The model does not do the behaviour.
        BehaviourError: The prompts have no such position.
    """
    model = read_weights(model, "the tuned lens")
    of_this(model, lens)
    behaviours.check(model, behaviour)
    where = logit_lens.positions_of(behaviour, positions)
    features = untrained(model, lens.fit.seed)
    return logit_lens.readings(
        model,
        behaviour,
        where,
        kind="tuned",
        seed=lens.fit.seed,
        found=logit_lens.read(
            model, model, behaviour, where, translate=lens.translators, progress=progress
        ),
        control=logit_lens.read(features, model, behaviour, where, translate=lens.control),
    )


def untrained(model: GPT, seed: int) -> GPT:
    """Return the untrained control: the same architecture with freshly initialized weights."""
    return init_gpt(model.cfg, seed).to(device_of(model)).eval()


@torch.no_grad()
def streams(model: GPT, inputs: Tensor, counted: Tensor) -> list[Float[Tensor, "row d_model"]]:
    """Return the residual stream at every depth, at the positions that have a target.

    Depth i is the stream entering layer i; the last depth is the stream leaving the last layer.
    """
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    hooks.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    _, cache = model.run_with_cache(inputs, names_filter=hooks)
    return [cache[hook][counted].float() for hook in hooks]


def of_this(model: GPT, lens: TunedLens) -> None:
    """Raise if the lens was not fitted to this model.

    Raises:
        ModelError: The lens has another shape or was fitted to another checkpoint.
    """
    shape = (model.cfg.n_layers, model.cfg.d_model)
    if tuple(lens.translators.bias.shape) != shape:
        raise ModelError(
            f"the lens translates {tuple(lens.translators.bias.shape)} layers and dimensions, the "
            f"model has {shape}; fit one to this model"
        )
    own = getattr(model.origin, "checkpoint_sha256", "")
    if own != lens.fit.checkpoint_sha256:
        raise ModelError(
            f"the lens was fitted to checkpoint {lens.fit.checkpoint_sha256[:12] or 'unknown'}, "
            f"this is {own[:12] or 'unknown'}; fit one to it"
        )


def zero_weights(model: GPT, n_depths: int) -> dict[str, Tensor]:
    like = model.embed.weight
    d_model = model.cfg.d_model
    shapes = {"weight": (n_depths, d_model, d_model), "bias": (n_depths, d_model)}
    return {
        name: torch.zeros(shape, device=like.device, requires_grad=True, dtype=torch.float32)
        for name, shape in shapes.items()
    }


def _translators(own: dict[str, Tensor]) -> Translators:
    return Translators(own["weight"].detach().cpu(), own["bias"].detach().cpu())


def _draws(n: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the windows of each step: repeated passes over all of them, each in a new order."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < size:
            queue += draw.permutation(n).tolist()
        yield queue[:size]
        del queue[:size]


@torch.inference_mode(False)
@torch.enable_grad()
def backpropagate_kl(
    model: GPT,
    streams: list[Tensor],
    final: Tensor,
    own: dict[str, Tensor],
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> list[float]:
    """Compute the mean KL at each layer, and leave its gradient in `.grad` of the translators."""
    size = max(1, logits_at_once // model.cfg.d_vocab)
    names = list(own)
    slopes = {name: torch.zeros_like(own[name]) for name in names}
    means = [0.0] * model.cfg.n_layers
    for last, *pieces in zip(*(one.split(size) for one in (final, *streams)), strict=True):
        log_p = logit_lens.unembed(model, last).float().log_softmax(-1).detach()
        for depth in range(len(own["bias"])):
            leaves = [own[name][depth].detach().requires_grad_() for name in names]
            stream = pieces[depth]
            logits = logit_lens.unembed(model, stream + stream @ leaves[0] + leaves[1]).float()
            kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum() / len(final)
            # The gradient is taken for these leaves only, not for the weights of the model.
            for name, slope in zip(names, torch.autograd.grad(kl, leaves), strict=True):
                slopes[name][depth] += slope
            if depth < len(means):
                means[depth] += kl.item()
    for name in names:
        own[name].grad = slopes[name]
    return means


def _digest(weights: bytes) -> str:
    return hashlib.sha256(weights).hexdigest()
