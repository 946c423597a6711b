"""Linear probes on activations, with their controls.

An accurate probe shows that a label can be read linearly from the activations, not that the model
uses it. To test the latter, erase the label and see whether a behaviour gets worse
(`interp.probing.concept_erasure`). Every number comes with n, an interval, and four controls:

    baseline      accuracy of always answering the commonest label
    control       accuracy on random labels, one per type: the gain from memorising types (Hewitt &
                  Liang 2019)
    unseen types  accuracy on types that are not in training, so that memorising them cannot help
    untrained     accuracy on an untrained model of the same architecture

The arithmetic is in `interp.probing.classifiers`, the labels are in `interp.probing.tasks`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.components import SITES, Component, HookedModel, device_of
from interp.errors import InterruptedWarning, ProbeError, UninformativeWarning
from interp.probing import classifiers
from interp.probing.classifiers import Fit, Split
from interp.probing.result import Cell, Probe
from interp.probing.tasks import ProbeTask
from interp.results import provenance
from train.errors import nearest
from train.model import GPTConfig, init_gpt
from train.progress import Progress
from train.statistics import Estimate


__all__ = ["FOLDS", "READABLE", "activations", "folds_of_cases", "linear", "place"]

FOLDS, CONTROLS = 5, 5
ROWS = 256  # prompts per forward pass
# An attention pattern is not one vector per position, so a probe cannot read it.
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
    """Fit a linear probe and its controls at every layer of a site, and at every given position.

    Costs folds x (4 + controls) + 10 fits at each of them: half a second for 1,000 cases of 128
    features in two classes. `fit="ridge"` is many times faster for many features and classes, but
    has no probabilities and therefore no code length.

    Folds split cases, with every label spread evenly, so that a type occurs in both training and
    test, which control tasks need. `unseen` splits the same cases by type.

    Args:
        model: A hooked model, from `interp.models.load`.
        task: Labelled tokens, from `interp.probing.load_task`.
        site: A key of `interp.components.SITES`; the heads of a layer are read together.
        layers: Layers to probe. Default: all.
        positions: Positions of each prompt to read the label at, instead of the labelled token.
            Only for tasks with one case per prompt. Negative ones count from the end.
        folds: Number of folds of the cross-validation.
        controls: Number of control tasks to draw.
        fit: Classifier: "logistic" or "ridge".
        seed: Random seed for folds, control labels, the order of the code and untrained weights.
        progress: Called with the name of each probed component and the number of those done.

    Returns:
        Results by layer, then by position. After Ctrl-C: those that were finished, with a warning.

    Raises:
        ProbeError: A site, layer or position does not exist, a class has fewer cases than folds, no
            control task was requested, the tokens belong to another vocabulary, or positions were
            given for a task with several cases per prompt.
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
    """Return a component's activations at the token of each case or at positions of its prompt.

    They are float64, so that results computed from them differ between machines only by rounding.
    Memory: cases x positions x features x 8 bytes.
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


# --- one component -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Frame:
    """Inputs that are the same for every component: labels, folds and control labels."""

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
            # Seeds are 1000 apart, so that seed 1 does not reuse the control labels of seed 0.
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
        """Compute the numbers of a cell; `first` holds the untrained model's activations."""
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
            "bits": None if bits is None else float(bits.mixed.sum()),
            "bits_published": None if bits is None else float(bits.published.sum()),
            "compression": None
            if bits is None
            else classifiers.compression(bits.mixed, n_classes, self.types),
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
    """Split the cases of a task into folds with every class spread evenly.

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
    """Split the cases by type, and return the folds with notes on what was not possible.

    There are at most as many folds as the class with the fewest types has types. The folds are
    None if a class has one type only.
    """
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


# --- components ----------------------------------------------------------------------------------

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
    """Yield each component and position with the activations of trained and untrained model."""
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
    """Compute the numbers of each component; after Ctrl-C return those that were finished.

    Also returns the names of components where all cases have the same activations.
    """
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
    """Return the component at a site and layer, after checking that the task can be read there.

    Raises:
        ProbeError: There is no such site or layer, or the task's tokens or prompts do not fit the
            vocabulary or context of the model.
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
    """Return the positions to read at, counted from 0; None stands for the labelled token."""
    if positions is None:
        return (None,)
    if not positions:
        raise ProbeError("no position to probe; leave positions out to read at the labelled tokens")
    return [int(task.at(pos).positions[0]) for pos in positions]


def _untrained(model: HookedModel, seed: int) -> HookedModel | None:
    if not isinstance(model.cfg, GPTConfig):
        return None
    return init_gpt(model.cfg, seed).eval().to(device_of(model))
