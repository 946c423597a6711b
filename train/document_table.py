"""Where documents lie in tokens.bin, searched as quickly as caches allow.

A binary search of eight million starts waits for memory at most of its 23 halvings. Here the first
of them are made in every 64th start, which together fit a core's cache, and the last ones among
neighbours.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64


__all__ = ["DocumentTable"]

# A power of two. Of 8 to 256 the quickest, by a little, at eight million documents.
EVERY = 64


@dataclass(frozen=True, eq=False)
class DocumentTable:
    """First token and number of tokens of each document, in the order of the text."""

    starts: Int64[np.ndarray, " document"]
    lengths: Int64[np.ndarray, " document"]

    def last_begun(self, offsets: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
        """The last document that begins at or before each token; -1 before the first."""
        if not len(self.starts):
            return np.full(len(offsets), -1)
        found = (self._coarse.searchsorted(offsets, side="right") - 1) * EVERY
        half = EVERY // 2
        while half:
            found += half * (self.starts.take(found + half, mode="clip") <= offsets)
            half //= 2
        return found.clip(-1, len(self.starts) - 1)

    @cached_property
    def _coarse(self) -> Int64[np.ndarray, " some"]:
        return self.starts[::EVERY].copy()
