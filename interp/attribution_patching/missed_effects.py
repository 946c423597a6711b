"""What places that nobody verified can hide: an upper bound on the largest of their effects.

After the diagnostic of AtP* (Kramar et al. 2024, https://arxiv.org/abs/2403.00745). Random sets of
the remaining places are patched together, exactly. Every place is in k of m sets, chosen
independently of every other place, so the others are as often in a set with it as in one without
it, and what they do cancels in expectation. With y the share that a set moved and e the sum of the
estimates of the places in it,

    d_i  =  estimate of i + mean(y - e | i in the set) - mean(y - e | i not in it)

is, whatever the estimates are, the effect of i in the company of a share p of the others; good
estimates leave less to vary. Alone it usually does more, because what comes after it in the model
hands on the same news. So there are sets of two densities, p and 3 p, and

    effect of i  =  1.5 d_i(p) - 0.5 d_i(3 p),

exactly when places interact in pairs at most. Each mean has an interval (`intervals.reach`:
Student's, corrected for skewness; where i is in few sets, the more cautious of its own spread and
that of all sets), a difference of means that of Zou & Donner 2008 (Statist. Med. 27, 1693), which
with symmetric arms is close to Welch's, the paper's. u_i is the end farther from 0. Then

    P( max |effect_i|  <=  max u_i )  >=  confidence

needs no correction for the number of places: the place with the largest effect is one place, its
own u_i holds with that probability, and the largest u_i is no smaller. It is cautious instead: with
many small places the largest u_i is mostly the luck of one of them.

Where it does not hold: many places that stand in for each other (patching any one of 100 of 300
does everything) hide one another even in sparse sets; 20 of 300 do not. `Bound.together` far from
`Bound.if_additive` tells. The prompts are taken as they are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from interp import patching
from interp.attribution_patching.estimates import ABSOLUTE, refuse_another
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, parse
from interp.errors import EffectsError
from interp.metrics import Metric
from interp.patching import Effects, PatchOptions, Provenance, engine, provenance
from interp.patching.engine import MEMORY, Progress
from interp.statistics import reach
from train import storage


__all__ = ["Bound", "missed", "sets", "upper"]

SCHEMA = "openbook.bound/1"
SHOWN = 20  # places that are named in the result
# Three sparse sets to a dense one that is three times as full: a place is in as many of either.
DENSER, DENSER_BY_ONE = 3, 4


@dataclass(frozen=True)
class Bound:
    """How large the effect of a place that was not verified can be.

    Attributes:
        value: With `confidence` no such place moves more than this, in either direction.
        confidence: Of the bound.
        interval: The same as an interval of the largest absolute effect.
        places: The 20 places with the largest bounds of their own: what to verify next.
        upper: Their bounds.
        n: Places that were not verified.
        draws: Sets that were patched.
        per_draw: Mean number of places in a set.
        n_prompts: Distinct clean prompts.
        together: Share that all n places move when they are patched together: the control.
        if_additive: Share that they would move if effects added up, from the sets; far from
            `together`, places interact and the bound is one on effects in company.
        if_additive_interval: 95 % interval of that.
        unit: Of the effects.
        provenance: What it was computed from.
    """

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

    def __str__(self) -> str:
        low, high = self.if_additive_interval
        return (
            f"with {100 * self.confidence:.0f} % confidence none of {self.n} unverified places "
            f"moves more than {self.value:.3f} (largest {self.places[0]}; {self.draws} sets of "
            f"{self.per_draw:.1f}); all together move {self.together:.3f}, and would move "
            f"{self.if_additive:.3f} [{low:.3f}, {high:.3f}] if effects added up"
        )

    def to_frame(self) -> Any:
        """A pandas row per named place: its own bound."""
        import pandas

        return pandas.DataFrame({"place": self.places, "upper": self.upper})

    def plot(self) -> Any:
        """The bounds of the named places as bars."""
        from interp import plots

        title = f"{self.provenance.behaviour}: what {self.n} unverified places can hide"
        zeros, upper = [0.0] * len(self.upper), list(self.upper)
        return plots.bars(list(self.places), upper, zeros, upper, title=title, unit=self.unit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"schema": SCHEMA, **content}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Bound":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            EffectsError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise EffectsError(f"{path}: is no {SCHEMA!r}; write it with bound.save")
        del content["digest"]
        content["provenance"] = Provenance(**content["provenance"])
        plain: dict[str, Any] = {
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
    metric: Metric | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Bound:
    """Bound the largest absolute effect among the places of an estimate that were not verified.

    Costs `draws` + 1 patches, so it is for more places than that; fewer are verified exactly at
    less cost (`estimating.verify` with `top=None`).

    Args:
        model: A hooked model.
        behaviour: Of the estimate.
        estimate: From `interp.attribution_patching.estimates`. Signed ones make the bound tighter.
        verified: Names of places whose exact effect is known, such as `agreement.places`.
        draws: Sets of places, a quarter of them dense.
        density: Share of the places that are in a sparse set; in a dense one it is three times as
            large.
        confidence: Between 0.5 and 1.
        metric: Of the estimate.
        seed: Of the sets.
        memory: Bytes above the weights.
        progress: Told how many sets are done.

    Raises:
        EffectsError: Nothing is left to bound, or the sets are too few to.
        KeyboardInterrupt: Finished sets are no random ones, so they bound nothing.
    """
    refuse_another(behaviour, estimate, metric)
    names, left = estimate.names, _unverified(estimate, verified)
    if not 0.5 < confidence < 1:
        raise EffectsError(f"a confidence of {confidence} was asked; give one in (0.5, 1)")
    inside = sets(len(left), draws, density, seed=seed)
    places = [parse(names[i]) for i in left]
    patches = [[places[i] for i in np.flatnonzero(row)] for row in (*inside, np.ones(len(left)))]
    how = PatchOptions(metric, estimate.direction, memory, progress, seed)
    moved = _moved(model, behaviour, patches, how)
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
    """Which places of an estimate are left when those of known effect are taken out."""
    known, names = set(verified), estimate.names
    left = [i for i, name in enumerate(names) if name not in known]
    if not left or len(left) != len(names) - len(known):
        raise EffectsError(
            f"{len(known)} of {len(names)} places are said to be verified, which leaves "
            f"{len(left)}; name places of the estimate, and not all of them"
        )
    return left


def _moved(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    how: PatchOptions,
) -> Float[np.ndarray, " patch"]:
    """The share that each set of places moves, patched together; all of them or none."""
    # A set without a place changes nothing and needs no run.
    run = [i for i, patch in enumerate(patches) if patch]
    runs, asked = patching.pair_runs(model, behaviour, how), [patches[i] for i in run]
    found = engine.scores(
        model,
        runs.here,
        asked,
        runs.source(model, asked),
        how.metrics(behaviour),
        shared=runs.shared,
        memory=how.memory,
        progress=how.progress,
    )
    if not found.done.all():
        raise KeyboardInterrupt
    moved = np.zeros(len(patches))
    part = found.scores[0].numpy() - runs.start[0]
    moved[run] = part.mean(axis=-1) / (runs.goal[0] - runs.start[0]).mean()
    return moved


def sets(n_places: int, draws: int, density: float, *, seed: int) -> Bool[np.ndarray, "draw place"]:
    """Random sets, three sparse ones to a dense one three times as full, the sparse ones first.

    Every place is in the same number of sets of either kind, independently of every other place.

    Raises:
        EffectsError: A place would be in fewer than 10 sets of a kind, or dense ones too dense.
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
    """Bound on the absolute effect of each place; the largest is the bound on all of them.

    Args:
        inside: From `sets`.
        moved: What each set moved.
        estimates: Anything that does not depend on the sets; zeros when there is nothing better.
        confidence: Of each place's interval, and of the largest bound for all.
    """
    n_sparse = len(moved) - len(moved) // DENSER_BY_ONE
    rest = moved - inside @ estimates
    sparse, dense = slice(0, n_sparse), slice(n_sparse, None)
    alone, below, above = _difference(inside[sparse], rest[sparse], confidence)
    crowded, crowded_below, crowded_above = _difference(inside[dense], rest[dense], confidence)
    densities = inside[sparse, 0].mean(), inside[dense, 0].mean()
    back = densities[0] / (densities[1] - densities[0])  # a half
    effect = estimates + (1 + back) * alone - back * crowded
    highest = effect + np.hypot((1 + back) * above, back * crowded_below)
    lowest = effect - np.hypot((1 + back) * below, back * crowded_above)
    return np.maximum(highest, -lowest)


