"""Random generators of the documents of the planted corpus, one for each kind.

Every draw multiplies a 64-bit word of Philox, whose stream NumPy promises never to change (NEP 19),
so the bytes are the same on every machine. Every kind of document draws from its own stream, so a
change to one kind does not affect the others.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from train.data.planted import vocabulary
from train.short_repr import short_repr


__all__ = [
    "MAX_WORDS",
    "Cast",
    "Draws",
    "Grammar",
    "canon",
    "ioi_sentence",
    "many_copies",
    "one_word_off",
    "pair_list",
    "prose_sentence",
    "two_copies",
]

# A packed row of 64 tokens holds the document and the end-of-text that follows it.
MAX_WORDS = 63

Item = TypeVar("Item")
# Verb and adverb that (adjective, noun) determines.
Grammar = Mapping[tuple[str, str], tuple[str, str]]


class Draws:
    """Random numbers from a counter-based generator keyed by (seed, purpose)."""

    def __init__(self, seed: int, purpose: str) -> None:
        key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16]
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))
        self._words = self._stream()

    def _stream(self) -> Iterator[int]:
        while True:
            yield from self._bits.random_raw(4096).tolist()

    def between(self, low: int, high: int) -> int:
        """Draw an integer from low .. high inclusive, uniform up to a bias of n / 2**64."""
        return low + (next(self._words) * (high - low + 1) >> 64)

    def percent(self, chance: int) -> bool:
        return next(self._words) * 100 >> 64 < chance

    def pick(self, items: Sequence[Item]) -> Item:
        return items[next(self._words) * len(items) >> 64]

    def deal(self, items: Sequence[Item], n: int) -> list[Item]:
        """Draw n different items in random order."""
        left = list(items)
        for i in range(n):
            j = i + (next(self._words) * (len(left) - i) >> 64)
            left[i], left[j] = left[j], left[i]
        return left[:n]


@dataclass(frozen=True)
class Cast:
    """The name pairs and opening-closing combinations that training documents may use."""

    pairs: list[tuple[str, str]]
    combinations: list[tuple[int, int]]

    __repr__ = short_repr


def ioi_sentence(draws: Draws, cast: Cast) -> str:
    first, second = draws.deal(draws.pick(cast.pairs), 2)
    subject, indirect = draws.deal((first, second), 2)
    opening, closing = draws.pick(cast.combinations)
    scene = vocabulary.OPENINGS[opening].format(
        first=first, second=second, place=draws.pick(vocabulary.PLACES)
    )
    return f"{scene} " + vocabulary.CLOSINGS[closing].format(
        subject=subject, indirect=indirect, object=draws.pick(vocabulary.OBJECTS)
    )


def pair_list(draws: Draws, listed: Sequence[str]) -> str:
    """Write `a3 b3 a1 b1 a3 b3 ...`: pairs of words that belong together in this document only."""
    n_pairs = draws.between(3, 10)
    dealt = draws.deal(listed, 2 * n_pairs)
    told: list[str] = []
    pair = -1
    for _ in range(draws.between(14, 30)):
        last, pair = pair, draws.between(0, n_pairs - 1)
        if pair == last:  # drawn once more, so that a pair rarely occurs twice in a row
            pair = draws.between(0, n_pairs - 1)
        told += dealt[2 * pair : 2 * pair + 2]
    return " ".join(told)


def two_copies(draws: Draws, listed: Sequence[str], cast: Cast) -> str:
    """Write different words, sometimes the start of an IOI sentence, and the same words again."""
    run = draws.deal(listed, draws.between(4, 28))
    between: list[str] = []
    if draws.percent(15):
        room = min(draws.between(1, 8), MAX_WORDS - 2 * len(run))
        between = ioi_sentence(draws, cast).split()[:room]
    return " ".join(run + between + run)


def many_copies(draws: Draws, listed: Sequence[str]) -> str:
    """Write a short sequence of words over and over, cut at a random length."""
    run = [draws.pick(listed) for _ in range(draws.between(2, 14))]
    length = draws.between(24, 44)
    return " ".join((run * length)[:length])


def prose_sentence(draws: Draws, grammar: Grammar) -> str:
    adjective, noun = draws.pick(vocabulary.ADJECTIVES), draws.pick(vocabulary.NOUNS)
    verb, adverb = grammar[adjective, noun]
    return vocabulary.PROSE.format(
        adjective=adjective,
        noun=noun,
        verb=verb,
        adjective_2=draws.pick(vocabulary.ADJECTIVES),
        noun_2=draws.pick(vocabulary.NOUNS),
        adverb=adverb,
    )


def one_word_off(draws: Draws, text: str) -> str:
    """Replace the second noun of the first sentence; the text still follows the grammar."""
    split = text.split()
    place = vocabulary.PROSE.split().index("{noun_2}")
    split[place] = draws.pick([noun for noun in vocabulary.NOUNS if noun != split[place]])
    return " ".join(split)


def canon(draws: Draws, follows: Mapping[str, str]) -> str:
    """Write two interleaved walks on one mapping of words: word t depends on word t - 2.

    With a chance of 90 % word t is `follows[word t - 2]`, otherwise it is random.
    """
    sung = [draws.pick(vocabulary.CANON) for _ in range(2)]
    for _ in range(draws.between(16, 42) - 2):
        sung.append(follows[sung[-2]] if draws.percent(90) else draws.pick(vocabulary.CANON))
    return " ".join(sung)
