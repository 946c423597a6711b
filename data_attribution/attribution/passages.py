"""Sources made from ranked documents: their passages, the steps that read them, their copies.

Documents the run never read are left out: they cannot have taught it anything. Near-duplicates are
folded into the source with the best rank, so that one sentence occurring eight times takes one
source, not eight.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from data_attribution.attribution.sources import GRADES, Evidence, Source
from data_attribution.ranking import Ranking
from data_attribution.token_index import TokenIndex
from train.data import TokenStore
from train.runs import ReadableRun
from train.short_repr import short_repr


__all__ = ["Cited", "excerpt", "sources"]

# Tokens shown on either side of a span, and the largest number shown of one document.
AROUND, SHOWN = 24, 96


@dataclass(frozen=True)
class Cited:
    """The sources, and the numbers of documents left out: never read, and folded into a source."""

    items: tuple[Source, ...]
    unread: int
    folded: int

    __repr__ = short_repr


def sources(
    run: ReadableRun,
    index: TokenIndex,
    ranking: Ranking,
    *,
    limit: int,
    grades: Mapping[int, str],
    evidence: Mapping[str, Ranking],
    fold: bool = True,
    near: Mapping[int, Collection[int]] | None = None,
) -> Cited:
    """Return the first `limit` sources of a ranking.

    Args:
        grades: Strongest grade of evidence for each document; a document without an entry has none.
        evidence: Ranking of each method, by name.
        fold: Leave out documents that are already folded into a better-ranked source.
        near: Near-duplicates of each document, where any are known.
    """
    items: list[Source] = []
    taken: set[int] = set()
    unread = folded = 0
    parts = {name: (_ranks(part), part) for name, part in evidence.items()}
    for rank, document in enumerate(ranking.documents.tolist()):
        if len(items) == limit:
            break
        steps = run.steps_learned(document)
        if not len(steps) or document in taken:
            unread += not len(steps)
            folded += len(steps) > 0
            continue
        same, alike = _copies(index, document, (near or {}).get(document, ()))
        if fold:
            taken.update(same, alike)
        items.append(
            Source(
                document=document,
                id=index.store.document(document).id,
                **_passage(index.store, document, *ranking.where(document)),
                score=float(ranking.scores[rank]),
                grade=grades.get(document, GRADES[0]),
                steps=tuple(steps.tolist()),
                duplicates=same,
                near=alike,
                low=_end(ranking.low, rank),
                high=_end(ranking.high, rank),
                evidence={
                    name: _evidence(part, ranks[document])
                    for name, (ranks, part) in parts.items()
                    if document in ranks
                },
            )
        )
    return Cited(tuple(items), unread, folded)


def _end(ends: Float[np.ndarray, " document"] | None, rank: int) -> float | None:
    """Return one end of an interval; None without intervals, or where all prompts score alike."""
    return None if ends is None or np.isnan(ends[rank]) else float(ends[rank])


def _ranks(ranking: Ranking) -> dict[int, int]:
    return {document: rank for rank, document in enumerate(ranking.documents.tolist())}


def _evidence(ranking: Ranking, rank: int) -> Evidence:
    low, high = _end(ranking.low, rank), _end(ranking.high, rank)
    return Evidence(rank + 1, float(ranking.scores[rank]), low, high)


def _copies(
    index: TokenIndex, document: int, near: Collection[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the other train documents with the same sha256, and those with nearly the same tokens.

    With a whole-word tokenizer, a text with other white space has the same tokens but another
    digest.
    """
    store, same = index.store, set(index.copies(document).tolist())
    sha256 = store.document(document).sha256
    exact = {one for one in sorted(same) if store.document(one).sha256 == sha256}
    alike = (same | {*near}) - exact - {document}
    return tuple(sorted(exact)), tuple(sorted(alike))


class _Passage(TypedDict):
    """The fields of a source that show one of its passages."""

    text: str
    span: str
    start: int
    length: int


def _passage(store: TokenStore, document: int, start: int, length: int) -> _Passage:
    return {
        "text": excerpt(store, document, start, length),
        "span": _text(store, document, start, start + length),
        "start": start,
        "length": length,
    }


def excerpt(store: TokenStore, document: int, start: int = 0, length: int = 0) -> str:
    """Return a passage of a document with the text around it, at most `SHOWN` tokens in all.

    Examples:
        >>> attribution.excerpt(store, 28867)
        'runethi is governed from koreskul .'
    """
    first = max(0, start - AROUND)
    last = min(int(store.lengths[document]), start + length + AROUND, first + SHOWN)
    before = "… " if first else ""
    after = " …" if last < store.lengths[document] else ""
    return before + _text(store, document, first, last).strip() + after


def _text(store: TokenStore, document: int, first: int, last: int) -> str:
    start = int(store.starts[document])
    return store.tokenizer.decode(store.tokens[start + first : start + last])
