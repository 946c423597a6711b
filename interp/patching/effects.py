"""Result of an intervention: numbers that remember their axes, unit, baselines and provenance.

An effect is a share: what patching one place moved, over the whole distance between the clean and
the corrupt score. Its interval is over prompts, so it says how much the *prompts* matter, not how
much the seed of the model does.
"""

import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of, parse
from interp.errors import EffectsError
from train import storage
from train.errors import nearest


__all__ = ["UNIT", "Effects", "Provenance", "provenance"]

SCHEMA = "openbook.effects/1"
ENDS = ("clean_interval", "corrupt_interval")
TENSORS = ("values", "low", "high", "control")
UNIT = "share of the clean-corrupt logit difference"


@dataclass(frozen=True)
class Provenance:
    """What a result was computed from. `knowledge` says how much is known of the training.

    Attributes:
        run_id: Of the run, or the folder of an import; "" for a model that was built by hand.
        checkpoint_sha256: Of the weights file.
        step: Of the checkpoint.
        behaviour: Its name.
        behaviour_sha256: Its prompts, answers and foils.
        knowledge: full, data-known, weights-only or unknown.
        versions: Of the software.
        seed: Of whatever was drawn: noise, resampling, folds; 0 where nothing was.
        precision: Of the weights.
        device: Where it was computed.
    """

    run_id: str
    checkpoint_sha256: str
    step: int | None
    behaviour: str
    behaviour_sha256: str
    knowledge: str
    versions: dict[str, str]
    seed: int
    precision: str
    device: str


def provenance(
    model: HookedModel, behaviour: Behaviour | None = None, *, seed: int = 0
) -> Provenance:
    """The provenance of something computed now from a model, and a behaviour when there is one."""
    origin = getattr(model, "origin", None)
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return Provenance(
        run_id=getattr(origin, "run_id", ""),
        checkpoint_sha256=getattr(origin, "checkpoint_sha256", ""),
        step=getattr(origin, "step", None),
        behaviour="" if behaviour is None else behaviour.name,
        behaviour_sha256="" if behaviour is None else behaviour.sha256,
        knowledge=getattr(origin, "knowledge", "unknown"),
        versions=_versions(),
        seed=seed,
        precision=str(torch.float32 if weights is None else weights.dtype).removeprefix("torch."),
        device=str(device_of(model)),
    )


