"""Lexical evidence: rank the documents that share words with a text or prompts, without a model.

* `rank_by_spans`, for a text: its maximal verbatim spans (as OLMoTrace, Liu et al. 2025). A span is
  worth its unigram surprise, -sum log p(token) in nats, shared equally among the documents that
  hold it: score(d) = sum over spans s in d of surprise(s) / documents(s).
* `rank_by_words`, for prompts: BM25 (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75) of each prompt
  as a bag of weighted tokens. A document gets the score of its best-fitting bag and not the sum:
  the words of a template occur in every prompt, and summed they would outweigh the names. Token
  order is not used.
* `prompt_bags`, for a behaviour: its answer and the tokens in which clean and corrupt differ have
  weight 1, because the behaviour is about them; the template around them has weight SHARED.

`rank_lexically` takes a request and ranks by spans or by weighted words, as its target requires.

Limits: a document that states a fact looks like one that only names the same things, and a
paraphrase is recognised by the names alone. Only the train region counts. If the store has an
inverted index (`inverted_index`), BM25 reads that; without one it uses the token index, where a
frequent token costs one look-up per occurrence. The scores are the same to the last bit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse

from data_attribution.errors import QueryError
from data_attribution.lexical import inverted_index
from data_attribution.lexical.inverted_index import Held
from data_attribution.ranking import Ranking
from data_attribution.request import Request
from data_attribution.token_index import Span, TokenIndex
from interp.behaviours import Behaviour
from train.data import TokenStore
from train.progress import Progress


__all__ = ["K1", "SHARED", "B", "prompt_bags", "rank_by_spans", "rank_by_words", "rank_lexically"]

K1, B = 1.2, 0.75
# At full weight the template ranks statements of other facts above paraphrases. Measured on the
# planted corpus of content seed 1, which is not evaluated: share of the n documents of a fact among
# the first n ranked, at weights 1, 0.3, 0.1 and 0. It is 0.74, 0.95, 0.95 and 0.88 for facts stated
# in the form of the query, and 0.45, 0.85, 0.83 and 0.83 for others (benchmarks/lexical_evidence.py
# --seed 1). The value 0.1 had been chosen on seed 0; seed 1 gives no reason to change it, since 0.1
# to 0.3 is flat.
SHARED = 0.1

Bag = dict[int, float]


def rank_lexically(request: Request, *, limit: int | None = None) -> Ranking:
    """Rank documents by maximal spans of a text, or by weighted BM25 over a behaviour's prompts.

    Args:
        limit: Largest number of documents that BM25 ranks; None: all that hold a token of a prompt.

    Raises:
        EvidenceError: The query has no words.
        QueryError: A prompt holds no token of text.

    Examples:
        >>> ranking = lexical.rank_lexically(attribution.make_request(run, fact), limit=2)
        >>> len(ranking.documents), ranking.formula
        (2, 'bm25 k1=1.2 b=0.75 shared=0.1')
    """
    target, index = request.words, request.index
    if isinstance(target, str):
        return replace(rank_by_spans(index, target, request.progress), formula="maximal spans")
    bags = prompt_bags(index.store, target)
    if not bags or not all(bags):
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    ranking = rank_by_words(index, bags, request.progress, limit=limit)
    return replace(ranking, formula=f"bm25 k1={K1} b={B} shared={SHARED}")


def rank_by_spans(index: TokenIndex, text: str, progress: Progress | None = None) -> Ranking:
    """Rank documents by the surprise of the text's maximal spans that they hold.

    Costs one look-up per occurrence of each span. Memory is 17 bytes per document of the store plus
    64 MB, however often a span occurs.

    Examples:
        >>> ranking = lexical.rank_by_spans(index, "runethi is governed from koreskul .")
        >>> ranking.documents[:2].tolist(), ranking.where(28867)
        ([28867, 28874], (0, 6))
    """
    store, found, shares = index.store, index.maximal_spans(text), []
    scores = np.zeros(store.n_documents)
    for done, span in enumerate(found):
        _report(progress, "documents of spans", done, len(found))
        holders = span_holders(index, span)
        shares.append(-span.log_probability / max(len(holders), 1))
        scores[holders] += shares[-1]

    def where(asked: int) -> tuple[int, int]:
        start = store.starts[asked]
        held = store.tokens[start : start + store.lengths[asked]].tobytes()
        for best in np.argsort(-np.array(shares), kind="stable").tolist():
            wanted = np.array(found[best].tokens, store.tokens.dtype).tobytes()
            if (at := _at(held, wanted, store.tokens.itemsize)) is not None:
                return at, len(found[best].tokens)
        return 0, 0

    return _ranking(scores, where)


def prompt_bags(store: TokenStore, behaviour: Behaviour) -> list[Bag]:
    """Return the distinct bags of a behaviour's prompts: token id to weight, no end-of-text.

    Examples:
        >>> (bag,) = lexical.prompt_bags(store, fact)
        >>> sorted(set(bag.values()))
        [0.1, 1.0]
    """
    bags: dict[tuple[tuple[int, float], ...], None] = {}
    for row, (clean, corrupt) in enumerate(zip(behaviour.clean, behaviour.corrupt, strict=True)):
        bag = dict.fromkeys(clean.tolist(), SHARED)
        bag |= dict.fromkeys(behaviour.weights_of("answer", row), 1.0)
        bag |= dict.fromkeys(clean[clean != corrupt].tolist(), 1.0)
        bag.pop(store.eot, None)
        bags[tuple(sorted(bag.items()))] = None
    return [dict(bag) for bag in bags]


def rank_by_words(
    index: TokenIndex,
    bags: Sequence[Bag],
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    scores_at_once: int = 1 << 23,
) -> Ranking:
    """Rank documents by the BM25 score of their best-fitting bag.

    Costs one addition per bag and index entry of the tokens.

    Args:
        limit: Largest number of documents ranked; default: all that hold a token of a bag.
        scores_at_once: Number of (document, bag) scores in memory at a time; 64 MB by default.

    Examples:
        >>> bags = lexical.bags_of_words(store, "governed runethi")
        >>> ranking = lexical.rank_by_words(index, bags, limit=2)
        >>> [store.text(document) for document in ranking.documents.tolist()]
        ['runethi is governed from koreskul .', 'runethi is governed from koreskul .']
    """
    store = index.store
    terms = sorted(set().union(*bags))
    n = int(np.searchsorted(store.starts, store.train_tokens))
    frequency, pieces = _held(index, terms, n)
    # Never negative, as in Lucene: a token that occurs in every document weighs almost nothing. idf
    # = log(1 + (n - f + 1/2) / (f + 1/2)), for a token in f of n documents.
    idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5))
    shares = np.array([[bag.get(term, 0.0) for bag in bags] for term in terms])
    # weight of a token = idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)).
    damping = K1 * (1 - B + B * store.lengths[:n] / max(store.lengths[:n].mean(), 1))
    best, fits = np.zeros(n), np.zeros(n, np.int32)
    for held in pieces:
        _report(progress, "documents scored", held.first, n)
        owner = held.documents + held.first
        tf, weights = held.counts, np.repeat(idf, np.diff(held.edges))
        weights = weights * tf * (K1 + 1) / (tf + damping[owner])
        span = slice(held.first, held.stop)
        best[span], fits[span] = _best(held, weights, shares, scores_at_once)
    _report(progress, "documents scored", n, n)

    def where(asked: int) -> tuple[int, int]:
        start = store.starts[asked]
        return _tightest(store.tokens[start : start + store.lengths[asked]], bags[fits[asked]])

    return _ranking(best, where, limit)


def _held(
    index: TokenIndex, terms: Sequence[int], n: int
) -> tuple[Int64[np.ndarray, " term"], Iterable[Held]]:
    """Return in how many of the n train documents each token occurs, and in which."""
    if found := inverted_index.find_inverted_index(index.store):
        return found.frequency(terms), found.held(terms)
    holders, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for term in terms:
        tf = _by_document(index, (term,))
        holders.append(np.flatnonzero(tf))
        counts.append(tf[holders[-1]])
    edges = np.cumsum([len(one) for one in holders])
    held = Held(0, n, edges, np.concatenate(holders), np.concatenate(counts))
    return np.diff(edges), [held]


def span_holders(index: TokenIndex, span: Span) -> Int64[np.ndarray, " document"]:
    """Return the train documents that hold a span; costs one look-up per occurrence."""
    if span.count > index.store.n_documents // 8:
        return np.flatnonzero(_by_document(index, span.tokens))
    found = [np.empty(0, np.int64), *map(index.store.document_at, index.places(span.tokens))]
    return np.unique(np.concatenate(found))


def _by_document(index: TokenIndex, row: Sequence[int]) -> Int64[np.ndarray, " document"]:
    """Return how often a row of token ids occurs in each document of the train region."""
    counts = np.zeros(index.store.n_documents, np.int64)
    for positions in index.places(row):
        documents, found = np.unique(index.store.document_at(positions), return_counts=True)
        counts[documents] += found
    return counts


def _at(held: bytes, wanted: bytes, size: int) -> int | None:
    """Return the first token of `held` where `wanted` begins; both hold tokens of `size` bytes."""
    at = held.find(wanted)
    while at % size and at >= 0:  # the match begins inside a token
        at = held.find(wanted, at + 1)
    return at // size if at >= 0 else None


def _best(
    held: Held,
    weights: Float64[np.ndarray, " entry"],
    shares: Float64[np.ndarray, "term bag"],
    scores_at_once: int,
) -> tuple[Float64[np.ndarray, " document"], Int64[np.ndarray, " document"]]:
    """Return for each document the score of its best-fitting bag, and the index of that bag."""
    width = held.stop - held.first
    by_term = sparse.csr_array(
        (weights, held.documents.astype(np.int32), held.edges), shape=(len(shares), width)
    )
    best, fits = np.zeros(width), np.zeros(width, np.int64)
    block = max(1, scores_at_once // width)
    for first in range(0, shares.shape[1], block):
        scores = by_term.T @ shares[:, first : first + block]
        top = scores.argmax(1)
        score = np.take_along_axis(scores, top[:, None], 1)[:, 0]
        better = score > best
        best[better], fits[better] = score[better], top[better] + first
    return best, fits


def _tightest(tokens: np.ndarray, bag: Bag) -> tuple[int, int]:
    """Return offset and length of the shortest passage with every token of the bag that occurs."""
    places = np.flatnonzero(np.isin(tokens, list(bag)))
    wanted = len(np.unique(tokens[places]))
    last: dict[int, int] = {}
    best = (0, len(tokens))
    for place in places.tolist():
        last[int(tokens[place])] = place
        first = min(last.values())
        if len(last) == wanted and place + 1 - first < best[1]:
            best = first, place + 1 - first
    return best


def _ranking(
    scores: Float64[np.ndarray, " document"],
    where: Callable[[int], tuple[int, int]],
    limit: int | None = None,
) -> Ranking:
    held = np.flatnonzero(scores)
    if limit is not None and limit < len(held):
        # The other documents are not sorted: at 8 million documents sorting is most of the work.
        last = np.partition(scores[held], -limit)[-limit]
        held = held[scores[held] >= last]
    order = np.argsort(-scores[held], kind="stable")[:limit]
    return Ranking(held[order], scores[held[order]], where)


def _report(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)
