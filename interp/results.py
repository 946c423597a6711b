"""Results: what they were computed from, and how they are saved and read back."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of
from interp.errors import EffectsError, InterpError
from train import storage
from train.html_panel import ROWS, Panel, panel_of
from train.short_repr import short_repr


__all__ = ["ABSOLUTE", "Provenance", "Result", "TopNames", "numbers", "plain", "provenance"]

R = TypeVar("R", bound="Result")
# Note of estimates without a sign (`interp.attribution_patching`).
ABSOLUTE = "absolute values: GradDrop averages over passes without their signs"


@dataclass(frozen=True)
class Provenance:
    """Model, behaviour and software that a result was computed from.

    Attributes:
        run_id: Id of the run, or folder of an imported model; "" for a model built by hand.
        checkpoint_sha256: sha256 of the weights file.
        step: Step of the checkpoint.
        behaviour: Name of the behaviour; "" if there is none.
        behaviour_sha256: sha256 of the behaviour's prompts, answers and foils.
        knowledge: How much is known about the training: full, data-known, weights-only or unknown.
        versions: Software versions.
        seed: Seed of random draws (noise, resampling, folds); 0 if nothing was drawn.
        precision: Data type of the weights.
        device: Device of the computation.
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

    __repr__ = short_repr


def provenance(
    model: HookedModel, behaviour: Behaviour | None = None, *, seed: int = 0
) -> Provenance:
    """Return the provenance of a result computed now from `model`, and `behaviour` if given."""
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


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "openbook": _own_version(),
    }


@cache  # reading the metadata of a package takes as long as a tenth of a small sweep
def _own_version() -> str:
    try:
        return version("openbook")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


class TopNames(list[str]):
    """The names of the highest values in their order: a list of names that shows the values too.

    Examples:
        >>> from interp.results import TopNames
        >>> best = TopNames(["L0H1", "L0H3"], {"L0H1": 0.912, "L0H3": -1.5})
        >>> best, best == ["L0H1", "L0H3"], best.values
        ([L0H1 0.912, L0H3 -1.5], True, (0.912, -1.5))
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, float]) -> None:
        super().__init__(names)
        self.values = tuple(values[name] for name in names)

    def __repr__(self) -> str:
        pairs = zip(self, self.values, strict=False)
        return f"[{', '.join(f'{name} {value:.3g}' for name, value in pairs)}]"


class Result:
    """A result that is saved as sealed JSON and read back; a dataclass with a provenance.

    Attributes:
        schema: Name and version of the format, as it is written in the file.
        meaning: Sentence that says what such a result shows and what it does not show.
        refusal: Error that `load` raises for a file of something else.
    """

    schema: ClassVar[str]
    meaning: ClassVar[str]
    refusal: ClassVar[type[InterpError]] = EffectsError

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[R], content: storage.JsonObject) -> R:
        """Return the result that `to_dict` turned into plain values."""
        raise NotImplementedError

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows of the result, with up to n rows of its table.

        A result at the end of a cell is shown in this way; `print` shows the panel as text.

        Examples:
            >>> patching.heads(model, ioi).show(2).columns
            ('layer', 'head', 'place', 'effect')
        """
        return panel_of(self, n)

    def _repr_html_(self) -> str:
        return self.show().html()

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` and every later command accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote.

        Raises:
            DamagedError: The file does not match its seal, or lacks a value or has one of another
                type.
            InterpError: The file holds something else; the error is the class's `refusal`.
        """
        content = storage.read_sealed(Path(path))
        held = storage.held_kind(content)
        if content.pop("schema", None) != cls.schema:
            raise cls.refusal(
                f"{path}: is no {cls.schema!r}, but {held}; write it with {cls.__name__}.save"
            )
        del content["digest"]
        with storage.reading(path):
            return cls.from_dict(content)


def plain(values: object) -> object:
    """Replace nan by None in nested lists, because JSON has no nan.

    Examples:
        >>> from interp.results import plain
        >>> plain([[0.5, float("nan")]])
        [[0.5, None]]
    """
    if isinstance(values, list):
        return [plain(one) for one in values]
    return None if values != values else values


def numbers(values: object) -> object:
    """Replace None by nan in nested lists: the inverse of `plain`.

    Examples:
        >>> from interp.results import numbers
        >>> numbers([0.5, None])
        [0.5, nan]
    """
    if isinstance(values, list):
        return [numbers(one) for one in values]
    return float("nan") if values is None else values
