"""The pattern after one key is replaced, in closed form, is the softmax computed again."""

import pytest
import torch

from interp.attribution_patching import qk_fix


def planted(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    scores, change, slope = (torch.randn(2, 3, 6, 6, generator=draw) for _ in range(3))
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    scores = (scale * scores).masked_fill(future, torch.finfo(torch.float32).min)
    return scores, scale * change, slope


# At 1 attention is soft, at 30 it has decided, at 300 the shares of the others are below 1e-100.
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 300.0])
def test_every_key_is_as_if_the_softmax_were_computed_again(scale: float):
    scores, change, slope = planted(scale)
    found = qk_fix.by_column(scores, change, slope)
    before = scores.double().softmax(dim=-1)
    for key in range(6):
        after = scores.double().clone()
        after[..., key] += change[..., key].double()
        expected = ((after.softmax(dim=-1) - before) * slope).sum(dim=(-1, -2))
        torch.testing.assert_close(found[..., key], expected, atol=1e-9, rtol=1e-9)


def test_a_row_is_as_if_the_softmax_were_computed_again():
    scores, change, slope = planted(5.0)
    expected = ((scores + change).double().softmax(-1) - scores.double().softmax(-1)) * slope
    found = qk_fix.by_row(scores, change, slope)
    torch.testing.assert_close(found, expected.sum(dim=-1), atol=1e-6, rtol=1e-6)


def test_scores_that_do_not_change_move_nothing():
    scores, change, slope = planted(5.0)
    for moved in (qk_fix.by_row, qk_fix.by_column):
        assert moved(scores, 0 * change, slope).abs().max() < 1e-12


def test_where_a_softmax_has_decided_its_gradient_sees_nothing_and_the_fix_sees_all():
    # One query, two keys: all attention on the first, whose replacement hands it to the second.
    scores = torch.tensor([[[[50.0, 0.0]]]])
    change = torch.tensor([[[[-100.0, 0.0]]]])
    slope = torch.tensor([[[[1.0, 3.0]]]])
    found = qk_fix.by_column(scores, change, slope)
    assert found[0, 0, 0].item() == pytest.approx(2.0)
    share = scores.double().softmax(-1)
    first_order = share[..., 0] * (slope[..., 0] - (share * slope).sum(-1)) * change[..., 0]
    assert abs(first_order.item()) < 1e-15
