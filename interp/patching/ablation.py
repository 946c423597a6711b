"""Ablation: change of a behaviour's score when components are removed, on the clean prompts.

A removed component is replaced by a stand-in, and the stand-in decides which question is answered
(all four as in Zhang & Nanda 2023 and Conmy et al. 2023, https://arxiv.org/abs/2304.14997):

    zero       zeros: far from anything the model has seen, but the only one that needs no other
               prompts
    mean       its mean over the prompts, position by position: its average contribution is kept
    resample   its value on another prompt of the behaviour, drawn at random; averaged over draws
    corrupt    its value on the paired corrupt prompt: the same as noising (`interp.patching`)

The change is in the unit of the score: per prompt the ablated minus the intact score, with an
interval over prompts. The column `share` of `to_frame` divides it by the intact score.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import behaviours, metrics, plots
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of, parse_all
from interp.errors import BehaviourError, EffectsError, ModelError
from interp.metrics import Metric, MetricLike
from interp.patching import contrast_check, engine, paired_runs
from interp.patching.effects import halves
from interp.patching.engine import MEMORY, Patched
from interp.results import Provenance, Result, TopNames, provenance
from train import storage
from train.errors import nearest
from train.html_panel import ROWS, Panel, panel_of
from train.progress import Progress, count, shown
from train.short_repr import short_repr
from train.statistics import Estimate, mean_interval


if TYPE_CHECKING:
    import pandas

__all__ = ["STANDINS", "Ablation", "ablate", "every_component"]

SCHEMA = "openbook.ablation/1"
STANDINS = ("zero", "mean", "resample", "corrupt")


@dataclass(frozen=True, eq=False)
class Ablation(Result):
    """Change of the score for each set of components that is removed together.

    Attributes:
        names: Name of every set, e.g. "L0H2 + L1.mlp".
        change: Mean over prompts of ablated minus intact score.
        low: Lower end of the 95 % interval of `change` over prompts; nan with one prompt.
        high: Upper end of that interval.
        per_prompt: Change on every distinct prompt, in order of first appearance.
        intact: Mean score of the unchanged model.
        accuracy: Share of prompts on which the answer still beats its foil, per set.
        intact_accuracy: That share for the unchanged model.
        n_prompts: Number of distinct prompts, or of groups of them (`Behaviour.cases`).
        standin: Stand-in for the removed components: zero, mean, resample or corrupt.
        draws: Number of finished draws when resampling; 1 otherwise.
        metric: Name of the metric that was scored.
        unit: Unit of the score.
        provenance: Model, behaviour and software that the result was computed from.
        notes: Remark on sets whose stand-in equals their own value, so that no change can show.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "An ablation shows how much the score falls when a stand-in replaces a component; it "
        "does not show what the component computes, and no fall may mean that others take "
        "over."
    )

    names: tuple[str, ...]
    change: Float[np.ndarray, " patch"]
    low: Float[np.ndarray, " patch"]
    high: Float[np.ndarray, " patch"]
    per_prompt: Float[np.ndarray, "patch prompt"]
    intact: float
    accuracy: Float[np.ndarray, " patch"]
    intact_accuracy: float
    n_prompts: int
    standin: str
    draws: int
    metric: str
    unit: str
    provenance: Provenance
    notes: tuple[str, ...] = ()

    __repr__ = short_repr

    def __str__(self) -> str:
        lowest = ", ".join(f"{name} {self[name]:+.2f}" for name in self.top(3))
        sets = count(len(self.names), f"set by {self.standin}", f"sets by {self.standin}")
        about = f"{self.provenance.behaviour!r}, {sets}, n={self.n_prompts}"
        return f"{about}; intact {self.intact:.2f}, lowest {lowest}"

    def __getitem__(self, name: str) -> float:
        return float(self.change[self._index(name)])

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of one change; None with one prompt.

        It holds for a set named beforehand; see `held_out` for the largest of many.
        """
        at = self._index(name)
        if np.isnan(self.low[at]):
            return None
        return float(self.low[at]), float(self.high[at])

    def top(self, k: int) -> TopNames:
        """Return the names of the k sets whose removal lowers the score most."""
        order = np.argsort(np.nan_to_num(self.change, nan=np.inf), kind="stable")
        found = [i for i in order if not np.isnan(self.change[i])][:k]
        names = [self.names[i] for i in found]
        return TopNames(names, {self.names[i]: float(self.change[i]) for i in found})

    def held_out(self, k: int = 1, *, seed: int = 0) -> dict[str, Estimate]:
        """Choose the k lowest changes on one half of the prompts; measure them on the other half.

        The intervals are valid although the sets were chosen by their changes, because other
        prompts chose them. Only the stand-ins `mean` and `resample` come from all prompts. Runs no
        model.

        Args:
            k: Number of sets.
            seed: Seed of the split of the prompts.

        Returns:
            Changes by name, in the order in which the choosing half ranks them.

        Raises:
            EffectsError: k is below 1, or there are fewer than four prompts.

        Examples:
            >>> found = patching.ablate(model, ioi).held_out(2)
            >>> list(found), found["L0H1"].value < -5
            (['L0H1', 'L0.mlp'], True)
        """
        choosing, judging = halves(self.n_prompts, seed, k)
        chosen_by = self.per_prompt[:, choosing].mean(axis=1)
        ranked = [i for i in np.argsort(chosen_by, kind="stable") if not np.isnan(chosen_by[i])]
        return {
            self.names[i]: Estimate(
                float(self.per_prompt[i, judging].mean()),
                *(mean_interval(self.per_prompt[i, judging]) or (None, None)),
            )
            for i in ranked[:k]
        }

    @property
    def unfinished(self) -> int:
        """Number of sets that were not measured because of Ctrl-C."""
        return int(np.isnan(self.change).sum())

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per set: change, low, high, share, accuracy and n."""
        import pandas

        return pandas.DataFrame(
            {
                "ablated": self.names,
                "change": self.change,
                "low": self.low,
                "high": self.high,
                "share": self.change / self.intact,
                "accuracy": self.accuracy,
                "n": self.n_prompts,
            }
        )

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows: the n sets whose removal lowers the score most."""
        return panel_of(self, n, frame=self.to_frame().sort_values("change"))

    def plot(self) -> "plots.Figure":
        """Plot bars with intervals of the 40 sets whose removal lowers the score most."""
        rows = [self.names.index(name) for name in self.top(40)]
        return plots.bars(
            [self.names[i] for i in rows],
            *(column[rows].tolist() for column in (self.change, self.low, self.high)),
            title=f"{self.provenance.behaviour}: {self.standin} ablation",
            unit=f"change of the {self.metric}",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        arrays = {key: _plain(x) for key, x in content.items() if isinstance(x, np.ndarray)}
        lists = {key: list(content[key]) for key in ("names", "notes")}
        return {
            **content,
            **arrays,
            **lists,
            "schema": SCHEMA,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Ablation":
        """Return the result that `to_dict` turned into plain values."""
        for key in ("change", "low", "high", "per_prompt", "accuracy"):
            content[key] = np.array(content[key], dtype=np.float64)
        for key in ("names", "notes"):
            content[key] = tuple(content[key])
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise EffectsError(f"{name!r} was not ablated{nearest(name, self.names)}")
        return self.names.index(name)


def every_component(model: HookedModel) -> list[Component]:
    """Return every head and every MLP, layer by layer.

    Examples:
        >>> [str(place) for place in patching.every_component(model)[:5]]
        ['L0H0', 'L0H1', 'L0H2', 'L0H3', 'L0.mlp']
    """
    return [
        place
        for layer in range(model.cfg.n_layers)
        for place in (
            *(Component("head", layer, head=head) for head in range(model.cfg.n_heads)),
            Component("mlp", layer),
        )
    ]


@torch.inference_mode()
def ablate(
    model: HookedModel,
    behaviour: Behaviour,
    sets: Sequence[Sequence[Component | str] | Component | str] | Component | str | None = None,
    *,
    standin: str = "mean",
    draws: int = 10,
    metric: MetricLike = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ablation:
    """Remove sets of components, each set at once, and score the behaviour's clean prompts.

    Costs one patch per set, times `draws` when resampling.

    Args:
        model: A hooked model.
        behaviour: The behaviour to score. Its corrupt prompts are used only with "corrupt".
        sets: Sets of components, such as ["L0H2", ["L1.mlp", "L1H0@3"]]; a name on its own is a set
            of one, as "L0H2" is. None for every head and every MLP on its own.
        standin: "zero", "mean", "resample" or "corrupt".
        draws: Number of draws when resampling; changes are averaged over them.
        metric: Metric to score, as an object, a name or a function of the behaviour; None for the
            logit difference.
        memory: Bytes that may be used above the weights.
        seed: Seed of resampling.
        progress: Function that is told how many sets are done.

    Raises:
        CapabilityError: The model does not do the behaviour.
        BehaviourError: The stand-in is unknown, or "mean" or "resample" was chosen with only one
            distinct prompt.
        ModelError: A component does not exist in the model, or there are no sets or no draws.

    Examples:
        >>> ablation = patching.ablate(model, ioi, ["L0H1", ["L0H1", "L1.mlp"]])
        >>> ablation.names
        ('L0H1', 'L0H1 + L1.mlp')
        >>> (ablation.change < 0).tolist(), ablation.unit
        ([True, True], 'nats of log-odds')
    """
    paired_runs.one_of("stand-in", standin, STANDINS)
    given = every_component(model) if sets is None else sets
    given = [given] if isinstance(given, Component | str) else given
    places = [parse_all(each) for each in given]
    if not places or draws < 1:
        raise ModelError(f"{len(places)} sets of components and {draws} draws ablate nothing")
    engine.refuse_unknown(model, places, behaviour.n_pos)
    behaviours.check(model, behaviour)
    n_distinct = max(behaviour.distinct) + 1
    if standin in ("mean", "resample") and n_distinct < 2:
        raise BehaviourError(
            f"behaviour {behaviour.name!r} has {n_distinct} prompt: another one to take the "
            f"{standin} from is needed, or standin 'zero'"
        )
    clean = behaviour.clean.to(device_of(model))
    read = metrics.resolve(metric, behaviour)
    read_all = [read, metrics.logit_difference(behaviour)]
    values = _values(model, behaviour, places, corrupt=standin == "corrupt")
    draws = draws if standin == "resample" else 1
    found: list[Patched] = []
    with shown(f"{standin} ablation of {behaviour.name}", progress) as told:
        for draw in range(draws):
            source = _source(values, behaviour, standin, seed * draws + draw)
            one = engine.scores(
                model, clean, places, source, read_all, memory=memory, progress=told
            )
            found.append(one)
            if not one.done.all():
                break
    return _ablation(model, behaviour, (places, standin, seed), engine.averaged(found), read)


def _values(
    model: HookedModel, behaviour: Behaviour, sets: Sequence[Sequence[Component]], *, corrupt: bool
) -> dict[str, Tensor]:
    """Return the activations of the components, on the clean or on the corrupt prompts."""
    tokens = (behaviour.corrupt if corrupt else behaviour.clean).to(device_of(model))
    found = engine.source_of(model, tokens, sets)(slice(None))
    return {place.hook: found[place.hook] for places in sets for place in places}


def _source(
    values: dict[str, Tensor], behaviour: Behaviour, standin: str, seed: int
) -> dict[str, Tensor]:
    """Return the stand-in values, by hook name."""
    if standin == "zero":
        return {name: torch.zeros_like(value) for name, value in values.items()}
    if standin == "corrupt":
        return values
    # A prompt with several foils has several rows and counts once.
    row = torch.tensor(behaviour.distinct)
    first = torch.stack([(row == kind).nonzero()[0, 0] for kind in range(int(row.max()) + 1)])
    if standin == "mean":
        return {
            name: value[first].mean(dim=0, keepdim=True).expand_as(value)
            for name, value in values.items()
        }
    generator = np.random.Generator(np.random.Philox(key=seed))
    # Offsets start at 1, so that a prompt is never replaced by itself.
    other = torch.from_numpy(generator.integers(1, len(first), size=len(row)))
    chosen = first[(row + other) % len(first)]
    return {name: value[chosen] for name, value in values.items()}


def _ablation(
    model: HookedModel,
    behaviour: Behaviour,
    asked: tuple[Sequence[Sequence[Component]], str, int],
    averaged: tuple[Patched, int],
    metric: Metric,
) -> Ablation:
    (sets, standin, seed), (found, draws) = asked, averaged
    scores, start = found.scores[0].numpy(), found.start[0].numpy()
    # Accuracy is defined by the sign of the logit difference (the last metric), whatever metric is
    # scored.
    right = np.where(np.isnan(scores), np.nan, found.scores[-1].numpy() > 0)
    kinds = np.arange(max(behaviour.cases) + 1)
    each = np.array(behaviour.cases)[None] == kinds[:, None]
    average = each / each.sum(axis=1, keepdims=True)
    change = (scores - start) @ average.T
    bounds = [mean_interval(one) or (float("nan"),) * 2 for one in change]
    names = tuple(" + ".join(map(str, one)) for one in sets)
    still = contrast_check.unmoved(names, found.moved.masked_fill(~found.done, float("inf")))
    said = f"{len(still)} of {len(names)} sets hold what stands in for them: no change shows"
    return Ablation(
        names=names,
        change=change.mean(axis=1),
        low=np.array([low for low, _ in bounds]),
        high=np.array([high for _, high in bounds]),
        per_prompt=change,
        intact=float((start @ average.T).mean()),
        accuracy=(right @ average.T).mean(axis=1),
        intact_accuracy=float(((found.start[-1].numpy() > 0) @ average.T).mean()),
        n_prompts=len(kinds),
        standin=standin,
        draws=draws,
        metric=metric.name,
        unit=metric.unit,
        provenance=provenance(model, behaviour, seed=seed),
        notes=(said,) if still else (),
    )


def _plain(values: Float[np.ndarray, "*axes"]) -> object:
    """Convert an array to nested lists with None for nan, because JSON has no nan."""
    whole = values.astype(object)
    whole[np.isnan(values)] = None
    return whole.tolist()
