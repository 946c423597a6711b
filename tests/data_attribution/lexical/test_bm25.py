"""BM25 is the formula, from either index; candidates are the best of both kinds of evidence."""

from collections import Counter
from math import log

import numpy as np
import pytest
import torch

from data_attribution import lexical, queries, token_index
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.lexical import bm25, inverted_index
from data_attribution.request import Request
from interp.behaviours import Behaviour
from interp.metrics import Metric


DRAW = np.random.default_rng(5)
TEXTS = [
    " ".join(f"w{DRAW.zipf(1.4) % 40}" for _ in range(DRAW.integers(1, 60))) for _ in range(80)
]


def by_hand(store, bag: dict[int, float]) -> np.ndarray:
    """Robertson & Zaragoza 2009, equation 3.15, with Lucene's idf; one document after another."""
    n = int((store.starts < store.train_tokens).sum())
    places = [slice(int(a), int(a + b)) for a, b in zip(store.starts, store.lengths, strict=True)]
    counts = [Counter(store.tokens[place].tolist()) for place in places[:n]]
    mean = sum(one.total() for one in counts) / n
    scores = np.zeros(n)
    for term, weight in bag.items():
        df = sum(term in one for one in counts)
        idf = log(1 + (n - df + 0.5) / (df + 0.5))
        for document, one in enumerate(counts):
            tf, length = one[term], one.total()
            scores[document] += weight * idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))
    return scores


def asked(store, *rows: str) -> Behaviour:
    """Rows of words; the last of each is the answer. The corrupt prompts are the rows in turn."""
    ids = [[store.eot, *store.tokenizer.encode(row).tolist()] for row in rows]
    tokens = torch.tensor(ids)
    clean = tokens[:, :-1]
    return Behaviour("asked", clean, clean.roll(1, 0), tokens[:, -1], tokens[:, -1].roll(1))


def request(index, target, make_run, **others) -> Request:
    run = make_run(index.store)
    if isinstance(target, Behaviour):
        question = queries.query_of_behaviour(target)
    else:
        nothing = Metric("nothing", "", lambda *_: torch.zeros(1))
        question = queries.Query("text", torch.zeros(1, 1, dtype=torch.long), nothing)
    return Request(run, index, target, question, **others)


@pytest.fixture
def index(make_store):
    return token_index.build(make_store(TEXTS, held_out=0.1))


@pytest.mark.parametrize("memory", [None, 32 * 100, inverted_index.MEMORY])
def test_a_document_scores_its_best_prompt_by_the_published_formula(index, make_run, memory):
    """Without an inverted file, with one of many segments, and with one of one."""
    if memory:
        lexical.build_inverted_index(index.store, memory=memory)
    behaviour = asked(index.store, "w1 w2 w3", "w3 w7 w1", "w9 w9 w30")
    bags = lexical.bags_of_words(index.store, behaviour)
    assert all(weight == 1 for bag in bags for weight in bag.values())
    assert sorted(map(len, bags)) == [2, 3, 3]  # a token counts once a prompt, end-of-text never
    expected = np.max([by_hand(index.store, bag) for bag in bags], axis=0)
    found = lexical.rank_by_bm25(request(index, behaviour, make_run))
    assert np.array_equal(
        found.documents, np.argsort(-expected, kind="stable")[: len(found.scores)]
    )
    assert found.scores == pytest.approx(expected[found.documents], rel=1e-12)
    assert set(np.flatnonzero(expected)) == set(found.documents.tolist())
    assert found.formula == "bm25 k1=1.2 b=0.75"


