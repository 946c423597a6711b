"""Induction: which word followed this word before, in random words."""

from collections.abc import Sequence

import numpy as np
import torch

from interp.behaviours.behaviour import Behaviour
from interp.errors import BehaviourError


__all__ = ["INDUCTION_ANSWER", "INDUCTION_LENGTH", "repeats"]

INDUCTION_LENGTH, INDUCTION_ANSWER = 16, 8


def repeats(
    words: Sequence[int],
    eot: int,
    *,
    n_prompts: int,
    draw: np.random.Generator,
    length: int = INDUCTION_LENGTH,
    answer_at: int = INDUCTION_ANSWER,
    name: str = "induction",
) -> Behaviour:
    """Build prompts of distinct random tokens whose beginning is repeated up to the answer.

    With run t and a = `answer_at` the clean prompt is t[0] ... t[length - 1] t[0] ... t[a - 1],
    behind one end-of-text, and the answer is t[a]. The corrupt prompt has the foil in place of
    t[a] in the first copy.

    Raises:
        BehaviourError: There are too few words, or `answer_at` lies outside 1 to length - 1.
    """
    if len(words) < length + 1 or not 0 < answer_at < length:
        raise BehaviourError(
            f"a run of {length} different tokens and a foil, asked at {answer_at}, cannot be drawn "
            f"from a vocabulary of {len(words)}"
        )
    dealt = torch.tensor(
        np.stack([draw.choice(words, size=length + 1, replace=False) for _ in range(n_prompts)])
    )
    run, foil = dealt[:, :length], dealt[:, length]
    other = run.clone()
    other[:, answer_at] = foil
    start = torch.full((n_prompts, 1), eot)
    return Behaviour(
        name=name,
        clean=torch.cat([start, run, run[:, :answer_at]], dim=1),
        corrupt=torch.cat([start, other, run[:, :answer_at]], dim=1),
        answer=run[:, answer_at],
        foil=foil,
        subject=(1 + answer_at, 2 + answer_at),
        description="what followed a token before follows it again, in random tokens",
    )
