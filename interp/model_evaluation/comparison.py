"""The difference between two models on the same items, and whether it may be called one.

Both models are scored on the same items, so the difference is computed item by item. It is called
higher or lower only if its 95 % interval leaves out 0: of 200 items, 49.5 and 53.5 % right do not
differ. The interval is about items alone. Models of another seed may differ by more, and of twenty
comparisons of equal models one is called a difference by chance.
"""

from dataclasses import asdict, dataclass

import numpy as np

from interp.errors import EvaluationError
from interp.model_evaluation.score import SCALES, Measure, Score
from train.short_repr import short_repr
from train.statistics import Estimate, paired_shares_interval, ratio_estimate


__all__ = ["Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """The difference between the scores of two models on the same items.

    Attributes:
        model: The model.
        baseline: The model that it is compared with.
        measure: What is compared.
        estimate: Score of the model minus that of the baseline, with its interval; for a
            perplexity the ratio of the two.
        neutral: Value of no difference: 0, or 1 for a ratio.
        n: Number of items.
    """

    model: str
    baseline: str
    protocol: str
    measure: str
    estimate: Estimate
    neutral: float
    n: int

    __repr__ = short_repr

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `not told apart` if the interval holds no difference."""
        low, high = self.estimate.low, self.estimate.high
        if low is not None and low > self.neutral:
            return "higher"
        return "lower" if high is not None and high < self.neutral else "not told apart"

    def called(self) -> str:
        """Return `higher` or `lower`.

        Raises:
            EvaluationError: The interval holds no difference, so none may be claimed.
        """
        if self.verdict == "not told apart":
            raise EvaluationError(
                f"{self.measure} of {self.model} and {self.baseline} on {self.protocol} differ by "
                f"{self.estimate}, which includes {self.neutral:g}: {self.n} items do not tell "
                "them apart; evaluate on more items"
            )
        return self.verdict

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        content = {key: one for key, one in vars(self).items() if key != "estimate"}
        return {**content, **asdict(self.estimate), "verdict": self.verdict}


def compare(score: Score, baseline: Score, name: str) -> Difference:
    """Return the difference in a measure between two scores of the same items.

    Raises:
        EvaluationError: The scores are of other protocols, versions or items, or count each item
            differently, as losses per token of two tokenizers do.

    Examples:
        >>> path = folder / "lambada.jsonl"
        >>> _ = path.write_text('{"text": "the capital of runethi is koreskul"}')
        >>> items = model_evaluation.load("lambada", str(path))
        >>> early = model_evaluation.evaluate(models.load(run, step=600), items)
        >>> late = model_evaluation.evaluate(model, items)
        >>> model_evaluation.compare(late, early, "accuracy").verdict
        'not told apart'
    """
    protocols = [f"{one.protocol} {one.version}" for one in (score, baseline)]
    if protocols[0] != protocols[1]:
        raise EvaluationError(
            f"a score of {protocols[0]} cannot be compared with one of {protocols[1]}; evaluate "
            "both models on the same protocol"
        )
    order = {key: number for number, key in enumerate(baseline.keys)}
    common = [order[key] for key in score.keys if key in order]
    if len(common) != score.n or len(common) != baseline.n:
        raise EvaluationError(
            f"{score.model} was scored on {score.n} items of {score.protocol} and "
            f"{baseline.model} on {baseline.n}, of which {len(common)} are the same; evaluate both "
            "on the same items"
        )
    ours, theirs = score.measure(name), baseline.measure(name)
    theirs = Measure(theirs.name, theirs.unit, theirs.part[common], theirs.whole[common])
    if not np.array_equal(ours.whole, theirs.whole):
        raise EvaluationError(
            f"{name} of {score.model} and {baseline.model} divide by other numbers: "
            f"{ours.whole.sum():,.0f} and {theirs.whole.sum():,.0f} in all; compare bits per byte"
        )
    estimate, neutral = _difference(ours, theirs)
    return Difference(score.model, baseline.model, score.protocol, name, estimate, neutral, score.n)


def _difference(ours: Measure, theirs: Measure) -> tuple[Estimate, float]:
    """Return the difference with its interval, and the value of no difference."""
    ratio = float((ours.part - theirs.part).sum() / max(ours.whole.sum(), 1))
    if ours.unit == "share":
        bounds = paired_shares_interval(theirs.part > 0, ours.part > 0)
        return Estimate(ratio, *(bounds if ours.n > 1 else (None, None))), 0.0
    scale = SCALES[ours.unit]
    found = ratio_estimate(ours.part - theirs.part, ours.whole)
    low, high = (None if end is None else scale(end) for end in (found.low, found.high))
    return Estimate(scale(ratio), low, high), scale(0.0)
