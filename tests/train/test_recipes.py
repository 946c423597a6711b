"""A recipe with which no training works is refused when it is made."""

from dataclasses import replace

import pytest

from train.errors import RecipeError
from train.recipes import PLANTED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0), ("lr", -1.0), ("lr", float("inf")), ("lr", float("nan")),
        ("min_lr", -1e-9), ("min_lr", 1.0), ("warmup_steps", -1), ("beta1", 1.0), ("beta1", -0.1),
        ("beta2", 1.5), ("eps", 0.0), ("weight_decay", -0.1), ("grad_clip", 0.0),
        ("micro_batch_size", -1), ("checkpoint_every", 0), ("optimizer_every", 0),
        ("eval_every", -1), ("eval_windows", 0),
    ],
)  # fmt: skip
def test_a_value_with_which_no_training_works_is_refused(key, value):
    with pytest.raises(RecipeError) as error:
        replace(PLANTED, **{key: value})
    assert str(error.value).startswith(f"recipe 'planted' has {key}={value!r}; it must be ")


def test_a_warm_up_may_be_longer_than_a_short_trial():
    assert replace(PLANTED, steps=3).warmup_steps == 100
