"""An index in however many shards answers what reading every document would answer."""

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_attribution.errors import QueryError
from data_attribution.token_index import TokenIndex, hit_sampling, suffix_search
from tests.data_attribution.held_index import index_of
from tests.data_attribution.ordered_run import OrderedRun
from train.data import RecordedOrder


pytestmark = pytest.mark.integration
VOCABULARY = 6
token = st.integers(1, VOCABULARY - 1)
document = st.lists(token, max_size=9) | st.lists(st.just(2), max_size=30)
corpora = st.lists(document, min_size=1, max_size=7)
queries = st.lists(token, min_size=1, max_size=5)

ADVERSARIAL: dict[str, list[list[int]]] = {
    "all equal": [[3] * 400],
    "all equal, in documents of many lengths": [[3] * n for n in (1, 2, 3, 4, 7, 16, 17, 70)],
    "one document many times": [[1, 2, 3, 4, 5, 1, 2]] * 12,
    "long repeats": [[1, 2, 1, 2, 3] * 60, [2, 1, 2, 3, 1] * 60],
    "documents of one token": [[k] for k in (5, 1, 5, 65_535, 5, 2)],
    "empty documents": [[], [1, 2], [], [], [2], []],
    "the largest id": [[65_535] * 20, [1, 65_535], [65_535, 1]],
    "thue-morse": [[1 + bin(k).count("1") % 2 for k in range(300)]],
}
ASKED = [[3], [3, 3], [3] * 399, [3] * 401, [1, 2], [2, 1, 2, 3], [5], [65_535], [65_535] * 3, [2]]


@st.composite
def shardings(draw):
    """Documents, a cut into shards (of one document, at times), and how many may be trained on."""
    documents = draw(corpora)
    cuts = draw(st.lists(st.integers(0, len(documents)), max_size=4) | st.just(range(9)))
    cuts = [one for one in cuts if one < len(documents)]
    return documents, cuts, draw(st.integers(1, len(documents)))


def holders(index: TokenIndex, query, *, read: bool | None = None) -> list[int]:
    """(position in tokens.bin) of every occurrence, of the train region alone when `read`.

    Looked for as letters in a string, which knows no suffixes.
    """
    text, asked = (
        "".join(map(chr, np.asarray(row).tolist())) for row in (index.store.tokens, query)
    )
    limit, found, at = index.store.train_tokens, [], text.find(asked)
    while at >= 0:
        found.append(at)
        at = text.find(asked, at + 1)
    return [at for at in found if read is None or (at < limit) == read]


def check_places(index: TokenIndex, query) -> None:
    expected = holders(index, query)
    count = index.count(query)
    assert count.count == len(holders(index, query, read=True))
    assert count.count + count.held_out == len(expected)
    every = index.find(query, limit=None, every=True)
    assert every.positions.tolist() == expected
    owners = sorted({hit.document for hit in every})
    assert index.find(query, limit=None).documents.tolist() == owners
    some = index.find(query, limit=3, seed=1)
    assert len(some) == min(3, len(owners))
    assert len(set(some.documents.tolist())) == len(some)
    assert set(some.positions.tolist()) <= set(expected)
    for hit in every:
        start = index.store.starts[hit.document]
        assert hit.offset == hit.position - start
        assert hit.offset + hit.length <= index.store.lengths[hit.document]
    (positions,) = index.occurrences([np.array(query)])
    assert positions.tolist() == holders(index, query, read=True)


def check_next(index: TokenIndex, query, minimum: int) -> None:
    dropped = next(
        n
        for n in range(len(query) + 1)
        if n == len(query) or len(holders(index, query[n:], read=True)) >= minimum
    )
    found = index.next_tokens(query, minimum=minimum)
    assert found.suffix.dropped == dropped
    rest = query[dropped:]
    tokens = index.store.tokens.tolist()
    if rest:
        places = holders(index, rest, read=True)
        (spelling,) = found.suffix.found.spellings
        assert (spelling.tokens, spelling.count) == (tuple(rest), len(places))
    else:
        places = list(range(index.store.train_tokens))
    expected = Counter(tokens[at + len(rest)] for at in places)
    assert {one.token: one.count for one in found} == expected
    assert [one.count for one in found] == sorted(expected.values(), reverse=True)


