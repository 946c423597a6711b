"""Searching agrees with looking at every position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_attribution import searching, sorting


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
patterns = st.lists(st.sampled_from([0, 1, 2, 256, 65535]), min_size=1, max_size=8)


def occurrences(tokens: np.ndarray, pattern: list[int]) -> list[int]:
    held = tokens.tolist()
    return [at for at in range(len(held)) if held[at : at + len(pattern)] == pattern]


def longest_by_hand(tokens: np.ndarray, text: list[int]) -> list[int]:
    def at(start: int) -> int:
        lengths = range(len(text) - start + 1)
        return max(k for k in lengths if k == 0 or occurrences(tokens, text[start : start + k]))

    return [at(start) for start in range(len(text))]


@given(corpora, st.lists(patterns, max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_search_finds_every_occurrence_and_nothing_else(tokens, asked, with_table):
    # Half of the patterns are planted, the last ends with the corpus.
    asked = asked + [tokens[k : k + 5].tolist() for k in range(0, len(tokens), 7)]
    asked = [*asked, tokens[-3:].tolist()] if len(tokens) else asked
    suffixes = sorting.build(tokens)
    table = None
    if with_table and tokens.dtype == np.uint16:
        table = sorting.buckets(tokens, 65536)
    arrays = [np.array(pattern, np.int64) for pattern in asked]
    low, high = searching.search(tokens, suffixes, arrays, table)
    for pattern, start, stop in zip(asked, low, high, strict=True):
        assert sorted(suffixes[start:stop].tolist()) == occurrences(tokens, pattern)


@pytest.mark.parametrize("name", ["all equal", "long repeat", "fibonacci"])
def test_matches_longer_than_a_comparison_block_are_exact(name):
    tokens = ADVERSARIAL[name]
    suffixes = sorting.build(tokens)
    asked = [tokens[start:stop] for start in (0, 1, 17) for stop in (290, 299, 300)]
    low, high = searching.search(tokens, suffixes, asked)
    expected = [len(occurrences(tokens, pattern.tolist())) for pattern in asked]
    assert (high - low).tolist() == expected


def test_the_empty_pattern_is_everywhere():
    tokens = np.array([5, 1, 5], np.uint16)
    low, high = searching.search(tokens, sorting.build(tokens), [np.empty(0, np.int64)])
    assert (low.tolist(), high.tolist()) == ([0], [3])


@given(few, st.lists(st.sampled_from([0, 1, 2, 3, 65535]), max_size=20), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_longest_match_from_each_position_is_found(tokens, text, with_table):
    table = sorting.buckets(tokens, 65536) if with_table else None
    suffixes = sorting.build(tokens)
    found = searching.longest(tokens, suffixes, np.array(text, np.int64), table)
    assert found.tolist() == longest_by_hand(tokens, text)
