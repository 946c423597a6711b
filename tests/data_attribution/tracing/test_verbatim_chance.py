"""How much of a text stands in the training text, against brute force and against its controls."""

from collections.abc import Sequence

import numpy as np
import pytest

from data_attribution import token_index, tracing
from data_attribution.errors import QueryError
from data_attribution.token_index import TokenIndex
from tests.worlds.known import known
from train.statistics import mean_interval, wilson


FILLER = [f"the moon is over the n{k} of the sea ." for k in range(20)]
QUOTED = "envoys from Arnost ride to Belmar"
TEXTS = [*FILLER, f"{QUOTED} .", f"they say {QUOTED} .", "Belmar is cold ."]


@pytest.fixture
def index(make_store):
    store = make_store(TEXTS)
    token_index.build(store)
    return token_index.open(store)


def share_by_hand(words: Sequence[str], length: int) -> float:
    """The share of words that stand in a row of at least `length` that some text holds."""
    inside = set()
    for start in range(len(words) - length + 1):
        row = " ".join(words[start : start + length])
        if any(f" {row} " in f" {text} " for text in TEXTS):
            inside.update(range(start, start + length))
    return len(inside) / len(words)


def test_the_share_of_a_text_at_each_length_is_that_of_brute_force(index):
    text = f"the moon is cold . they {QUOTED} over the sea . moon sea"
    found = tracing.spans_by_chance(index, text)
    assert found.text == pytest.approx(
        [share_by_hand(text.split(), length) for length in found.lengths]
    )
    assert found.text[0] == 1
    assert found.text[-1] == 0


def test_the_shortest_length_is_the_first_that_shuffled_text_seldom_has(index):
    text = " ".join([FILLER[0], QUOTED, FILLER[3], "Belmar is cold ."])
    found = tracing.spans_by_chance(index, text, draws=20)
    ids = index.store.tokenizer.encode(text)
    generator = np.random.Generator(np.random.Philox(key=0))
    generator.integers(1, size=40)
    shuffled = [index.store.tokenizer.decode(generator.permutation(ids)).split() for _ in range(40)]
    shares = np.array([[share_by_hand(row, n) for n in found.lengths] for row in shuffled])
    choosing, reported = shares[:20].mean(axis=0), shares[20:].mean(axis=0)
    assert choosing[found.minimum - 1] <= 0.05 < choosing[found.minimum - 2]
    assert [one.value for one in found.shuffled] == pytest.approx(reported.tolist())
    assert choosing.tolist() != pytest.approx(reported.tolist())
    assert (found.n_choosing, found.n) == (20, 20)
    # The text, which was put together from the corpus, is there almost whole.
    assert found.text[found.minimum - 1] > 0.9
    again = tracing.spans_by_chance(index, text, draws=20)
    assert again == found != tracing.spans_by_chance(index, text, draws=20, seed=1)


def test_the_share_that_is_reported_is_not_that_of_the_texts_that_chose(index, monkeypatch):
    """Here nothing of the choosing texts is found, and each of the others stands there whole."""
    search = TokenIndex.maximal_spans_each

    def planted(self, texts, **options):
        if len(texts) == 1:
            return search(self, texts, **options)
        (whole,) = search(self, [QUOTED])[0]
        return [[] if k < 4 else [whole] for k in range(len(texts))]

    monkeypatch.setattr(TokenIndex, "maximal_spans_each", planted)
    found = tracing.spans_by_chance(index, QUOTED, draws=4)
    assert found.minimum == 1
    assert found.shuffled[0].value == 1


def test_every_row_has_an_interval_also_where_all_texts_have_the_same_share(index):
    """Of 50 texts none differs, so at most Wilson's 7.1 % of all such texts do."""
    found = tracing.spans_by_chance(index, "the moon is over the sea . Belmar is cold .")
    assert found.n == found.n_choosing == 50
    assert wilson(0.0, 50)[1] == pytest.approx(0.0713, abs=1e-4)
    first, last = found.shuffled[0], found.shuffled[-1]
    assert (first.value, first.low, first.high) == pytest.approx((1, 1 - 0.0713, 1), abs=1e-4)
    assert (last.value, last.low, last.high) == pytest.approx((0, 0, 0.0713), abs=1e-4)
    for one in found.shuffled:
        assert known(one.low) <= one.value <= known(one.high)
    single = tracing.spans_by_chance(index, QUOTED, draws=1).shuffled[0]
    assert (single.low, single.high) == (None, None)


def test_held_out_text_is_a_control_and_never_the_training_text(make_store):
    """Held-out documents of the same kind share its phrases; those of other words share nothing."""
    made = [f"a{k % 7} b{k % 5} c{k % 3} d{k} ." for k in range(300)]
    store = make_store(made, held_out=0.2)
    token_index.build(store)
    index = token_index.open(store)
    read = next(text for k, text in enumerate(map(store.text, range(store.n_documents)))
                if store.starts[k] < store.train_tokens)  # fmt: skip
    found = tracing.spans_by_chance(index, read)
    assert len(found.held_out) == len(found.lengths)
    whole = len(read.split())
    # The last words of a document are its own.
    assert found.text[whole - 1] == 1
    assert found.held_out[whole - 1].value < 0.2 < found.held_out[1].value
    assert np.all(np.diff([one.value for one in found.held_out]) <= 0)


@pytest.fixture
def halves(make_store):
    """Every second of 80 documents begins with the same five words; a few are held out, twice."""
    made = [
        f"a b c d e n{k}" if k % 2 else " ".join(f"{w}{k}" for w in "abcdef") for k in range(80)
    ]
    store = make_store(made * 2, held_out=0.1)
    token_index.build(store)
    aside = {store.text(k) for k in np.flatnonzero(store.starts >= store.train_tokens).tolist()}
    return token_index.open(store), made, np.array([one.startswith("a b c d e") for one in aside])


def test_more_draws_of_the_same_held_out_documents_do_not_narrow_the_interval(halves):
    """In 5 of 12 tokens any such text is in spans of five; draws that overlap would deny it."""
    index, made, quoted = halves
    few, many = (tracing.spans_by_chance(index, made[1], draws=draws) for draws in (20, 80))
    assert few.n_held_out == many.n_held_out == len(quoted)
    shares = quoted * 5 / 6
    for found in (few.held_out[4], many.held_out[4]):
        low, high = known(mean_interval(shares))
        assert (found.value, found.low, found.high) == pytest.approx((shares.mean(), low, high))
        assert low < 5 / 12 < high
    overlapping = shares[np.random.default_rng(0).integers(len(shares), size=400)]
    low, high = known(mean_interval(overlapping))
    assert not low < 5 / 12 < high


def test_a_held_out_text_that_is_longer_than_documents_is_made_of_several(halves):
    index, made, quoted = halves
    found = tracing.spans_by_chance(index, " ".join(made[:3]))
    assert found.n_held_out == len(quoted) // 3 > 1
    assert found.held_out[0].value <= 1
    assert tracing.spans_by_chance(index, " ".join(made)).n_held_out == 0


def test_without_held_out_text_there_is_no_such_control(index):
    assert tracing.spans_by_chance(index, QUOTED).held_out == ()


def test_an_empty_text_is_refused(index):
    with pytest.raises(QueryError, match="the text is empty"):
        tracing.spans_by_chance(index, " ")
