"""The data order is a bijection, its own inverse's inverse, and the same on every machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data import (
    DataOrder,
    LateOrder,
    RecordedOrder,
    data_order,
    documents_read,
    first_steps_reading,
    record_nanogpt_order,
)
from train.data.data_order import DocumentTable
from train.errors import OrderError


# OpenWebText as nanoGPT counts it: 8,009,762 documents, 9,035,582,198 tokens, 1,024 a window.
GOLDEN_FIRST = [665, 992, 702, 957, 53, 847, 203, 232]
GOLDEN_LATE = [2659970, 5041870, 4990225, 1742103]
WEBTEXT = DataOrder(seed=1337, n_windows=8_823_810, context=1024, batch=512)


@given(st.integers(0, 2**64 - 1), st.integers(1, 600), st.integers(0, 3))
def test_every_epoch_reads_every_window_exactly_once(seed, n_windows, epoch):
    order = DataOrder(seed=seed, n_windows=n_windows, context=8, batch=1)
    windows = order.windows(np.arange(epoch * n_windows, (epoch + 1) * n_windows))
    np.testing.assert_array_equal(np.sort(windows), np.arange(n_windows))


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**10), st.data())
def test_positions_is_the_inverse_of_windows(seed, n_windows, data):
    order = DataOrder(seed=seed, n_windows=n_windows, context=8, batch=1)
    positions = np.array(data.draw(st.lists(st.integers(0, 4 * n_windows), min_size=1)))
    windows = order.windows(positions)
    assert ((windows >= 0) & (windows < n_windows)).all()
    np.testing.assert_array_equal(order.positions(windows, positions // n_windows), positions)


def test_two_epochs_and_two_seeds_come_in_different_orders():
    n = 1000
    order, other = (DataOrder(seed=seed, n_windows=n, context=8, batch=1) for seed in (0, 1))
    first, second = order.windows(np.arange(n)), order.windows(np.arange(n, 2 * n))
    # Two random permutations of 1,000 agree at one place on average.
    assert (first == second).sum() < 10
    assert (first == other.windows(np.arange(n))).sum() < 10
    # Neighbours in the corpus are not neighbours in training.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_the_order_has_the_golden_values_of_every_machine():
    order = DataOrder(seed=7, n_windows=1000, context=64, batch=8)
    np.testing.assert_array_equal(order.starts(0) // 64, GOLDEN_FIRST)
    np.testing.assert_array_equal(WEBTEXT.starts(50_000)[:4] // 1024, GOLDEN_LATE)


def test_the_batch_size_does_not_change_which_window_comes_next():
    small = DataOrder(seed=3, n_windows=100, context=8, batch=2)
    large = DataOrder(seed=3, n_windows=100, context=8, batch=10)
    together = np.concatenate([small.starts(step) for step in range(5)])
    np.testing.assert_array_equal(together, large.starts(0))


def _random_documents(seed: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of 1 to 40 tokens, each behind one separator."""
    draw, starts, lengths, end = np.random.default_rng(seed), [], [], 1
    while end < n_tokens:
        starts.append(end)
        lengths.append(int(draw.integers(1, 40)))
        end += lengths[-1] + 1
    return np.array(starts), np.array(lengths)


