"""Linear datamodelling score (LDS): rank correlation of predicted and actual effects of removal.

As in Park et al. 2023 (TRAK, https://arxiv.org/abs/2303.14186): remove random subsets of the
documents, retrain without each, and correlate the answers to a query with those that the scores
predict. A document of score s is predicted to take s away from the answer when it is removed, so a
subset is predicted to change it by minus the sum of its scores. Spearman's correlation uses the
order of the subsets only, so scores need no scale.

The interval is over subsets: what another draw of as many subsets would give for these scores. It
is a percentile bootstrap; it held the true value in 93 to 98 % of 300 draws of 20 and of 40
subsets, at correlations from 0 to .985 (in 89 % of draws of 100 at .985).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution import queries
from data_attribution.counterfactuals import Retrainings
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from train.progress import Progress
from train.runs import Run


__all__ = [
    "Lds",
    "Subset",
    "draw_subsets",
    "lds_score",
    "predicted_change",
    "retrained_on_subsets",
    "spearman",
    "spread",
]

DRAWS = 1000

Subset = tuple[int, ...]


@dataclass(frozen=True)
class Lds:
    """Spearman's correlation of predicted and measured answers, with its 95 % interval.

    It is over `n` subsets.
    """

    rho: float
    low: float
    high: float
    n: int


def draw_subsets(
    documents: Sequence[int] | Int64[np.ndarray, " document"],
    *,
    n: int = 40,
    share: float = 0.05,
    seed: int = 0,
) -> tuple[Subset, ...]:
    """Draw `n` random subsets, each of a share of the documents (at least one), ascending.

    Raises:
        EvidenceError: The subsets would be empty, or hold every document.

    Examples:
        >>> subsets = evaluation.draw_subsets(range(100), n=3, share=0.02)
        >>> [len(subset) for subset in subsets]
        [2, 2, 2]
    """
    every = np.unique(np.asarray(documents, np.int64))
    size = max(1, round(share * len(every)))
    if n < 1 or not 0 < share < 1 or size >= len(every):
        raise EvidenceError(
            f"{n} subsets of {share:g} of {len(every)} documents cannot be drawn; give 1 subset or "
            "more, a share between 0 and 1, and documents enough that some stay"
        )
    generator = np.random.default_rng(seed)
    drawn = (generator.choice(every, size, replace=False) for _ in range(n))
    return tuple(tuple(sorted(one.tolist())) for one in drawn)


def retrained_on_subsets(
    run: Run,
    subsets: Sequence[Subset],
    asked: Sequence[Query],
    *,
    out: Path | None = None,
    mode: str = "loss",
    first: int | None = None,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "question subset"]:
    """Return each query's mean answer over its prompts after retraining without each subset.

    Costs one training per subset; with `out` the last weights are stored there and reused.

    Args:
        mode: How to remove documents. `loss`: keep them as context, which is what the weight of a
            document's loss means; `blank`: replace their tokens.
        first: Remove the documents from this step on, and retrain only from there.

    Raises:
        CounterfactualError: A subset has no documents, or one that was not read.
    """
    again = Retrainings(run, mode, first, out)
    answers = np.empty((len(asked), len(subsets)))
    for done, subset in enumerate(subsets):
        model = again.without(subset)
        answers[:, done] = [queries.measure_query(model, one).mean() for one in asked]
        if progress:
            progress("subsets retrained", done + 1, len(subsets))
    return answers


def spread(
    documents: Int64[np.ndarray, " document"],
    scores: Float64[np.ndarray, " document"],
    n_documents: int,
) -> Float64[np.ndarray, " store_document"]:
    """Return scores by index in the store.

    A document without a score gets 0: it is predicted to change nothing.

    Examples:
        >>> evaluation.spread(np.array([1, 3]), np.array([0.5, -1.0]), n_documents=5).tolist()
        [0.0, 0.5, 0.0, -1.0, 0.0]
    """
    whole = np.zeros(n_documents)
    whole[documents] = scores
    return whole


def predicted_change(
    predicted: Float64[np.ndarray, " store_document"], subsets: Sequence[Subset]
) -> Float64[np.ndarray, " subset"]:
    """Return the predicted change of the answer without each subset, up to scale.

    Examples:
        >>> predicted = np.array([0.5, 0.25, -1.0])
        >>> evaluation.predicted_change(predicted, [(0, 1), (2,)]).tolist()
        [-0.75, 1.0]
    """
    return np.array([0.0 - predicted[list(one)].sum() for one in subsets])


def lds_score(
    predicted: Float64[np.ndarray, " store_document"],
    subsets: Sequence[Subset],
    actual: Float64[np.ndarray, " subset"],
    *,
    seed: int = 0,
) -> Lds:
    """Return how well scores (by index in the store, see `spread`) predict the effects of subsets.

    Args:
        actual: A row of `retrained_on_subsets`, or differences to the full run; only the order
            counts.
        seed: Random seed of the bootstrap over subsets.

    Raises:
        EvidenceError: There are fewer than 4 subsets, or all predictions or all answers are equal.

    Examples:
        >>> predicted = np.array([3.0, 1.0, 0.0, -2.0, 5.0])
        >>> subsets = [(0,), (1,), (2,), (3,), (4,)]
        >>> answers = np.array([-3.0, -1.0, 0.0, 2.0, -5.0])  # of the model retrained without each
        >>> round(evaluation.lds_score(predicted, subsets, answers).rho, 6)
        1.0
    """
    if not 4 <= len(subsets) == len(actual):
        raise EvidenceError(
            f"{len(subsets)} subsets with {len(actual)} answers were given; 4 or more, with an "
            "answer each, can be correlated"
        )
    foretold = predicted_change(predicted, subsets)
    for name, values in (("predictions", foretold), ("answers", actual)):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise EvidenceError(
                f"the {name} of {len(subsets)} subsets run from {values.min():g} to "
                f"{values.max():g}; they must be numbers, and differ, to be correlated"
            )
    rows = np.random.default_rng(seed).integers(len(subsets), size=(DRAWS, len(subsets)))
    low, high = np.percentile(spearman(foretold[rows], actual[rows]), [2.5, 97.5])
    rho = float(spearman(foretold[None], actual[None])[0])
    return Lds(rho, float(low), float(high), len(subsets))


def spearman(
    ours: Float64[np.ndarray, "draw_subsets subset"],
    theirs: Float64[np.ndarray, "draw_subsets subset"],
) -> Float64[np.ndarray, " draw_subsets"]:
    """Return the correlation of ranks; equal values share the mean of their ranks.

    It is 0 where all values of a draw are equal: a constant predicts nothing.

    Examples:
        >>> ours, theirs = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 4.0, 9.0]])
        >>> [round(value, 6) for value in evaluation.spearman(ours, theirs).tolist()]
        [1.0]
    """
    # Imported here because scipy.stats takes a second to import.
    from scipy.stats import rankdata

    left, right = rankdata(ours, axis=1), rankdata(theirs, axis=1)
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), size, out=np.zeros(len(ours)), where=size > 0)
