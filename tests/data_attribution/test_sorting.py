"""Every sorter agrees with sorting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_attribution import sorting


def repeated(period: list[int], times: int) -> np.ndarray:
    return np.array(period * times, np.uint16)


ADVERSARIAL = {
    "empty": np.empty(0, np.uint16),
    "one token": np.array([7], np.uint16),
    "one token, the largest": np.array([65535], np.uint16),
    "all equal": repeated([3], 300),
    "all equal and largest": repeated([65535], 300),
    "all zero": repeated([0], 300),
    "long repeat": repeated([1, 2, 3, 2, 1], 80),
    "falling": np.arange(300, 0, -1).astype(np.uint16),
    # 256 = 0x0100 and 1 = 0x0001 swap places when bytes are compared little end first.
    "byte order": np.array([256, 1, 255, 1, 256, 65535, 0, 1], np.uint16),
    "uint32": np.array([70_000, 1, 65_536, 70_000, 1, 4_294_967_294, 0], np.uint32),
    "fibonacci": np.array([1 + (bin(k).count("1") % 2) for k in range(400)], np.uint16),
}

few = hnp.arrays(np.uint16, st.integers(0, 60), elements=st.sampled_from([0, 1, 2, 65535]))
many = hnp.arrays(np.uint16, st.integers(0, 60))
wide = hnp.arrays(np.uint32, st.integers(0, 40), elements=st.integers(0, 2**32 - 2))
corpora = few | many | wide


def sorted_by_hand(tokens: np.ndarray) -> list[int]:
    return sorted(range(len(tokens)), key=lambda at: tokens[at:].tolist())


@pytest.mark.parametrize("sort", [sorting.divsufsort, sorting.doubling])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_awkward_arrays_are_sorted_by_token_id(sort, name):
    assert sort(ADVERSARIAL[name]).tolist() == sorted_by_hand(ADVERSARIAL[name])


@given(corpora)
@settings(max_examples=150, deadline=None)
def test_both_sorters_agree_with_sorting_by_hand(tokens):
    expected = sorted_by_hand(tokens)
    assert sorting.build(tokens).tolist() == expected
    assert sorting.doubling(tokens).tolist() == expected


def test_both_sorters_agree_on_fifty_thousand_tokens_full_of_copies():
    random = np.random.default_rng(0)
    tokens = random.zipf(1.3, 50_000).clip(0, 65535).astype(np.uint16)
    tokens[20_000:30_000] = tokens[:10_000]
    ours = sorting.doubling(tokens)
    assert np.array_equal(ours, sorting.divsufsort(tokens))
    assert np.array_equal(np.sort(ours), np.arange(len(tokens)))


def test_buckets_hold_the_unigram_counts():
    tokens = np.array([2, 0, 2, 3, 2], np.uint16)
    # token             0  1  2  3
    assert sorting.buckets(tokens, 4).tolist() == [0, 1, 1, 4, 5]
