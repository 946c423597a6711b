"""Missed effects: an upper bound on the largest effect among components that were not verified.

The method extends the diagnostic of AtP* (Kramar et al. 2024, https://arxiv.org/abs/2403.00745).
Random sets of the remaining components are patched together, exactly. Every component is in k of
the m sets, chosen independently of the other components. The others are therefore equally likely to
be in a set with component i as in a set without it, and their effects cancel in expectation. Let y
be the effect of patching a set and e the sum of the estimates of its components. Then

    d_i  =  estimate of i + mean(y - e | i in the set) - mean(y - e | i not in it)

is, for any estimates, the expected effect of i if a share p of the others is patched as well; good
estimates only reduce the variance. Patched alone, i usually has a larger effect, because later
components in the same set pass on the same information. So sets of two densities are drawn, p and
3 p, and extrapolated to density 0:

    effect of i  =  1.5 d_i(p) - 0.5 d_i(3 p).

This is exact if components interact at most in pairs. Each mean has an interval
(`train.statistics.reach`: Student's t, corrected for skewness; since i may be in few sets, the
spread of its own sets or of all sets is used, whichever is wider). The interval of a difference of
means is that of Zou & Donner 2008 (Statist. Med. 27, 1693), which for symmetric intervals is close
to Welch's, used in the paper. Let u_i be the absolute value of the end of i's interval that is
farther from 0. Then

    P( max |effect_i|  <=  max u_i )  >=  confidence

needs no correction for the number of components: the component with the largest effect is a single
component, its own u_i is a bound with that probability, and max u_i is not smaller. The price is
that the bound is conservative: with many small effects, max u_i is mostly noise of one component.

The bound fails if many components are redundant. If patching any one of 100 out of 300 components
has the full effect, they hide each other even in sparse sets; 20 out of 300 do not. A large
difference between `Bound.together` and `Bound.if_additive` reveals such cases. The bound holds for
the given prompts; it does not include sampling of prompts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from interp import plots
from interp.attribution_patching.estimates import refuse_another
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, parse
from interp.errors import EffectsError
from interp.metrics import MetricLike
from interp.patching import Effects, PairedRuns
from interp.patching.engine import MEMORY
from interp.results import ABSOLUTE, Provenance, Result, provenance
from train import progress as bars
from train import storage
from train.progress import Progress
from train.short_repr import short_repr
from train.statistics import reach


if TYPE_CHECKING:
    import pandas

__all__ = ["Bound", "missed", "sets", "upper"]

SCHEMA = "openbook.bound/1"
SHOWN = 20  # number of components named in the result
# There are three sparse sets for each dense set, which has three times the density, so a component
# is in as many sparse sets as dense ones.
DENSER, DENSER_BY_ONE = 3, 4


@dataclass(frozen=True)
class Bound(Result):
    """Upper bound on the absolute effects of components that were not verified.

    Attributes:
        value: The bound: with probability `confidence`, no such component has a larger absolute
            effect.
        confidence: Confidence of the bound.
        interval: The bound as an interval of the largest absolute effect, (0, `value`).
        places: Names of the 20 components with the largest bounds of their own, which are the ones
            to verify next.
        upper: Bounds of those components.
        n: Number of components that were not verified.
        draws: Number of random sets that were patched.
        per_draw: Mean number of components in a set.
        n_prompts: Number of distinct clean prompts.
        together: Effect of patching all n components together: the control.
        if_additive: Effect that all n would have if effects were additive, estimated from the sets.
            If it is far from `together`, components interact, and the bound is on their effects
            when others are patched as well.
        if_additive_interval: 95 % interval of `if_additive`.
        unit: Unit of the effects.
        provenance: Model, behaviour and software that the result was computed from.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A bound shows how large an effect the estimates can have missed; it does not show "
        "that one of that size exists, and holds for effects in company where components "
        "interact."
    )

    value: float
    confidence: float
    interval: tuple[float, float]
    places: tuple[str, ...]
    upper: tuple[float, ...]
    n: int
    draws: int
    per_draw: float
    n_prompts: int
    together: float
    if_additive: float
    if_additive_interval: tuple[float, float]
    unit: str
    provenance: Provenance

    __repr__ = short_repr

    def __str__(self) -> str:
        low, high = self.if_additive_interval
        return (
            f"with {100 * self.confidence:.0f} % confidence none of {self.n} unverified places "
            f"moves more than {self.value:.3f} (largest {self.places[0]}; {self.draws} sets of "
            f"{self.per_draw:.1f}); all together move {self.together:.3f}, and would move "
            f"{self.if_additive:.3f} [{low:.3f}, {high:.3f}] if effects added up"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per named component, with its own bound."""
        import pandas

        return pandas.DataFrame({"place": self.places, "upper": self.upper})

    def plot(self) -> "plots.Figure":
        """Plot the bounds of the named components as bars."""
        title = f"{self.provenance.behaviour}: what {self.n} unverified places can hide"
        zeros, upper = [0.0] * len(self.upper), list(self.upper)
        return plots.bars(list(self.places), upper, zeros, upper, title=title, unit=self.unit)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"schema": SCHEMA, **content}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Bound":
        """Return the result that `to_dict` turned into plain values."""
        content["provenance"] = Provenance(**content["provenance"])
        plain: storage.JsonObject = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
        }
        return cls(**plain)


def missed(
    model: HookedModel,
    behaviour: Behaviour,
    estimate: Effects,
    *,
    verified: Sequence[str] = (),
    draws: int = 800,
    density: float = 0.04,
    confidence: float = 0.95,
    metric: MetricLike = None,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Bound:
    """Bound the largest absolute effect among the components of an estimate not yet verified.

    Costs `draws` + 1 patches, so it is meant for more components than that. Fewer are cheaper to
    verify exactly, with `interp.attribution_patching.verify` and `top=None`.

    Args:
        model: A hooked model.
        behaviour: The behaviour of the estimate.
        estimate: Effects from `interp.attribution_patching.estimates`. Signed estimates make the
            bound tighter; absolute ones are not used.
        verified: Names of components whose exact effect is known, such as `agreement.places`.
        draws: Number of random sets; a quarter of them are dense.
        density: Share of the components in a sparse set; a dense set has three times that share.
        confidence: Confidence of the bound, between 0.5 and 1.
        metric: The metric of the estimate; None for the logit difference.
        seed: Seed of the random sets.
        memory: Bytes that may be used above the weights.
        progress: Function that is told how many sets are done.

    Raises:
        EffectsError: No component is left to bound, there are too few sets, a set would be too
            dense, the confidence is out of range, or the estimate is of another behaviour or
            metric.
        KeyboardInterrupt: Ctrl-C was pressed. No partial result is returned, because the finished
            sets are not a random sample and give no bound.
    """
    refuse_another(behaviour, estimate, metric)
    names, left = estimate.names, _unverified(estimate, verified)
    if not 0.5 < confidence < 1:
        raise EffectsError(f"a confidence of {confidence} was asked; give one in (0.5, 1)")
    inside = sets(len(left), draws, density, seed=seed)
    places = [parse(names[i]) for i in left]
    patches = [[places[i] for i in np.flatnonzero(row)] for row in (*inside, np.ones(len(left)))]
    runs = PairedRuns.of(
        model,
        behaviour,
        metric=metric,
        direction=estimate.direction,
        memory=memory,
        progress=progress,
        seed=seed,
    )
    moved = _moved(runs, patches)
    guess = estimate.values.flatten().double().numpy()[left]
    guess = np.zeros_like(guess) if ABSOLUTE in estimate.notes else guess
    above = upper(inside, moved[:-1], guess, confidence=confidence)
    order = np.argsort(-above, kind="stable")[:SHOWN]
    total, ends = _if_additive(inside, moved[:-1])
    return Bound(
        value=float(above.max()),
        confidence=confidence,
        interval=(0.0, float(above.max())),
        places=tuple(names[left[i]] for i in order),
        upper=tuple(above[order].tolist()),
        n=len(left),
        draws=draws,
        per_draw=float(inside.sum(axis=1).mean()),
        n_prompts=estimate.n_prompts,
        together=float(moved[-1]),
        if_additive=total,
        if_additive_interval=ends,
        unit=estimate.unit,
        provenance=provenance(model, behaviour, seed=seed),
    )


def _unverified(estimate: Effects, verified: Sequence[str]) -> list[int]:
    """Return the indices of the components whose effect is not known."""
    known, names = {verified} if isinstance(verified, str) else set(verified), estimate.names
    left = [i for i, name in enumerate(names) if name not in known]
    if not left or len(left) != len(names) - len(known):
        raise EffectsError(
            f"{len(known)} of {len(names)} places are said to be verified, which leaves "
            f"{len(left)}; name places of the estimate, and not all of them"
        )
    return left


def _moved(runs: PairedRuns, patches: Sequence[Sequence[Component]]) -> Float[np.ndarray, " patch"]:
    """Return the effect of patching each set of components; raise KeyboardInterrupt on Ctrl-C."""
    # An empty set changes nothing and is not run.
    run = [i for i, patch in enumerate(patches) if patch]
    with bars.shown(runs.behaviour.name, runs.progress) as told:
        found = runs.patching([patches[i] for i in run])(progress=told)
    if not found.done.all():
        raise KeyboardInterrupt
    moved = np.zeros(len(patches))
    part = found.scores[0].numpy() - runs.start[0]
    moved[run] = part.mean(axis=-1) / (runs.goal[0] - runs.start[0]).mean()
    return moved


def sets(n_places: int, draws: int, density: float, *, seed: int) -> Bool[np.ndarray, "draw place"]:
    """Draw random sets of components, first three quarters sparse ones, then a quarter dense ones.

    Dense sets have three times the density. Every component is in k sparse and in k dense sets,
    chosen independently of the other components.

    Raises:
        EffectsError: A component would be in fewer than 10 sets of a kind, or the dense sets would
            contain more than half of the components.

    Examples:
        >>> inside = attribution_patching.sets(500, 800, 0.04, seed=0)
        >>> inside.shape
        (800, 500)
        >>> [round(part.mean().item(), 2) for part in (inside[:600], inside[600:])]
        [0.04, 0.12]
    """
    n_dense = draws // DENSER_BY_ONE
    k = round(density * (draws - n_dense))
    if k < 10 or DENSER * density > 0.5:
        raise EffectsError(
            f"{draws} sets of a share of {density:g} put a place into {k} sparse ones; 10 are the "
            f"least, and a share of {0.5 / DENSER:.3f} the most: draw more"
        )
    generator = np.random.Generator(np.random.Philox(key=seed))
    inside = []
    for n in (draws - n_dense, n_dense):
        kind = np.zeros((n, n_places), dtype=bool)
        kind[:k] = True
        inside.append(generator.permuted(kind, axis=0))
    return np.concatenate(inside)


def upper(
    inside: Bool[np.ndarray, "draw place"],
    moved: Float[np.ndarray, " draw"],
    estimates: Float[np.ndarray, " place"],
    *,
    confidence: float = 0.95,
) -> Float[np.ndarray, " place"]:
    """Bound the absolute effect of each component; the largest bound holds for all of them.

    Args:
        inside: Membership of components in sets, from `sets`.
        moved: Effect of each set.
        estimates: Estimated effects, which must not depend on the sets; zeros if there are none.
        confidence: Confidence of each component's interval, and of the largest bound for all.

    Examples:
        >>> inside = attribution_patching.sets(100, 400, 0.1, seed=0)
        >>> effects = np.where(np.arange(100) == 7, 1.0, 0.0)
        >>> bounds = attribution_patching.upper(inside, inside @ effects, np.zeros(100))
        >>> int(bounds.argmax()), bool(bounds.max() >= 1)
        (7, True)
    """
    n_sparse = len(moved) - len(moved) // DENSER_BY_ONE
    rest = moved - inside @ estimates
    sparse, dense = slice(0, n_sparse), slice(n_sparse, None)
    alone, below, above = _difference(inside[sparse], rest[sparse], confidence)
    crowded, crowded_below, crowded_above = _difference(inside[dense], rest[dense], confidence)
    densities = inside[sparse, 0].mean(), inside[dense, 0].mean()
    # Linear extrapolation of d_i to density 0: d(p) + back * (d(p) - d(3 p)), back = p / (3 p - p).
    back = densities[0] / (densities[1] - densities[0])
    effect = estimates + (1 + back) * alone - back * crowded
    highest = effect + np.hypot((1 + back) * above, back * crowded_below)
    lowest = effect - np.hypot((1 + back) * below, back * crowded_above)
    return np.maximum(highest, -lowest)


def _difference(
    inside: Bool[np.ndarray, "draw place"], rest: Float[np.ndarray, " draw"], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return, per component, the mean over sets with it minus the mean over sets without it.

    Also return how far the interval of that difference reaches below and above it. The ends of the
    interval combine those of the two means in quadrature (Zou & Donner): the lower end is
    difference - sqrt(below(with)^2 + above(without)^2).
    """
    weights = inside.astype(np.float64)
    # Centred first: powers of values far from 0 would lose the digits in which the values differ.
    rest = rest - rest.mean()
    powers = np.stack([rest, rest**2, rest**3])
    n_with = int(inside[:, 0].sum())
    n_without = len(rest) - n_with
    raw = powers @ weights
    mean, second, third = _central(raw / n_with)
    other, other_second, other_third = _central(
        (powers.sum(axis=1, keepdims=True) - raw) / n_without
    )
    # The other components vary alike in both groups of sets, but the few sets with i may by chance
    # show little of that. So the wider of i's own interval and that from pooled moments is taken.
    share = n_with / len(rest)
    pooled = [
        share * one + (1 - share) * two
        for one, two in ((second, other_second), (third, other_third))
    ]
    below, above = np.maximum(
        _arms(second, third, n_with, confidence), _arms(pooled[0], pooled[1], n_with, confidence)
    )
    other_below, other_above = _arms(other_second, other_third, n_without, confidence)
    return mean - other, np.hypot(below, other_above), np.hypot(above, other_below)


def _arms(
    second: NDArray[np.float64], third: NDArray[np.float64], n: int, confidence: float
) -> NDArray[np.float64]:
    """Return how far the interval of a mean of n values reaches below and above, from moments."""
    skewness = np.divide(third, second**1.5, out=np.zeros_like(third), where=second > 0)
    return np.stack(reach(np.sqrt(second / (n - 1)), skewness, n, confidence=confidence))


def _central(
    raw: Float[np.ndarray, "3 place"],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the second and third central moments, from the first three raw moments.

    With raw moments m1, m2, m3: m2 - m1^2 and m3 - 3 m1 m2 + 2 m1^3.
    """
    mean = raw[0]
    second = np.maximum(raw[1] - mean**2, 0.0)
    return mean, second, raw[2] - 3 * mean * raw[1] + 2 * mean**3


def _if_additive(
    inside: Bool[np.ndarray, "draw place"], moved: Float[np.ndarray, " draw"]
) -> tuple[float, tuple[float, float]]:
    """Estimate the effect of all components together if effects were additive, and its interval.

    The estimate is mean(effect of a set) / mean(share of the components in a set).
    """
    share = inside.mean(axis=1)
    each = moved.mean() / share.mean()
    spread = moved - each * share
    half = 1.96 * spread.std(ddof=1) / np.sqrt(len(moved)) / share.mean()
    return float(each), (float(each - half), float(each + half))
