"""Concept erasure (LEACE): erase a label from activations and measure the loss of a behaviour.

This is the causal check of a probe. LEACE (Belrose et al. 2023, theorem 4.3,
https://arxiv.org/abs/2306.03819) is the smallest affine change of x after which no linear
classifier can read z. With W the whitening of x and u an orthonormal basis of W cov(x, z), it maps
x to x - W^-1 u u' W (x - mean). Afterwards cov(x, z) is zero, which holds exactly if the best
linear predictor of z is a constant.

This is our own implementation of about twenty lines. It equals the package `concept-erasure`
(0.2.4; tested) but computes in fp64 and without that package's tolerance, which leaves a rare class
readable (also tested).

Erasing any direction can harm the model, whatever the direction encodes. The reported effect is
therefore the loss *beyond a placebo*: the same erasure fitted to shuffled labels, which removes as
many directions.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import behaviours, plots
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of, refuse_dead_site
from interp.errors import InterpError, ProbeError, UninformativeWarning
from interp.probing import classifiers, probes
from interp.probing.tasks import ProbeTask
from interp.results import Provenance, Result, provenance
from train import storage
from train.progress import Progress
from train.short_repr import short_repr
from train.statistics import Estimate, mean_interval, wilson


if TYPE_CHECKING:
    import pandas

__all__ = ["Arm", "Eraser", "Erasure", "erasure_effect", "leace"]

SCHEMA = "openbook.erasure/1"


@dataclass(frozen=True)
class Arm:
    """Measurements of the behaviour and of a probe in one condition.

    Attributes:
        name: "intact", "erased", or "placebo" (mean over its draws).
        score: Mean logit difference over prompts.
        accuracy: Share of prompts answered rightly.
        removed: Share of the variance of the activations that was erased.
        probe: Cross-validated accuracy of a probe for the label, on cases that the erasure was not
            fitted to.
    """

    name: str
    score: Estimate
    accuracy: Estimate
    removed: float
    probe: Estimate


@dataclass(frozen=True, eq=False)
class Erasure(Result):
    """Effect of erasing a label on a behaviour, compared with a placebo.

    Attributes:
        task: Name of the probe task whose label was erased.
        behaviour: Name of the behaviour that was measured.
        place: Name of the component at which the label was erased.
        positions: Positions where it was erased; None: all.
        rank: Number of directions erased.
        n_cases: Number of cases that the erasure and the probes were fitted to.
        n_prompts: Number of distinct prompts of the behaviour.
        placebos: Number of draws of shuffled labels.
        baseline: Share of the commonest label, the accuracy of a probe without any information.
        arms: The conditions "intact", "erased" and "placebo".
        loss: Score of the placebo minus score after erasure, in logits, paired by prompt.
        task_sha256: Digest of the task's prompts, positions, labels and types.
        provenance: Model, behaviour and software that it was computed with.
        notes: Reasons why the loss is less informative than it seems.
    """

    schema: ClassVar[str] = SCHEMA
    refusal: ClassVar[type[InterpError]] = ProbeError

    task: str
    behaviour: str
    place: str
    positions: tuple[int, ...] | None
    rank: int
    n_cases: int
    n_prompts: int
    placebos: int
    baseline: float
    arms: tuple[Arm, ...]
    loss: Estimate
    task_sha256: str
    provenance: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Erasure({self.task!r} at {self.place}, {self.behaviour!r} n={self.n_prompts}: loses "
            f"{self.loss} logits beyond a placebo; probe {self['intact'].probe} -> "
            f"{self['erased'].probe}, baseline {self.baseline:.3f})"
        )

    def __getitem__(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ProbeError(f"no arm {name!r}; there are {', '.join(a.name for a in self.arms)}")

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per arm; `x low` and `x high` are the interval of x."""
        import pandas

        rows = []
        for arm in self.arms:
            row: dict[str, object] = {"arm": arm.name, "prompts": self.n_prompts}
            for name in ("score", "accuracy", "probe"):
                found = getattr(arm, name)
                row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
            rows.append(row | {"removed": arm.removed})
        return pandas.DataFrame(rows)

    def plot(self) -> "plots.Figure":
        """Plot the score in each arm."""
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Erasure":
        """Return the result that `to_dict` turned into plain values."""
        at = content["positions"]
        content["positions"] = None if at is None else tuple(at)
        content["notes"] = tuple(content["notes"])
        content["arms"] = tuple(map(_arm, content["arms"]))
        content["loss"] = Estimate(**content["loss"])
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)


