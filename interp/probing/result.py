"""What probes found: accuracy over places, and the controls it must be held against.

Nothing here is shown without n and an interval. See `interp.probing` for what each number means.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from interp.errors import ProbeError
from interp.patching import Provenance
from interp.statistics import Estimate
from train import storage
from train.errors import nearest


__all__ = ["ESTIMATES", "Cell", "Probe"]

SCHEMA = "openbook.probe/1"


@dataclass(frozen=True)
class Cell:
    """What was read at one place.

    Attributes:
        place: "L1.resid_post", or "L1.resid_post@4" when a position was asked for.
        accuracy: Share of cases right, each by a probe that was not trained on it.
        control: The same for random labels of types, mean over draws.
        selectivity: Accuracy minus control, paired case by case.
        unseen: Accuracy when no type is in training and test; None when types cannot be parted.
        untrained: Accuracy on the same architecture with first weights; None without one.
            Random embeddings are easily learned by heart, so `untrained_unseen` says more.
        untrained_unseen: The same when no type is in training and test.
        bits: Of the online code of all labels; None for a probe without probabilities.
        compression: How many times shorter that is than log2(classes) a case.
    """

    place: str
    layer: int
    pos: int | None
    accuracy: Estimate
    control: Estimate
    selectivity: Estimate
    unseen: Estimate | None
    untrained: Estimate | None
    untrained_unseen: Estimate | None
    bits: float | None
    compression: Estimate | None


@dataclass(frozen=True, eq=False)
class Probe:
    """Linear probes for one task over places.

    Attributes:
        task: Its name.
        site: What was read.
        n: Cases.
        n_types: Different types among them; `type_of` says of what.
        classes: Labels.
        baseline: Share of the commonest label.
        folds: Of the cross-validation.
        controls: Control tasks drawn.
        fit: The classifier.
        cells: By layer, then position.
        notes: What could not be computed, and why.
    """

    task: str
    site: str
    n: int
    n_types: int
    type_of: str
    classes: tuple[str, ...]
    baseline: float
    folds: int
    controls: int
    fit: str
    cells: tuple[Cell, ...]
    provenance: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        best = self[self.top(1)[0]]
        return (
            f"Probe({self.task!r}, {len(self.cells)} places of {self.site}, n={self.n}; best "
            f"{best.place} accuracy {best.accuracy}, selectivity {best.selectivity}, baseline "
            f"{self.baseline:.3f})"
        )

    def __getitem__(self, place: str) -> Cell:
        for cell in self.cells:
            if cell.place == place:
                return cell
        known = [cell.place for cell in self.cells]
        raise ProbeError(f"no probe was fitted at {place!r}{nearest(place, known)}")

    def top(self, k: int) -> list[str]:
        """The k places of the highest accuracy, highest first; the earlier where they are equal."""
        order = sorted(self.cells, key=lambda cell: -cell.accuracy.value)
        return [cell.place for cell in order[:k]]

    def to_frame(self) -> Any:
        """A pandas row per place; `x low` and `x high` are the interval of `x`."""
        import pandas

        return pandas.DataFrame([self._row(cell) for cell in self.cells])

    def plot(self) -> Any:
        """Accuracy and controls over layers; a heat map of accuracy over layers and positions."""
        return _figure(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` and every later command accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Probe":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            ProbeError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise ProbeError(f"{path}: is no {SCHEMA!r}; write it with probe.save")
        del content["digest"]
        for name in ("classes", "notes"):
            content[name] = tuple(content[name])
        content["cells"] = tuple(map(_cell, content["cells"]))
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)

    def _row(self, cell: Cell) -> dict[str, Any]:
        row: dict[str, Any] = {"place": cell.place, "layer": cell.layer, "pos": cell.pos}
        row |= {"n": self.n, "types": self.n_types, "baseline": self.baseline, "bits": cell.bits}
        for name in ESTIMATES:
            found = getattr(cell, name) or Estimate(float("nan"), None, None)
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        return row


ESTIMATES = tuple(
    one.name for one in fields(Cell) if one.name not in ("place", "layer", "pos", "bits")
)


def _cell(content: dict[str, Any]) -> Cell:
    found = {name: Estimate(**content[name]) for name in ESTIMATES if content[name] is not None}
    return Cell(**{**content, **found})


def _figure(found: Probe) -> Any:
    """Accuracy and its controls over layers; over positions too, a heat map above the baseline."""
    from interp import plots  # plotly takes a second

    title = f"{found.task}: {found.site}, n={found.n}, {len(found.classes)} classes"
    layers = sorted({cell.layer for cell in found.cells})
    places = sorted({cell.pos for cell in found.cells if cell.pos is not None})
    if places:
        there = {(cell.layer, cell.pos): cell.accuracy.value for cell in found.cells}
        above = [
            # An interrupted probe lacks the last cells.
            [round(there.get((layer, pos), found.baseline) - found.baseline, 4) for pos in places]
            for layer in layers
        ]
        down, across = [f"L{layer}" for layer in layers], [str(pos) for pos in places]
        unit = f"accuracy above {found.baseline:.3f}"
        return plots.heat_map(above, down, across, title=title, unit=unit)
    figure = plots.figure()
    names = {"accuracy": "accuracy", "unseen": f"unseen {found.type_of}", "control": "control task"}
    names |= {"untrained": "untrained", "untrained_unseen": f"untrained, unseen {found.type_of}"}
    for field, name in names.items():
        column = [getattr(cell, field) for cell in found.cells]
        if None not in column:
            figure.add_scatter(**plots.estimates(layers, column), name=name)
    figure.add_hline(y=found.baseline, line_dash="dot", annotation_text="commonest label")
    figure.update_xaxes(title="layer", dtick=1)
    figure.update_yaxes(range=[0, 1.02], title="share of cases right")
    return plots.framed(figure, title)
