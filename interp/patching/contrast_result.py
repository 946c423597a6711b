"""Result of a contrast check: for each component, what a pair of prompts can show about it.

"Exchanging" a component means patching it between the two prompts of a pair. The verdicts are:

    shown      exchanging it changes the output
    constant   its value is the same in both prompts of every pair, and is not zero
    unread     its value differs and exchanging it changes nothing, but removing it changes the
               output, or the output is the same in both prompts of every pair: the part of the
               value that is read does not differ
    absorbed   as idle, but exchanging it changes a component that is constant, unread or absorbed
    silent     it writes zeros on these prompts
    idle       its value differs and so does the output, but neither exchanging nor removing it
               changes the output: this zero is informative

About constant, unread and absorbed components the prompts are uninformative: an effect of 0 says
nothing.
"""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from interp.errors import EffectsError
from interp.results import Provenance, Result
from train import storage
from train.progress import count
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["UNINFORMATIVE", "ContrastCheck"]

SCHEMA = "openbook.contrast/1"
UNINFORMATIVE = ("constant", "unread", "absorbed")
REASONS = {
    "constant": "the same in both prompts of every pair",
    "unread": "differing in nothing that is read of them",
    "absorbed": "reaching only components of these two kinds",
}


@dataclass(frozen=True)
class ContrastCheck(Result):
    """Verdict on each component: what pairs of prompts can show about it.

    Attributes:
        places: Names of the components.
        verdicts: Verdict on each component; see the module.
        moved: Largest difference of a component's value between the prompts of a pair.
        exchanged: Largest change of the metric when a component has its value on the other prompt.
        removed: Largest change of the metric when a component is zero.
        output: Largest difference of the metric between the prompts of a pair.
        varies: True if `output` is more than rounding.
        metric: Name of the metric.
        unit: Unit of the metric.
        n: Number of pairs of prompts.
        provenance: Model and software that the result was computed from.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A contrast check shows about which components these prompts can say anything; it "
        "does not show what a component does."
    )

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

    __repr__ = short_repr

    def __getitem__(self, name: str) -> str:
        try:
            return self.verdicts[self.places.index(name)]
        except ValueError:
            raise EffectsError(
                f"{name!r} is not among the {len(self.places)} places from {self.places[0]} to "
                f"{self.places[-1]}"
            ) from None

    def named(self, *verdicts: str) -> list[str]:
        """Return the components with one of these verdicts."""
        pairs = zip(self.places, self.verdicts, strict=True)
        return [place for place, verdict in pairs if verdict in verdicts]

    @property
    def uninformative(self) -> list[str]:
        """Components about which an effect of 0 says nothing."""
        return self.named(*UNINFORMATIVE)

    def __str__(self) -> str:
        lost, places = self.uninformative, count(len(self.places), "place")
        if not lost:
            return f"the contrast of {count(self.n, 'pair')} is informative about {places}"
        parts = [
            f"{', '.join(found)} ({reason})"
            for verdict, reason in REASONS.items()
            if (found := self.named(verdict))
        ]
        whole = "" if self.varies else "; the output itself does not differ"
        return (
            f"the contrast of {count(self.n, 'pair')} is uninformative about {len(lost)} of "
            f"{places}, where an effect of 0 says nothing: {'; '.join(parts)}"
            f"{whole}; use prompts that vary what they read, or removal"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per component: verdict, moved, exchanged and removed."""
        import pandas

        columns = ("places", "verdicts", "moved", "exchanged", "removed")
        return pandas.DataFrame({column: getattr(self, column) for column in columns}).rename(
            columns={"places": "place", "verdicts": "verdict"}
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        content = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"schema": SCHEMA, **content}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "ContrastCheck":
        """Return the result that `to_dict` turned into plain values."""
        found: storage.JsonObject = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
            if key in {field.name for field in fields(cls)}
        }
        return cls(**{**found, "provenance": Provenance(**found["provenance"])})
