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
many directions. Where a label is written along directions of much variance, that placebo removes
less of it than the erasure does (70 % against 99 % for names in the planted run), and part of the
loss is that of the variance. A second placebo therefore removes as many random directions that
carry as much variance: they are drawn in the eigenbasis of the covariance with coefficients that
are normal times a power of the eigenvalues, and the power is found by bisection.
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
        name: "intact", "erased", "placebo" or "matched" (the last two are means over draws).
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
        placebos: Number of draws of shuffled labels, and of directions of equal variance.
        baseline: Share of the commonest label, the accuracy of a probe without any information.
        arms: The conditions "intact", "erased", "placebo" (shuffled labels) and "matched" (random
            directions of equal variance; files of earlier versions lack it).
        loss: Score of the placebo minus score after erasure, in logits, paired by prompt.
        task_sha256: Digest of the task's prompts, positions, labels and types.
        provenance: Model, behaviour and software that it was computed with.
        notes: Reasons why the loss is less informative than it seems.
        loss_matched: Score with random directions of equal variance removed minus score after
            erasure, in logits, paired by prompt; None in files of earlier versions.
    """

    schema: ClassVar[str] = SCHEMA
    refusal: ClassVar[type[InterpError]] = ProbeError
    meaning: ClassVar[str] = (
        "An erasure shows what a behaviour loses without the directions that tell a label "
        "linearly, beyond a placebo; it does not show that the label is gone in a nonlinear "
        "form, nor that nothing else was erased."
    )

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
    loss_matched: Estimate | None = None

    def __repr__(self) -> str:
        matched = f", {self.loss_matched} beyond equal variance" if self.loss_matched else ""
        return (
            f"Erasure({self.task!r} at {self.place}, {self.behaviour!r} n={self.n_prompts}: loses "
            f"{self.loss} logits beyond a placebo{matched}; probe {self['intact'].probe} -> "
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
        content = {"schema": SCHEMA, **asdict(self)}
        if self.loss_matched is None:
            del content["loss_matched"]  # so that files of earlier versions stay as they were
        return content

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Erasure":
        """Return the result that `to_dict` turned into plain values."""
        at = content["positions"]
        content["positions"] = None if at is None else tuple(at)
        content["notes"] = tuple(content["notes"])
        content["arms"] = tuple(map(_arm, content["arms"]))
        content["loss"] = Estimate(**content["loss"])
        if content.get("loss_matched"):
            content["loss_matched"] = Estimate(**content["loss_matched"])
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)


def _arm(content: storage.JsonObject) -> Arm:
    found = {name: Estimate(**content[name]) for name in ("score", "accuracy", "probe")}
    return Arm(**{**content, **found})


PLACEBOS = 10
# If eraser and placebos each remove more than this share of the variance, they remove the same.
NEARLY_ALL = 0.99
# Largest power of the eigenvalues, and difference of two shares of variance that are called equal.
STEEPEST, SAME_SHARE = 6.0, 0.01
MATCHED = 1 << 32  # added to a seed, so that these draws change no others


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

    Costs 2 + 2 * placebos forward passes over the behaviour's prompts and one over the task's.

    Args:
        model: A hooked model, from `interp.models.load`.
        behaviour: Behaviour to measure.
        task: Probe task whose label is erased.
        layer: Layer to erase at.
        site: A key of `interp.components.SITES`.
        positions: Positions of the behaviour's prompts to erase at, or "all". Default: the position
            that the task reads, if it reads a single one and its prompts are equally long.
        placebos: Number of draws of shuffled labels, and of directions of equal variance.
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
    draws = [np.random.Generator(np.random.Philox(key=seed + one)) for one in (0, MATCHED)]
    others = {"placebo": list[Measured](), "matched": list[Measured]()}
    removed = {name: list[float]() for name in others}
    for done in range(placebos):
        placebo = leace(x, draws[0].permutation(labels))
        for name, one in (("placebo", placebo), ("matched", _matched(x, eraser, draws[1]))):
            others[name].append(_measured(model, behaviour, place, one.hook(at)))
            removed[name].append(one.removed)
        if progress:
            progress("placebo", done + 1, placebos)
    gone = {name: float(np.mean(shares)) for name, shares in removed.items()}
    notes = ()
    if abs(gone["matched"] - eraser.removed) > SAME_SHARE:
        notes = (
            f"no {eraser.rank} directions carry {eraser.removed:.1%} of the variance, which the "
            f"erasure removes; those drawn carry {gone['matched']:.1%}",
        )
    if min(eraser.removed, *removed["placebo"]) > NEARLY_ALL:
        notes = (
            f"erasing {eraser.rank} directions at {place} leaves no variance, whatever labels they "
            "are fitted to: the placebo is no contrast; take a site where more varies",
        )
        warnings.warn(notes[0], UninformativeWarning, stacklevel=2)
    mean = {
        name: (np.mean([one[0] for one in some], axis=0), np.mean([one[1] for one in some], axis=0))
        for name, some in others.items()
    }
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
        arms=_arms(
            {"intact": intact, "erased": erased, **mean},
            {"intact": 0.0, "erased": eraser.removed, **gone},
            _probes(x, task, seed),
        ),
        loss=_mean(mean["placebo"][0] - erased[0]),
        loss_matched=_mean(mean["matched"][0] - erased[0]),
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
    measured: dict[str, Measured], removed: dict[str, float], probes: dict[str, Estimate]
) -> tuple[Arm, ...]:
    """Assemble the arms from their measurements, by name."""
    return tuple(
        Arm(name, _mean(score), _share(accuracy), removed[name], probes[name])
        for name, (score, accuracy) in measured.items()
    )


def _matched(
    x: Float[np.ndarray, "case feature"], eraser: Eraser, draw: np.random.Generator
) -> Eraser:
    """Draw as many random directions as `eraser` has, which carry the variance that it removes.

    No directions of that number carry more than the principal ones, nor does any erasure of that
    rank remove more. Where they all carry more, as with a rank near the number of features, those
    that carry least are returned.
    """
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    logs = np.log(np.maximum(values / values[-1], 1e-12))
    coefficients = draw.normal(size=(len(mean), eraser.rank))

    def directions(power: float) -> Float[np.ndarray, "feature rank"]:
        scaled = np.exp(power * logs - max(0.0, (power * logs).max()))[:, None] * coefficients
        return vectors @ np.linalg.qr(scaled)[0]

    def carried(basis: Float[np.ndarray, "feature rank"]) -> float:
        return float(np.sum((covariance @ basis) * basis) / values.sum())

    low, high = -STEEPEST, STEEPEST
    for _ in range(40):
        middle = (low + high) / 2
        if carried(directions(middle)) < eraser.removed:
            low = middle
        else:
            high = middle
    basis = directions(high)
    return Eraser(mean, basis, basis.T, carried(basis))


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
    prompt = np.array(behaviour.cases)
    (scores, counts), (rights, _) = (classifiers.type_sums(v, prompt) for v in (score, right))
    return scores / counts, rights / counts


def _probes(
    x: Float[np.ndarray, "case feature"], task: ProbeTask, seed: int
) -> dict[str, Estimate]:
    """Cross-validate a probe in each arm.

    The erasures are fitted to the training cases of each fold only.
    """
    labels, types = task.label_ids, task.type_ids
    folds = probes.folds_of_cases(task, probes.FOLDS, seed)
    draw, other = (
        np.random.Generator(np.random.Philox(key=seed + one)) for one in (1, MATCHED + 1)
    )

    def shuffled(x: np.ndarray, labels: np.ndarray) -> Eraser:
        return leace(x, draw.permutation(labels))

    def matched(x: np.ndarray, labels: np.ndarray) -> Eraser:
        return _matched(x, leace(x, labels), other)

    changes = {"intact": None, "erased": leace, "placebo": shuffled, "matched": matched}
    rights = {
        name: classifiers.right(x, labels, folds, change=change).astype(float)
        for name, change in changes.items()
    }
    return {
        name: classifiers.share(right, types, n_folds=len(folds)) for name, right in rights.items()
    }


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