def check_spans(index: TokenIndex, text) -> None:
    n = len(text)
    held = {
        (a, b)
        for a in range(n)
        for b in range(a + 1, n + 1)
        if holders(index, text[a:b], read=True)
    }
    expected = sorted(
        (a, b) for a, b in held if not any((c, d) != (a, b) and c <= a and b <= d for c, d in held)
    )
    found = index.maximal_spans(text)
    assert [(one.start, one.stop) for one in found] == expected
    for one in found:
        assert one.tokens == tuple(text[one.start : one.stop])
        assert one.count == len(holders(index, one.tokens, read=True))
        assert one.held_out == len(holders(index, one.tokens, read=False))


@given(shardings(), st.lists(queries, min_size=1, max_size=3), st.booleans())
@settings(max_examples=12)
def test_places_and_what_follows_are_those_of_reading_every_document(made, asked, keys):
    documents, cuts, read = made
    index = index_of(documents, cuts=cuts, read=read, vocab_size=VOCABULARY, keys=keys)
    for query in asked:
        check_places(index, query)
        check_next(index, query, minimum=2)
    assert index.counts(asked) == tuple(map(index.count, asked))


@given(shardings(), st.lists(token, min_size=1, max_size=12), st.sampled_from([2, 3, 16]))
@settings(max_examples=15)
def test_maximal_spans_are_those_of_trying_every_stretch(made, text, first):
    documents, cuts, read = made
    with mock.patch.object(suffix_search, "FIRST", first):
        index = index_of(documents, cuts=cuts, read=read, vocab_size=VOCABULARY)
        check_spans(index, text)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("one_each", [False, True])
def test_awkward_corpora_are_searched_exactly(name, one_each):
    documents = ADVERSARIAL[name]
    index = index_of(documents, cuts=range(1, len(documents)) if one_each else ())
    assert len(index.parts) == (len(documents) if one_each else 1)
    for query in ASKED:
        check_places(index, query)
        check_next(index, query, minimum=1)
    # So many that they are searched together.
    assert index.counts(ASKED * 26) == tuple(map(index.count, ASKED)) * 26


@pytest.mark.parametrize("name", ["all equal", "long repeats", "thue-morse"])
def test_spans_of_copies_longer_than_a_block_are_exact(name):
    documents = ADVERSARIAL[name]
    index = index_of(documents)
    copied = documents[0][7:290]
    for text in (copied, [*copied, 9, *copied[5:]], [9, *documents[0], 3, 3], [4] * 70):
        found = index.maximal_spans(text)
        stops = [0]
        for start in range(len(text)):  # the longest match of each start, by trying lengths
            stop = max(start, stops[-1])
            while stop < len(text) and holders(index, text[start : stop + 1]):
                stop += 1
            stops.append(stop)
        expected = [
            (start, stops[start + 1])
            for start in range(len(text))
            if stops[start + 1] > max(stops[start], start)
        ]
        assert [(one.start, one.stop) for one in found] == expected


def test_many_texts_are_cut_as_each_alone():
    index = index_of([[1, 2, 3, 4], [3, 4, 5] * 40], cuts=[1])
    texts = [[1, 2, 3], [9], [4, 5, 3, 4, 5] * 30, [2, 3, 4, 5], [5, 1]]
    assert index.maximal_spans_each(texts) == [index.maximal_spans(text) for text in texts]
    assert index.maximal_spans_each([]) == []


def test_a_text_with_no_match_has_no_spans_places_or_count():
    index = index_of([[1, 2], [3]])
    assert index.maximal_spans([7, 8, 9]) == []
    assert index.count([7]).count == len(index.find([7])) == 0
    assert index.occurrences([np.array([7])])[0].size == 0
    assert index.longest_suffix([1, 7]).dropped == 2


def test_only_the_least_probable_spans_are_kept_of_a_long_text():
    index = index_of([[1] * 50, [2, 3], [4, 5], [1, 4]])
    text = [1, 9, 2, 3, 9, 4, 5, 9, 1, 4]
    (kept,) = index.maximal_spans(text, share=0.05)
    assert kept.tokens == (2, 3)
    assert [one.start for one in index.maximal_spans(text, share=0.15)] == [2, 5]
    assert index.maximal_spans(text, share=1.0) == index.maximal_spans(text)


