"""A copy is found whole or with a word changed, and other texts are not taken for it."""

from itertools import product

import numpy as np
import pytest

from train.data import build_store, duplicates


pytestmark = pytest.mark.integration
TEXTS = (
    "the red fox saw a small bird near the old mill today",
    "the red fox saw a small bird near the old mill today",  # a copy
    "the red fox saw a small frog near the old mill today",  # one word replaced
    "the red fox saw a small bird near the old mill today and then it slept for a long while",
    "a bird saw the small fox near a mill",  # the same words, another order
    "of a b",
    "a b",
    "a b",
    "x x x x x x x x x x x x",  # one shingle, over and over
    "x x x",
)


def by_hand(store, one, other):
    """Jaccard's measure of two documents, from sets of tuples."""
    sets = []
    for document in (one, other):
        start, length = int(store.starts[document]), int(store.lengths[document])
        tokens = store.tokens[start : start + length].tolist()
        sets.append({tuple(tokens[i : i + 3]) for i in range(length - 2)})
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def at(store):
    """Number in the store of each text; texts that are equal by their order."""
    return {int(row): document for document, row in enumerate(store.rows)}


@pytest.fixture
def store(make_store):
    return make_store(TEXTS)


def test_a_text_with_one_word_replaced_is_near_and_a_longer_one_is_not(store):
    place = at(store)
    found = duplicates.near_duplicates(store, [place[0]])
    # Of 10 shingles each, 3 hold the word: 7 of 13 are shared, which is below .65.
    assert found == {place[0]: {place[1]: 1.0}}
    found = duplicates.near_duplicates(store, [place[0]], share=0.5)
    assert found == {place[0]: {place[1]: 1.0, place[2]: pytest.approx(7 / 13), place[3]: 10 / 18}}


def test_repeats_count_once_and_short_texts_are_near_nothing(store):
    place = at(store)
    found = duplicates.near_duplicates(store, [place[8], place[6], place[5]])
    assert found == {place[8]: {place[9]: 1.0}, place[6]: {}, place[5]: {}}
    assert duplicates.near_duplicates(store, [place[6]]) == {place[6]: {}}


def test_what_is_near_is_what_sets_say(make_store):
    """400 texts of few words, in blocks that are smaller than the store."""
    draw = np.random.default_rng(0)
    texts = [
        " ".join(f"w{draw.integers(3)}" for _ in range(draw.integers(1, 9))) for _ in range(400)
    ]
    store = make_store(texts)
    asked = list(range(0, store.n_documents, 7))
    found = duplicates.near_duplicates(store, asked, share=0.5, block_tokens=300)
    measures = {
        (one, other): by_hand(store, one, other)
        for one, other in product(asked, range(store.n_documents))
        if one != other
    }
    expected = {pair: measure for pair, measure in measures.items() if measure >= 0.5}
    ours = {(one, other): measure for one, row in found.items() for other, measure in row.items()}
    assert len(expected) > 100
    assert ours == pytest.approx(expected)


def test_copies_share_the_fate_of_the_document_as_far_as_one_asks(store):
    place = at(store)
    texts = ("a b", "the red fox saw a small bird near the old mill today")
    asked = [place[0], place[7]]
    assert duplicates.with_duplicates(store, asked, "none") == {*asked}
    exact = {*asked, place[1], place[6]}
    assert duplicates.with_duplicates(store, asked, "exact") == exact
    assert {store.text(one) for one in exact} == {*texts}
    assert duplicates.with_duplicates(store, asked, "near") == exact


def test_exact_duplicates_do_not_bring_near_ones_with_them(make_store):
    text = " ".join(f"w{k}" for k in range(20))
    store = make_store(
        [text, text, text.replace("w9", "other"), "nothing in common with it at all"]
    )
    place = {store.text(one): one for one in range(4)}
    first = place[text]
    exact = {one for one in range(4) if store.text(one) == text}
    near = exact | {place[text.replace("w9", "other")]}
    assert duplicates.with_duplicates(store, [first], "exact") == exact
    assert duplicates.with_duplicates(store, [first], "near") == near


@pytest.fixture(scope="module")
def planted_store(other_planted_corpus, tmp_path_factory):
    """Of a content seed on which the cut was not chosen."""
    return build_store(other_planted_corpus, out=tmp_path_factory.mktemp("s") / "planted")


def test_the_declared_near_duplicates_of_the_planted_corpus_are_found(planted_store):
    truth = planted_store.truth
    place = at(planted_store)
    pairs = [[place[row] for row in pair] for pair in truth["duplicates"]["near"]]
    found = duplicates.near_duplicates(planted_store, [first for first, _ in pairs])
    # On this content seed one of 200 pairs shares .625 and is missed.
    assert sum(found[first].keys() == {second} for first, second in pairs) >= 197
    assert all(found[first].keys() <= {second} for first, second in pairs)
    stating = {place[row]: fact["name"] for fact in truth["facts"] for row in fact["documents"]}
    found = duplicates.near_duplicates(planted_store, list(stating)[:2000])
    others = {(one, other) for one, row in found.items() for other in row}
    assert len(others) > 2000
    assert all(stating.get(other) == stating[one] for one, other in others)
