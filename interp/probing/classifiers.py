"""Linear classifiers on activations, and the baselines that their accuracy is compared with.

This module works on arrays; `interp.probing.probes` reads the activations. A probe can be accurate
because it *learned* the task itself and not because the activations contain the label. Three
measures show how much:

* Cross-validation over cases, and over whole types (words, entities): the latter tests whether the
  probe is right on types that it was not trained on.
* A control task: every type gets a random label, which only memorising types can predict (Hewitt &
  Liang 2019, https://aclanthology.org/D19-1275). Accuracy minus control accuracy is *selectivity*.
* The online code length: the number of bits needed to send the labels to a receiver who has the
  activations and refits the probe as labels arrive (Voita & Titov 2020,
  https://arxiv.org/abs/2003.12298). It also accounts for how many cases the probe needs. Our code
  mixes the probe with Laplace's rule; the code as published, without mixing, is given beside it and
  is the one to compare with other papers (`CodeLengths`).

Features are scaled to unit variance with the statistics of the training cases. The penalty is fixed
and not tuned, because tuning it on accuracy makes control tasks easy as well.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.errors import ProbeError
from train.short_repr import short_repr
from train.statistics import Estimate, ratio_estimate, wilson


if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = [
    "Change",
    "CodeLengths",
    "Fit",
    "Split",
    "code_lengths",
    "compression",
    "control_labels",
    "difference",
    "right",
    "share",
    "splits",
    "type_sums",
]

Fit = Literal["logistic", "ridge"]
# Indices of training and test cases. Folds differ in size, so the axes have no names.
Split = tuple[np.ndarray, np.ndarray]
Change = Callable[
    [Float[np.ndarray, "train feature"], Int[np.ndarray, " train"]],
    Callable[[Float[np.ndarray, "case feature"]], Float[np.ndarray, "case feature"]],
]

PENALTY = 1.0  # L2 penalty on the weights of scaled features; scikit-learn's C is its inverse
# Shares of the cases after which the probe is refitted (Voita & Titov, section 3).
PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
ITERATIONS = 5000


# --- fitting -------------------------------------------------------------------------------------


def splits(
    labels: Int[np.ndarray, " case"],
    n_folds: int,
    *,
    seed: int = 0,
    groups: Int[np.ndarray, " case"] | None = None,
) -> list[Split]:
    """Split the cases into folds with every class spread evenly over them.

    Returns training and test indices for each fold. With `groups`, no group is in two folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(n_folds, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(labels)), labels, groups))


def right(
    x: Float[np.ndarray, "case feature"],
    labels: Int[np.ndarray, " case"],
    folds: Sequence[Split],
    *,
    fit: Fit = "logistic",
    change: Change | None = None,
) -> Bool[np.ndarray, " case"]:
    """Cross-validate a probe; return for each case whether its prediction is right.

    Each case is predicted by the probe that was not trained on its fold. `change`, if given, is
    called with the activations and labels of the training cases and returns a function that is
    applied to all activations before the probe, in training and in testing, such as an eraser.
    """
    found = np.zeros(len(labels), dtype=bool)
    for train, test in folds:
        before = change(x[train], labels[train]) if change else _unchanged
        probe = _fitted(before(x[train]), labels[train], fit)
        found[test] = probe.predict(before(x[test])) == labels[test]
    return found


