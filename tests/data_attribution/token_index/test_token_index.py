"""What the index answers is what reading every document would answer."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_attribution import lexical, token_index
from data_attribution.errors import QueryError


pytestmark = pytest.mark.integration
words = st.sampled_from(["a", "b", "c"])
texts = st.lists(st.lists(words, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8)


def index_of(make, *texts: str, **options):
    return token_index.build(make(texts, **options))


def by_hand(texts: list[str], query: str) -> list[tuple[int, int]]:
    """(document, offset in words) of every occurrence."""
    asked = query.split()
    return [
        (row, at)
        for row, text in enumerate(texts)
        for at in range(len(text.split()) - len(asked) + 1)
        if text.split()[at : at + len(asked)] == asked
    ]


def spans_by_hand(texts: list[str], asked: list[str]) -> list[tuple[int, int]]:
    """(start, stop) of all stretches that occur, less those inside another."""
    n = len(asked)
    held = [
        (start, stop)
        for start in range(n)
        for stop in range(start + 1, n + 1)
        if by_hand(texts, " ".join(asked[start:stop]))
    ]
    return [
        (a, b) for a, b in held if not any((c, d) != (a, b) and c <= a and b <= d for c, d in held)
    ]


@given(texts, st.lists(words, min_size=1, max_size=4).map(" ".join))
@settings(max_examples=40)
def test_counts_and_places_are_those_of_reading_every_document(texts, query):
    texts = [*texts, "a b c"]  # every word is in the vocabulary
    with tempfile.TemporaryDirectory() as folder:
        index = token_index.build(build(Path(folder), texts))
        expected = by_hand(texts, query)
        assert index.count(query).count == len(expected)
        hits = index.find(query, limit=None, every=True)
        assert [(hit.document, hit.offset) for hit in hits] == expected
        assert {hit.document for hit in index.find(query, limit=None)} == {d for d, _ in expected}


@given(texts, st.lists(words, min_size=1, max_size=15))
@settings(max_examples=40)
def test_maximal_spans_are_those_of_trying_every_stretch(texts, asked):
    texts = [*texts, "a b c"]
    with tempfile.TemporaryDirectory() as folder:
        index = token_index.build(build(Path(folder), texts))
        spans = index.maximal_spans(" ".join(asked))
        assert [(one.start, one.stop) for one in spans] == spans_by_hand(texts, asked)
        for one in spans:
            assert one.text == " ".join(asked[one.start : one.stop])
            assert one.count == len(by_hand(texts, one.text))


def build(folder: Path, texts: list[str], **options):
    from train.data import Corpus, Document, build_store

    documents = [Document(f"made/{k}", text, "made", "all", k) for k, text in enumerate(texts)]
    corpus = Corpus("made", "made", "seed 0", lambda: iter(documents))
    return build_store(corpus, out=folder / "s", **{"tokenizer": "word", **options})


def test_no_match_crosses_the_end_of_a_document(make_store):
    index = index_of(make_store, "a b", "c a", "b")
    assert index.count("b c").count == 0
    assert index.count("a b").count == 1  # the first document's, not "a" then "b"
    assert [one.text for one in index.maximal_spans("a b c b")] == ["a b", "c", "b"]


def test_the_last_document_of_the_store_is_found_to_its_last_word(make_store):
    index = index_of(make_store, "a b", "b c z")
    assert [(hit.document, hit.offset) for hit in index.find("c z")] == [(1, 1)]
    assert index.count("z").count == 1


def test_counts_do_not_depend_on_the_order_of_the_documents(make_store):
    random.seed(0)
    texts = [" ".join(random.choices("abcd", k=random.randint(1, 9))) for _ in range(40)]
    queries = ["a", "a b", "d c b", "a a a"]
    shuffled = random.sample(texts, len(texts))
    one, other = index_of(make_store, *texts), index_of(make_store, *shuffled)
    assert [one.count(q).count for q in queries] == [other.count(q).count for q in queries]


def test_a_packed_store_answers_as_a_stream_does(make_store):
    texts = ["a b c", "b c", "a", "c a b", "a b"]
    packed = index_of(make_store, *texts, layout="packed", row_length=8)
    stream = index_of(make_store, *texts)
    for query in ("a", "a b", "b c", "c a b", "c c"):
        assert packed.count(query).count == stream.count(query).count == len(by_hand(texts, query))
        for hit in packed.find(query, every=True):
            held = packed.store.text(hit.document).split()
            assert held[hit.offset : hit.offset + hit.length] == query.split()


def test_the_largest_token_id_of_a_short_vocabulary_is_found(make_store):
    # 65,535 words and end-of-text: the last id is 65535, the largest that uint16 holds.
    texts = [" ".join(f"w{k}" for k in range(first, first + 5)) for first in range(0, 65_535, 5)]
    store = make_store(texts)
    assert (store.vocab_size, store.tokens.dtype) == (65_536, np.uint16)
    index = token_index.build(store)
    place = int(np.flatnonzero(store.tokens == 65_535)[0])
    assert [hit.position for hit in index.find([65_535])] == [place]
    assert index.count(store.tokens[place - 1 : place + 1].tolist()).count == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "the query is empty"),
        ([], "the query is empty"),
        ([1, 0, 2], "holds end-of-text"),
        ([1, 99], "token id 99, the vocabulary ends at 3"),
        ([-1], "token id -1"),
    ],
)
def test_a_query_that_no_document_could_hold_is_refused_in_one_line(make_store, query, message):
    index = index_of(make_store, "a b c")
    for ask in (index.count, index.find, index.next_tokens, index.maximal_spans):
        with pytest.raises(QueryError, match=message) as refused:
            ask(query)
        assert "\n" not in str(refused.value)


def test_what_follows_is_counted_with_the_ends_of_documents(make_store):
    index = index_of(make_store, "a b", "a b c", "a c", "b a")
    found = {(one.text, one.count) for one in index.next_tokens("a")}
    assert found == {("b", 2), ("c", 1), ("<eot>", 1)}
    assert index.next_tokens("a")[0].text == "b"


def held_out_store(make_store):
    """Six documents, "p" between two words; some of them are held out by their hash."""
    texts = [f"x{k} p y{k}" for k in range(6)]
    store = make_store(texts, held_out=0.5)
    assert 0 < store.train_tokens < store.n_tokens
    return store


def test_held_out_places_are_marked_and_not_counted_as_read(make_store):
    store = held_out_store(make_store)
    index = token_index.build(store)
    found = index.find("p")
    read = [hit for hit in found if not hit.held_out]
    assert len(found) == 6
    assert all((hit.position >= store.train_tokens) == hit.held_out for hit in found)
    count = index.count("p")
    assert (count.count, count.held_out) == (len(read), 6 - len(read))
    assert sum(one.count for one in index.next_tokens("p")) == len(read)


def test_spans_are_those_of_the_text_that_is_read(make_store):
    store = held_out_store(make_store)
    index = token_index.build(store)
    last = store.n_documents - 1  # held out: its words stand nowhere else, but "p" does
    text = store.text(last)
    assert [(one.text, one.count) for one in index.maximal_spans(text)] == [
        ("p", index.count("p").count)
    ]


def test_the_surprise_of_a_span_is_its_unigram_log_probability(make_store):
    index = index_of(make_store, "a a a b", "c c c c")
    (span,) = index.maximal_spans("a b")
    # 8 words, end-of-text not counted: p(a) = 3/8, p(b) = 1/8.
    assert span.log_probability == pytest.approx(np.log(3 / 8) + np.log(1 / 8))


def test_shorter_spans_are_left_out_on_demand(make_store):
    index = index_of(make_store, "a b c", "d")
    assert [one.text for one in index.maximal_spans("d a b c", minimum=2)] == ["a b c"]


def test_a_sample_is_the_same_for_the_same_seed_and_spread_over_contexts(make_store):
    # "p" is followed by 50 different words, 4 documents each: sorted, they are 50 groups of 4.
    texts = [f"p w{k:02d} n{row}" for k in range(50) for row in range(4)]
    index = index_of(make_store, *texts)
    sample = index.find("p", limit=50, seed=3)
    assert sample == index.find("p", limit=50, seed=3)
    assert sample != index.find("p", limit=50, seed=4)
    assert sample.found.count == 200
    assert len({hit.document // 4 for hit in sample}) == 50


def test_a_document_is_returned_once_however_often_it_holds_the_query(make_store):
    often = " ".join(["p"] * 500)
    index = index_of(make_store, often, "p a", "p b", "p c")
    assert [hit.document for hit in index.find("p", limit=4)] == [0, 1, 2, 3]
    assert len(index.find("p", limit=100, every=True)) == 100
    assert len(index.find("p", limit=None, every=True)) == 503


def test_both_spellings_of_a_text_are_tried_with_byte_pairs(make_store):
    texts = ["heron and heron", "the heron", "heron"] * 20
    index = index_of(make_store, *texts, tokenizer="bpe", vocab_size=266)
    count = index.count("heron")
    assert count.spellings[0].text == "heron"
    assert count.count == 80
    assert index.count(" heron").count == 80
    documents = [hit.document for hit in index.find("heron", limit=None)]
    assert documents == list(range(60))


def test_a_spelling_that_contains_the_other_is_not_counted_twice(make_store):
    # 257 ids are end-of-text and the bytes: " heron" is the byte of the space and those of "heron".
    index = index_of(make_store, "heron and heron", "the heron", tokenizer="bpe", vocab_size=257)
    assert [one.text for one in index.count("heron").spellings] == ["heron"]
    assert index.count("heron").count == 3


def test_spans_of_a_text_take_the_spelling_that_matches_further(make_store):
    texts = ["see the grey heron fly", "the end"] * 30
    index = index_of(make_store, *texts, tokenizer="bpe", vocab_size=276)
    assert index.maximal_spans("grey heron fly")[0].text == " grey heron fly"


def test_many_questions_are_answered_as_each_alone(make_store):
    index = token_index.build(held_out_store(make_store), shards=2)
    asked = ["p", "p y1", "y3 p y2", "y1", [1], [2, 3], "x2 p y2"]
    # Of more than 256 rows the searches are joined.
    for queries in (asked, asked * 40, []):
        alone = tuple(index.find(one, limit=3, seed=5) for one in queries)
        assert index.finds(queries, limit=3, seed=5) == alone
        every = tuple(index.find(one, limit=None, every=True) for one in queries)
        assert index.finds(queries, limit=None, every=True) == every
        for minimum in (0, 1, 2):
            ends = tuple(index.longest_suffix(one, minimum=minimum) for one in queries)
            assert index.longest_suffix_each(queries, minimum=minimum) == ends
            followed = tuple(index.next_tokens(one, minimum=minimum) for one in queries)
            assert index.next_tokens_each(queries, minimum=minimum) == followed
    with pytest.raises(QueryError, match="the query is empty"):
        index.finds(["p", ""])


def test_places_come_a_few_at_a_time_and_are_all_that_are_read(make_store):
    index = token_index.build(held_out_store(make_store), shards=2)
    row = index.count("p").spellings[0].tokens
    pieces = list(index.places(row, most=1))
    assert [len(one) for one in pieces] == [1] * index.count("p").count
    assert len(pieces) > len(index.parts)
    assert sorted(np.concatenate(pieces)) == index.occurrences([np.array(row)])[0].tolist()


def test_a_document_is_worth_the_surprise_of_the_spans_that_it_holds(make_store):
    index = index_of(make_store, "x a b", "a b y", "c c", "c d a", "e")
    found = lexical.rank_by_spans(index, "a b c e e")
    surprise = {one.text: -one.log_probability for one in index.maximal_spans("a b c e")}
    shares = {"a b": surprise["a b"] / 2, "c": surprise["c"] / 2}
    expected = {0: shares["a b"], 1: shares["a b"], 2: shares["c"], 3: shares["c"]}
    expected[4] = 2 * surprise["e"]
    scores = dict(zip(found.documents.tolist(), found.scores.tolist(), strict=True))
    assert scores == pytest.approx(expected)
    assert [found.where(one) for one in range(5)] == [(1, 2), (0, 2), (0, 1), (0, 1), (0, 1)]


def test_each_hit_knows_the_steps_that_read_it(make_store, make_run):
    # Of lengths 3 to 6, so that some occurrences lie across the edge of two windows.
    texts = [" ".join(f"d{k}w{j}" for j in range(1 + k % 4)) + " p q" for k in range(24)]
    store = make_store(texts, held_out=0.3)
    run = make_run(store, context=4, batch=2)
    hits = token_index.build(store).find("p q")
    assert any(hit.held_out for hit in hits)
    assert any(hit.position % 4 == 0 for hit in hits if not hit.held_out)
    for hit in hits:
        place = set(range(hit.position, hit.position + 2))
        by_hand = [
            step
            for step in range(run.steps_done)
            if any(place & set(range(at + 1, at + 5)) for at in run.order.starts(step).tolist())
        ]
        assert hit.steps(run).tolist() == by_hand
        assert not (hit.held_out and by_hand)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.find("p", limit=0), "a limit of 0 hits .* give 1 or more"),
        (lambda index: index.finds(["p"], limit=-1), "a limit of -1 hits"),
        (lambda index: index.find("p", seed=-1), "seed -1; give 0 or more"),
        (lambda index: index.finds(["p"], seed=-2), "seed -2; give 0 or more"),
        (lambda index: index.maximal_spans("p", minimum=0), "a minimum of 0 .* give 1 or more"),
        (lambda index: index.next_tokens("p", minimum=-1), "a minimum of -1 .* give 0 or more"),
        (lambda index: index.maximal_spans("p", share=0.0), "a share of 0 spans"),
        (lambda index: index.maximal_spans("p", share=-0.5), "a share of -0.5 spans"),
    ],
)
def test_numbers_that_ask_for_nothing_are_refused_in_one_line(make_store, ask, message):
    with pytest.raises(QueryError, match=message) as refused:
        ask(index_of(make_store, "p q"))
    assert "\n" not in str(refused.value)


def test_spans_of_a_store_that_is_held_out_whole_are_refused_in_one_line(make_store):
    index = index_of(make_store, "a b c", "c b a")
    held_out = tuple(replace(part, held_out=True) for part in index.parts)
    for text in ("a b", np.array([1, 2])):
        with pytest.raises(QueryError, match=r"all 9 tokens of .* are held out, so no span"):
            replace(index, parts=held_out).maximal_spans(text)
