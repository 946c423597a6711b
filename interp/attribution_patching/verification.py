"""Agreement of estimated with exact effects, component by component.

Ranks are compared by Spearman's correlation, sizes by Pearson's correlation and the largest error.
The interval of the rank correlation uses Fisher's transformation with the variance of Bonett &
Wright (2000, Psychometrika 65, 23), (1 + r^2 / 2) / (n - 3). Estimates without a sign are compared
with the absolute exact effects.
"""

from dataclasses import asdict, dataclass
from math import atanh, sqrt, tanh
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp import plots
from interp.patching import Effects
from interp.results import Provenance, Result
from train import storage
from train.progress import count
from train.short_repr import short_repr
from train.statistics import Z


if TYPE_CHECKING:
    import pandas

__all__ = ["Agreement", "compared"]

SCHEMA = "openbook.agreement/1"
FOUND_IN = 10  # number of truly largest effects that the recall counts


@dataclass(frozen=True)
class Agreement(Result):
    """Estimates compared with exact effects.

    Attributes:
        places: Names of the verified components, the largest estimate first.
        estimated: Estimates of the verified components.
        exact: Exact effects of the verified components, in the same unit.
        low: Lower ends of the 95 % intervals of `exact`, over prompts; None as in `Effects`.
        high: Upper ends of those intervals.
        spearman: Rank correlation over the verified components; None for fewer than 3, or if the
            estimates or the exact effects are all equal.
        interval: 95 % interval of `spearman`; None for fewer than 5 components.
        pearson: Linear correlation; None as for `spearman`.
        largest_error: Largest |estimated - exact|.
        recall: Share of the k largest exact effects that are among the k largest estimates, with
            k = 10, or half of all components if that is less; None unless all were verified.
        n: Number of verified components.
        n_places: Number of estimated components.
        n_prompts: Number of distinct clean prompts.
        control: Largest absolute exact effect in a random sample of the other components; None if
            there are no others. If it exceeds the verified effects, a large effect was missed.
        control_place: Name of the component with that effect.
        control_n: Size of the random sample.
        absolute: True if the estimates have no sign and were compared with absolute effects.
        unit: Unit of the effects.
        provenance: Model, behaviour and software that the result was computed from.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "An agreement shows how well estimates match exact effects on these prompts; it does "
        "not show that they match on another behaviour or model."
    )

    places: tuple[str, ...]
    estimated: tuple[float, ...]
    exact: tuple[float, ...]
    low: tuple[float | None, ...] | None
    high: tuple[float | None, ...] | None
    spearman: float | None
    interval: tuple[float, float] | None
    pearson: float | None
    largest_error: float
    recall: float | None
    n: int
    n_places: int
    n_prompts: int
    control: float | None
    control_place: str | None
    control_n: int
    absolute: bool
    unit: str
    provenance: Provenance

    __repr__ = short_repr

    def __str__(self) -> str:
        low, high = self.interval or (float("nan"),) * 2
        ranks = (
            ""
            if self.spearman is None
            else f"Spearman {self.spearman:.2f} [{low:.2f}, {high:.2f}], "
        )
        others = (
            ""
            if self.control is None
            else f"; largest of {count(self.control_n, 'other')} {self.control:.3f} "
            f"({self.control_place})"
        )
        return (
            f"{self.n} of {count(self.n_places, 'place')} verified on "
            f"{count(self.n_prompts, 'prompt')}: {ranks}"
            f"largest error {self.largest_error:.3f}{others}"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per verified component: estimated, exact, low, high, error."""
        import pandas

        columns = ("places", "estimated", "exact", "low", "high")
        frame = pandas.DataFrame({column: getattr(self, column) for column in columns})
        exact = frame["exact"].abs() if self.absolute else frame["exact"]
        frame["error"] = frame["estimated"] - exact
        return frame.rename(columns={"places": "place"})

    def plot(self) -> "plots.Figure":
        """Plot exact effects over their estimates."""
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"schema": SCHEMA, **content}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Agreement":
        """Return the result that `to_dict` turned into plain values."""
        content["provenance"] = Provenance(**content["provenance"])
        plain: storage.JsonObject = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
        }
        return cls(**plain)