def test_both_indices_give_the_same_numbers_to_the_last_bit(index):
    bags = [{3: 0.1, 5: 1.0, 9: 1.0}, {3: 0.1, 6: 1.0, 2: 1.0}, {3: 1.0, 4: 0.1}]
    without = bm25.rank_by_words(index, bags)
    lexical.build_inverted_index(index.store, memory=32 * 50)
    found = bm25.rank_by_words(index, bags, scores_at_once=1)  # a bag at a time
    assert np.array_equal(found.documents, without.documents)
    assert np.array_equal(found.scores, without.scores)
    assert [found.where(one) for one in found.documents.tolist()] == [
        without.where(one) for one in without.documents.tolist()
    ]


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 1000])
def test_a_limit_cuts_the_ranking_and_changes_nothing_above_it(index, limit):
    """Scores tie here: of equals the first in the store stays."""
    bags = [{3: 1.0}, {5: 1.0}]
    whole, few = bm25.rank_by_words(index, bags), bm25.rank_by_words(index, bags, limit=limit)
    assert len(set(whole.scores.tolist())) < len(whole.scores)
    assert few.documents.tolist() == whole.documents[:limit].tolist()
    assert few.scores.tolist() == whole.scores[:limit].tolist()


def test_holders_of_a_span_are_the_same_looked_at_one_by_one_or_counted_in_all(index):
    shares = []
    for text in TEXTS[:20]:
        for span in index.maximal_spans(f"{text} w0 w1"):
            (hits,) = index.occurrences([np.array(span.tokens)])
            expected = sorted({int(index.store.document_at(hit)) for hit in hits.tolist()})
            assert bm25.span_holders(index, span).tolist() == expected
            shares.append(span.count / index.store.n_documents)
    assert min(shares) < 1 / 8 < max(shares)


def test_candidates_are_the_best_of_both_rankings_in_turn(index, make_run):
    asked_of = request(index, "w1 w2 w1 w3 w9", make_run)
    both = bm25.rank_by_spans(index, "w1 w2 w1 w3 w9"), lexical.rank_by_bm25(asked_of)
    everything = lexical.candidates(asked_of)
    assert everything.tolist() == sorted({*both[0].documents, *both[1].documents})
    few = lexical.candidates(asked_of, limit=6)
    assert few.tolist() == sorted(few)
    assert len(few) == 6
    assert {int(one) for ranking in both for one in ranking.documents[:3]} <= set(few.tolist())


def test_candidates_of_a_behaviour_hold_what_its_varied_words_and_its_template_name(
    make_store, make_run
):
    texts = ["so the key opens a door", "amber and velvet", "the key opens", *["rain fell"] * 9]
    index = token_index.build(make_store([*texts, "the key amber opens a velvet door"]))
    behaviour = asked(index.store, "the key amber opens velvet", "the key rain opens door")
    assert set(lexical.candidates(request(index, behaviour, make_run), limit=4)) >= {1, 12}
    assert len(lexical.candidates(request(index, behaviour, make_run))) == len(texts) + 1


def test_the_first_word_of_a_text_is_looked_for_with_and_without_a_space(make_store):
    store = make_store(
        ["one amber day", "amber rain", "rain"] * 20, tokenizer="bpe", vocab_size=268
    )
    (bag,) = lexical.bags_of_words(store, "amber rain")
    (spaced,) = lexical.bags_of_words(store, " amber rain")
    assert bag == spaced
    for spelling in ("amber rain", " amber rain"):
        assert set(store.tokenizer.encode(spelling).tolist()) <= set(bag)


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_a_token_is_refused(index, make_run, text):
    with pytest.raises(QueryError, match="holds no token to look for"):
        lexical.rank_by_bm25(request(index, text, make_run))


def test_a_question_without_words_is_refused(index, make_run):
    for asked_of in (lexical.rank_by_bm25, lexical.candidates):
        with pytest.raises(EvidenceError, match="'text' has no words; give a text beside it"):
            asked_of(request(index, None, make_run))


def test_words_that_no_document_holds_rank_nothing(make_store, make_run):
    index = token_index.build(make_store(["a b", "b c", "only held"], held_out=0.0))
    store = index.store
    lexical.build_inverted_index(store)
    ranking = bm25.rank_by_words(index, [{store.eot: 1.0}])
    assert len(ranking.documents) == 0
