"""The suffixes of any array are put into the order that looking at all of them gives."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydivsufsort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_attribution.errors import SorterError
from data_attribution.token_index import byte_encoding, suffix_array
from tests.data_attribution.held_index import AWKWARD
from tests.data_attribution.prefix_doubling import sorted_suffixes


pytestmark = pytest.mark.integration
SORTERS = {"pydivsufsort": suffix_array.build, "numpy": sorted_suffixes}

few = hnp.arrays(np.uint16, st.integers(0, 60), elements=st.sampled_from([0, 1, 2, 65535]))
many = hnp.arrays(np.uint16, st.integers(0, 60))
wide = hnp.arrays(np.uint32, st.integers(0, 40), elements=st.integers(0, 2**32 - 2))
corpora = few | many | wide


def sorted_by_hand(tokens: np.ndarray) -> list[int]:
    if len(tokens) > 1000:  # ids that differ: their own order
        return np.argsort(tokens).tolist()
    return sorted(range(len(tokens)), key=lambda at: tokens[at:].tolist())


@pytest.mark.parametrize("sorter", SORTERS)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_arrays_are_sorted_by_token_id(sorter, name):
    assert SORTERS[sorter](AWKWARD[name]).tolist() == sorted_by_hand(AWKWARD[name])


@given(corpora)
@settings(max_examples=80)
def test_both_sorters_agree_with_sorting_by_hand(tokens):
    expected = sorted_by_hand(tokens)
    assert suffix_array.build(tokens).tolist() == expected
    assert sorted_suffixes(tokens).tolist() == expected


@pytest.mark.parametrize("name", AWKWARD)
def test_positions_of_eight_bytes_become_the_same_positions_of_four(monkeypatch, name):
    """As of 2**31 bytes libdivsufsort counts in int64; here it is asked to at once."""
    wide = functools.partial(pydivsufsort.divsufsort, force64=True)
    monkeypatch.setattr(pydivsufsort, "divsufsort", wide)
    assert suffix_array.build(AWKWARD[name]).tolist() == sorted_by_hand(AWKWARD[name])


@pytest.mark.parametrize("n_ids", [200, 5_000, 65_536])
def test_both_sorters_agree_on_fifty_thousand_tokens_full_of_copies(n_ids):
    random = np.random.default_rng(0)
    tokens = random.zipf(1.3, 50_000).clip(1, n_ids).astype(np.uint16)
    tokens[20_000:30_000] = tokens[:10_000]
    ours = sorted_suffixes(tokens)
    assert np.array_equal(ours, suffix_array.build(tokens))
    assert np.array_equal(np.sort(ours), np.arange(len(tokens)))


def test_two_threads_sort_as_one_does():
    tokens = np.random.default_rng(0).zipf(1.2, 300_000).clip(0, 65535).astype(np.uint16)
    # In a process of its own: OpenMP, once started here, hangs in what is forked off later.
    code = (
        "import numpy as np, sys; from data_attribution.token_index import suffix_array;"
        "tokens = np.random.default_rng(0).zipf(1.2, 300_000).clip(0, 65535).astype(np.uint16);"
        "sys.stdout.buffer.write(suffix_array.build(tokens, threads=2).tobytes())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=Path(suffix_array.__file__).parents[2],
    )
    assert np.array_equal(np.frombuffer(said.stdout, np.uint32), suffix_array.build(tokens))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=400), st.integers(1, 200))
@settings(max_examples=100)
def test_bytes_compare_as_the_tokens_do(ids, spread):
    tokens = np.array([one * spread % 65536 for one in ids], np.uint16)
    coded, width = byte_encoding.encoded(tokens, np.bincount(tokens))
    assert len(coded) == width * len(tokens)
    letters = [coded[k : k + width].tobytes() for k in range(0, len(coded), width)]
    for one, other, a, b in zip(tokens[1:], tokens, letters[1:], letters, strict=False):
        assert (one < other, one == other) == (a < b, a == b)


@pytest.mark.parametrize(("n_ids", "width"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_a_token_takes_as_few_bytes_as_the_ids_that_occur_allow(n_ids, width):
    tokens = (np.arange(n_ids) * 3).astype(np.uint32)
    assert byte_encoding.encoded(tokens, np.bincount(tokens))[1] == width


def peaks(values: np.ndarray) -> int:
    """Where a row of bytes stops rising and falls; runs of one byte count once."""
    steps = np.diff(values.astype(int))
    steps = steps[steps != 0]
    return int(((steps[:-1] > 0) & (steps[1:] < 0)).sum())


def test_the_code_has_far_fewer_peaks_than_plain_bytes():
    tokens = np.random.default_rng(0).zipf(1.2, 100_000).clip(1, 50_000).astype(np.uint16)
    coded, width = byte_encoding.encoded(tokens, np.bincount(tokens))
    assert width == 2
    assert peaks(coded) < 0.7 * peaks(tokens.astype(">u2").view(np.uint8))


def test_more_tokens_than_positions_count_are_refused(monkeypatch):
    monkeypatch.setattr(suffix_array, "LARGEST", 3)
    with pytest.raises(SorterError, match="at most 3 tokens can be sorted at once, 4 were given"):
        suffix_array.build(np.array([1, 2, 3, 4], np.uint16))


def test_buckets_hold_the_unigram_counts():
    tokens = np.array([2, 0, 2, 3, 2], np.uint16)
    # token             0  1  2  3
    assert suffix_array.buckets(tokens, 4).tolist() == [0, 1, 1, 4, 5]