def compared(
    exact: Effects,
    estimated: Float[Tensor, " place"],
    *,
    n_top: int,
    n_places: int,
    absolute: bool,
    said: Provenance,
) -> Agreement:
    """Compare exact effects with estimates for the first `n_top` components.

    The remaining entries of `exact` are the control.
    """
    found, guess = exact.values.double().numpy(), estimated.double().numpy()[:n_top]
    size = np.abs(found)
    same = (size if absolute else found)[:n_top]
    others = size[n_top:]
    worst = int(others.argmax()) if len(others) else None
    spearman, pearson = _correlations(guess, same)
    low = high = None
    if exact.low is not None:
        pairs = [exact.interval(name) or (None, None) for name in exact.names[:n_top]]
        low, high = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return Agreement(
        places=tuple(exact.names[:n_top]),
        estimated=tuple(guess.tolist()),
        exact=tuple(found[:n_top].tolist()),
        low=low,
        high=high,
        spearman=spearman,
        interval=_interval(spearman, n_top),
        pearson=pearson,
        largest_error=float(np.abs(guess - same).max()),
        recall=_recall(guess, found[:n_top]) if n_top == n_places else None,
        n=n_top,
        n_places=n_places,
        n_prompts=exact.n_prompts,
        control=None if worst is None else float(others[worst]),
        control_place=None if worst is None else exact.names[n_top + worst],
        control_n=len(others),
        absolute=absolute,
        unit=exact.unit,
        provenance=said,
    )


def _correlations(
    guess: Float[np.ndarray, " place"], exact: Float[np.ndarray, " place"]
) -> tuple[float | None, float | None]:
    """Return Spearman's and Pearson's correlation; None below 3 values or if they are constant."""
    from scipy import stats

    if len(guess) < 3 or not np.ptp(guess) or not np.ptp(exact):
        return None, None
    ranks = (stats.rankdata(one) for one in (guess, exact))
    return float(np.corrcoef(*ranks)[0, 1]), float(np.corrcoef(guess, exact)[0, 1])


def _interval(spearman: float | None, n: int) -> tuple[float, float] | None:
    if spearman is None or n < 5:
        return None
    half = Z * sqrt((1 + spearman**2 / 2) / (n - 3))
    # atanh(1) is infinite. The correlation is limited to 1 - 1 / n^2, taken as the resolution of
    # ranks of n components.
    middle = atanh(max(min(spearman, 1 - 1 / n**2), 1 / n**2 - 1))
    return min(tanh(middle - half), spearman), max(tanh(middle + half), spearman)


def _recall(guess: Float[np.ndarray, " place"], exact: Float[np.ndarray, " place"]) -> float:
    k = max(min(FOUND_IN, len(exact) // 2), 1)
    first, second = (
        set(np.argsort(-np.abs(one), kind="stable")[:k].tolist()) for one in (guess, exact)
    )
    return len(first & second) / k


def _figure(found: Agreement) -> "plots.Figure":
    """Draw exact effects with intervals over the estimates, and the line where both are equal."""
    exact = [abs(one) for one in found.exact] if found.absolute else list(found.exact)
    low, high = (found.low, found.high) if not found.absolute else (None, None)
    error = None if low is None or high is None else plots.interval(exact, low, high)
    ends = [min([*found.estimated, *exact, 0.0]), max([*found.estimated, *exact, 0.0])]
    figure = plots.figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot"})
    figure.add_scatter(
        x=list(found.estimated),
        y=exact,
        error_y=error,
        mode="markers",
        text=list(found.places),
        hovertemplate="%{text}: estimated %{x:.3f}, exact %{y:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="estimated")
    figure.update_yaxes(title=f"exact, {found.unit}")
    figure.update_layout(showlegend=False)
    return plots.framed(
        figure, f"{found.provenance.behaviour}: {count(found.n, 'place')} estimated and exact"
    )
