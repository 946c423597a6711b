"""Every share of a clean-corrupt difference is refused if that difference may be 0."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from interp import attribution_patching, circuits, patching
from interp.behaviours import Behaviour
from interp.errors import ContrastError
from interp.patching import require_contrast
from train.model import GPTConfig, init_gpt


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=30, init_std=0.3)
named = partial(require_contrast, name="noise", metric="logit difference")


def asked(difference: list[float]) -> tuple[str, ...]:
    clean = np.array(difference)
    return named(clean, 0 * clean, np.arange(len(clean)))


def test_twelve_prompts_whose_mean_difference_is_near_zero_are_refused_with_the_interval():
    with pytest.raises(ContrastError, match=r"\[-0.55, 0.716\], which holds 0; .* more prompts"):
        asked([1.0, -1.0] * 5 + [1.0, 0.0])
    assert asked([1.0, 0.5] * 6) == ()


def test_with_fewer_than_ten_prompts_the_reason_goes_to_the_result():
    (note,) = asked([1.0, 3.0])
    assert "scores 2 on clean and 0 on corrupt prompts (logit difference, 2 prompts)" in note
    assert "[-10.7, 14.7], which holds 0" in note
    assert asked([2.0, 2.0]) == asked([2.0]) == ()  # equal differences have no spread


def test_differences_that_are_rounding_are_refused_however_equal():
    with pytest.raises(ContrastError, match="give prompts that the model tells apart"):
        asked([1e-7])


def test_rows_of_one_prompt_count_once():
    """20 rows of two prompts say no more than two prompts."""
    clean = np.repeat([1.0, 3.0], 10)
    (note,) = named(clean, 0 * clean, np.repeat([0, 1], 10))
    assert "2 prompts" in note


def guessing(n: int, right: int) -> tuple:
    """A random model, and n random prompts of which it is right on some."""
    draw = torch.Generator().manual_seed(0)
    model = init_gpt(CFG, seed=0).eval()
    clean, corrupt = (torch.randint(30, (n, 6), generator=draw) for _ in range(2))
    first, second = model(clean)[:, -1].topk(2).indices.T
    correct = torch.arange(n) < right
    behaviour = Behaviour(
        name="guess",
        clean=clean,
        corrupt=corrupt,
        answer=torch.where(correct, first, second),
        foil=torch.where(correct, second, first),
    )
    return model, behaviour


@pytest.mark.parametrize(
    "divide",
    [
        patching.heads,
        patching.senders,
        patching.causal_trace,
        attribution_patching.attribution,
        attribution_patching.atp_star,
        circuits.find,
    ],
)
def test_every_share_of_the_difference_is_guarded(divide):
    model, behaviour = guessing(24, 13)
    arguments = ("logits",) if divide is patching.senders else ()
    with pytest.raises(ContrastError, match="which holds 0"):
        divide(model, behaviour, *arguments)


def test_a_trace_in_noise_is_guarded_too():
    model, behaviour = guessing(24, 13)
    with pytest.raises(ContrastError, match=r"those with noise of 0\.01 deviations on the subject"):
        patching.causal_trace(
            model, replace(behaviour, subject=(0, 1)), damage="noised", noise=0.01, draws=2
        )


def test_effects_of_few_prompts_carry_the_note():
    model, behaviour = guessing(4, 3)
    assert any("which holds 0" in note for note in patching.heads(model, behaviour).notes)