def test_backing_off_says_how_far_and_can_be_forbidden():
    index = index_of([[1, 2, 3], [1, 2, 4], [2, 3]])
    found = index.next_tokens([5, 1, 2])
    assert (found.suffix.dropped, found.suffix.found.count) == (1, 2)
    assert [(one.token, one.count) for one in found] == [(3, 1), (4, 1)]
    assert [one.token for one in index.next_tokens([5, 1, 2], minimum=3)] == [3, 4]
    assert index.next_tokens([5, 1, 2], minimum=3).suffix.dropped == 2
    assert len(index.next_tokens([5, 1, 2], minimum=0)) == 0
    nothing = index.next_tokens([5])
    assert (nothing.suffix.dropped, nothing.suffix.found.query) == (1, "")
    assert nothing[0].token == 0  # of any place, the commonest follower is end-of-text


def test_what_follows_a_frequent_token_is_counted_without_reading_its_places():
    random = np.random.default_rng(0)
    documents = [random.integers(1, 40, 50).tolist() for _ in range(1200)]
    index = index_of(documents, vocab_size=40)
    (part,) = index.parts
    low, high = part.find([7, 7])[0], part.buckets[40]
    assert high - low > 1 << 12
    # Ranks of several first tokens are not sorted by their second: asked of one token's alone.
    low, high = int(part.buckets[7]), int(part.buckets[8])
    by_hand = Counter(one[k + 1] for one in documents for k in range(49) if one[k] == 7)
    with mock.patch("data_attribution.token_index.index_part.FEW", 8):
        counts = part.following(low, high, 1)
    assert {k: int(counts[k]) for k in range(1, 40) if counts[k]} == by_hand
    assert counts.sum() == high - low


def test_a_document_of_very_many_places_does_not_make_a_search_read_all_of_them():
    index = index_of([[1] * 5000, [2, 1], [1, 3]])
    with mock.patch.object(hit_sampling, "MOST", 64):
        found = index.find([1], limit=3)
    assert found.documents.tolist()[0] == 0
    assert index.find([1], limit=3).documents.tolist() == [0, 1, 2]


def test_a_draw_takes_one_of_each_equal_stretch():
    drawn = hit_sampling.drawn(1000, 10, 5)
    assert (drawn // 100).tolist() == list(range(10))
    assert (
        hit_sampling.drawn(1000, 5000 % 1000 + 7, 5).tolist()
        == hit_sampling.drawn(1000, 7, 5).tolist()
    )
    assert hit_sampling.drawn(7, 7, 0).tolist() == list(range(7))
    assert hit_sampling.drawn(0, 0, 0).size == 0
    large = hit_sampling.drawn(1 << 20, 1 << 13, 5)
    assert (large // 128).tolist() == list(range(1 << 13))


def test_a_hit_knows_the_steps_that_a_checkpoint_had_seen():
    """Windows of one token, one a step: token k is read as a target at step k - 1."""
    index = index_of([[1, 2, 3]])
    order = RecordedOrder(np.arange(4)[:, None], context=1)
    run, hit = OrderedRun(index.store, order, steps_done=4), index.find([2, 3])[0]
    assert hit.steps(run).tolist() == [1, 2]
    assert hit.steps(run, before=2).tolist() == [1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([1] * 1_000_001, "1,000,001 tokens, and at most 1,000,000"),
        ([1, 0], "holds end-of-text"),
        ([65_536], "token id 65536, the vocabulary ends at 65535"),
        ("", "the query is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_every_question(query, message):
    index = index_of([[1, 2]])
    one = [query]
    asks = (index.count, index.find, index.next_tokens, index.longest_suffix, index.maximal_spans)
    for ask in (*asks, lambda q: index.counts(one), lambda q: index.maximal_spans_each(one)):
        with pytest.raises(QueryError, match=message) as refused:
            ask(query)
        assert "\n" not in str(refused.value)


def test_a_text_of_a_million_copied_tokens_is_one_span():
    random = np.random.default_rng(0)
    document = random.integers(1, 5000, 1_000_000).tolist()
    index = index_of([document[:300_000]])
    spans_ = index.maximal_spans(document[100:290_000])
    assert [(one.start, one.stop) for one in spans_] == [(0, 289_900)]
