"""Where numbers end: the tensor that is named is the one that was planted."""

import math
from dataclasses import replace

import pytest
import torch

from train import runs
from train.data import read_batch
from train.errors import DivergedError
from train.model import init_gpt
from train.trainer import evaluation, loop


@pytest.fixture
def planted(tiny_run):
    """A fresh model, a batch for it, and what `first_bad_tensor` says of the two."""
    model = init_gpt(tiny_run.recipe.model, 0)
    batch = read_batch(tiny_run.store, tiny_run.order, 0)
    return model, batch, lambda: evaluation.first_bad_tensor(model, batch, tiny_run.numerics)


def test_a_sound_model_has_no_bad_tensor(planted):
    _, _, named = planted
    assert named() == "the loss itself (every weight and activation is finite)"


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_bad_weight_is_named(planted, bad):
    model, _, named = planted
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.up.weight")[3, 2] = bad
    assert named() == "the weight blocks.0.mlp.up.weight"


def test_attention_scores_that_overflow_are_named(planted):
    """Queries and keys of 1e25 are finite; their product is not, upwards or downwards."""
    model, _, named = planted
    with torch.no_grad():
        model.get_parameter("blocks.0.attn.qkv.weight").mul_(1e27)
    assert named() == "the activation blocks.0.attn.hook_attn_scores"


def test_a_bad_gradient_is_named(planted):
    model, _, named = planted
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.get_parameter("blocks.0.attn.out.weight").grad[0, 0] = math.inf
    assert named() == "the gradient of blocks.0.attn.out.weight"


def test_a_block_of_steps_on_a_gpu_does_not_say_that_it_saw_the_step(planted, tiny_run):
    model, batch, _ = planted
    with torch.no_grad():
        model.get_parameter("ln_final.weight")[0] = math.nan
    row = runs.LedgerRow(3, 1e-3, 0.0, 0.0, 9, "", 0.1)
    waiting = [(row, torch.tensor(math.nan), torch.tensor(1.0))]
    gpu = replace(tiny_run.numerics, device="cuda")
    with pytest.raises(DivergedError) as caught:
        list(loop.completed_rows(waiting, model, replace(batch, step=15), gpu))
    assert (
        "loss of step 3 is not a number; the first bad tensor (looked for after 13 more updates, "
        "read in blocks on a GPU) is the weight ln_final.weight;"
    ) in str(caught.value)


def test_a_token_is_the_highest_of_its_candidates_or_of_all():
    logits, token = torch.tensor([[2.0, 1.0, 3.0], [2.0, 5.0, 3.0]]), torch.tensor([0, 2])
    assert evaluation.is_highest(logits, token).tolist() == [False, False]
    assert evaluation.is_highest(logits, token, (2, 0)).tolist() == [False, True]
    assert evaluation.is_highest(logits, token, (1, 0, 2)).tolist() == [False, False]
    assert evaluation.is_highest(logits[:1], token[:1], (1, 0)).tolist() == [True]
