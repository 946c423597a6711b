"""A choice that came later leaves what was recorded as it was: recipes, run ids, manifests."""

import hashlib
from dataclasses import asdict, replace

import pytest

from train import recipes, storage
from train.errors import DamagedError, RecipeError
from train.model import GPTConfig
from train.model.architecture import LATER


# sha256 of the canonical JSON, taken before there was any later field: run ids hang on it.
RECORDED = {
    "GPT2_124M": "c23898cb3d9a4ec5a2267979c158176d95eff34ebdbe3e8315c481e1b64eb48f",
    "PLANTED": "7420ceb465f1e6607d6e5794e8da9639b064dab511f50eea0bbe7803089786d2",
    "TEXT_SMALL": "cb5ffd62cb4d2be4f1949964349a68585a3d96091031b0df8895d8d4076cd6ed",
}
TINY = GPTConfig(n_layers=1, n_heads=2, d_model=8, n_ctx=4, d_vocab=5)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recipe_is_written_as_it_was_before_the_later_choices(name):
    recipe = getattr(recipes, name)
    content = recipes.to_dict(recipe)
    assert hashlib.sha256(storage.canonical_json(content).encode()).hexdigest() == RECORDED[name]
    assert not set(LATER) & set(content["model"])
    assert recipes.from_dict(content, "here") == recipe


def test_a_run_of_before_late_documents_is_read_and_one_that_has_them_says_so():
    content = recipes.to_dict(recipes.GPT2_124M)
    assert not set(recipes.LATER) & set(content)
    content = recipes.to_dict(recipes.PLANTED)
    assert (content["late_batch"], content["late_begin"]) == (1, 1450)


@pytest.mark.parametrize("cfg", [TINY, replace(TINY, causal=False), replace(TINY, norm="none")])
def test_an_architecture_survives_being_written(cfg):
    content = cfg.to_dict()
    assert GPTConfig(**content) == cfg
    assert GPTConfig.keys(content) == (set(), set())
    assert ("causal" in content) is not cfg.causal


def test_a_later_choice_that_was_made_is_read_and_a_strange_one_refused():
    content = recipes.to_dict(recipes.PLANTED)
    model = content["model"]
    assert recipes.from_dict({**content, "model": {**model, "causal": True}}, "") == recipes.PLANTED
    with pytest.raises(DamagedError, match="unknown key 'casual'"):
        recipes.from_dict({**content, "model": {**model, "casual": True}}, "here")
    with pytest.raises(DamagedError, match="lacks the key 'norm'"):
        recipes.from_dict(
            {**content, "model": {key: value for key, value in model.items() if key != "norm"}}, ""
        )


def test_a_network_that_sees_its_targets_is_not_trained():
    with pytest.raises(RecipeError, match="sees its own target"):
        replace(recipes.PLANTED, model=replace(recipes.PLANTED.model, causal=False))


def test_every_field_but_the_later_ones_is_always_written():
    assert set(asdict(TINY)) - set(TINY.to_dict()) == set(LATER)


def test_heads_that_do_not_divide_the_width_need_their_own():
    with pytest.raises(RecipeError, match="d_model 9 is no multiple of 2 heads; give d_head"):
        replace(TINY, d_model=9, d_head=0, d_mlp=0)
    assert replace(TINY, d_model=9, d_head=3).d_head == 3


@pytest.mark.parametrize(
    ("norm", "causal", "said"),
    [("layernorm", True, ("LN", "causal")), ("none", False, (None, "bidirectional"))],
)
def test_other_libraries_names_of_the_choices(norm, causal, said):
    cfg = replace(TINY, norm=norm, causal=causal)
    assert (cfg.normalization_type, cfg.attention_dir) == said
