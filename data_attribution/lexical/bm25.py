"""Lexical evidence: which documents share words with a text or with prompts. No model is asked.

* `spans`, for a text: its maximal verbatim spans (as OLMoTrace, Liu et al. 2025). A span is worth
  its unigram surprise, -sum log p(token) in nats, shared equally among the documents that hold it:
  score(d) = sum over spans s in d of surprise(s) / documents(s).
* `bm25`, for prompts: BM25 (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75) of each prompt as a bag
  of weighted tokens, of which a document scores the best-fitting bag and not the sum: the words of
  a template stand in every prompt, and summed they would drown the names. Token order is not used.
* `bags`, of a behaviour: its answer and the tokens in which clean and corrupt differ weigh 1, for
  they are what the behaviour is about; the template around them weighs SHARED.

Limits: a document that states a fact looks like one that only names the same things, and a
paraphrase is seen by the names alone. Only the train region counts. Where the store has an inverted
file (`postings`) BM25 reads that; without one it looks in the token index, where a frequent token
costs a look at each of its places. The scores are the same to the last bit.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Integer
from scipy import sparse

from data_attribution.lexical import inverted_index
from data_attribution.lexical.inverted_index import Held
from data_attribution.ranking import Ranking
from data_attribution.token_index import Span, TokenIndex


__all__ = ["K1", "SHARED", "B", "prompt_bags", "rank_by_spans", "rank_by_words"]

K1, B = 1.2, 0.75
# At full weight a template buries paraphrases under statements of other facts. On the planted
# corpus of content seed 1, where nothing is evaluated, of the n documents of a fact come among the
# first n ranked, at weights 1, 0.3, 0.1 and 0: 0.74, 0.95, 0.95 and 0.88 where it is asked in a
# form it was stated in, 0.45, 0.85, 0.83 and 0.83 where it is not (benchmarks/lexical_evidence.py
# --seed 1). 0.1 stood here before, from seed 0, and seed 1 gives no reason to move it: 0.1 to 0.3
# is flat.
SHARED = 0.1
# Scores of documents by bags kept at a time: 64 MB.
SCORES = 1 << 23

Bag = dict[int, float]
Tokens = Integer[np.ndarray, "..."]
Progress = Callable[[str, int, int | None], None] | None


def rank_by_spans(index: TokenIndex, text: str, progress: Progress = None) -> Ranking:
    """Documents by the surprise of the maximal spans of a text that they hold.

    Costs a look at each place of each span; memory is 17 bytes a document of the store and 64 MB,
    however often a span stands.
    """
    store, found, shares = index.store, index.maximal_spans(text), []
    scores = np.zeros(store.n_documents)
    for done, span in enumerate(found):
        _report(progress, "documents of spans", done, len(found))
        holders = _holders(index, span)
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


def prompt_bags(clean: Tokens, corrupt: Tokens, answer: Tokens, eot: int) -> list[Bag]:
    """The distinct bags of a behaviour's prompts: token id to weight, end-of-text left out."""
    found: dict[tuple[tuple[int, float], ...], None] = {}
    for ours, theirs, ends in zip(clean, corrupt, answer.reshape(len(clean), -1), strict=True):
        bag = dict.fromkeys(ours.tolist(), SHARED) | dict.fromkeys(ends.tolist(), 1.0)
        bag |= dict.fromkeys(ours[ours != theirs].tolist(), 1.0)
        bag.pop(eot, None)
        found[tuple(sorted(bag.items()))] = None
    return [dict(one) for one in found]


def rank_by_words(
    index: TokenIndex, bags: Sequence[Bag], progress: Progress = None, *, limit: int | None = None
) -> Ranking:
    """Documents by BM25 of the bag they fit best.

    Costs entries of the tokens x bags additions, and 64 MB beside the result.

    Args:
        limit: The most documents ranked; default: all that hold a token of a bag.
    """
    store = index.store
    terms = sorted(set().union(*bags))
    n = int(np.searchsorted(store.starts, store.train_tokens))
    frequency, pieces = _held(index, terms, n)
    # Never negative, as in Lucene: a token that stands in every document weighs next to nothing.
    idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5))
    shares = np.array([[bag.get(term, 0.0) for bag in bags] for term in terms])
    damping = K1 * (1 - B + B * store.lengths[:n] / max(store.lengths[:n].mean(), 1))
    best, fits = np.zeros(n), np.zeros(n, np.int32)
    for held in pieces:
        _report(progress, "documents scored", held.first, n)
        owner = held.documents + held.first
        tf, weights = held.counts, np.repeat(idf, np.diff(held.edges))
        weights = weights * tf * (K1 + 1) / (tf + damping[owner])
        span = slice(held.first, held.stop)
        best[span], fits[span] = _best(held, weights, shares)
    _report(progress, "documents scored", n, n)

    def where(asked: int) -> tuple[int, int]:
        start = store.starts[asked]
        return _tightest(store.tokens[start : start + store.lengths[asked]], bags[fits[asked]])

    return _ranking(best, where, limit)


def _held(
    index: TokenIndex, terms: Sequence[int], n: int
) -> tuple[Int64[np.ndarray, " term"], Iterable[Held]]:
    """In how many of the n documents of the train region each token stands, and in which."""
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


def _holders(index: TokenIndex, span: Span) -> Int64[np.ndarray, " document"]:
    """The documents of the train region that hold a span; costs its places, however many others."""
    if span.count > index.store.n_documents // 8:
        return np.flatnonzero(_by_document(index, span.tokens))
    found = [np.empty(0, np.int64), *map(index.store.document_at, index.places(span.tokens))]
    return np.unique(np.concatenate(found))


def _by_document(index: TokenIndex, row: Sequence[int]) -> Int64[np.ndarray, " document"]:
    """How often a row of token ids stands in each document of the train region."""
    counts = np.zeros(index.store.n_documents, np.int64)
    for positions in index.places(row):
        documents, found = np.unique(index.store.document_at(positions), return_counts=True)
        counts[documents] += found
    return counts


def _at(held: bytes, wanted: bytes, size: int) -> int | None:
    """The first token of `held` from which `wanted` stands, both of tokens of `size` bytes."""
    at = held.find(wanted)
    while at % size and at >= 0:  # across two tokens
        at = held.find(wanted, at + 1)
    return at // size if at >= 0 else None


def _best(
    held: Held, weights: Float64[np.ndarray, " entry"], shares: Float64[np.ndarray, "term bag"]
) -> tuple[Float64[np.ndarray, " document"], Int64[np.ndarray, " document"]]:
    """Of each document the score of the bag it fits best, and which that is."""
    width = held.stop - held.first
    by_term = sparse.csr_array(
        (weights, held.documents.astype(np.int32), held.edges), shape=(len(shares), width)
    )
    best, fits = np.zeros(width), np.zeros(width, np.int64)
    block = max(1, SCORES // width)
    for first in range(0, shares.shape[1], block):
        scores = by_term.T @ shares[:, first : first + block]
        top = scores.argmax(1)
        score = np.take_along_axis(scores, top[:, None], 1)[:, 0]
        better = score > best
        best[better], fits[better] = score[better], top[better] + first
    return best, fits


def _tightest(tokens: np.ndarray, bag: Bag) -> tuple[int, int]:
    """Offset and length of the shortest stretch with every token of the bag that there is."""
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
        # The others are not sorted: at 8 million documents that is most of the work.
        last = np.partition(scores[held], -limit)[-limit]
        held = held[scores[held] >= last]
    order = np.argsort(-scores[held], kind="stable")[:limit]
    return Ranking(held[order], scores[held[order]], where)


def _report(progress: Progress, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)
