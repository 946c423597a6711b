"""A part of the index: one stretch of tokens.bin with its sorted suffixes.

Parts are cut at document boundaries, and none holds both train and held-out text. Their arrays stay
on disk until they are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt, UInt32, UInt64

from data_attribution.token_index import suffix_search
from data_attribution.token_index.suffix_search import Finder
from train.errors import DamagedError
from train.short_repr import short_repr


__all__ = ["Part"]

# Up to this many occurrences, next tokens are read one by one; above, the ends of equal runs are
# searched.
FEW = 1 << 20
# Up to this many positions are checked by their first tokens. With 4,096 the slowest listings took
# 12 % longer.
CHECKED = 1 << 7
DAMAGED = (
    "the token index gives a place where its query does not stand; it was changed: `openbook index "
    "verify STORE` names the file"
)
# Up to this many patterns are searched one by one, which costs no more than together.
ALONE = 256


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of tokens.bin, cut at a document boundary, and its sorted suffixes.

    Attributes:
        start: Position in tokens.bin where it begins.
        held_out: Whether it is held out, so that no run reads it.
        suffixes: Result of `suffix_array.build` on the tokens.
        buckets: Result of `suffix_array.buckets` on them.
        keys: Result of `prefix_table.build` on them; without it a search takes more bisection
            steps.
    """

    start: int
    held_out: bool
    tokens: UInt[np.ndarray, " token"]
    suffixes: UInt32[np.ndarray, " token"]
    buckets: Int64[np.ndarray, " bucket"]
    keys: UInt64[np.ndarray, " key"] | None = None

    __repr__ = short_repr

    @cached_property
    def find(self) -> Callable[[Sequence[int]], tuple[int, int]]:
        """Return the function `find(pattern)`: its ranks [low, high), in microseconds."""
        return self._finder.find

    @cached_property
    def stands(self) -> Callable[[Sequence[int], int, int], bool]:
        """Return the function `stands(text, start, stop)`: whether text[start:stop] occurs here."""
        return self._finder.stands

    @cached_property
    def longest(self) -> Callable[[Sequence[int], int, int], tuple[int, int, int]]:
        """Return the function `longest(text, start, stop)`.

        It gives the number of tokens of text[start:stop], from the first on, that occur here, and
        their ranks.
        """
        return self._finder.longest

    @cached_property
    def _finder(self) -> Finder:
        return suffix_search.finder(self.tokens, self.suffixes, self.buckets, self.keys)

    def search(self, patterns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks [low, high) of each pattern, as `suffix_search.search`.

        Few patterns are searched one by one.
        """
        if len(patterns) <= ALONE:
            found = [self.find(pattern.tolist()) for pattern in patterns]
            low, high = np.array(found, np.int64).reshape(-1, 2).T
            return low, high
        return suffix_search.search(self.tokens, self.suffixes, patterns, self.buckets, self.keys)

    def positions(self, ranks: slice | np.ndarray) -> Int64[np.ndarray, " rank"]:
        """Return positions in tokens.bin of suffixes by rank; all must begin with the same token.

        Raises:
            DamagedError: A position lies outside the part or, if there are few, begins with another
                token: a bit of the index flipped. Only `token_index.verify` finds more than that.
        """
        found = self.suffixes[ranks].astype(np.int64)
        if found.size <= CHECKED:
            # All first tokens are equal if the bytes equal themselves shifted by one token. This
            # takes a tenth of numpy's time for so few.
            first, width = self._read(found).tobytes(), self.tokens.itemsize
            if first[width:] != first[:-width]:
                raise DamagedError(DAMAGED)
        elif found.max() >= len(self.tokens):
            raise DamagedError(DAMAGED)
        return found + self.start

    def following(self, low: int, high: int, depth: int) -> Int64[np.ndarray, " vocab"]:
        """Return how often each token occurs `depth` tokens after the suffixes [low, high).

        Those suffixes share the tokens between, so they are sorted by that token. If there are
        many, only the two ends of a stretch are read, and it is halved until they agree. Costs
        about (distinct tokens) x log(high - low) reads. Every document is followed by end-of-text,
        so the token exists.
        """

        def read(ranks: slice | np.ndarray) -> np.ndarray:
            return self._read(self.suffixes[ranks].astype(np.int64) + depth)

        n = len(self.buckets) - 1
        if high - low <= FEW:
            return np.bincount(read(slice(low, high)), minlength=n)
        counts = np.zeros(n, np.int64)
        first, last = np.array([low]), np.array([high - 1])
        while first.size:
            token, same = read(first), read(first) == read(last)
            counts += np.bincount(token[same], (last - first + 1)[same], n).astype(np.int64)
            first, last = first[~same], last[~same]
            middle = (first + last) >> 1
            first, last = np.concatenate([first, middle + 1]), np.concatenate([middle, last])
        return counts

    def _read(self, places: Int64[np.ndarray, " rank"]) -> UInt[np.ndarray, " rank"]:
        try:
            return self.tokens[places]
        except IndexError:
            raise DamagedError(DAMAGED) from None