def _orders(seed: int, n_tokens: int, context: int, batch: int) -> list:
    tiles = DataOrder(seed, (n_tokens - 1) // context, context, batch)
    drawn = record_nanogpt_order(
        seed=seed, n_tokens=n_tokens, context=context, batch=batch, steps=40
    )
    n_late = max(tiles.n_windows // 5, 1)
    early = DataOrder(seed, max(tiles.n_windows - n_late, 1), context, batch + 1)
    late = LateOrder(early, DataOrder(seed, n_late, context, 1), begin=7)
    return [tiles, drawn, late]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["tiles", "nanogpt", "late"])
@pytest.mark.parametrize("seed", range(5))
def test_steps_and_documents_agree_with_brute_force(kind, seed):
    n_tokens, context, batch, n_steps = 700, 16, 3, 40
    starts, lengths = _random_documents(seed, n_tokens)
    order, table = _orders(seed, n_tokens, context, batch)[kind], DocumentTable(starts, lengths)
    owner = np.full(n_tokens + 100, -1)
    for document, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        owner[start : start + length] = document
    read = {}
    for step in range(n_steps):
        targets = (order.starts(step)[:, None] + 1 + np.arange(context)).ravel()
        read[step] = set(owner[targets]) - {-1}
        assert documents_read(order, table, step).tolist() == sorted(read[step])
    firsts = first_steps_reading(order, starts, starts + lengths, n_steps)
    for document, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        expected = [step for step in range(n_steps) if document in read[step]]
        found = order.steps_reading(int(start), int(start + length), n_steps)
        assert list(found) == expected
        assert firsts[document] == min(expected, default=n_steps)


def test_first_steps_are_the_same_in_blocks_of_any_size(monkeypatch):
    starts, lengths = _random_documents(0, 700)
    for order in _orders(0, 700, 16, 3):
        whole = first_steps_reading(order, starts, starts + lengths, 40)
        with monkeypatch.context() as patch:
            patch.setattr(data_order, "AT_ONCE", 5)
            blocks = first_steps_reading(order, starts, starts + lengths, 40)
        np.testing.assert_array_equal(blocks, whole)


LATE = LateOrder(DataOrder(5, 40, 8, 6), DataOrder(5, 7, 8, 2), begin=9)


def test_late_windows_come_from_their_step_on_and_as_many_a_batch():
    for step in range(60):
        late = LATE.starts(step) // 8 >= 40
        assert late.sum() == (2 if step >= 9 else 0)
        assert len(late) == 6


def test_early_and_late_windows_are_each_read_once_an_epoch():
    windows = np.concatenate([LATE.starts(step) // 8 for step in range(200)])
    for some, n in ((windows[windows < 40], 40), (windows[windows >= 40], 7)):
        for epoch in range(len(some) // n):
            assert len(set(some[epoch * n : (epoch + 1) * n])) == n


def test_the_early_part_is_the_order_without_late_windows():
    alone = DataOrder(5, 40, 8, 6)
    early = [w for step in range(60) for w in LATE.starts(step) // 8 if w < 40]
    assert early == [w for step in range(60) for w in alone.starts(step) // 8][: len(early)]


@pytest.mark.parametrize(
    ("late", "begin", "said"),
    [
        (DataOrder(0, 7, 8, 6), 0, "6 late windows of 8 tokens do not fit batches of 6"),
        (DataOrder(0, 7, 9, 2), 0, "2 late windows of 9 tokens do not fit"),
        (DataOrder(0, 7, 8, 2), -1, "begin at step -1"),
    ],
)
def test_late_windows_that_fit_no_batch_are_refused(late, begin, said):
    with pytest.raises(OrderError, match=said):
        LateOrder(DataOrder(0, 40, 8, 6), late, begin)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 500])
def test_the_last_document_begun_is_that_of_looking_at_every_start(n):
    draw = np.random.default_rng(n)
    starts = np.cumsum(draw.integers(1, 4, n)) + 2
    asked = draw.permutation(np.arange(-1, 2 * n + 10))
    expected = [sum(start <= token for start in starts) - 1 for token in asked]
    assert DocumentTable(starts, starts).last_begun(asked).tolist() == expected


def test_both_directions_agree_at_the_size_of_openwebtext():
    """How long a look-up takes is measured by benchmarks/order_lookups.py."""
    lengths = np.full(8_009_762, 1127)
    starts = 1 + np.arange(8_009_762) * 1128
    table = DocumentTable(starts, lengths)
    for step in range(20):
        documents = documents_read(WEBTEXT, table, step * 2500)
        start = int(starts[documents[0]])
        assert step * 2500 in WEBTEXT.steps_reading(start, start + 1127, 52_453)


def test_recorded_windows_follow_nanogpts_rule():
    order = record_nanogpt_order(seed=1, n_tokens=100, context=8, batch=4, steps=500)
    assert isinstance(order, RecordedOrder)
    assert order.schedule.min() == 0
    assert order.schedule.max() + 8 == 99


def test_an_order_that_reads_nothing_is_refused():
    with pytest.raises(OrderError, match="0 windows of 8 tokens"):
        DataOrder(seed=0, n_windows=0, context=8, batch=1)
    with pytest.raises(OrderError, match="8 tokens and one target does not fit"):
        record_nanogpt_order(seed=0, n_tokens=8, context=8, batch=1, steps=1)
