"""Which documents may have taught a text or a behaviour.

`documents(run, target)` ranks the documents that a run read. The evidence of this version is
*lexical* (`lexical.py` has its formulas and limits): it needs no model, and is the baseline that
gradient evidence has to beat and at finding the document that states a fact often does not (Chang
et al. 2024, TrackStar). Held-out documents and documents that the run never reached are no sources.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import indexing, lexical
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.lexical import Ranking
from data_attribution.sources import Source, Sources
from data_attribution.token_index import TokenIndex
from train.errors import nearest
from train.token_store import TokenStore


__all__ = ["Asked", "Reader", "documents"]

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
    """What is asked of a behaviour: `clean` [prompt pos] and `answer` [prompt], token ids."""

    @property
    def name(self) -> str: ...
    @property
    def clean(self) -> Any: ...
    @property
    def answer(self) -> Any: ...


def documents(
    run: Reader,
    target: str | Asked,
    *,
    within: object = None,
    method: str = "lexical",
    limit: int = 50,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        within: Components to look at; for gradient evidence, and refused without it.
        limit: The most documents returned.

    Raises:
        EvidenceError: There is no such method, or it cannot look inside components.
        QueryError: The target holds no token to look for.
        IndexMissing: The run's token store has no index.
    """
    if method not in METHODS:
        raise EvidenceError(f"no evidence is called {method!r}{nearest(method, METHODS)}")
    if within is not None:
        raise EvidenceError(
            "within= needs gradient evidence, which is not in this version; "
            f"leave it out for method={method!r}"
        )
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
        "formula": "maximal spans" if as_text else f"bm25 k1={lexical.K1} b={lexical.B}",
        "candidates": len(ranking.documents),
        "unread": unread,
    }
    return Sources(target if as_text else target.name, method, items, provenance)


def _lexical(index: TokenIndex, target: str | Asked, progress: Progress) -> Ranking:
    if isinstance(target, str):
        return lexical.spans(index, target, progress)
    clean, answer = np.asarray(target.clean), np.asarray(target.answer)
    rows = np.concatenate([clean, answer.reshape(len(clean), -1)], axis=1).astype(np.int64)
    prompts = [row[row != index.store.eot] for row in rows]
    if not all(len(prompt) for prompt in prompts) or not prompts:
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    return lexical.bm25(index, prompts, progress)


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
    items = []
    for rank, document, read, twins in zip(
        chosen, documents, steps, _duplicates(index, documents), strict=True
    ):
        start, length = ranking.where(document)
        items.append(
            Source(
                document=document,
                id=store.document(document).id,
                text=_excerpt(store, document, start, length),
                span=_text(store, document, start, start + length),
                score=float(ranking.scores[rank]),
                grade=grade,
                steps=read,
                start=start,
                length=length,
                duplicates=twins,
            )
        )
    return tuple(items)


def _duplicates(index: TokenIndex, documents: list[int]) -> list[tuple[int, ...]]:
    """For each document the others of the train region with its sha256.

    Only documents with the same tokens can have it, and the index knows where those stand.
    """
    store = index.store
    starts, lengths = store.starts[documents], store.lengths[documents]
    patterns = [store.tokens[one : one + n] for one, n in zip(starts, lengths, strict=True)]
    found = []
    for document, positions in zip(documents, index.occurrences(patterns), strict=True):
        holders = store.document_at(positions)
        whole = (store.starts[holders] == positions) & (
            store.lengths[holders] == store.lengths[document]
        )
        sha256 = store.document(document).sha256
        twins = (int(one) for one in holders[whole] if one != document)
        found.append(tuple(one for one in twins if store.document(one).sha256 == sha256))
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
