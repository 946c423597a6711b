"""Evidence of several kinds in one order: whoever is named by two counts for more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_attribution import attribution
from data_attribution.attribution import fusion
from data_attribution.errors import EvidenceError
from data_attribution.ranking import Ranking, ranked


def ranking(scores: dict[int, float], **others) -> Ranking:
    documents = np.array(list(scores), np.int64)
    return ranked(documents, np.array(list(scores.values()), float), **others)


def test_each_method_is_put_on_a_scale_of_length_1_before_they_are_added():
    words = ranking({1: 30.0, 2: 15.0, 3: 0.0})
    pulls = ranking({1: -1.0, 2: 1.0, 3: 0.5}, signed=True)
    replayed = ranking({1: -3.0, 2: 6.0, 3: 0.0}, signed=True)
    fused = attribution.fuse({"lexical": words, "gradient": pulls})
    # words: 1, 1/2, 0; half the share of the largest pull: -1/2, 1/2, 1/4
    assert fused.documents.tolist() == [2, 1, 3]
    assert fused.scores == pytest.approx([1.0, 0.5, 0.25])
    fused = attribution.fuse({"lexical": words, "replay": replayed})
    # half the share of the largest influence: -1/4, 1/2, 0
    assert fused.scores == pytest.approx([1.0, 0.75, 0.0])


def test_a_document_that_one_method_does_not_name_scores_0_with_it():
    words, pulls = ranking({7: 4.0}), ranking({7: 0.2, 9: 0.8}, signed=True)
    fused = attribution.fuse({"lexical": words, "gradient": pulls})
    assert fused.documents.tolist() == [7, 9]
    assert fused.scores == pytest.approx([1 + 0.2 / 1.6, 0.5])


def test_evidence_alone_stays_as_it_is():
    alone = ranking({3: 2.0, 1: 4.0})
    assert attribution.fuse({"lexical": alone}) is alone
    with pytest.raises(EvidenceError, match="at least one method"):
        attribution.fuse({})


numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
scores = st.dictionaries(st.integers(0, 20), numbers, min_size=2)


@given(scores, scores, st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_order_does_not_depend_on_the_unit_of_a_method(words, pulls, one, other):
    words = {document: abs(score) for document, score in words.items()}
    before = attribution.fuse({"lexical": ranking(words), "replay": ranking(pulls, signed=True)})
    scaled = [
        ranking({document: score * unit for document, score in part.items()}, signed=signed)
        for part, unit, signed in ((words, one, False), (pulls, other, True))
    ]
    after = attribution.fuse(dict(zip(("lexical", "replay"), scaled, strict=True)))
    by_document = dict(zip(before.documents.tolist(), before.scores, strict=True))
    again = dict(zip(after.documents.tolist(), after.scores, strict=True))
    assert again == pytest.approx(by_document, abs=1e-9)
    assert max(again.values()) - min(again.values()) <= 2


def test_the_interval_of_a_sum_is_that_of_the_part_that_has_one():
    words = ranking({1: 1.0, 2: 2.0})
    bounds = {"low": np.array([0.1, 0.4]), "high": np.array([0.5, 0.8])}
    pulls = ranking({1: 0.2, 2: 0.6}, signed=True, **bounds)
    # Bounds come in the order of the documents given, and go with them.
    assert pulls.low.tolist() == [0.4, 0.1]
    fused = attribution.fuse({"lexical": words, "gradient": pulls})
    assert fused.documents.tolist() == [2, 1]
    assert fused.signed
    # Pulls are divided by twice the largest, 1.2, and so are the distances to their bounds.
    assert fused.scores == pytest.approx([1 + 0.6 / 1.2, 0.5 + 0.2 / 1.2])
    assert fused.low == pytest.approx(fused.scores - np.array([0.2, 0.1]) / 1.2)
    assert fused.high == pytest.approx(fused.scores + np.array([0.2, 0.3]) / 1.2)


def test_the_stretch_shown_is_the_first_that_any_method_names():
    words = ranking({1: 1.0, 2: 3.0}, where=lambda document: (document, 5))
    pulls = ranking({1: 1.0, 2: 3.0, 3: 2.0})
    fused = attribution.fuse({"gradient": pulls, "lexical": words})
    assert [fused.where(one) for one in (1, 2, 3)] == [(1, 5), (2, 5), (0, 0)]


def test_words_speak_for_what_has_any_and_gradients_for_what_stands_out():
    words = ranking({1: 2.0, 2: 0.1, 3: 0.0})
    assert fusion.speaking(words).tolist() == [1, 2]
    crowd = {k: 0.1 + 0.01 * (k % 3) for k in range(100)} | {100: 0.9, 101: -0.9}
    assert fusion.speaking(ranking(crowd, signed=True)).tolist() == [100]
    assert fusion.speaking(ranking({}, signed=True)).tolist() == []


def test_of_one_or_two_documents_those_that_pull_up_speak():
    """Of two, neither can lie 1.2 median deviations above their median."""
    assert fusion.speaking(ranking({4: 0.2}, signed=True)).tolist() == [4]
    assert fusion.speaking(ranking({4: 0.2, 5: 0.9}, signed=True)).tolist() == [5, 4]
    assert fusion.speaking(ranking({4: -0.2, 5: 0.9}, signed=True)).tolist() == [5]
    assert fusion.speaking(ranking({4: -0.2}, signed=True)).tolist() == []


@pytest.mark.parametrize("n", [100, 10_000])
def test_of_documents_that_differ_by_chance_about_one_stands_out_however_many_there_are(n):
    """2 deviations, which this replaced, let 23 of 1,000 stand out."""
    draw = np.random.default_rng(0)
    named = [
        len(fusion.speaking(ranking(dict(enumerate(draw.normal(3, 1, n))), signed=True)))
        for _ in range(20)
    ]
    assert np.mean(named) < 1


def test_many_that_stand_out_do_not_hide_each_other():
    """A tenth of the documents pulls up and a tenth, of the foil, as far down."""
    draw = np.random.default_rng(0)
    pulls = dict(
        enumerate(draw.normal(0, 1, 200) + np.repeat([9.0, 0, 0, 0, -9.0], [20, 50, 50, 60, 20]))
    )
    assert set(fusion.speaking(ranking(pulls, signed=True)).tolist()) == set(range(20))
    # By all of them, the deviation would ask for more than they have.
    assert np.std(list(pulls.values())) * np.sqrt(2 * np.log(200)) > 9