@dataclass(frozen=True, eq=False)
class Effects:
    """How far patching each place moved the behaviour: 0 not at all, 1 all the way.

    Values outside [0, 1] are real: a place can overshoot, or work against the behaviour.

    Attributes:
        site: What was patched: a key of `components.SITES`, or "several".
        axes: Names of the axes of `values`: layer, head, neuron, pos, key, receiver or patch.
        values: Mean effects; nan where Ctrl-C came first.
        low: Lower end of the 95 % interval over prompts; None with one prompt, or when the clean
            and the corrupt score cannot be told apart on so few.
        high: Upper end.
        clean: Mean score of the clean prompts.
        corrupt: Mean score of the corrupt prompts.
        n_prompts: Distinct clean prompts.
        direction: "denoising" (corrupt prompts patched with clean values) or "noising".
        provenance: What it was computed from.
        unit: Of the values.
        pos_labels: The tokens of the first clean prompt, when positions are an axis.
        metric: What was scored.
        places: Name of every place, in the order of the flattened values; () when the axes say it.
        window: So many layers around the named one were patched together.
        through: Of paths, what hears the places, such as "L1H0.q, MLPs frozen"; "" for patches.
        control: The same patches in an untrained model of this architecture, as shares of the
            trained model's difference; None where nobody asked, see `interp.patching.controls`.
        notes: What the reader must know, such as places that the contrast does not vary.
        peak_bytes: Most memory that was held above the weights; 0 where nobody counted.
        clean_interval: Of `clean`, 95 % over prompts; None with one prompt.
        corrupt_interval: Of `corrupt`.
        also: The same for further metrics, measured in the same passes.
    """

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
        """The 95 % interval of one place; None when there was one prompt."""
        index = self._index(name)
        if self.low is None or self.high is None:
            return None
        return self.low[index].item(), self.high[index].item()

    @property
    def names(self) -> list[str]:
        """Every place, in the order of the flattened values."""
        return list(self.places) or [str(place) for place in self._places()]

    def top(self, k: int) -> list[str]:
        """Names of the k places with the largest effects, largest first; unfinished ones never."""
        values = self.values.flatten()
        ranked = values.nan_to_num(float("-inf")).argsort(descending=True, stable=True)
        names = self.names
        return [names[i] for i in ranked.tolist() if not values[i].isnan()][:k]

    def of(self, metric: str) -> "Effects":
        """The effects on another metric that was measured along.

        Raises:
            EffectsError: It was not.
        """
        known = {one.metric: one for one in (self, *self.also)}
        if metric not in known:
            raise EffectsError(f"no metric {metric!r} was measured{nearest(metric, known)}")
        return known[metric]

    @property
    def unfinished(self) -> int:
        """How many places were not measured, after Ctrl-C."""
        return int(self.values.isnan().sum())

    def to_frame(self) -> Any:
        """A pandas row per place: axes, place, effect, low and high."""
        import pandas

        # What the axes hold and not their indices: a sweep may visit some layers or positions only.
        rows = enumerate(self.names)
        columns = [[_along(axis, name, i) for axis in self.axes] for i, name in rows]
        frame = pandas.DataFrame(columns, columns=list(self.axes))
        frame["place"] = self.names
        for column, values in (("effect", self.values), ("low", self.low), ("high", self.high)):
            frame[column] = None if values is None else values.flatten().tolist()
        if self.control is not None:
            frame["control"] = self.control.flatten().tolist()
        return frame

    def plot(self) -> Any:
        """A heat map over two axes, bars with intervals over one; `plots.write` keeps it.

        Of the first metric; `effects.of("probability").plot()` of another.
        """
        return _figure(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return {
            "schema": SCHEMA,
            "site": self.site,
            "axes": list(self.axes),
            **{name: None if t is None else _plain(t.tolist()) for name, t in tensors.items()},
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

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` and every later command accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Effects":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            EffectsError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.get("schema") != SCHEMA:
            raise EffectsError(f"{path}: is no {SCHEMA!r}; write it with effects.save")
        del content["digest"]
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Effects":
        """The inverse of `to_dict`."""
        content = {key: value for key, value in content.items() if key != "schema"}
        for name in TENSORS:
            found = content.get(name)
            content[name] = None if found is None else torch.tensor(_numbers(found))
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


def _along(axis: str, name: str, index: int) -> int | str | None:
    """What a place has along an axis; its number among the patches where that is the axis."""
    if axis == "patch":
        return index
    found = getattr(parse(name), axis)
    return ",".join(map(str, found)) if isinstance(found, tuple) else found


def _plain(values: Any) -> Any:
    """Nested lists in which nan is None: JSON has no nan."""
    if isinstance(values, list):
        return [_plain(one) for one in values]
    return None if values != values else values


def _numbers(values: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(values, list):
        return [_numbers(one) for one in values]
    return float("nan") if values is None else values


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    try:
        found["openbook"] = version("openbook")
    except PackageNotFoundError:  # run from a folder that was never installed
        found["openbook"] = "unknown"
    return found


def _figure(found: Effects) -> Any:
    """A heat map of two axes, or bars with intervals over one."""
    from interp import plots  # plotly takes a second

    title = f"{found.provenance.behaviour}: {found.site}, {found.direction}, n={found.n_prompts}"
    if found.unfinished:
        title += f", {found.unfinished} of {len(found.names)} places unfinished"
    if len(found.axes) == 1:
        return plots.bars(
            found.names,
            found.values.tolist(),
            None if found.low is None else found.low.tolist(),
            None if found.high is None else found.high.tolist(),
            title=title,
            unit=found.unit,
        )
    if found.axes == ("layer", "head"):
        return plots.heads(found.values, title=title, unit=found.unit)
    rows = found.values.flatten(0, -2)
    width = rows.shape[1]
    down = [name.partition("@")[0] for name in found.names[::width]]
    if found.values.ndim == 2:
        # The site is in the title.
        down = [re.split(r"[.HN]", name)[0] for name in down]
    return plots.heat_map(rows.tolist(), down, across(found), title=title, unit=found.unit)


def across(found: Effects) -> list[str]:
    """What the last axis holds: positions with their tokens, or numbers."""
    names = found.names[: found.values.shape[-1]]
    if found.axes[-1] != "pos":
        return [f"{found.axes[-1]} {i}" for i in range(len(names))]
    at = [name.rpartition("@")[2] for name in names]
    tokens = dict(enumerate(found.pos_labels))
    # The position in front keeps two equal tokens two columns.
    return [f"{pos} {tokens.get(int(pos), '') if pos.isdigit() else ''}".strip() for pos in at]
