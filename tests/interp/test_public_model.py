"""A model that others trained goes through the same engine: same logits, and it can be opened up.

SmolLM2-135M, 93 MB from the package index, kept in `data/smollm2`; skipped where it cannot be had.
"""

from pathlib import Path

import pytest
import torch

from interp import behaviours, models, patching
from interp.components import Component
from interp.heads import (
    best_head,
    copying_loss,
    induction_heads,
    previous_token_heads,
    repeated_tokens,
)
from interp.metrics import logit_difference
from train import convert
from train.errors import TrainError
from train.model import GPT


pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[2] / "data"
TEXTS = ["When Mary and John went to the store,  12 days ago, John gave 4.50 to", "x² = ½\n\n  7"]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return convert.fetch_pretrained("smollm2", out=DATA / "smollm2")
    except TrainError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(folder) -> GPT:
    return models.load(folder)


@pytest.fixture(scope="module")
def ioi(model):
    return behaviours.load("ioi", model, n_prompts=4)


def test_its_logits_and_tokens_are_those_of_transformers(model, folder):
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        tokens = model.to_tokens(text)
        assert tokens[0, 1:].tolist() == tokenizer(text, add_special_tokens=False).input_ids
        assert model.to_string(tokens[0, 1:]) == text
        with torch.inference_mode():
            ours, expected = model(tokens), theirs(tokens).logits
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_knows_the_indirect_object_and_continues_what_it_saw(model, ioi):
    check = behaviours.check(model, behaviours.load("ioi", model, n_prompts=24))
    assert check.interval[0] > 0.8
    tokens = repeated_tokens(model, n=4, length=16)
    copying = copying_loss(model, tokens)
    assert copying.second < copying.first / 3
    assert best_head(induction_heads(model, tokens))[1] > 0.7
    assert best_head(previous_token_heads(model, tokens))[1] > 0.7


def test_a_trace_follows_the_name_from_its_second_mention_to_the_end(model, ioi):
    second = int((ioi.clean != ioi.corrupt).any(0).nonzero().max())
    found = patching.residual(model, ioi)
    assert not found.values[:, :second].any()
    middle, last = found.values[15], found.values[29]
    assert middle[second] > 0.9 > 0.1 > middle[-1].abs()
    assert last[-1] > 0.8 > 0.2 > last[second].abs()


def test_the_engine_agrees_with_plain_hooks_on_it(model, ioi):
    score = logit_difference(ioi).of_logits
    names = [place.hook for place in (Component("resid_pre", 17), Component("mlp", 3))]
    with torch.inference_mode():
        clean, cache = model.run_with_cache(ioi.clean, names_filter=names)
        corrupt = model(ioi.corrupt)
    whole = (score(clean) - score(corrupt)).mean()

    def plain(place: Component) -> float:
        def hook(value, point):
            value = value.clone()
            value[place.index] = cache[place.hook][place.index]
            return value

        with torch.inference_mode():
            logits = model.run_with_hooks(ioi.corrupt, fwd_hooks=[(place.hook, hook)])
        return ((score(logits) - score(corrupt)).mean() / whole).item()

    residual, mlps = patching.residual(model, ioi), patching.mlps(model, ioi)
    for name in ("L17.resid_pre@11", "L17.resid_pre@15"):
        place = Component("resid_pre", 17, pos=int(name.rpartition("@")[2]))
        assert residual[name] == pytest.approx(plain(place), abs=1e-4)
    assert mlps["L3.mlp"] == pytest.approx(plain(Component("mlp", 3)), abs=1e-4)
