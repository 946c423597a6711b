"""Probes: what can be read from activations by a linear classifier, with its controls beside it.

That a probe reads a label shows that the label is there for a line to find, not that the model uses
it: for that the label must be erased and the behaviour must suffer
(`interp.probing.concept_erasure`). Every number comes with n, an interval, and four controls:

    baseline      always the commonest label
    control       random labels, one a type: what memorising types is worth (Hewitt & Liang 2019)
    unseen types  folds of whole types: what is left when no type can be memorised
    untrained     the same architecture with first weights: what the architecture is worth

`interp.probing.classifiers` holds the arithmetic, `interp.probing.tasks` the labels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.components import SITES, Component, HookedModel, device_of
from interp.errors import InterruptedWarning, ProbeError, UninformativeWarning
from interp.patching import provenance
from interp.probing import classifiers
from interp.probing.classifiers import Fit, Split
from interp.probing.result import Cell, Probe
from interp.probing.tasks import ProbeTask
from interp.statistics import Estimate
from train.errors import nearest
from train.model import GPTConfig, init_gpt


__all__ = ["FOLDS", "READABLE", "activations", "folds_of_cases", "linear", "place"]

FOLDS, CONTROLS = 5, 5
ROWS = 256  # prompts a forward pass
Progress = Callable[[str, int, int | None], None]
# A pattern is no vector a position.
READABLE = tuple(site for site in SITES if site != "pattern")


def linear(
    model: HookedModel,
    task: ProbeTask,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    folds: int = FOLDS,
    controls: int = CONTROLS,
    fit: Fit = "logistic",
    seed: int = 0,
    progress: Progress | None = None,
) -> Probe:
    """Fit a linear probe at every place, and its controls.

    Costs, at each place, folds x (4 + controls) + 10 fits: half a second for 1,000 cases of 128
    features in two classes. `fit="ridge"` is many times faster where features and classes are many,
    and has no probabilities, so no code length.

    Folds are of cases, spread evenly over the labels, so that types are on both sides, which
    control tasks need; `unseen` parts the same cases by type.

    Args:
        site: As in `components.SITES`; the heads of a layer are read together.
        layers: Default: all.
        positions: Read the label there, from the prompt of each case, in place of the token that
            carries it; for tasks with one case a prompt. Below 0 from the end.
        controls: Control tasks to draw.
        seed: Of folds, control labels, the order of the code and the untrained weights.

    Returns:
        Cells by layer, then position. When interrupted: those that were finished, with a warning.

    Raises:
        ProbeError: A place that does not exist, fewer cases of a class than folds, no control task,
            tokens of another vocabulary, several cases a prompt where positions are asked for.
    """
    if controls < 1:
        raise ProbeError(f"{controls} control tasks; without one an accuracy has no selectivity")
    read_at = _positions(task, positions)
    layers = range(model.cfg.n_layers) if layers is None else layers
    places = [place(model, task, site, layer) for layer in layers]
    if not places:
        raise ProbeError("no layer to probe; leave layers out to probe all of them")
    frame = _Frame.of(task, folds, controls, seed)
    untrained = _untrained(model, seed)
    notes = list(frame.notes)
    if untrained is None:
        notes.append("no untrained control: this model cannot be built from its configuration")
    total = len(places) * len(read_at)
    found = _read(model, untrained, task, places, read_at)
    cells, still = _cells(found, frame, fit, total, progress)
    if still:
        what = f"at {len(still)} of {total} places all {len(task.labels)} cases are the same vector"
        what += f" (first {still[0]}): nothing can be read there, whatever the label"
        warnings.warn(what, UninformativeWarning, stacklevel=2)
        notes.append(what)
    origin = replace(
        provenance(model, None, seed=seed), behaviour=task.name, behaviour_sha256=task.sha256
    )
    return Probe(
        task=task.name,
        site=site,
        n=len(task.labels),
        n_types=task.n_types,
        type_of=task.type_of,
        classes=task.classes,
        baseline=task.baseline,
        folds=folds,
        controls=controls,
        fit=fit,
        cells=tuple(cells),
        provenance=origin,
        notes=tuple(notes),
    )


@torch.inference_mode()
def activations(
    model: HookedModel,
    task: ProbeTask,
    place: Component,
    *,
    positions: Int[torch.Tensor, "case pos"] | None = None,
) -> Float[np.ndarray, "case pos feature"]:
    """What the model holds at a place, at the token of each case or at positions of its prompt.

    Float64, so that what is computed from it is the same on every machine to rounding. Memory:
    cases x positions x features x 8 bytes.
    """
    at = task.positions[:, None] if positions is None else positions
    prompts, device = task.prompt_of, device_of(model)
    found: np.ndarray | None = None
    for start in range(0, len(task.tokens), ROWS):
        inside = (start <= prompts) & (prompts < start + ROWS)
        if not bool(inside.any()):
            continue
        tokens = task.tokens[start : start + ROWS].to(device)
        _, cache = model.run_with_cache(tokens, names_filter=[place.hook])
        value = cache[place.hook].flatten(2)
        here = value[prompts[inside][:, None] - start, at[inside]].double().cpu().numpy()
        if found is None:
            found = np.zeros((len(prompts), *here.shape[1:]))
        found[inside.numpy()] = here
    assert found is not None
    return found


# --- one place -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Frame:
    """What is the same at every place: labels, folds, control labels."""

    labels: Int[np.ndarray, " case"]
    types: Int[np.ndarray, " case"]
    prompts: Int[np.ndarray, " case"]
    folds: list[Split]
    type_folds: list[Split] | None
    controls: list[Int[np.ndarray, " case"]]
    notes: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, task: ProbeTask, n_folds: int, n_controls: int, seed: int) -> "_Frame":
        labels, types = task.label_ids, task.type_ids
        folds = folds_of_cases(task, n_folds, seed)
        type_folds, notes = _folds_of_types(task, n_folds, seed)
        return cls(
            labels=labels,
            types=types,
            prompts=np.unique(task.prompt_of.numpy(), return_inverse=True)[1],
            folds=folds,
            type_folds=type_folds,
            # Seeds far apart, so that the controls of seed 1 are none of those of seed 0.
            controls=[
                classifiers.control_labels(labels, types, seed=1000 * (seed + 1) + draw)
                for draw in range(n_controls)
            ],
            notes=notes,
            seed=seed,
        )

    def estimates(
        self,
        x: Float[np.ndarray, "case feature"],
        first: Float[np.ndarray, "case feature"] | None,
        fit: Fit,
    ) -> dict[str, Any]:
        """The numbers of a cell; `first` is what the untrained model holds there."""
        task = classifiers.right(x, self.labels, self.folds, fit=fit).astype(float)
        drawn = [classifiers.right(x, one, self.folds, fit=fit) for one in self.controls]
        control = np.mean(drawn, axis=0)
        bits = None
        if fit == "logistic":
            bits = classifiers.code_lengths(x, self.labels, seed=self.seed)
        n_classes = int(self.labels.max()) + 1
        return {
            "accuracy": self._share(task),
            "control": self._share(control),
            "selectivity": classifiers.difference(
                task, control, self.types, self.prompts, n_folds=len(self.folds)
            ),
            "unseen": self._share_of(x, self.type_folds, fit),
            "untrained": self._share_of(first, self.folds, fit),
            "untrained_unseen": self._share_of(first, self.type_folds, fit),
            "bits": None if bits is None else float(bits.sum()),
            "compression": None
            if bits is None
            else classifiers.compression(bits, n_classes, self.types),
        }

    def _share(self, right: Float[np.ndarray, " case"]) -> Estimate:
        return classifiers.share(right, self.types, self.prompts, n_folds=len(self.folds))

    def _share_of(
        self, x: Float[np.ndarray, "case feature"] | None, folds: list[Split] | None, fit: Fit
    ) -> Estimate | None:
        if x is None or folds is None:
            return None
        return self._share(classifiers.right(x, self.labels, folds, fit=fit).astype(float))


def folds_of_cases(task: ProbeTask, n_folds: int, seed: int) -> list[Split]:
    """Folds that spread every class evenly.

    Raises:
        ProbeError: A class has fewer cases than there are folds.
    """
    counts = np.bincount(task.label_ids)
    if counts.min() < n_folds or n_folds < 2:
        raise ProbeError(
            f"probe task {task.name!r} has {counts.min()} cases of "
            f"{task.classes[int(counts.argmin())]!r} and {n_folds} folds were asked for; two folds "
            "and one case a fold of every class are the least"
        )
    return classifiers.splits(task.label_ids, n_folds, seed=seed)


def _folds_of_types(
    task: ProbeTask, n_folds: int, seed: int
) -> tuple[list[Split] | None, tuple[str, ...]]:
    """Folds that share no type, fewer where a class has few; None where they cannot be parted."""
    pairs = np.unique(np.stack([task.label_ids, task.type_ids]), axis=1)
    of_class = np.bincount(pairs[0])
    rare, fewest = task.classes[int(of_class.argmin())], int(of_class.min())
    if fewest < 2:
        return None, (f"no accuracy on unseen types: {rare!r} has one {task.type_of} only",)
    notes = ()
    if fewest < n_folds:
        notes = (f"unseen types in {fewest} folds: {rare!r} has {fewest} different ones",)
    folds = min(n_folds, fewest)
    return classifiers.splits(task.label_ids, folds, seed=seed, groups=task.type_ids), notes


# --- places --------------------------------------------------------------------------------------

Found = tuple[
    Component, int | None, Float[np.ndarray, "case d"], Float[np.ndarray, "case d"] | None
]


def _read(
    model: HookedModel,
    untrained: HookedModel | None,
    task: ProbeTask,
    places: Sequence[Component],
    read_at: Sequence[int | None],
) -> Iterator[Found]:
    """Each place, position by position, with its activations trained and untrained."""
    at = None
    if read_at[0] is not None:
        at = torch.tensor(read_at).expand(len(task.labels), -1)
    for one in places:
        x = activations(model, task, one, positions=at)
        first = activations(untrained, task, one, positions=at) if untrained else None
        for column, pos in enumerate(read_at):
            untaught = None if first is None else first[:, column]
            yield replace(one, pos=pos), pos, x[:, column], untaught


def _cells(
    found: Iterator[Found], frame: _Frame, fit: Fit, total: int, progress: Progress | None
) -> tuple[list[Cell], list[str]]:
    """The numbers of each place, those finished when interrupted; places that hold one vector."""
    cells: list[Cell] = []
    still: list[str] = []
    try:
        for at, pos, x, first in found:
            cells.append(Cell(str(at), at.layer, pos, **frame.estimates(x, first, fit)))
            still += [str(at)] if bool((x == x[0]).all()) else []
            if progress:
                progress(str(at), len(cells), total)
    except KeyboardInterrupt:
        if not cells:
            raise
        what = f"interrupted: {len(cells)} of {total} places were probed and are returned"
        warnings.warn(what, InterruptedWarning, stacklevel=3)
    return cells, still


def place(model: HookedModel, task: ProbeTask, site: str, layer: int) -> Component:
    """A place of the model at which the task can be read.

    Raises:
        ProbeError: There is no such site or layer, or the task has other tokens than the model.
    """
    if site not in READABLE:
        raise ProbeError(
            f"no site that a probe can read is called {site!r}{nearest(site, READABLE)}"
        )
    if not 0 <= layer < model.cfg.n_layers:
        raise ProbeError(f"layer {layer} of a model with layers 0 to {model.cfg.n_layers - 1}")
    vocab, n_ctx = getattr(model.cfg, "d_vocab", None), getattr(model.cfg, "n_ctx", None)
    largest, n_pos = int(task.tokens.max()), task.tokens.shape[1]
    if (vocab and largest >= vocab) or (n_ctx and n_pos > n_ctx):
        raise ProbeError(
            f"probe task {task.name!r} has token {largest} and {n_pos} positions; this model has "
            f"{vocab} tokens and a context of {n_ctx}"
        )
    return Component(site, layer)


def _positions(task: ProbeTask, positions: Sequence[int] | None) -> Sequence[int | None]:
    """The positions to read at; None is the token that carries the label."""
    if positions is None:
        return (None,)
    if not positions:
        raise ProbeError("no position to probe; leave positions out to read at the labelled tokens")
    return [int(task.at(pos).positions[0]) for pos in positions]


def _untrained(model: HookedModel, seed: int) -> HookedModel | None:
    if not isinstance(model.cfg, GPTConfig):
        return None
    return init_gpt(model.cfg, seed).eval().to(device_of(model))
