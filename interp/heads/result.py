"""Head scores: one number per head, with interval, control, n and provenance.

The control is the same architecture with its initial weights. A score that an untrained model
reaches too is not a finding (for example, attention to the previous token is high if there are few
tokens to attend to). A head is *above the control* if the lower end of its interval is more than
five standard deviations above the mean of the control's heads. The highest control head would be
too low a threshold: 2 to 25 % of other untrained models, depending on the kind of score, have a
head above it. At most one of 40 untrained models has a head above the threshold used (n = 40, two
shapes). Being above the control says that training made a difference, not how large it is; the
score itself says that.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp import plots
from interp.components import Component, HookedModel, device_of
from interp.errors import EffectsError
from interp.results import Provenance, Result, TopNames, numbers, plain
from train import storage
from train.errors import nearest
from train.html_panel import ROWS, Grid, Panel, panel_of
from train.model import GPT, init_gpt


if TYPE_CHECKING:
    import pandas

__all__ = ["HeadScores", "untrained"]

SCHEMA = "openbook.head-scores/1"
NEVER_NEGATIVE = ("mean attention", "share of tokens")  # units
DEVIATIONS = 5.0  # standard deviations over the control's heads, see above


@dataclass(frozen=True, eq=False)
class HeadScores(Result):
    """One score for every head.

    Attributes:
        kind: Kind of score, such as "induction" or "copying".
        unit: Unit of the values.
        values: The scores.
        low: Lower end of the 95 % interval; None for fewer than two sequences or tokens.
        high: Upper end of the 95 % interval.
        control: Scores of the untrained model; None for a model that cannot be initialised anew.
        n: Number of sequences or tokens that the interval is over.
        drawn: "sequences" or "tokens".
        provenance: Model and software that the scores were computed from.
        material: What they were computed on, with the number of different tokens and the size of
            the vocabulary; "" in older files. Scores on different material are not comparable.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A head score shows a pattern in what a head attends to or writes, with an interval for a "
        "head that was named beforehand, and a control that allows for the choice of the highest "
        "of all heads; it does not show that any behaviour depends on the head, which ablation "
        "tests."
    )

    kind: str
    unit: str
    values: Float[Tensor, "layer head"]
    low: Float[Tensor, "layer head"] | None
    high: Float[Tensor, "layer head"] | None
    control: Float[Tensor, "layer head"] | None
    n: int
    drawn: str
    provenance: Provenance
    material: str = ""

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {self[name]:.3f}" for name in self.top(3))
        layers, heads = self.values.shape
        return f"HeadScores({self.kind}, {layers} layers x {heads} heads; highest {best})"

    def __getitem__(self, name: str) -> float:
        return self.values[self._index(name)].item()

    @property
    def names(self) -> list[str]:
        """Names of all heads, in the order of the flattened values."""
        layers, heads = self.values.shape
        return [str(Component("head", i, head=j)) for i in range(layers) for j in range(heads)]

    @property
    def above_control(self) -> list[str]:
        """Names of the heads above the control (see the module), highest score first.

        Empty without intervals or without a control.
        """
        if self.low is None or self.control is None:
            return []
        usual = self.control.mean() + DEVIATIONS * self.control.std(correction=0)
        # A score that is the same on every prompt has no interval (nan); the score itself counts.
        low = torch.where(self.low.isnan(), self.values, self.low)
        return [name for name in self.top() if low[self._index(name)] > usual]

    @property
    def highest_control(self) -> float | None:
        """Highest score of an untrained head; None without a control."""
        return None if self.control is None else self.control.max().item()

    def top(self, k: int | None = None) -> TopNames:
        """Return the names of the k heads with the highest scores (None for all), highest first."""
        order = self.values.flatten().argsort(descending=True, stable=True)[:k]
        all_names = self.names
        names = [all_names[i] for i in order.tolist()]
        return TopNames(names, {name: self[name] for name in names})

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of one head; None if there is none (see `low`).

        It holds for a head named beforehand. For the highest of many, `above_control` says whether
        it is more than the choice of the highest: untrained models choose theirs as well.
        """
        index = self._index(name)
        if self.low is None or self.high is None or self.low[index].isnan():
            return None
        return self.low[index].item(), self.high[index].item()

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per head: layer, head, place, score, low, high, untrained."""
        import pandas

        layers, heads = self.values.shape
        frame = pandas.DataFrame(
            {
                "layer": [i for i in range(layers) for _ in range(heads)],
                "head": list(range(heads)) * layers,
                "place": self.names,
            }
        )
        columns = {"score": self.values, "low": self.low, "high": self.high}
        for name, values in {**columns, "untrained": self.control}.items():
            frame[name] = None if values is None else values.flatten().tolist()
        return frame

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows: a grid of all heads, and the n highest scores."""
        layers, heads = ([f"{axis}{i}" for i in range(size)]
                         for axis, size in zip("LH", self.values.shape, strict=True))  # fmt: skip
        grid = Grid(layers, heads, self.values.tolist(), self.unit)
        return panel_of(self, n, grid=grid)

    def plot(self) -> "plots.Figure":
        """Plot a heat map over (layer, head)."""
        title = f"{self.kind}, n={self.n} {self.drawn}"
        from_zero = self.unit.startswith(NEVER_NEGATIVE)
        return plots.heads(self.values, title=title, unit=self.unit, from_zero=from_zero)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        tensors = {name: getattr(self, name) for name in ("values", "low", "high", "control")}
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "unit": self.unit,
            **{name: None if t is None else plain(t.tolist()) for name, t in tensors.items()},
            "n": self.n,
            "drawn": self.drawn,
            **({"material": self.material} if self.material else {}),
            "provenance": asdict(self.provenance),
            "above_control": self.above_control,
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "HeadScores":
        """Return the result that `to_dict` turned into plain values."""
        del content["above_control"]
        for name in ("values", "low", "high", "control"):
            value = content[name]
            content[name] = (
                None if value is None else torch.tensor(numbers(value), dtype=torch.float32)
            )
        content["provenance"] = Provenance(**content["provenance"])
        return cls(**content)

    def _index(self, name: str) -> tuple[int, int]:
        if name not in self.names:
            raise EffectsError(f"no head {name!r} was scored{nearest(name, self.names)}")
        return divmod(self.names.index(name), self.values.shape[1])


def untrained(model: HookedModel, seed: int) -> GPT | None:
    """Return the control: the same architecture with initial weights; None if it is not a GPT."""
    if not isinstance(model, GPT):
        return None
    return init_gpt(model.cfg, seed).to(device_of(model)).eval()