def control_labels(
    labels: Int[np.ndarray, " case"], types: Int[np.ndarray, " case"], *, seed: int
) -> Int[np.ndarray, " case"]:
    """Draw a random label for each type, from the labels of all cases.

    The draw is repeated until there are at least two different labels.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    while True:
        of_type = draw.choice(labels, size=types.max() + 1)
        found = of_type[types]
        if len(np.unique(found)) > 1:
            return found


@dataclass(frozen=True, eq=False)
class CodeLengths:
    """Code length of each label in two online codes, in bits.

    The cases are put in a random order and divided into blocks that end at `PORTIONS` of them. A
    block is coded with the probe that is fitted to all earlier blocks; q is the probability that it
    gives the label, m the number of earlier cases and k the number of classes.

    Attributes:
        mixed: -log2((m q + 1) / (m + k)): the probe mixed with the uniform distribution, as if each
            class had been seen once more. A probe of few cases is therefore not trusted more than
            they deserve, and a class that has not occurred has a finite code.
        published: -log2(q), as Voita & Titov define the online code, after a first block that costs
            log2(k) a case. It ends where the probe's cases have shown every class, because a probe
            gives a class that it has not met no probability.
    """

    mixed: Float[np.ndarray, " case"]
    published: Float[np.ndarray, " case"]

    __repr__ = short_repr


def code_lengths(
    x: Float[np.ndarray, "case feature"], labels: Int[np.ndarray, " case"], *, seed: int = 0
) -> CodeLengths:
    """Return the code length of each label in the online code, in bits."""
    n, n_classes = len(labels), int(labels.max()) + 1
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n)
    ends = sorted({max(1, ceil(portion * n)) for portion in PORTIONS})
    mixed = np.full(n, np.log2(n_classes))
    published = mixed.copy()
    for start, stop in itertools.pairwise(ends):
        sent, block = order[:start], order[start:stop]
        chances = _chances(x[sent], labels[sent], x[block], n_classes)
        chance = chances[np.arange(len(block)), labels[block]]
        mixed[block] = -np.log2((start * chance + 1) / (start + n_classes))
        if len(np.unique(labels[sent])) == n_classes:
            published[block] = -np.log2(np.maximum(chance, np.finfo(float).tiny))
    return CodeLengths(mixed, published)


def _chances(
    x: Float[np.ndarray, "train feature"],
    labels: Int[np.ndarray, " train"],
    asked: Float[np.ndarray, "case feature"],
    n_classes: int,
) -> Float[np.ndarray, "case n_classes"]:
    found = np.zeros((len(asked), n_classes))
    known = np.unique(labels)
    if len(known) == 1:
        found[:, known[0]] = 1.0
    else:
        found[:, known] = _fitted(x, labels, "logistic").predict_proba(asked)
    return found


def _fitted(
    x: Float[np.ndarray, "case feature"], labels: Int[np.ndarray, " case"], fit: Fit
) -> "Pipeline":
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        raise ProbeError(
            f"the {len(labels)} cases that a probe is fitted to have one class only, of the labels "
            "or of the random labels of a control; take more types, or fewer folds"
        )
    if fit == "ridge":
        return make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY)).fit(x, labels)
    logistic = LogisticRegression(C=1 / PENALTY, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        # The first blocks of the online code may have almost as many classes as cases.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater")
        return make_pipeline(StandardScaler(), logistic).fit(x, labels)


def _unchanged(x: Float[np.ndarray, "case feature"]) -> Float[np.ndarray, "case feature"]:
    return x


# --- intervals -----------------------------------------------------------------------------------


def share(
    correct: Float[np.ndarray, " case"],
    *clusters: Int[np.ndarray, " case"],
    n_folds: int | None = None,
) -> Estimate:
    """Return the share of right cases with Wilson's interval on the effective number of cases.

    Cases of one type (or of one prompt) tend to be right together, so n cases carry less
    information than n independent ones. Their number is divided by the design effect, the variance
    between clusters over the binomial variance (Kish 1965; for intervals, Franco et al. 2019,
    https://doi.org/10.1093/jssam/smy019). If all cases are right or all are wrong, the design
    effect cannot be estimated, and the number of clusters is used instead. With several clusterings
    the smallest effective number is taken.

    Give `n_folds` if the cases were cross-validated. The training sets of k folds overlap, so the
    variance is multiplied by 1 + k / (k - 1) (Nadeau & Bengio 2003,
    https://doi.org/10.1023/A:1024068626366). On activations without information the interval then
    covers chance in 93 to 99 % of draws, and without this factor in 82 to 92 % (60 to 200 draws
    each of 240 to 1,000 cases): it is cautious rather than exact.
    """
    return Estimate(*_share(correct, clusters, n_folds))


def _share(
    correct: Float[np.ndarray, " case"],
    clusters: Sequence[Int[np.ndarray, " case"]],
    n_folds: int | None,
) -> tuple[float, float, float]:
    value = float(correct.mean())
    worth = min((_effective_n(correct, one) for one in clusters), default=float(len(correct)))
    return value, *wilson(value, max(1, int(worth / _overlap(n_folds))))


def _overlap(n_folds: int | None) -> float:
    return 1.0 if n_folds is None else 1 + n_folds / (n_folds - 1)


def _effective_n(correct: Float[np.ndarray, " case"], clusters: Int[np.ndarray, " case"]) -> float:
    n, value = len(correct), correct.mean()
    sums = np.bincount(clusters, weights=correct - value)
    n_clusters = len(np.unique(clusters))
    if n_clusters < 2 or not 0 < value < 1:
        return float(n_clusters)
    between = n_clusters / (n_clusters - 1) * (sums**2).sum() / n**2
    return n / max(1.0, between / (value * (1 - value) / n))


def difference(
    one: Float[np.ndarray, " case"],
    other: Float[np.ndarray, " case"],
    *clusters: Int[np.ndarray, " case"],
    n_folds: int | None = None,
) -> Estimate:
    """Return the mean of `one` minus `other`, paired by case, with its interval.

    The interval takes the clusters of the first clustering as independent. If the difference is
    equal on every case, that interval would have width 0. Newcombe's interval for two shares is
    used instead (1998, method 10, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8), which
    treats them as unpaired and is therefore wider.
    """
    apart = one - other
    value = float(apart.mean())
    if bool((apart == apart[0]).all()):
        a, b = (_share(found, clusters, n_folds) for found in (one, other))
        below = np.hypot(a[0] - a[1], b[2] - b[0])
        above = np.hypot(a[2] - a[0], b[0] - b[1])
        return Estimate(value, max(-1.0, value - float(below)), min(1.0, value + float(above)))
    low, high = _ratio_ends(*type_sums(apart, clusters[0]))
    if low is None or high is None:
        return Estimate(value, low, high)
    wider = sqrt(_overlap(n_folds))
    return Estimate(
        value, max(-1.0, value - wider * (value - low)), min(1.0, value + wider * (high - value))
    )


def compression(
    bits: Float[np.ndarray, " case"], n_classes: int, types: Int[np.ndarray, " case"]
) -> Estimate:
    """Return how many times shorter the online code is than the uniform code.

    The interval takes types as independent, for a fixed order of the cases.
    """
    sums, counts = type_sums(bits, types)
    uniform = np.log2(n_classes)
    low, high = _ratio_ends(counts * uniform, sums)
    return Estimate(float(len(bits) * uniform / bits.sum()), low, high)


def type_sums(
    values: Float[np.ndarray, " case"], types: Int[np.ndarray, " case"]
) -> tuple[Float[np.ndarray, " type"], Float[np.ndarray, " type"]]:
    """Return the sum of the values and the number of cases of each type that occurs."""
    counts = np.bincount(types).astype(float)
    sums = np.bincount(types, weights=values)
    return sums[counts > 0], counts[counts > 0]


def _ratio_ends(
    part: Float[np.ndarray, " type"], whole: Float[np.ndarray, " type"]
) -> tuple[float | None, float | None]:
    estimate = ratio_estimate(part, whole)
    return estimate.low, estimate.high
