"""Results of probing: accuracy at each component, with its controls.

Every number has n and an interval. `interp.probing.probes` explains what each of them means.
"""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from interp import plots
from interp.errors import InterpError, ProbeError
from interp.results import Provenance, Result, TopNames
from train import storage
from train.errors import nearest
from train.progress import count
from train.short_repr import short_repr
from train.statistics import Estimate


if TYPE_CHECKING:
    import pandas

__all__ = ["ESTIMATES", "Cell", "Probe"]

SCHEMA = "openbook.probe/1"


@dataclass(frozen=True)
class Cell:
    """Probe results at one component.

    Attributes:
        place: Name of the component: "L1.resid_post", or "L1.resid_post@4" if positions were given.
        layer: Layer of the component, counted from 0.
        pos: Position that was read; None: the token of each case.
        accuracy: Share of cases classified rightly, each by a probe that was not trained on it.
        control: The same for random labels of types, mean over draws.
        selectivity: Accuracy minus control, paired by case.
        unseen: Accuracy when no type is in both training and test; None if types cannot be split.
        untrained: Accuracy on an untrained model of the same architecture; None if there is none.
            Random embeddings are easy to memorise, so `untrained_unseen` is more informative.
        untrained_unseen: The same when no type is in both training and test.
        bits: Online code length of all labels, the probe mixed with Laplace's rule
            (`classifiers.CodeLengths`); None for a classifier without probabilities.
        compression: Length of the uniform code, log2(classes) per case, divided by `bits`.
        bits_published: The same code without mixing, as Voita & Titov define it, for comparison
            with other papers; None also in files of earlier versions.
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
    bits_published: float | None = None

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Probe(Result):
    """Linear probes for one task at several components.

    Attributes:
        task: Name of the task.
        site: Site that was read, a key of `interp.components.SITES`.
        n: Number of cases.
        n_types: Number of distinct types among them.
        type_of: Word for what a type is, such as "word" or "entity".
        classes: Distinct labels.
        baseline: Share of the commonest label.
        folds: Number of folds of the cross-validation.
        controls: Number of control tasks drawn.
        fit: Classifier: "logistic" or "ridge".
        cells: Results by layer, then by position.
        provenance: Model, task and software that they were computed with.
        notes: What could not be computed, and why.
    """

    schema: ClassVar[str] = SCHEMA
    refusal: ClassVar[type[InterpError]] = ProbeError
    meaning: ClassVar[str] = (
        "A probe shows that a label can be read from activations; it does not show that the "
        "model reads it."
    )

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
            f"Probe({self.task!r}, {count(len(self.cells), 'place')} of {self.site}, n={self.n}; "
            f"best {best.place} accuracy {best.accuracy}, selectivity {best.selectivity}, baseline "
            f"{self.baseline:.3f})"
        )

    def __getitem__(self, place: str) -> Cell:
        for cell in self.cells:
            if cell.place == place:
                return cell
        known = [cell.place for cell in self.cells]
        raise ProbeError(f"no probe was fitted at {place!r}{nearest(place, known)}")

    def top(self, k: int) -> TopNames:
        """Return the k components with the highest accuracy, best first; ties keep their order."""
        order = sorted(self.cells, key=lambda cell: -cell.accuracy.value)
        names = [cell.place for cell in order[:k]]
        return TopNames(names, {name: self[name].accuracy.value for name in names})

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per component.

        The columns `x low` and `x high` are the interval of column `x`.
        """
        import pandas

        return pandas.DataFrame([self._row(cell) for cell in self.cells])

    def plot(self) -> "plots.Figure":
        """Plot accuracy and controls over layers or, with positions, accuracy as a heat map."""
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        cells = [_plain(cell) for cell in self.cells]
        return {"schema": SCHEMA, **asdict(self), "cells": cells}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Probe":
        """Return the result that `to_dict` turned into plain values."""
        for name in ("classes", "notes"):
            content[name] = tuple(content[name])
        content["cells"] = tuple(map(_cell, content["cells"]))
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)

    def _row(self, cell: Cell) -> dict[str, object]:
        row: dict[str, object] = {"place": cell.place, "layer": cell.layer, "pos": cell.pos}
        row |= {"n": self.n, "types": self.n_types, "baseline": self.baseline}
        row |= {"bits": cell.bits, "bits_published": cell.bits_published}
        for name in ESTIMATES:
            found = getattr(cell, name) or Estimate(float("nan"), None, None)
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        return row


ESTIMATES = tuple(
    one.name
    for one in fields(Cell)
    if one.name not in ("place", "layer", "pos", "bits", "bits_published")
)


def _plain(cell: Cell) -> dict[str, object]:
    content = asdict(cell)
    if cell.bits_published is None:
        del content["bits_published"]  # so that files of earlier versions stay as they were
    return content


def _cell(content: storage.JsonObject) -> Cell:
    found = {name: Estimate(**content[name]) for name in ESTIMATES if content[name] is not None}
    return Cell(**{**content, **found})


def _figure(found: Probe) -> "plots.Figure":
    """Plot accuracy and controls over layers or, with positions, accuracy above the baseline."""
    title = f"{found.task}: {found.site}, n={found.n}, {len(found.classes)} classes"
    layers = sorted({cell.layer for cell in found.cells})
    places = sorted({cell.pos for cell in found.cells if cell.pos is not None})
    if places:
        there = {(cell.layer, cell.pos): cell.accuracy.value for cell in found.cells}
        above = [
            # If the probe was interrupted, the last cells are missing and drawn as the baseline.
            [round(there.get((layer, pos), found.baseline) - found.baseline, 4) for pos in places]
            for layer in layers
        ]
        down, across = [f"L{layer}" for layer in layers], [str(pos) for pos in places]
        unit = f"accuracy above {found.baseline:.3f}"
        axes = ("position", "layer")
        return plots.heat_map(above, down, across, title=title, unit=unit, axes=axes)
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
