"""Baselines of a behaviour: how often a guess without a model is right on the same prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Int64

from interp.behaviours.behaviour import Behaviour, refuse_several
from train.data import TokenStore


__all__ = ["Baselines", "Followers", "measure_baselines", "token_counts", "token_followers"]

# Number of training tokens counted: 4 million are enough to estimate which token follows which, and
# take 0.4 s and 70 MB.
COUNTED = 1 << 22

# Maps a token to the ids of the tokens that follow it in the training text, and their counts.
Followers = Callable[[int], tuple[Int64[np.ndarray, " follower"], Int64[np.ndarray, " follower"]]]


@dataclass(frozen=True)
class Baselines:
    """Shares of prompts on which guesses without a model are right.

    Attributes:
        bigram: Guess whichever of answer and foil follows the last token more often in the training
            text. Of equal counts each is right in half.
        frequent: Guess whichever of the two occurs more often in the training text.
        recent: Guess what followed the last token where it occurred last in the prompt.
        n: Number of prompts.
    """

    bigram: float
    frequent: float
    recent: float
    n: int


def measure_baselines(behaviour: Behaviour, store: TokenStore) -> Baselines:
    """Measure guesses on the clean prompts of a behaviour, with counts of the training text.

    Examples:
        >>> guesses = behaviours.measure_baselines(ioi, store)
        >>> guesses.recent, guesses.n
        (0.0, 64)
    """
    refuse_several(behaviour, "a guess without a model")
    after = token_followers(store)
    counts = token_counts(store)
    bigram, frequent, recent = [], [], []
    rows = (behaviour.clean.tolist(), behaviour.answer.tolist(), behaviour.foil.tolist())
    for prompt, answer, foil in zip(*rows, strict=True):
        tokens, often = after(prompt[-1])
        bigram.append(_won(int(often[tokens == answer].sum() - often[tokens == foil].sum())))
        frequent.append(_won(int(counts[answer] - counts[foil])))
        before = [at for at, token in enumerate(prompt[:-1]) if token == prompt[-1]]
        recent.append(bool(before) and prompt[before[-1] + 1] == answer)
    return Baselines(
        float(np.mean(bigram)), float(np.mean(frequent)), float(np.mean(recent)), len(recent)
    )


def token_counts(store: TokenStore) -> Int64[np.ndarray, " vocab"]:
    """Count every token in the training text."""
    return np.bincount(_training_tokens(store), minlength=store.vocab_size)


def token_followers(store: TokenStore) -> Followers:
    """Return the function that looks up what follows a token in the training text."""
    # `order` holds positions sorted by token: token t is at order[edges[t]:edges[t + 1]].
    tokens = _training_tokens(store)
    order = np.argsort(tokens[:-1], kind="stable")
    edges = np.searchsorted(tokens[:-1][order], np.arange(store.vocab_size + 1))

    @cache
    def of(token: int) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(tokens[order[edges[token] : edges[token + 1]] + 1], return_counts=True)

    return of


def _training_tokens(store: TokenStore) -> Int64[np.ndarray, " pos"]:
    return np.asarray(store.tokens[: min(store.train_tokens, COUNTED)], np.int64)


def _won(more: int) -> float:
    return float(more > 0) if more else 0.5
