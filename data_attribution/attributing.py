"""Which documents may have taught a text or a behaviour.

`documents(run, target)` ranks the documents that a run read. The evidence of this version is
*lexical* (`lexical.py` has its formulas and limits): it needs no model, and is the baseline that
gradient evidence has to beat and at finding the document that states a fact often does not (Chang
et al. 2024, TrackStar). Held-out documents and documents that the run never reached are no sources.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import indexing, lexical
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.rankings import Ranking
from data_attribution.sources import Source, Sources
from data_attribution.token_index import TokenIndex
from train.errors import nearest
from train.token_store import TokenStore


__all__ = ["Asked", "Reader", "documents"]

BM25 = f"bm25 k1={lexical.K1} b={lexical.B} shared={lexical.SHARED}"
# Tokens shown on either side of a span, and the most shown of one document.
AROUND, SHOWN = 24, 96

Progress = Callable[[str, int, int | None], None] | None


@runtime_checkable
class Reader(Protocol):
    """What is asked of a run."""

    @property
    def id(self) -> str: ...
    @property
    def knowledge(self) -> str: ...
    @property
    def store(self) -> TokenStore: ...

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]: ...


@runtime_checkable
class Asked(Protocol):
    """What is asked of a behaviour: token ids, `clean` and `corrupt` by prompt and position."""

    @property
    def name(self) -> str: ...
    @property
    def clean(self) -> Any: ...
    @property
    def corrupt(self) -> Any: ...
    @property
    def answer(self) -> Any: ...


def documents(
    run: Reader,
    target: str | Asked,
    *,
    method: str = "lexical",
    limit: int = 50,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        limit: The most documents returned.

    Raises:
        EvidenceError: There is no such method.
        QueryError: The target holds no token to look for.
        IndexMissing: The run's token store has no index.
    """
    if method not in METHODS:
        raise EvidenceError(f"no evidence is called {method!r}{nearest(method, METHODS)}")
    if limit < 1:
        raise EvidenceError(f"a limit of {limit} documents was asked for; give 1 or more")
    index = indexing.open(run.store)
    ranking = METHODS[method](index, target, progress)
    chosen, steps, unread = _read(run, ranking.documents, limit)
    items = _sources(index, ranking, chosen, steps, method)
    as_text = isinstance(target, str)
    provenance = {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": index.backend,
        "formula": "maximal spans" if as_text else BM25,
        "candidates": len(ranking.documents),
        "unread": unread,
    }
    return Sources(target if as_text else target.name, method, items, provenance)


def _lexical(index: TokenIndex, target: str | Asked, progress: Progress) -> Ranking:
    if isinstance(target, str):
        return lexical.spans(index, target, progress)
    clean, corrupt = np.asarray(target.clean), np.asarray(target.corrupt)
    bags = lexical.bags(clean, corrupt, np.asarray(target.answer), index.store.eot)
    if not bags or not all(bags):
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    return lexical.bm25(index, bags, progress)


METHODS = {"lexical": _lexical}


def _read(
    run: Reader, ranked: Int64[np.ndarray, " document"], limit: int
) -> tuple[list[int], list[tuple[int, ...]], int]:
    """Ranks and steps of the first `limit` documents that the run reached; how many it did not."""
    chosen, steps, unread = [], [], 0
    for rank, document in enumerate(ranked.tolist()):
        if len(chosen) == limit:
            break
        read = run.steps_reading(document)
        if len(read):
            chosen.append(rank)
            steps.append(tuple(read.tolist()))
        else:
            unread += 1
    return chosen, steps, unread


def _sources(
    index: TokenIndex,
    ranking: Ranking,
    chosen: list[int],
    steps: list[tuple[int, ...]],
    grade: str,
) -> tuple[Source, ...]:
    store = index.store
    documents = ranking.documents[chosen].tolist()
    twins = _same_tokens(index, documents)
    # In ascending order, because the table is read in groups of rows.
    rows = {one: store.document(one) for one in sorted({*documents, *chain(*twins)})}
    items = []
    for rank, document, read, others in zip(chosen, documents, steps, twins, strict=True):
        start, length = ranking.where(document)
        sha256 = rows[document].sha256
        items.append(
            Source(
                document=document,
                id=rows[document].id,
                text=_excerpt(store, document, start, length),
                span=_text(store, document, start, start + length),
                score=float(ranking.scores[rank]),
                grade=grade,
                steps=read,
                start=start,
                length=length,
                duplicates=tuple(one for one in others if rows[one].sha256 == sha256),
            )
        )
    return tuple(items)


def _same_tokens(index: TokenIndex, documents: list[int]) -> list[list[int]]:
    """For each document the others of the train region with the very same tokens.

    A copy is among them; with whole words as tokens, so is a text with other white space.
    """
    store = index.store
    starts, lengths = store.starts[documents], store.lengths[documents]
    patterns = [store.tokens[one : one + n] for one, n in zip(starts, lengths, strict=True)]
    found = []
    for document, positions in zip(documents, index.occurrences(patterns), strict=True):
        holders = store.document_at(positions)
        whole = holders[store.lengths[holders] == store.lengths[document]]
        found.append(whole[whole != document].tolist())
    return found


def _excerpt(store: TokenStore, document: int, start: int, length: int) -> str:
    first = max(0, start - AROUND)
    last = min(int(store.lengths[document]), start + length + AROUND, first + SHOWN)
    before = "… " if first else ""
    after = " …" if last < store.lengths[document] else ""
    return before + _text(store, document, first, last).strip() + after


def _text(store: TokenStore, document: int, first: int, last: int) -> str:
    start = int(store.starts[document])
    return store.tokenizer.decode(store.tokens[start + first : start + last])
