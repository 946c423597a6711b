"""Searching agrees with looking at every position."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_attribution.token_index import prefix_table, suffix_array, suffix_search
from tests.data_attribution.held_index import AWKWARD


pytestmark = pytest.mark.integration
few = hnp.arrays(np.uint16, st.integers(0, 60), elements=st.sampled_from([0, 1, 2, 65535]))
many = hnp.arrays(np.uint16, st.integers(0, 60))
wide = hnp.arrays(np.uint32, st.integers(0, 40), elements=st.integers(0, 2**32 - 2))
corpora = few | many | wide
patterns = st.lists(st.sampled_from([0, 1, 2, 256, 65535]), min_size=1, max_size=8)


def occurrences(tokens: np.ndarray, pattern: list[int]) -> list[int]:
    held = tokens.tolist()
    return [at for at in range(len(held)) if held[at : at + len(pattern)] == pattern]


def places(tokens: np.ndarray, pattern: np.ndarray) -> list[int]:
    """`occurrences`, for longer arrays."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), len(pattern))
    return np.flatnonzero((windows == pattern).all(axis=1)).tolist()


def repetitive(random: np.random.Generator) -> np.ndarray:
    """Three tokens, zeros among them: keys end in real zeros and in those past the end."""
    tokens = random.choice([0, 1, 65535], 3000, p=[0.6, 0.3, 0.1]).astype(np.uint16)
    tokens[1000:1900] = tokens[:900]
    return tokens


def longest_by_hand(tokens: np.ndarray, text: list[int]) -> list[int]:
    def at(start: int) -> int:
        lengths = range(len(text) - start + 1)
        return max(k for k in lengths if k == 0 or occurrences(tokens, text[start : start + k]))

    return [at(start) for start in range(len(text))]


def tables_of(tokens: np.ndarray, suffixes: np.ndarray, which: str) -> dict[str, np.ndarray]:
    """The tables that spare halvings: none of them, first tokens, keys, or both."""
    vocabulary = 65_536 if tokens.dtype == np.uint16 else int(tokens.max(initial=0)) + 1
    made = {}
    if "table" in which and vocabulary < 100_000:
        made["table"] = suffix_array.buckets(tokens, vocabulary)
    if "keys" in which:
        made["keys"] = prefix_table.build(tokens, suffixes)
    return made


def asked_of(tokens: np.ndarray, asked: list[list[int]]) -> list[list[int]]:
    """Patterns of which half are planted; the last ends with the corpus."""
    asked = asked + [tokens[k : k + 5].tolist() for k in range(0, len(tokens), 7)]
    return [*asked, tokens[-3:].tolist()] if len(tokens) else asked


@given(
    corpora, st.lists(patterns, max_size=6), st.sampled_from(["", "table", "keys", "table keys"])
)
@settings(max_examples=100)
def test_a_search_finds_every_occurrence_and_nothing_else(tokens, asked, which):
    asked, suffixes = asked_of(tokens, asked), suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, which)
    asked = [one for one in asked if one[0] < len(tables.get("table", range(2**32))) - 1]
    arrays = [np.array(pattern, np.int64) for pattern in asked]
    low, high = suffix_search.search(tokens, suffixes, arrays, **tables)
    for pattern, start, stop in zip(asked, low, high, strict=True):
        assert sorted(suffixes[start:stop].tolist()) == occurrences(tokens, pattern)


@given(few | many, st.lists(patterns, max_size=6), st.booleans())
@settings(max_examples=40)
def test_a_search_for_one_pattern_finds_what_a_search_for_many_does(tokens, asked, with_keys):
    asked, suffixes = asked_of(tokens, asked), suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, "table keys" if with_keys else "table")
    find = suffix_search.finder(tokens, suffixes, **tables).find
    for pattern in asked:
        low, high = find(pattern)
        assert sorted(suffixes[low:high].tolist()) == occurrences(tokens, pattern)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_both_searches_agree_where_hundreds_of_suffixes_share_a_key(seed):
    random = np.random.default_rng(seed)
    tokens = repetitive(random)
    suffixes = suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, "table keys")
    find = suffix_search.finder(tokens, suffixes, **tables).find
    starts, lengths = random.integers(0, 3000, 60), random.integers(1, 70, 60)
    asked = [tokens[at : at + n].astype(np.int64) for at, n in zip(starts, lengths, strict=True)]
    for pattern in asked[::2]:
        pattern[-1] = random.choice([0, 1, 2, 65535])
    asked += [tokens[-n:].astype(np.int64) for n in (1, 2, 3, 4, 5)]
    asked += [tokens[at : at + 900].astype(np.int64) for at in (0, 100, 1000, 1100)]
    low, high = suffix_search.search(tokens, suffixes, asked, **tables)
    for pattern, start, stop in zip(asked, low, high, strict=True):
        expected = places(tokens, pattern)
        assert sorted(suffixes[start:stop].tolist()) == expected
        assert find(pattern.tolist()) == (start, stop) or not expected
        assert np.subtract(*find(pattern.tolist())) == -len(expected)


