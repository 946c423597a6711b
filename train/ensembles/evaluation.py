"""The held-out loss of an ensemble beside those of its members, paired by document.

Every loss has an interval over documents, and so has its difference to the ensemble's: both are
ratios of sums over documents, of losses and of tokens. An ensemble is called better than a member
only if the whole interval of the difference is below 0.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from train import storage
from train.ensembles.data_efficiency import BaselineCurve, distinct_tokens
from train.ensembles.ensemble import (
    Ensemble,
    Member,
    average_weights,
    check_same_store,
    ensemble_of,
)
from train.ensembles.learned_weights import learn_weights
from train.ensembles.token_scores import HeldOutScores, held_out_scores, scores_of
from train.errors import TrainError
from train.html_panel import html_repr
from train.progress import Progress
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import Estimate, ratio_estimate


__all__ = ["EnsembleEvaluation", "EnsembleRow", "evaluate", "verdict"]

SCHEMA = "openbook.ensemble/1"


@dataclass(frozen=True)
class EnsembleRow:
    """Loss of one member, or of the members together.

    Attributes:
        name: Folder and step of a member, or how the members were averaged.
        weight: Weight of the member in the ensemble; None for averages.
        loss: Loss in nats per token, with its 95 % interval over documents.
        difference: Loss of the ensemble minus this loss, by document; below 0 if the ensemble is
            better.
    """

    name: str
    weight: float | None
    loss: Estimate
    difference: Estimate

    __repr__ = short_repr


@dataclass(frozen=True)
class EnsembleEvaluation:
    """Losses of an ensemble and of its members on the same held-out documents.

    Attributes:
        rows: The members, then averages that were not chosen, then the ensemble.
        n_documents: Number of documents that the losses are measured on.
        n_tokens: Number of their tokens.
        learned_on: Number of other documents that the weights were learned on; 0: none were.
        provenance: Store, and run, step and weights of every member and baseline.
        n_train_tokens: Number of different tokens that the members were trained on.
        baseline: The baseline that the ensemble is compared with; None: there is none.
        efficiency: How many times as many tokens the baseline needs for the ensemble's loss.
    """

    meaning: ClassVar[str] = (
        "An ensemble evaluation shows how much averaging lowers the loss on held-out text; it does "
        "not show that one model of the same compute would not do as well."
    )

    rows: tuple[EnsembleRow, ...]
    n_documents: int
    n_tokens: int
    learned_on: int
    provenance: storage.JsonObject
    n_train_tokens: int
    baseline: BaselineCurve | None = None
    efficiency: Estimate | None = None

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def ensemble(self) -> EnsembleRow:
        """The row of the ensemble."""
        return self.rows[-1]

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the members."""
        return tuple(row.weight for row in self.rows if row.weight is not None)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` reads."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "EnsembleEvaluation":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file does not match its seal.
            TrainError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise TrainError(f"{path}: is no {SCHEMA!r}; write it with `openbook ensemble --out`")
        del content["digest"]
        with storage.reading(path):
            rows = tuple(
                EnsembleRow(
                    row["name"],
                    row["weight"],
                    Estimate(**row["loss"]),
                    Estimate(**row["difference"]),
                )
                for row in content.pop("rows")
            )
            if curve := content.pop("baseline"):
                content["baseline"] = BaselineCurve(tuple(curve["tokens"]), tuple(curve["losses"]))
                content["efficiency"] = Estimate(**content["efficiency"])
            return cls(rows, **content)

    def lines(self) -> str:
        """Return the table as text."""
        wide = max(len(row.name) for row in self.rows) + 2
        head = f"{'':<{wide}}weight  {'loss in nats a token':<26}{'ensemble minus this':<28}"
        lines = [head.rstrip()]
        for row in self.rows:
            weight = "     -" if row.weight is None else f"{row.weight:6.3f}"
            line = f"{row.name:<{wide}}{weight}  {row.loss!s:<26}"
            if row is not self.ensemble:
                line += f"{row.difference!s:<28}{verdict(row.difference)}"
            lines.append(line.rstrip())
        learned = f"weights learned on {self.learned_on} others" if self.learned_on else ""
        about = [f"{self.n_tokens:,} tokens in {self.n_documents} held-out documents", learned]
        lines.append("; ".join([*filter(None, about), "95 % intervals over documents"]))
        if self.efficiency:
            lines.append(
                f"trained on {self.n_train_tokens:,} different tokens; the baseline needs "
                f"{self.efficiency} times as many for this loss"
            )
        return "\n".join(lines)


def evaluate(
    ensemble: Ensemble,
    *,
    learn: bool = False,
    baseline: Sequence[Run] = (),
    progress: Progress | None = None,
) -> EnsembleEvaluation:
    """Measure an ensemble and its members on what their store holds out.

    If all members are checkpoints of one run, the model with the mean of their weights is measured
    too.

    Args:
        learn: Learn the weights on one half of the held-out documents and report the losses on the
            other; equal weights are reported beside. Default: the weights of the ensemble, on all
            held-out documents.
        baseline: Single runs of one method on different amounts of tokens, for the data efficiency.

    Raises:
        StoreError: The store holds out fewer than two different documents, or a baseline was
            trained on another store.
        TrainError: The baseline is no falling curve, or the loss of the ensemble lies outside it.
    """
    members, others = ensemble.members, _baselines(ensemble, baseline)
    both = (*members, *others)
    everything = held_out_scores(both, progress=progress)
    scores = replace(everything, values=everything.values[: len(members)])
    averages = dict[str, np.ndarray]()
    if len({member.run.id for member in members}) == 1 < len(members):
        averages["mean of weights"] = scores_of(both, average_weights(ensemble))
    weights, reported, learned_on = np.array(ensemble.weights), scores, 0
    name = "mean of probabilities"
    if learn:
        fitted, reported = scores.half(0), scores.half(1)
        kept = scores.halves[scores.documents] == 1
        averages = {key: values[kept] for key, values in averages.items()}
        everything = everything.half(1)
        averages["equal weights"] = reported.mixture(np.full(len(weights), 1 / len(weights)))
        weights, learned_on = learn_weights(fitted.values), len(fitted.halves)
        name = "learned weights"
    values = [*reported.values, *averages.values(), reported.mixture(weights)]
    losses = [reported.losses(one) for one in values]
    names = [*map(str, members), *averages, name]
    shares: list[float | None] = [*map(float, weights), *[None] * (len(averages) + 1)]
    rows = _rows(names, shares, losses, reported)
    n_train_tokens, curve = distinct_tokens(members), None
    if others:
        curve = _curve(others, everything.values[len(members) :])
    return EnsembleEvaluation(
        rows=tuple(rows),
        n_documents=len(reported.halves),
        n_tokens=int(reported.tokens.sum()),
        learned_on=learned_on,
        provenance={
            "store": ensemble.store.fingerprint,
            "members": [member.origin for member in members],
            "baseline": [member.origin for member in others],
        },
        n_train_tokens=n_train_tokens,
        baseline=curve,
        efficiency=curve.efficiency(rows[-1].loss, n_train_tokens) if curve else None,
    )


def verdict(difference: Estimate) -> str:
    """Say whether a difference in loss is an improvement: its whole interval is below 0.

    Examples:
        >>> ensembles.verdict(statistics.Estimate(-0.1, low=-0.15, high=-0.05))
        'better beyond its interval'
        >>> ensembles.verdict(statistics.Estimate(-0.1, low=-0.3, high=0.1))
        'not'
    """
    better = difference.high is not None and difference.high < 0
    return "better beyond its interval" if better else "not"


def _baselines(ensemble: Ensemble, runs: Sequence[Run]) -> tuple[Member, ...]:
    """Return the last checkpoints of the baselines; their number may be 0."""
    members = ensemble_of(runs).members if runs else ()
    for member in members:
        check_same_store(ensemble.members[0], member)
    return members


def _curve(members: Sequence[Member], values: Float[np.ndarray, "member token"]) -> BaselineCurve:
    """Return the curve of baselines by the number of tokens that they were trained on."""
    losses = (-values.mean(axis=1, dtype=np.float64)).tolist()
    points = sorted(
        (distinct_tokens([member]), loss) for member, loss in zip(members, losses, strict=True)
    )
    return BaselineCurve(tuple(point[0] for point in points), tuple(point[1] for point in points))


def _rows(
    names: Sequence[str],
    weights: Sequence[float | None],
    losses: Sequence[Float64[np.ndarray, " document"]],
    scores: HeldOutScores,
) -> list[EnsembleRow]:
    return [
        EnsembleRow(
            name=name,
            weight=weight,
            loss=_per_token(loss, scores.tokens),
            difference=_per_token(losses[-1] - loss, scores.tokens),
        )
        for name, weight, loss in zip(names, weights, losses, strict=True)
    ]


def _per_token(
    sums: Float64[np.ndarray, " document"], tokens: Float64[np.ndarray, " document"]
) -> Estimate:
    """Return a sum over documents per token, with its interval over documents."""
    return ratio_estimate(sums, tokens)
