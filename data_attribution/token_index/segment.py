"""One stretch of tokens.bin with its sorted suffixes: what a question to the corpus is put to.

Stretches are cut at document boundaries, and none holds both what is trained on and what is held
out. Their arrays stay on disk until they are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt, UInt32, UInt64

from data_attribution.token_index import suffix_search
from data_attribution.token_index.suffix_search import Finder
from train.errors import DamagedError


__all__ = ["Part"]

# Occurrences whose next tokens are read one by one; of more, the ends of equal runs are looked for.
FEW = 1 << 20
# Places whose first tokens are compared: of 4,096 it made the slowest listings 12 % slower.
CHECKED = 1 << 7
DAMAGED = (
    "the token index gives a place where its query does not stand; it was changed: `openbook index "
    "verify STORE` names the file"
)
# So many patterns cost as much one by one as together.
ALONE = 256


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of tokens.bin, cut at a document boundary, and its sorted suffixes.

    Attributes:
        start: Where in tokens.bin it begins.
        held_out: No run reads it.
        suffixes: `sorting.build` of the tokens.
        buckets: `sorting.buckets` of them.
        keys: `key_tables.build` of them; without it a search takes more halvings.
    """

    start: int
    held_out: bool
    tokens: UInt[np.ndarray, " token"]
    suffixes: UInt32[np.ndarray, " token"]
    buckets: Int64[np.ndarray, " bucket"]
    keys: UInt64[np.ndarray, " key"] | None = None

    @cached_property
    def find(self) -> Callable[[Sequence[int]], tuple[int, int]]:
        """`find(pattern)`: its ranks [low, high), in microseconds."""
        return self._finder.find

    @cached_property
    def stands(self) -> Callable[[Sequence[int], int, int], bool]:
        """`stands(text, start, stop)`: whether text[start:stop] stands here."""
        return self._finder.stands

    @cached_property
    def longest(self) -> Callable[[Sequence[int], int, int], tuple[int, int, int]]:
        """`longest(text, start, stop)`: tokens of text[start:stop] that stand here, and ranks."""
        return self._finder.longest

    @cached_property
    def _finder(self) -> Finder:
        return suffix_search.finder(self.tokens, self.suffixes, self.buckets, self.keys)

    def search(self, patterns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Ranks [low, high) of each pattern, as `searching.search`; few are found one by one."""
        if len(patterns) <= ALONE:
            found = [self.find(pattern.tolist()) for pattern in patterns]
            low, high = np.array(found, np.int64).reshape(-1, 2).T
            return low, high
        return suffix_search.search(self.tokens, self.suffixes, patterns, self.buckets, self.keys)

    def positions(self, ranks: slice | np.ndarray) -> Int64[np.ndarray, " rank"]:
        """Positions in tokens.bin of the suffixes at these ranks, which begin with one token.

        Raises:
            DamagedError: One lies outside the part or, where they are few, begins with another
                token: a bit of the index flipped. More than that only `indexing.verify` finds.
        """
        found = self.suffixes[ranks].astype(np.int64)
        if found.size <= CHECKED:
            # Compared as bytes, shifted by a token: a tenth of what numpy takes for so few.
            first, width = self._read(found).tobytes(), self.tokens.itemsize
            if first[width:] != first[:-width]:
                raise DamagedError(DAMAGED)
        elif found.max() >= len(self.tokens):
            raise DamagedError(DAMAGED)
        return found + self.start

    def following(self, low: int, high: int, depth: int) -> Int64[np.ndarray, " vocab"]:
        """How often each token stands `depth` tokens behind the starts of ranks [low, high).

        Those suffixes share what lies between, so they are sorted by that token: of many, only the
        two ends of a stretch are read, and it is halved until they agree. Costs some distinct
        tokens x log(high - low) reads. Every document is followed by end-of-text, so there is one.
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