def _arm(content: storage.JsonObject) -> Arm:
    found = {name: Estimate(**content[name]) for name in ("score", "accuracy", "probe")}
    return Arm(**{**content, **found})


PLACEBOS = 10
# If eraser and placebos each remove more than this share of the variance, they remove the same.
NEARLY_ALL = 0.99


@dataclass(frozen=True, eq=False)
class Eraser:
    """Affine map x - (x - mean) @ out_of @ back, whose linear part is a projection.

    Attributes:
        mean: Mean of the activations it was fitted to, which it leaves unchanged.
        out_of: Map from activations to coordinates in the erased subspace, W' u in the formula.
        back: Map from these coordinates to activations, (W^-1 u)' in the formula.
        removed: Share of the activations' variance that it erases.
    """

    mean: Float[np.ndarray, " feature"]
    out_of: Float[np.ndarray, "feature rank"]
    back: Float[np.ndarray, "rank feature"]
    removed: float

    __repr__ = short_repr

    @property
    def rank(self) -> int:
        """Number of directions that it erases."""
        return self.out_of.shape[1]

    def __call__(self, x: Float[np.ndarray, "*case feature"]) -> Float[np.ndarray, "*case feature"]:
        """Erase the label from activations."""
        return x - (x - self.mean) @ self.out_of @ self.back

    def hook(self, positions: Sequence[int] | None) -> Callable[[Tensor, object], Tensor]:
        """Return a forward hook that erases the label at some positions; None: at every one."""

        def erase(value: Tensor, hook: object) -> Tensor:
            at = slice(None) if positions is None else list(positions)
            changed = value.clone()
            erased = self(value[:, at].flatten(2).double().cpu().numpy())
            here = torch.from_numpy(erased).to(value.device, value.dtype)
            changed[:, at] = here.reshape(changed[:, at].shape)
            return changed

        return erase