def _difference(
    inside: Bool[np.ndarray, "draw place"], rest: Float[np.ndarray, " draw"], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the sets with a place minus mean of those without, and how far it may be off."""
    weights = inside.astype(np.float64)
    # Powers of what is far from 0 have no digits left for what varies.
    rest = rest - rest.mean()
    powers = np.stack([rest, rest**2, rest**3])
    n_with = int(inside[:, 0].sum())
    n_without = len(rest) - n_with
    raw = powers @ weights
    mean, second, third = _central(raw / n_with)
    other, other_second, other_third = _central(
        (powers.sum(axis=1, keepdims=True) - raw) / n_without
    )
    # The others vary alike in both, and n_with sets may by luck not show it.
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
    """How far the interval of a mean of n reaches below and above, from central moments."""
    skewness = np.divide(third, second**1.5, out=np.zeros_like(third), where=second > 0)
    return np.stack(reach(np.sqrt(second / (n - 1)), skewness, n, confidence=confidence))


def _central(
    raw: Float[np.ndarray, "3 place"],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and the second and third central moments, from the first three raw ones."""
    mean = raw[0]
    second = np.maximum(raw[1] - mean**2, 0.0)
    return mean, second, raw[2] - 3 * mean * raw[1] + 2 * mean**3


def _if_additive(
    inside: Bool[np.ndarray, "draw place"], moved: Float[np.ndarray, " draw"]
) -> tuple[float, tuple[float, float]]:
    """What all places would move together: what a set moves by the share of the places in it."""
    share = inside.mean(axis=1)
    each = moved.mean() / share.mean()
    spread = moved - each * share
    half = 1.96 * spread.std(ddof=1) / np.sqrt(len(moved)) / share.mean()
    return float(each), (float(each - half), float(each + half))
