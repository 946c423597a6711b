"""What a contrast of prompts can show about a component: one word each.

    shown      exchanging it changes the output
    constant   its value is the same in both prompts of every pair, and is not zero
    unread     it varies and exchanging it changes nothing, but removing it does, or the output
               is the same in both prompts of every pair: what is read of it does not vary
    absorbed   it varies, and only reaches components that are constant or unread
    silent     it writes zeros on these prompts
    idle       it varies, the output does, and nothing after it minds: a 0 that says something

Of constant, unread and absorbed ones the contrast is uninformative: their 0 says nothing.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from interp.errors import EffectsError
from interp.patching.effects import Provenance
from train import storage


__all__ = ["UNINFORMATIVE", "ContrastCheck"]

SCHEMA = "openbook.contrast/1"
UNINFORMATIVE = ("constant", "unread", "absorbed")
REASONS = {
    "constant": "the same in both prompts of every pair",
    "unread": "differing in nothing that is read of them",
    "absorbed": "reaching only components of these two kinds",
}


@dataclass(frozen=True)
class ContrastCheck:
    """What pairs of prompts can show about each component.

    Attributes:
        places: Names of the components.
        verdicts: Of each; see the module.
        moved: Largest difference of its value between the prompts of a pair.
        exchanged: Largest change of the metric when its value is that of the other prompt.
        removed: Largest change of the metric when its value is zero.
        output: Largest difference of the metric between the prompts of a pair.
        varies: Whether that is more than rounding.
        metric: What was measured, and `unit`.
        n: Pairs of prompts.
        provenance: What it was computed from.
    """

    places: tuple[str, ...]
    verdicts: tuple[str, ...]
    moved: tuple[float, ...]
    exchanged: tuple[float, ...]
    removed: tuple[float, ...]
    output: float
    varies: bool
    metric: str
    unit: str
    n: int
    provenance: Provenance

    def __getitem__(self, name: str) -> str:
        try:
            return self.verdicts[self.places.index(name)]
        except ValueError:
            raise EffectsError(
                f"{name!r} is not among the {len(self.places)} places from {self.places[0]} to "
                f"{self.places[-1]}"
            ) from None

    def named(self, *verdicts: str) -> list[str]:
        """The components with one of these verdicts."""
        pairs = zip(self.places, self.verdicts, strict=True)
        return [place for place, verdict in pairs if verdict in verdicts]

    @property
    def uninformative(self) -> list[str]:
        """The components about which an effect of 0 says nothing."""
        return self.named(*UNINFORMATIVE)

    def __str__(self) -> str:
        lost = self.uninformative
        if not lost:
            return f"the contrast of {self.n} pairs is informative about {len(self.places)} places"
        parts = [
            f"{', '.join(found)} ({reason})"
            for verdict, reason in REASONS.items()
            if (found := self.named(verdict))
        ]
        whole = "" if self.varies else "; the output itself does not differ"
        return (
            f"the contrast of {self.n} pairs is uninformative about {len(lost)} of "
            f"{len(self.places)} places, where an effect of 0 says nothing: {'; '.join(parts)}"
            f"{whole}; use prompts that vary what they read, or removal"
        )

    def to_frame(self) -> Any:
        """A pandas row per component."""
        import pandas

        columns = ("places", "verdicts", "moved", "exchanged", "removed")
        return pandas.DataFrame({column: getattr(self, column) for column in columns}).rename(
            columns={"places": "place", "verdicts": "verdict"}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        content = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"schema": SCHEMA, **content}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "ContrastCheck":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            EffectsError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise EffectsError(f"{path}: holds no {SCHEMA!r}; write it with contrast.save")
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
            if key in {field.name for field in fields(cls)}
        }
        return cls(**{**found, "provenance": Provenance(**found["provenance"])})
