"""A batch is a pure function of its step, and a removed document leaves no trace in it."""

import numpy as np
import pytest
import torch

from train import runs
from train.data import IGNORED, DocumentRemoval, batches, batches_ahead, read_batch
from train.errors import OrderError, StoreError
from train.trainer import next_token_loss


@pytest.fixture
def order(tiny_store, tiny_recipe):
    return runs.order_of(tiny_recipe, tiny_store)


def test_inputs_and_targets_are_the_stream_one_token_apart(tiny_store, order):
    batch = read_batch(tiny_store, order, 5)
    for row, start in enumerate(order.starts(5)):
        stream = tiny_store.tokens[start : start + 17].astype(np.int64)
        np.testing.assert_array_equal(batch.inputs[row], stream[:-1])
        np.testing.assert_array_equal(batch.targets[row], stream[1:])


@pytest.mark.parametrize("workers", [-1, 10**12])
def test_more_data_workers_than_a_machine_can_use_are_refused(tiny_store, order, workers):
    with pytest.raises(OrderError, match=f"{workers} data workers are asked for; choose from 0"):
        next(batches_ahead(tiny_store, order, range(9), workers=workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_ahead_changes_nothing(tiny_store, order, workers):
    inline = list(batches_ahead(tiny_store, order, range(9)))
    threaded = list(batches_ahead(tiny_store, order, range(9), workers=workers))
    assert [one.digest for one in inline] == [one.digest for one in threaded]
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        for a, b in zip(inline, threaded, strict=True)
    )


@pytest.mark.parametrize("mode", ["blank", "loss"])
def test_a_removed_document_is_no_target_anywhere_and_the_rest_is_untouched(
    tiny_store, order, mode
):
    removed = (3, 17, 40)
    for step in range(30):
        full = read_batch(tiny_store, order, step)
        less = read_batch(tiny_store, order, step, DocumentRemoval(removed, mode))
        offsets = order.starts(step)[:, None] + 1 + np.arange(16)
        gone = np.zeros_like(offsets, dtype=bool)
        for document in removed:
            start = tiny_store.starts[document]
            # The end-of-text behind a document depends on it, so its loss goes too.
            gone |= (offsets >= start) & (offsets <= start + tiny_store.lengths[document])
        assert (less.targets.numpy()[gone] == IGNORED).all()
        np.testing.assert_array_equal(less.targets.numpy()[~gone], full.targets.numpy()[~gone])
        assert less.divisor == full.divisor
        assert less.digest == full.digest
        if mode == "loss":
            assert torch.equal(less.inputs, full.inputs)
        else:
            inside = gone[:, :-1]
            assert (less.inputs.numpy()[:, 1:][inside] == tiny_store.eot).all()


def test_end_of_text_after_end_of_text_carries_no_loss():
    tokens = np.array([[0, 5, 0, 0, 0, 7]])
    np.testing.assert_array_equal(
        batches.counted_targets(tokens, 0), [[True, True, False, False, True]]
    )


def test_the_loss_is_a_sum_over_counted_targets_by_a_divisor_from_outside():
    logits = torch.zeros(1, 3, 4)
    targets = torch.tensor([[1, IGNORED, 2]])
    assert next_token_loss(logits, targets, 4).item() == pytest.approx(2 * np.log(4) / 4)


def test_documents_to_remove_must_be_ascending_and_the_mode_known():
    with pytest.raises(StoreError, match="ascending"):
        DocumentRemoval((3, 1))
    with pytest.raises(StoreError, match="'blank' or 'loss'"):
        DocumentRemoval((1,), "drop")
