"""What erasing a label did to a behaviour, beside a placebo; made by `interp.erasing`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.effects import Provenance
from interp.errors import ProbeError
from interp.labels.classifying import Estimate
from train import durable


__all__ = ["Arm", "Erasure"]

SCHEMA = "openbook.erasure/1"


@dataclass(frozen=True)
class Arm:
    """How well the behaviour goes in one condition.

    Attributes:
        name: intact, erased, or placebo (mean over its draws).
        score: Mean logit difference of the prompts.
        accuracy: Share of prompts answered rightly.
        removed: Share of the variance of the activations that was taken away.
        probe: Cross-validated accuracy of a probe for the label, on other cases than the erasure
            was fitted to.
    """

    name: str
    score: Estimate
    accuracy: Estimate
    removed: float
    probe: Estimate


@dataclass(frozen=True, eq=False)
class Erasure:
    """What erasing a label does to a behaviour.

    Attributes:
        task: Whose label was erased.
        behaviour: What was measured.
        place: Where.
        positions: At which positions; None: all.
        rank: Directions erased.
        n_cases: Cases that the erasure and the probes were fitted to.
        n_prompts: Different prompts of the behaviour.
        placebos: Draws of shuffled labels.
        baseline: Share of the commonest label: what a probe reaches that reads nothing.
        arms: intact, erased, placebo.
        task_sha256: Its prompts, positions, labels and types.
        loss: Score of the placebo minus score of the erased, in logits, paired prompt by prompt.
        notes: What makes the loss say less than it seems to.
    """

    task: str
    behaviour: str
    place: str
    positions: tuple[int, ...] | None
    rank: int
    n_cases: int
    n_prompts: int
    placebos: int
    baseline: float
    arms: tuple[Arm, ...]
    loss: Estimate
    task_sha256: str
    provenance: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Erasure({self.task!r} at {self.place}, {self.behaviour!r} n={self.n_prompts}: loses "
            f"{self.loss} logits beyond a placebo; probe {self['intact'].probe} -> "
            f"{self['erased'].probe}, baseline {self.baseline:.3f})"
        )

    def __getitem__(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ProbeError(f"no arm {name!r}; there are {', '.join(a.name for a in self.arms)}")

    def to_frame(self) -> Any:
        """A pandas row per arm; `x low` and `x high` are the interval of `x`."""
        import pandas

        rows = []
        for arm in self.arms:
            row: dict[str, Any] = {"arm": arm.name, "prompts": self.n_prompts}
            for name in ("score", "accuracy", "probe"):
                found = getattr(arm, name)
                row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
            rows.append(row | {"removed": arm.removed})
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """The score in each arm."""
        from interp.figures import charts

        return charts.erasure(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` accepts."""
        durable.write_json(Path(path), durable.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Erasure":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            ProbeError: The file holds something else.
        """
        content = durable.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise ProbeError(f"{path}: is no {SCHEMA!r}; write it with erasure.save")
        del content["digest"]
        at = content["positions"]
        content["positions"] = None if at is None else tuple(at)
        content["notes"] = tuple(content["notes"])
        content["arms"] = tuple(map(_arm, content["arms"]))
        content["loss"] = Estimate(**content["loss"])
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)


def _arm(content: dict[str, Any]) -> Arm:
    found = {name: Estimate(**content[name]) for name in ("score", "accuracy", "probe")}
    return Arm(**{**content, **found})
