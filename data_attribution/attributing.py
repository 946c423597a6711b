"""Which documents may have taught a text or a behaviour.

`documents(run, target)` ranks the documents that a run read. The evidence of this version is
*lexical* (`lexical.py` has its formulas and limits): it needs no model, and is the baseline that
gradient evidence has to beat and at finding the document that states a fact often does not (Chang
et al. 2024, TrackStar). Held-out documents and documents that the run never reached are no sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import indexing, lexical, questions
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.questions import Question
from data_attribution.rankings import Ranking
from data_attribution.sources import Source, Sources
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from interp.metrics import Metric
from train.errors import nearest
from train.orders import Order
from train.token_store import TokenStore


__all__ = ["METHODS", "Method", "Reader", "Request", "documents"]

BM25 = f"bm25 k1={lexical.K1} b={lexical.B} shared={lexical.SHARED}"
# Tokens shown on either side of a span, and the most shown of one document.
AROUND, SHOWN = 24, 96

Progress = Callable[[str, int, int | None], None] | None


@runtime_checkable
class Reader(Protocol):
    """What is asked of a run. Methods that follow gradients ask for a whole `train.runs.Run`."""

    @property
    def id(self) -> str: ...
    @property
    def knowledge(self) -> str: ...
    @property
    def store(self) -> TokenStore: ...
    @property
    def order(self) -> Order: ...

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]: ...


@dataclass(frozen=True, eq=False)
class Request:
    """One question to a run, as every method of attribution is asked it.

    Attributes:
        run: The run that read the documents; a `train.runs.Run` for methods that need its weights.
        index: The sorted text of its store.
        target: A text, or a behaviour.
        question: The same as a number a prompt, to be measured and differentiated.
        within: Names of the components through which evidence counts; None: all.
        candidates: Documents to score; None: the method decides, and says how many in `details`.
        limit: How many documents are wanted; a method may rank more.
        seed: Of everything drawn: projections, samples.
        progress: Told (what, done, total).
    """

    run: Any
    index: TokenIndex
    target: str | Behaviour
    question: Question
    within: tuple[str, ...] | None = None
    candidates: Int64[np.ndarray, " document"] | None = None
    limit: int = 50
    seed: int = 0
    progress: Progress = None


@dataclass(frozen=True)
class Method:
    """One way to rank documents, and the grade of evidence that it gives."""

    grade: str
    rank: Callable[[Request], Ranking]


def documents(
    run: Reader,
    target: str | Behaviour,
    *,
    within: Sequence[str] | None = None,
    metric: Metric | None = None,
    method: str = "lexical",
    limit: int = 50,
    candidates: Int64[np.ndarray, " document"] | None = None,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        within: Names of components; gradient evidence counts through them alone.
        metric: What is asked of a behaviour; default: its logit difference.
        limit: The most documents returned.
        candidates: Score these documents only.

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
    request = Request(
        run,
        index,
        target,
        _question(run, target, metric),
        within=tuple(within) if within is not None else None,
        candidates=candidates,
        limit=limit,
        progress=progress,
    )
    ranking = METHODS[method].rank(request)
    chosen, steps, unread = _read(run, ranking.documents, limit)
    items = _sources(index, ranking, chosen, steps, METHODS[method].grade)
    as_text = isinstance(target, str)
    provenance = {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": index.backend,
        "formula": ranking.formula or ("maximal spans" if as_text else BM25),
        "candidates": len(ranking.documents),
        "unread": unread,
        **ranking.details,
    }
    return Sources(target if as_text else target.name, method, items, provenance)


def _question(run: Reader, target: str | Behaviour, metric: Metric | None) -> Question:
    if isinstance(target, Behaviour):
        return questions.of_behaviour(target, metric)
    return questions.of_text(target, run.store.tokenizer, n_ctx=run.order.context)


def _lexical(request: Request) -> Ranking:
    target, index = request.target, request.index
    if isinstance(target, str):
        return lexical.spans(index, target, request.progress)
    clean, corrupt = np.asarray(target.clean), np.asarray(target.corrupt)
    bags = lexical.bags(clean, corrupt, np.asarray(target.answer), index.store.eot)
    if not bags or not all(bags):
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    return lexical.bm25(index, bags, request.progress)


METHODS = {"lexical": Method("lexical", _lexical)}


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