def leace(
    x: Float[np.ndarray, "case feature"],
    labels: Int[np.ndarray, " case"],
    *,
    shrinkage: float | None = None,
) -> Eraser:
    """Fit the smallest change of x that hides the labels from every linear classifier.

    Args:
        x: Activations.
        labels: Index of each case's class.
        shrinkage: Shrinkage of the covariance of x towards a multiple of the identity, from 0 to
            1. None: the estimate of Ledoit and Wolf. It sets the norm in which the change is
            smallest, and more of it generalises better from few cases. The labels of these cases
            are hidden whatever its value.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 4))
        >>> labels = (x[:, 0] > 0).astype(int)
        >>> eraser = probing.leace(x, labels, shrinkage=0.1)
        >>> erased = eraser(x)
        >>> bool(np.allclose(erased[labels == 0].mean(axis=0), erased[labels == 1].mean(axis=0)))
        True
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = x.mean(axis=0)
    centred = x - mean
    indicator = np.eye(int(labels.max()) + 1)[labels]
    indicator -= indicator.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    share = float(ledoit_wolf_shrinkage(x)) if shrinkage is None else shrinkage
    trace = np.trace(covariance)
    shrunk = (1 - share) * covariance + share * trace / len(mean) * np.eye(len(mean))
    values, vectors = np.linalg.eigh(shrunk)
    # W = diag(1 / roots) vectors' whitens x on the span of its variation. Smaller eigenvalues count
    # as zero, with a cut-off like that of numpy's pseudo-inverse.
    kept = values > values[-1] * len(mean) * np.finfo(float).eps
    vectors, roots = vectors[:, kept], np.sqrt(values[kept])
    u, sizes, _ = np.linalg.svd(
        (vectors.T / roots[:, None]) @ (centred.T @ indicator / len(x)), full_matrices=False
    )
    u = u[:, sizes > sizes[0] * 1e-9] if len(sizes) and sizes[0] > 1e-12 else u[:, :0]
    out_of, back = (vectors / roots) @ u, u.T @ (vectors * roots).T
    left = np.eye(len(mean)) - out_of @ back
    removed = 1 - np.trace(left.T @ covariance @ left) / trace if trace > 0 else 0.0
    return Eraser(mean, out_of, back, float(removed))


def erasure_effect(
    model: HookedModel,
    behaviour: Behaviour,
    task: ProbeTask,
    *,
    layer: int,
    site: str = "resid_post",
    positions: Sequence[int] | str | None = None,
    placebos: int = PLACEBOS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Erasure:
    """Erase a task's label at one component of every clean prompt, and measure the behaviour.

    Costs 2 + placebos forward passes over the behaviour's prompts and one over the task's.

    Args:
        model: A hooked model, from `interp.models.load`.
        behaviour: Behaviour to measure.
        task: Probe task whose label is erased.
        layer: Layer to erase at.
        site: A key of `interp.components.SITES`.
        positions: Positions of the behaviour's prompts to erase at, or "all". Default: the position
            that the task reads, if it reads a single one and its prompts are equally long.
        placebos: Number of draws of shuffled labels.
        seed: Random seed for the placebos and the folds of the probes.
        progress: Called with the number of placebos done.

    Raises:
        ProbeError: There is no such component, the positions are wrong or cannot be derived from
            the task, the activations do not vary with the label, or there is no placebo.
        CapabilityError: The intact model does not do the behaviour.
    """
    if placebos < 1:
        raise ProbeError(f"{placebos} placebos; without one a loss has nothing to be held against")
    place = probes.place(model, task, site, layer)
    refuse_dead_site(model, place)
    at = _positions(behaviour, task, positions)
    behaviours.check(model, behaviour)
    x = probes.activations(model, task, place)[:, 0]
    labels = task.label_ids
    eraser = leace(x, labels)
    if eraser.rank == 0:
        raise ProbeError(
            f"nothing to erase at {place}: the {len(labels)} activations of {task.name!r} do not "
            "vary with its labels"
        )
    intact = _measured(model, behaviour, place, None)
    erased = _measured(model, behaviour, place, eraser.hook(at))
    if bool((erased[0] == intact[0]).all()):
        what = f"erasing {task.name!r} at {place} changes no score of {behaviour.name!r}: what is "
        what += "there at those positions does not reach the answer"
        warnings.warn(what, UninformativeWarning, stacklevel=2)
    draw = np.random.Generator(np.random.Philox(key=seed))
    others, removed = [], []
    for done in range(placebos):
        shuffled = leace(x, draw.permutation(labels))
        others.append(_measured(model, behaviour, place, shuffled.hook(at)))
        removed.append(shuffled.removed)
        if progress:
            progress("placebo", done + 1, placebos)
    notes = ()
    if min(eraser.removed, *removed) > NEARLY_ALL:
        notes = (
            f"erasing {eraser.rank} directions at {place} leaves no variance, whatever labels they "
            "are fitted to: the placebo is no contrast; take a site where more varies",
        )
        warnings.warn(notes[0], UninformativeWarning, stacklevel=2)
    score, accuracy = (np.mean([one[i] for one in others], axis=0) for i in range(2))
    gone = (0.0, eraser.removed, float(np.mean(removed)))
    return Erasure(
        task=task.name,
        behaviour=behaviour.name,
        place=str(place),
        positions=at,
        rank=eraser.rank,
        n_cases=len(labels),
        n_prompts=len(intact[0]),
        placebos=placebos,
        baseline=task.baseline,
        arms=_arms((intact, erased, (score, accuracy)), gone, _probes(x, task, seed)),
        loss=_mean(score - erased[0]),
        task_sha256=task.sha256,
        provenance=provenance(model, behaviour, seed=seed),
        notes=notes,
    )


def _positions(
    behaviour: Behaviour, task: ProbeTask, asked: Sequence[int] | str | None
) -> tuple[int, ...] | None:
    n = behaviour.n_pos
    if asked == "all":
        return None
    if isinstance(asked, str):
        raise ProbeError(f"positions {asked!r}; name them by number, or say 'all'")
    if asked is None:
        read = set(task.positions.tolist())
        if len(read) > 1 or task.tokens.shape[1] != n:
            raise ProbeError(
                f"probe task {task.name!r} reads {len(read)} different positions of prompts of "
                f"{task.tokens.shape[1]}, {behaviour.name!r} has prompts of {n}; say at which "
                "positions to erase, or 'all'"
            )
        return tuple(read)
    if not asked or any(not -n <= pos < n for pos in asked):
        raise ProbeError(f"positions {list(asked)} of prompts with positions 0 to {n - 1}")
    return tuple(sorted({pos % n for pos in asked}))


Measured = tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]


def _arms(
    measured: tuple[Measured, Measured, Measured],
    removed: tuple[float, float, float],
    probes: tuple[Estimate, Estimate, Estimate],
) -> tuple[Arm, ...]:
    """Assemble the arms "intact", "erased" and "placebo" from their measurements."""
    return tuple(
        Arm(name, _mean(score), _share(accuracy), gone, probe)
        for name, (score, accuracy), gone, probe in zip(
            ("intact", "erased", "placebo"), measured, removed, probes, strict=True
        )
    )


@torch.inference_mode()
def _measured(
    model: HookedModel,
    behaviour: Behaviour,
    place: Component,
    hook: Callable[[Tensor, object], Tensor] | None,
) -> Measured:
    """Return score and accuracy of each distinct prompt, averaged over the foils of the prompt."""
    tokens = behaviour.clean.to(device_of(model))
    hooks = [] if hook is None else [(place.hook, hook)]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks) if hooks else model(tokens)
    score = behaviour.score(logits).double().cpu().numpy()
    right = behaviour.correct(logits).cpu().numpy().astype(float)
    prompt = behaviour.clean.unique(dim=0, return_inverse=True)[1].numpy()
    (scores, counts), (rights, _) = (classifiers.type_sums(v, prompt) for v in (score, right))
    return scores / counts, rights / counts


def _probes(
    x: Float[np.ndarray, "case feature"], task: ProbeTask, seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Cross-validate a probe on intact activations and after erasure with true and shuffled labels.

    The erasures are fitted to the training cases of each fold only.
    """
    labels, types = task.label_ids, task.type_ids
    folds = probes.folds_of_cases(task, probes.FOLDS, seed)
    draw = np.random.Generator(np.random.Philox(key=seed + 1))

    def shuffled(x: np.ndarray, labels: np.ndarray) -> Eraser:
        return leace(x, draw.permutation(labels))

    found = (
        classifiers.right(x, labels, folds, change=change).astype(float)
        for change in (None, leace, shuffled)
    )
    intact, erased, placebo = (
        classifiers.share(right, types, n_folds=len(folds)) for right in found
    )
    return intact, erased, placebo


def _mean(values: Float[np.ndarray, " prompt"]) -> Estimate:
    bounds = mean_interval(values)
    return Estimate(float(values.mean()), *(bounds or (None, None)))


def _share(right: Float[np.ndarray, " prompt"]) -> Estimate:
    value = float(right.mean())
    return Estimate(value, *wilson(value, len(right)))


def _figure(found: Erasure) -> "plots.Figure":
    """Plot the score of a behaviour: intact, with the label erased, and with a placebo."""
    scores = [arm.score for arm in found.arms]
    shown = plots.estimates([arm.name for arm in found.arms], scores)
    figure = plots.figure()
    figure.add_bar(**shown)
    figure.update_yaxes(title=f"logit difference, n={found.n_prompts}")
    title = f"{found.behaviour} without {found.task} at {found.place} (rank {found.rank})"
    return plots.framed(figure, title)