def test_tokens_of_32_bits_are_found_with_keys_of_two():
    tokens = np.array([70_000, 1, 65_536, 70_000, 1, 0] * 100, np.uint32)
    suffixes = suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, "table keys")
    find = suffix_search.finder(tokens, suffixes, **tables).find
    for pattern in ([70_000], [70_000, 1], [1, 65_536, 70_000], [1, 0, 70_000, 1, 1], [0, 2]):
        low, high = find(pattern)
        assert sorted(suffixes[low:high].tolist()) == occurrences(tokens, pattern)


@pytest.mark.parametrize("name", ["all equal", "long repeat", "thue and morse"])
@pytest.mark.parametrize("which", ["", "table keys"])
def test_matches_longer_than_a_comparison_block_are_exact(name, which):
    tokens = AWKWARD[name]
    suffixes = suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, which)
    asked = [tokens[start:stop] for start in (0, 1, 17) for stop in (290, 299, 300)]
    low, high = suffix_search.search(tokens, suffixes, asked, **tables)
    expected = [len(occurrences(tokens, pattern.tolist())) for pattern in asked]
    assert (high - low).tolist() == expected
    if tables:
        find = suffix_search.finder(tokens, suffixes, **tables).find
        assert [find(one.tolist()) for one in asked] == list(zip(low, high, strict=True))


def test_the_empty_pattern_is_everywhere():
    tokens = np.array([5, 1, 5], np.uint16)
    low, high = suffix_search.search(tokens, suffix_array.build(tokens), [np.empty(0, np.int64)])
    assert (low.tolist(), high.tolist()) == ([0], [3])


@given(
    few,
    st.lists(st.sampled_from([0, 1, 2, 3, 65535]), max_size=12),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=30)
def test_the_longest_match_from_each_position_is_found(tokens, text, with_keys, short):
    suffixes = suffix_array.build(tokens)
    tables = tables_of(tokens, suffixes, "table keys" if with_keys else "table")
    with mock.patch.object(suffix_search, "FIRST", 2 if short else 16):
        found = suffix_search.finder(tokens, suffixes, **tables)
    starts, n = range(len(text)), len(text)
    longest = [found.longest(text, at, n) for at in starts]
    assert [one for one, *_ in longest] == longest_by_hand(tokens, text)
    for start, (length, low, high) in zip(starts, longest, strict=True):
        expected = occurrences(tokens, text[start : start + length]) if length else []
        assert sorted(suffixes[low:high].tolist()) == expected
    for start in starts[::3]:
        for stop in range(start + 1, min(start + 6, n + 1)):
            stands = bool(occurrences(tokens, text[start:stop]))
            assert found.stands(text, start, stop) == stands


def test_a_long_match_is_followed_to_its_end():
    random = np.random.default_rng(1)
    tokens = random.integers(1, 50, 5000).astype(np.uint16)
    tokens[3000:3900] = tokens[100:1000]  # two copies, which part at their ends
    suffixes = suffix_array.build(tokens)
    _, stands, longest = suffix_search.finder(
        tokens, suffixes, **tables_of(tokens, suffixes, "table keys")
    )

    def found(text: list[int], stop: int) -> tuple[int, list[int]]:
        length, low, high = longest(text, 0, stop)
        return length, sorted(suffixes[low:high].tolist())

    for stop in (117, 116, 132, 400, 1000, 1003, 1400):
        text = [*tokens[100:stop].tolist(), 60, 60]
        assert found(text, len(text)) == (stop - 100, [100, 3000][: 1 + (stop <= 1000)])
        assert stands(text, 0, stop - 100)
        assert not stands(text, 0, stop - 99)
        assert found(text, 10) == (10, [100, 3000])
    text = tokens[4000:].tolist()  # to the end of the corpus
    assert found(text, 1000) == found([*text, 1], 1001) == (1000, [4000])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_every_place_of_the_longest_match_is_known_where_hundreds_share_it(seed):
    random = np.random.default_rng(seed)
    tokens = repetitive(random)
    suffixes = suffix_array.build(tokens)
    longest = suffix_search.finder(
        tokens, suffixes, **tables_of(tokens, suffixes, "table keys")
    ).longest
    for at in random.integers(0, 2900, 60).tolist():
        text = tokens[at : at + int(random.integers(1, 100))].tolist()
        text[random.integers(len(text))] = int(random.choice([0, 1, 2, 65535]))
        length, low, high = longest(text, 0, len(text))
        expected = places(tokens, np.array(text[:length])) if length else []
        assert sorted(suffixes[low:high].tolist()) == expected
        assert length == len(text) or not places(tokens, np.array(text[: length + 1]))


def test_keys_ascend_and_hold_the_first_tokens_of_every_64th_suffix():
    tokens = np.array([3, 65_535, 1] * 60 + [9], np.uint16)
    suffixes = suffix_array.build(tokens)
    keys = prefix_table.build(tokens, suffixes)
    padded = [*tokens.tolist(), 0, 0, 0]
    by_hand = [
        sum(padded[at + k] << 16 * (3 - k) for k in range(4)) for at in suffixes[::64].tolist()
    ]
    assert keys.tolist() == by_hand == sorted(by_hand)
