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
paraphrase is seen by the names alone. Only the train region counts. The token index is the inverted
index too, so a frequent token costs a look at each of its places.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Integer

from data_attribution.rankings import Ranking
from data_attribution.token_index import TokenIndex


__all__ = ["K1", "SHARED", "B", "bags", "bm25", "spans"]

K1, B = 1.2, 0.75
# At full weight a template buries paraphrases under statements of other facts. Planted facts never
# stated in the form they are asked in: 0.45 of their documents come before all but distractors at
# weight 1, all of them at 0.3, 0.1 and 0; facts stated in that form: 0.73 come first at weight 1,
# 0.94, 0.93 and 0.86 below (benchmarks/lexical_evidence.py, the corpus that 0.1 was chosen on).
SHARED = 0.1

Bag = dict[int, float]
Tokens = Integer[np.ndarray, "..."]
Progress = Callable[[str, int, int | None], None] | None


def spans(index: TokenIndex, text: str, progress: Progress = None) -> Ranking:
    """Documents by the surprise of the maximal spans of a text that they hold."""
    found = index.maximal_spans(text)
    held, shares, firsts, lengths = [], [], [], []
    patterns = [np.array(span.tokens) for span in found]
    for done, (span, positions) in enumerate(zip(found, index.occurrences(patterns), strict=True)):
        _report(progress, "documents of spans", done, len(found))
        holders, first = np.unique(index.store.document_at(positions), return_index=True)
        held.append(holders)
        shares.append(np.full(len(holders), -span.log_probability / len(holders)))
        firsts.append(positions[first])
        lengths.append(np.full(len(holders), span.stop - span.start))
    if not found:
        return _ranking(np.zeros(index.store.n_documents), lambda document: (0, 0))
    document, share, first, length = map(np.concatenate, (held, shares, firsts, lengths))

    def where(asked: int) -> tuple[int, int]:
        rows = np.flatnonzero(document == asked)
        best = rows[share[rows].argmax()]
        return int(first[best] - index.store.starts[asked]), int(length[best])

    return _ranking(np.bincount(document, share, index.store.n_documents), where)


def bags(clean: Tokens, corrupt: Tokens, answer: Tokens, eot: int) -> list[Bag]:
    """The distinct bags of a behaviour's prompts: token id to weight, end-of-text left out."""
    found: dict[tuple[tuple[int, float], ...], None] = {}
    for ours, theirs, ends in zip(clean, corrupt, answer.reshape(len(clean), -1), strict=True):
        bag = dict.fromkeys(ours.tolist(), SHARED) | dict.fromkeys(ends.tolist(), 1.0)
        bag |= dict.fromkeys(ours[ours != theirs].tolist(), 1.0)
        bag.pop(eot, None)
        found[tuple(sorted(bag.items()))] = None
    return [dict(one) for one in found]


def bm25(index: TokenIndex, bags: Sequence[Bag], progress: Progress = None) -> Ranking:
    """Documents by BM25 of the bag they fit best."""
    store = index.store
    weights = _weights(index, sorted(set().union(*bags)))
    best = np.zeros(store.n_documents)
    fits = np.zeros(store.n_documents, np.int64)
    for number, bag in enumerate(bags):
        _report(progress, "prompts", number, len(bags))
        scores = np.zeros(store.n_documents)
        for term, share in bag.items():
            holders, weight = weights[term]
            scores[holders] += share * weight
        better = scores > best
        best[better], fits[better] = scores[better], number

    def where(asked: int) -> tuple[int, int]:
        start = store.starts[asked]
        return _tightest(store.tokens[start : start + store.lengths[asked]], bags[fits[asked]])

    return _ranking(best, where)


def _weights(index: TokenIndex, terms: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Per term the documents of the train region that hold it and its BM25 weight in each.

    idf = ln(1 + (N - df + 1/2) / (df + 1/2)), which is never negative (as in Lucene); a token that
    stands in every document weighs next to nothing.
    """
    store = index.store
    n = int(np.searchsorted(store.starts, store.train_tokens))
    mean = max(store.lengths[:n].mean(), 1)
    weights = {}
    patterns = [np.array([term]) for term in terms]
    for term, positions in zip(terms, index.occurrences(patterns), strict=True):
        holders, tf = np.unique(store.document_at(positions), return_counts=True)
        idf = np.log1p((n - len(holders) + 0.5) / (len(holders) + 0.5))
        damping = K1 * (1 - B + B * store.lengths[holders] / mean)
        weights[term] = holders, idf * tf * (K1 + 1) / (tf + damping)
    return weights


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
    scores: Float64[np.ndarray, " document"], where: Callable[[int], tuple[int, int]]
) -> Ranking:
    held = np.flatnonzero(scores)
    order = held[np.argsort(-scores[held], kind="stable")]
    return Ranking(order, scores[order], where)


def _report(progress: Progress, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)
