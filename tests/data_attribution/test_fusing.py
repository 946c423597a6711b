"""Evidence of several kinds in one order: whoever is named by two counts for more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_attribution import fusing
from data_attribution.errors import EvidenceError
from data_attribution.rankings import Ranking, ranked


def ranking(scores: dict[int, float], **others) -> Ranking:
    documents = np.array(list(scores), np.int64)
    return ranked(documents, np.array(list(scores.values()), float), **others)


def test_scores_are_standardised_before_they_are_added():
    words = ranking({1: 30.0, 2: 10.0, 3: 20.0})
    pulls = ranking({1: 0.1, 2: 0.3, 3: 0.2})
    fused = fusing.fuse({"lexical": words, "gradient": pulls})
    # z of words: 1.22, -1.22, 0; of pulls: -1.22, 1.22, 0. They cancel.
    assert fused.scores == pytest.approx([0, 0, 0])
    fused = fusing.fuse({"lexical": words, "gradient": ranking({1: 0.3, 2: 0.1, 3: 0.2})})
    assert fused.documents.tolist() == [1, 3, 2]
    assert fused.scores == pytest.approx([6**0.5, 0, -(6**0.5)])


def test_a_document_that_one_method_does_not_name_scores_0_with_it():
    words, pulls = ranking({7: 1.0}), ranking({7: 0.0, 9: 2.0})
    fused = fusing.fuse({"lexical": words, "gradient": pulls})
    #                     document 7      document 9
    # z of words            1              -1
    # z of pulls           -1               1
    assert fused.scores == pytest.approx([0, 0])


def test_evidence_alone_stays_as_it_is():
    alone = ranking({3: 2.0, 1: 4.0})
    assert fusing.fuse({"lexical": alone}) is alone
    with pytest.raises(EvidenceError, match="at least one method"):
        fusing.fuse({})


scores = st.dictionaries(
    st.integers(0, 20), st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2
)


@given(scores, scores, st.floats(0.1, 100))
def test_the_order_does_not_depend_on_the_unit_of_a_method(words, pulls, unit):
    there = {one: pulls.get(one, 0.0) for one in words}
    before = fusing.fuse({"a": ranking(words), "b": ranking(there)})
    after = fusing.fuse(
        {"a": ranking(words), "b": ranking({k: v * unit for k, v in there.items()})}
    )
    by_document = dict(zip(before.documents.tolist(), before.scores, strict=True))
    again = dict(zip(after.documents.tolist(), after.scores, strict=True))
    assert again == pytest.approx(by_document, abs=1e-6)


def test_the_interval_of_a_sum_is_that_of_the_part_that_has_one():
    words = ranking({1: 1.0, 2: 3.0})
    pulls = ranking({1: 1.0, 2: 3.0}, low=np.array([0.5, 2.0]), high=np.array([2.0, 4.0]))
    fused = fusing.fuse({"lexical": words, "gradient": pulls})
    # Both have a standard deviation of 1, so bounds keep their distances.
    assert fused.documents.tolist() == [2, 1]
    assert fused.low == pytest.approx(fused.scores - [1.0, 0.5])
    assert fused.high == pytest.approx(fused.scores + 1.0)


def test_the_stretch_shown_is_the_first_that_any_method_names():
    words = ranking({1: 1.0, 2: 3.0}, where=lambda document: (document, 5))
    pulls = ranking({1: 1.0, 2: 3.0, 3: 2.0})
    fused = fusing.fuse({"gradient": pulls, "lexical": words})
    assert [fused.where(one) for one in (1, 2, 3)] == [(1, 5), (2, 5), (0, 0)]


def test_words_speak_for_what_has_any_and_gradients_for_what_stands_out():
    words = ranking({1: 2.0, 2: 0.1, 3: 0.0})
    assert fusing.speaking(words, signed=False).tolist() == [1, 2]
    crowd = {k: 0.1 + 0.01 * (k % 3) for k in range(100)} | {100: 0.9, 101: -0.9}
    assert fusing.speaking(ranking(crowd), signed=True).tolist() == [100]
    wide = ranking(crowd, low=np.full(102, -0.1), high=np.full(102, 1.0))
    assert fusing.speaking(wide, signed=True).tolist() == []
    assert fusing.speaking(ranking({}), signed=True).tolist() == []
