"""Arrays that are awkward to sort and search; an index in memory over documents of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from data_attribution.token_index import TokenIndex, prefix_table, suffix_array
from data_attribution.token_index.index_part import Part
from train.data import TokenStore


EOT = 0


def repeated(period: list[int], times: int) -> np.ndarray:
    return np.array(period * times, np.uint16)


# Arrays of token ids that a sorter or a search may stumble over.
AWKWARD = {
    "empty": np.empty(0, np.uint16),
    "one token": np.array([7], np.uint16),
    "one token, the largest": np.array([65535], np.uint16),
    "all equal": repeated([3], 300),
    "all equal and largest": repeated([65535], 300),
    "all zero": repeated([0], 300),
    "long repeat": repeated([1, 2, 3, 2, 1], 80),
    "falling": np.arange(300, 0, -1).astype(np.uint16),
    # 256 = 0x0100 and 1 = 0x0001 swap places when bytes are compared little end first.
    "byte order": np.array([256, 1, 255, 1, 256, 65535, 0, 1], np.uint16),
    "uint32": np.array([70_000, 1, 65_536, 70_000, 1, 4_294_967_294, 0], np.uint32),
    "thue and morse": np.array([1 + (bin(k).count("1") % 2) for k in range(400)], np.uint16),
    "each of 65,536 ids once": np.arange(65536)[::-1].astype(np.uint16),
    "more than 65,536 ids": (np.arange(70_000) * 7919 % 70_000).astype(np.uint32),
}


@dataclass(frozen=True)
class Numbers:
    """Stands for a tokenizer: a token's text is its id."""

    kind: str = field(default="word")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return " ".join(self.tokens(ids))

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [str(one) for one in np.asarray(ids).tolist()]

    def encode(self, text: str) -> np.ndarray:
        return np.array([int(one) for one in text.split()], np.uint32)


def index_of(
    documents: Sequence[Sequence[int]],
    *,
    cuts: Sequence[int] = (),
    read: int | None = None,
    vocab_size: int = 65_536,
    keys: bool = True,
) -> TokenIndex:
    """The index of a store with these documents, cut before documents `cuts`; 0 is end-of-text.

    Args:
        read: So many documents may be trained on; the others are held out.
    """
    read = len(documents) if read is None else read
    stream = [EOT, *(one for document in documents for one in (*document, EOT))]
    tokens = np.array(stream, np.uint16 if vocab_size <= 65_536 else np.uint32)
    edges = list(accumulate((len(one) + 1 for one in documents), initial=1))
    held = [row for row, one in enumerate(documents) if len(one)]
    counts = {"tokens": len(tokens), "train_tokens": edges[read], "documents": len(held)}
    store = TokenStore(Path("held"), {"counts": counts, "eot": EOT, "vocab_size": vocab_size})
    # A store reads these from its folder when they are asked for.
    store.__dict__.update(
        tokens=tokens,
        starts=np.array([edges[row] for row in held], np.int64),
        lengths=np.array([len(documents[row]) for row in held], np.int64),
        tokenizer=Numbers(),
    )
    bounds = sorted({0, *(edges[row] for row in (*cuts, read) if row), len(tokens)})
    parts = tuple(
        _part(tokens, start, stop, start >= edges[read], vocab_size, keys)
        for start, stop in pairwise(bounds)
    )
    return TokenIndex(store, "none", parts)


def _part(
    tokens: np.ndarray, start: int, stop: int, held_out: bool, vocab_size: int, keys: bool
) -> Part:
    own = tokens[start:stop]
    suffixes = suffix_array.build(own)
    table = prefix_table.build(own, suffixes) if keys else None
    return Part(start, held_out, own, suffixes, suffix_array.buckets(own, vocab_size), table)
