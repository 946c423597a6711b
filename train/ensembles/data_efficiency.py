"""Data efficiency: how many tokens a baseline needs for the loss that another method reaches.

A baseline is one way to train a single model, measured with several amounts of training tokens. Its
loss between two of them is taken as linear in the logarithm of the tokens (NanoGPT Slowrun). Beyond
the measured amounts nothing is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from train.ensembles.ensemble import Member
from train.errors import TrainError
from train.short_repr import short_repr
from train.statistics import Estimate


__all__ = ["BaselineCurve", "distinct_tokens"]

STEPS_AT_ONCE = 4096


@dataclass(frozen=True)
class BaselineCurve:
    """Losses of a baseline by the number of tokens that it was trained on, ascending.

    Attributes:
        tokens: Numbers of different training tokens.
        losses: Held-out losses in nats per token; they fall from each number to the next.

    Raises:
        TrainError: There are fewer than two points, or they do not ascend and fall.

    Examples:
        >>> curve = ensembles.BaselineCurve((1000, 4000), (3.0, 2.0))
        >>> round(curve.tokens_for(2.5))
        2000
    """

    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.losses) >= 2:
            raise TrainError(
                f"a baseline of {len(self.tokens)} numbers of tokens and {len(self.losses)} losses "
                "is no curve; measure at least 2 of both"
            )
        pairs = list(zip(self.tokens, self.losses, strict=True))
        for (few, high), (many, low) in pairwise(pairs):
            if not (0 < few < many and high > low):
                raise TrainError(
                    f"the baseline has a loss of {high:.6g} after {few:,} tokens and {low:.6g} "
                    f"after {many:,}; more tokens must give a lower loss"
                )

    def tokens_for(self, loss: float) -> float:
        """Return the tokens that the baseline needs for a loss.

        Raises:
            TrainError: The loss lies outside the measured ones.
        """
        if not self.losses[-1] <= loss <= self.losses[0]:
            amount = "more" if loss < self.losses[-1] else "fewer"
            raise TrainError(
                f"the baseline was measured from a loss of {self.losses[0]:.6g} "
                f"({self.tokens[0]:,} tokens) to {self.losses[-1]:.6g} ({self.tokens[-1]:,}), and "
                f"{loss:.6g} lies outside; train it on {amount} tokens too"
            )
        # np.interp needs ascending losses.
        return float(np.exp(np.interp(loss, self.losses[::-1], np.log(self.tokens)[::-1])))

    def efficiency(self, loss: Estimate, tokens: int) -> Estimate:
        """Return how many times as many tokens the baseline needs as were used.

        The interval is that of the loss alone; an end outside the measured losses is None.

        Raises:
            TrainError: The loss lies outside the measured ones.

        Examples:
            >>> curve = ensembles.BaselineCurve((1000, 4000), (3.0, 2.0))
            >>> print(curve.efficiency(statistics.Estimate(2.5, 2.25, 2.75), tokens=1000))
            2.000 [1.414, 2.828]
        """
        low, high = (self._within(end, tokens) for end in (loss.high, loss.low))
        return Estimate(self.tokens_for(loss.value) / tokens, low, high)

    def _within(self, loss: float | None, tokens: int) -> float | None:
        if loss is None or not self.losses[-1] <= loss <= self.losses[0]:
            return None
        return self.tokens_for(loss) / tokens


def distinct_tokens(members: Sequence[Member]) -> int:
    """Return how many different tokens of their store were targets of at least one member.

    Padding within the windows read is counted, and a token counts once however often it was read.
    Documents that were removed from a run are no targets of it, nor is the end-of-text behind each.

    Examples:
        >>> members = ensembles.ensemble_of([(run, 600), run]).members
        >>> ensembles.distinct_tokens(members[:1]) <= ensembles.distinct_tokens(members)
        True
    """
    store = members[0].run.store
    read = np.zeros(store.n_tokens, dtype=bool)
    for member in members:
        order, own = member.run.order, np.zeros_like(read)
        for first in range(0, member.step, STEPS_AT_ONCE):
            steps = range(first, min(first + STEPS_AT_ONCE, member.step))
            starts = np.unique(np.concatenate([order.starts(step) for step in steps]))
            for target in range(1, order.context + 1):
                own[starts + target] = True
        for document in member.run.removal.documents if member.run.removal else ():
            first = int(store.starts[document])
            own[first : first + int(store.lengths[document]) + 1] = False
        read |= own
    return int(read.sum())
