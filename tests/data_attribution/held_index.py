"""An index in memory over documents that are given as token ids, in as many shards as wished."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from data_attribution.suffixes import key_tables, sorting
from data_attribution.suffixes.parts import Part
from data_attribution.token_index import TokenIndex
from train.token_store import TokenStore


EOT = 0


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
    suffixes = sorting.build(own)
    table = key_tables.build(own, suffixes) if keys else None
    return Part(start, held_out, own, suffixes, sorting.buckets(own, vocab_size), table)
