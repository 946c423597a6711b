"""Effects: the result of a patching sweep, with its axes, unit, baselines and provenance.

An effect is a normalised score: (patched - unpatched) / (source - unpatched), where each term is a
mean score over prompts and the source is the run that the patched-in values come from. Its 95 %
interval is over prompts: it tells how much the effect depends on the choice of prompts, not on the
seed of the model.

The interval holds for a place that was named beforehand. The largest of many places is partly the
largest by chance, and its interval covers the truth too rarely: of 144 equal places, that of the
highest covers it in 39 % of cases with 10 prompts and in 6 % with 64 (`benchmarks/calibration.py`).
`Effects.held_out` therefore chooses places on one half of the prompts and measures them on the
other half, which covers it in 93 to 97 %.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interp import plots
from interp.components import Component, parse
from interp.errors import EffectsError
from interp.results import ABSOLUTE, Provenance, Result, TopNames, numbers, plain
from train import storage
from train.errors import nearest
from train.html_panel import ROWS, Grid, Panel, panel_of
from train.progress import count
from train.statistics import Estimate, ratio_interval


if TYPE_CHECKING:
    import pandas

__all__ = ["UNIT", "Effects"]

SCHEMA = "openbook.effects/1"
ENDS = ("clean_interval", "corrupt_interval")
TENSORS = ("values", "low", "high", "control", "part", "whole")
MOST_SAVED = 200_000  # numbers of `part` above which a file leaves it out
UNIT = "share of the clean-corrupt logit difference"


@dataclass(frozen=True, eq=False)
class Effects(Result):
    """Normalised effect of patching each component: 0 changes nothing, 1 moves the whole score.

    Values outside [0, 1] occur: patching a component can overshoot, or work in the opposite
    direction.

    Attributes:
        site: Site that was patched: a key of `components.SITES`, or "several".
        axes: Names of the axes of `values`: layer, head, neuron, pos, key or patch.
        values: Mean effects; nan for patches that were not run before Ctrl-C.
        low: Lower end of the 95 % interval over prompts; None with one prompt, or if the difference
            between clean and corrupt score cannot be told from 0 on these prompts; nan where the
            effect is the same on every prompt, or 0 on all of three or more prompts but one.
        high: Upper end of that interval.
        clean: Mean score of the clean prompts.
        corrupt: Mean score of the corrupt prompts.
        n_prompts: Number of distinct clean prompts, or of groups of them (`Behaviour.cases`).
        direction: "denoising" (corrupt prompts patched with clean values), "noising" (clean prompts
            patched with corrupt values) or "restoring in noise" (causal tracing).
        provenance: Model, behaviour and software that the effects were computed from.
        unit: Unit of the values.
        pos_labels: Tokens of the first clean prompt, if positions are an axis.
        metric: Name of the metric that was scored.
        places: Name of every patched component (or set of components), in the order of the
            flattened values; () if the names follow from the axes.
        window: Number of layers, around the named one, that were patched together.
        through: For path patching: the other end of the paths and how MLPs were treated, e.g.
            "L1H0.q, MLPs frozen". "" for ordinary activation patching.
        control: Effects of the same patches in an untrained model of this architecture, as shares
            of the trained model's clean-corrupt difference; None if not measured, see
            `interp.patching.controls`.
        notes: Remarks for the reader, e.g. components that the prompts do not vary.
        peak_bytes: Largest memory held above the weights; 0 if it was not counted.
        clean_interval: 95 % interval of `clean` over prompts; None with one prompt.
        corrupt_interval: 95 % interval of `corrupt` over prompts; None with one prompt.
        also: Effects on further metrics, measured in the same passes.
        part: Change of the score by patch and prompt, in the metric's unit, summed over the rows of
            a prompt; None in files of earlier versions and of more than 200,000 numbers.
        whole: Difference of the two unpatched scores by prompt, summed in the same way.

    Examples:
        >>> effects = patching.heads(model, ioi)
        >>> effects.axes, tuple(effects.values.shape), effects.n_prompts
        (('layer', 'head'), (2, 4), 64)
        >>> effects.top(2), round(effects["L0H1"], 1)
        ([L0H1 0.907, L0H3 0.0701], 0.9)
        >>> effects.to_frame().columns.tolist()
        ['layer', 'head', 'place', 'effect', 'low', 'high']
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "An effect shows how much of the difference between clean and corrupt score a "
        "component carries on these prompts; it does not show what the component does with "
        "what both prompts share, or what several do together."
    )

    site: str
    axes: tuple[str, ...]
    values: Float[Tensor, "*axes"]
    low: Float[Tensor, "*axes"] | None
    high: Float[Tensor, "*axes"] | None
    clean: float
    corrupt: float
    n_prompts: int
    direction: str
    provenance: Provenance
    unit: str = UNIT
    pos_labels: tuple[str, ...] = ()
    metric: str = "logit difference"
    places: tuple[str, ...] = ()
    window: int = 1
    through: str = ""
    control: Float[Tensor, "*axes"] | None = None
    notes: tuple[str, ...] = ()
    peak_bytes: int = 0
    clean_interval: tuple[float, float] | None = None
    corrupt_interval: tuple[float, float] | None = None
    also: tuple["Effects", ...] = ()
    part: Float[Tensor, "*axes prompt"] | None = None
    whole: Float[Tensor, " prompt"] | None = None

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {self[name]:.2f}" for name in self.top(3))
        sizes = zip(self.values.shape, self.axes, strict=True)
        shape = " x ".join(f"{n} {axis}" for n, axis in sizes)
        left = f", {self.unfinished} unfinished" if self.unfinished else ""
        about = f"{self.provenance.behaviour!r}, {self.site}, {shape}, n={self.n_prompts}{left}"
        return f"Effects({about}; highest {best})"

    def __getitem__(self, name: str) -> float:
        return self.values[self._index(name)].item()

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of one effect; None if there is none (see `low`).

        It holds for a place named beforehand; see `held_out` for the largest of many.
        """
        index = self._index(name)
        if self.low is None or self.high is None or self.low[index].isnan():
            return None
        return self.low[index].item(), self.high[index].item()

    @property
    def names(self) -> list[str]:
        """Names of all patched components, in the order of the flattened values."""
        return list(self.places) or [str(place) for place in self._places()]

    def top(self, k: int) -> TopNames:
        """Return the names of the k largest effects, largest first, without unfinished ones."""
        values = self.values.flatten()
        ranked = values.nan_to_num(float("-inf")).argsort(descending=True, stable=True)
        names = self.names
        found = [i for i in ranked.tolist() if not values[i].isnan()][:k]
        return TopNames([names[i] for i in found], {names[i]: values[i].item() for i in found})

    def held_out(self, k: int = 1, *, seed: int = 0) -> dict[str, Estimate]:
        """Choose the k largest effects on one half of the prompts; measure them on the other half.

        The intervals are valid although the places were chosen by their effects, because other
        prompts chose them. Runs no model.

        Args:
            k: Number of places.
            seed: Seed of the split of the prompts.

        Returns:
            Effects by name, in the order in which the choosing half ranks them.

        Raises:
            EffectsError: k is below 1, there are fewer than four prompts, the effects of single
                prompts were not kept (see `part`), or they are estimates without a sign: all
                prompts together decided the signs, so that no half is independent of the other.

        Examples:
            >>> found = patching.heads(model, ioi).held_out(2)
            >>> list(found), round(found["L0H1"].value, 1)
            (['L0H1', 'L0H3'], 0.9)
        """
        if self.part is None or self.whole is None:
            raise EffectsError(
                "these effects hold no scores of single prompts; measure them again, or sweep one "
                "half of the prompts and measure its largest places on the other half"
            )
        if ABSOLUTE in self.notes:
            raise EffectsError(
                "these estimates are absolute values whose signs all prompts decided together, so "
                "the halves are not independent; estimate with grad_drop=False, or sweep exactly"
            )
        choosing, judging = halves(len(self.whole), seed, k)
        part, whole = self.part.flatten(0, -2).double().numpy(), self.whole.double().numpy()
        ranks = part[:, choosing].sum(axis=1) / whole[choosing].sum()
        ranked = [i for i in np.argsort(-ranks, kind="stable") if not np.isnan(part[i]).any()][:k]
        bounds = ratio_interval(part[ranked][:, judging], whole[judging])
        low, high = bounds or (np.full(len(ranked), np.nan),) * 2
        total, names = whole[judging].sum(), self.names
        return {
            names[i]: Estimate(
                float(part[i, judging].sum() / total),
                None if np.isnan(start) else float(start),
                None if np.isnan(end) else float(end),
            )
            for i, start, end in zip(ranked, low, high, strict=True)
        }

    def of(self, metric: str) -> "Effects":
        """Return the effects on another metric that was measured in the same passes.

        Raises:
            EffectsError: That metric was not measured.
        """
        known = {one.metric: one for one in (self, *self.also)}
        if metric not in known:
            raise EffectsError(f"no metric {metric!r} was measured{nearest(metric, known)}")
        return known[metric]

    @property
    def unfinished(self) -> int:
        """Number of patches that were not run because of Ctrl-C."""
        return int(self.values.isnan().sum())

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per effect: axes, place, effect, low, high and any control."""
        import pandas

        # Coordinates are parsed from the names, because a sweep may skip layers or positions and
        # the indices of an axis then differ from its coordinates.
        rows = enumerate(self.names)
        columns = [[_along(axis, name, i) for axis in self.axes] for i, name in rows]
        frame = pandas.DataFrame(columns, columns=list(self.axes))
        frame["place"] = self.names
        for column, values in (("effect", self.values), ("low", self.low), ("high", self.high)):
            frame[column] = None if values is None else values.flatten().tolist()
        if self.control is not None:
            frame["control"] = self.control.flatten().tolist()
        return frame

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows: a grid over two axes, and the n largest effects."""
        grid = None
        if self.values.ndim == 2:
            grid = Grid(down(self), across(self), self.values.tolist(), self.unit)
        return panel_of(self, n, grid=grid)

    def plot(self) -> "plots.Figure":
        """Plot a heat map for two or more axes, or bars with intervals for one axis.

        Shows the first metric; use `effects.of("probability").plot()` for another one.
        `plots.write` saves the figure.
        """
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        if self.part is not None and self.part.numel() > MOST_SAVED:
            tensors |= {"part": None, "whole": None}
        return {
            "schema": SCHEMA,
            "site": self.site,
            "axes": list(self.axes),
            **{
                name: None if t is None else plain(t.tolist())
                for name, t in tensors.items()
                if t is not None or name not in ("part", "whole")
            },
            "clean": self.clean,
            "corrupt": self.corrupt,
            "n_prompts": self.n_prompts,
            "direction": self.direction,
            "provenance": asdict(self.provenance),
            "unit": self.unit,
            "pos_labels": list(self.pos_labels),
            "places": self.names,
            "metric": self.metric,
            "window": self.window,
            "through": self.through,
            "notes": list(self.notes),
            "peak_bytes": self.peak_bytes,
            **{name: list(at) if (at := getattr(self, name)) else None for name in ENDS},
            "also": [one.to_dict() for one in self.also],
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Effects":
        """Return the effects that `to_dict` turned into plain values."""
        content = {key: value for key, value in content.items() if key != "schema"}
        for name in TENSORS:
            found = content.get(name)
            content[name] = (
                None if found is None else torch.tensor(numbers(found), dtype=torch.float32)
            )
        for name in ("axes", "pos_labels", "places", "notes"):
            content[name] = tuple(content.get(name, ()))
        for name in ENDS:
            content[name] = tuple(content[name]) if content.get(name) else None
        content["provenance"] = Provenance(**content["provenance"])
        content["also"] = tuple(cls.from_dict(one) for one in content.get("also", ()))
        return cls(**content)

    def _places(self) -> Iterator[Component]:
        for index in product(*map(range, self.values.shape)):
            yield Component(self.site, **dict(zip(self.axes, index, strict=True)))

    def _index(self, name: str) -> tuple[int, ...]:
        names = self.names
        if name not in names:
            raise EffectsError(f"no effect of {name!r} was measured{nearest(name, names)}")
        flat = names.index(name)
        return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), self.values.shape))


def halves(
    n_prompts: int, seed: int, k: int = 1
) -> tuple[Int64[np.ndarray, " choosing"], Int64[np.ndarray, " judging"]]:
    """Return the prompts of two random halves: one to choose the k largest, one to measure them.

    Raises:
        EffectsError: There are fewer than four prompts, or k is below 1.
    """
    if k < 1:
        raise EffectsError(f"the first {k} of a ranking are none; choose 1 or more")
    if n_prompts < 4:
        raise EffectsError(f"{count(n_prompts, 'prompt')} cannot be halved; give at least 4")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_prompts)
    return order[: n_prompts // 2], order[n_prompts // 2 :]


def _along(axis: str, name: str, index: int) -> int | str | None:
    """Return the coordinate of a named component along an axis.

    For the axis "patch" this is its index among the patches.
    """
    if axis == "patch":
        return index
    found = getattr(parse(name), axis)
    return ",".join(map(str, found)) if isinstance(found, tuple) else found


def _figure(found: Effects) -> "plots.Figure":
    """Draw a heat map for two or more axes, or bars with intervals for one."""
    title = f"{found.provenance.behaviour}: {found.site}, {found.direction}, n={found.n_prompts}"
    if found.unfinished:
        title += f", {found.unfinished} of {count(len(found.names), 'place')} unfinished"
    if len(found.axes) == 1:
        bars = plots.bars(
            found.names,
            found.values.tolist(),
            None if found.low is None else found.low.tolist(),
            None if found.high is None else found.high.tolist(),
            title=title,
            unit=found.unit,
        )
        bars.update_xaxes(title=found.axes[0])
        return bars
    if found.axes == ("layer", "head"):
        return plots.heads(found.values, title=title, unit=found.unit)
    rows = found.values.flatten(0, -2).tolist()
    axes = ("position" if found.axes[-1] == "pos" else found.axes[-1], "layer")
    if found.values.ndim > 2:
        axes = (axes[0], "component")
    return plots.heat_map(rows, down(found), across(found), title=title, unit=found.unit, axes=axes)


def down(found: Effects) -> list[str]:
    """Return labels of the rows of a map: layers or, with three axes, components."""
    names = [name.partition("@")[0] for name in found.names[:: found.values.shape[-1]]]
    # The title or the place already names the site, so the labels keep the layer only.
    return [re.split(r"[.HN]", name)[0] for name in names] if found.values.ndim == 2 else names


def across(found: Effects) -> list[str]:
    """Return labels of the last axis: positions with their tokens, or numbers."""
    names = found.names[: found.values.shape[-1]]
    if found.axes[-1] != "pos":
        return [f"{found.axes[-1]} {i}" for i in range(len(names))]
    at = [name.rpartition("@")[2] for name in names]
    tokens = dict(enumerate(found.pos_labels))
    # The position comes first so that two equal tokens do not share a column.
    return [f"{pos} {tokens.get(int(pos), '') if pos.isdigit() else ''}".strip() for pos in at]
