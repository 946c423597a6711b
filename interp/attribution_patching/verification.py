"""How well estimated effects agree with exact ones, place by place.

Ranks are compared with Spearman's coefficient, sizes with Pearson's and the largest error. The
interval of the rank correlation is Fisher's transformation with the variance of Bonett & Wright
(2000, Psychometrika 65, 23): (1 + r^2 / 2) / (n - 3). Estimates without a sign are compared with
the absolute exact effects.
"""

from dataclasses import asdict, dataclass
from math import atanh, sqrt, tanh
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.errors import EffectsError
from interp.patching import Effects, Provenance
from interp.statistics import Z
from train import storage


__all__ = ["Agreement", "compared"]

SCHEMA = "openbook.agreement/1"
FOUND_IN = 10  # of how many truly largest places it is counted how many were found


@dataclass(frozen=True)
class Agreement:
    """Estimates beside exact effects.

    Attributes:
        places: Verified places, the largest estimate first.
        estimated: Their estimates.
        exact: Their effects, in the same unit.
        low: Lower ends of the 95 % intervals of `exact`, over prompts; None as in Effects.
        high: Upper ends.
        spearman: Rank correlation over the verified places; None below 3, or when nothing varies.
        interval: Of `spearman`; None below 5 places.
        pearson: Linear correlation.
        largest_error: Largest |estimated - exact|.
        recall: Share of the truly largest places (10, or half of all when they are fewer) that are
            as many largest estimates; None unless every place was verified.
        n: Verified places.
        n_places: Estimated places.
        n_prompts: Distinct clean prompts.
        control: Largest absolute exact effect among as many of the other places, drawn at random;
            None when there are none. Above the verified ones, something large was missed.
        control_place: Where that was.
        control_n: How many others.
        absolute: Whether the estimates have no sign, and absolute effects were compared.
        unit: Of the effects.
        provenance: What it was computed from.
    """

    places: tuple[str, ...]
    estimated: tuple[float, ...]
    exact: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
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
            else f"; largest of {self.control_n} others {self.control:.3f} ({self.control_place})"
        )
        return (
            f"{self.n} of {self.n_places} places verified on {self.n_prompts} prompts: {ranks}"
            f"largest error {self.largest_error:.3f}{others}"
        )

    def to_frame(self) -> Any:
        """A pandas row per verified place: estimated, exact, low, high, error."""
        import pandas

        columns = ("places", "estimated", "exact", "low", "high")
        frame = pandas.DataFrame({column: getattr(self, column) for column in columns})
        exact = frame["exact"].abs() if self.absolute else frame["exact"]
        frame["error"] = frame["estimated"] - exact
        return frame.rename(columns={"places": "place"})

    def plot(self) -> Any:
        """Estimates against exact effects."""
        return _figure(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"schema": SCHEMA, **content}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Agreement":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            EffectsError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise EffectsError(f"{path}: is no {SCHEMA!r}; write it with agreement.save")
        del content["digest"]
        content["provenance"] = Provenance(**content["provenance"])
        plain: dict[str, Any] = {
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
    """Exact effects of the first `n_top` places beside their estimates; the others are control."""
    found, guess = exact.values.double().numpy(), estimated.double().numpy()[:n_top]
    size = np.abs(found)
    same = (size if absolute else found)[:n_top]
    others = size[n_top:]
    worst = int(others.argmax()) if len(others) else None
    spearman, pearson = _correlations(guess, same)
    ends = (exact.low, exact.high)
    low, high = (None if one is None else tuple(one[:n_top].tolist()) for one in ends)
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
    """Spearman's and Pearson's."""
    from scipy import stats

    if len(guess) < 3 or not np.ptp(guess) or not np.ptp(exact):
        return None, None
    ranks = (stats.rankdata(one) for one in (guess, exact))
    return float(np.corrcoef(*ranks)[0, 1]), float(np.corrcoef(guess, exact)[0, 1])


def _interval(spearman: float | None, n: int) -> tuple[float, float] | None:
    if spearman is None or n < 5:
        return None
    half = Z * sqrt((1 + spearman**2 / 2) / (n - 3))
    # At exactly 1 the transformation has no value; ranks of n places resolve no more than 1 / n^2.
    middle = atanh(max(min(spearman, 1 - 1 / n**2), 1 / n**2 - 1))
    return min(tanh(middle - half), spearman), max(tanh(middle + half), spearman)


def _recall(guess: Float[np.ndarray, " place"], exact: Float[np.ndarray, " place"]) -> float:
    k = max(min(FOUND_IN, len(exact) // 2), 1)
    first, second = (
        set(np.argsort(-np.abs(one), kind="stable")[:k].tolist()) for one in (guess, exact)
    )
    return len(first & second) / k


def _figure(found: Agreement) -> Any:
    """Estimates across, exact effects with intervals up, and the line where they are equal."""
    from interp import plots  # plotly takes a second

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
        figure, f"{found.provenance.behaviour}: {found.n} places estimated and exact"
    )
