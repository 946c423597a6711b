"""Every small architecture trains, is stopped and resumed, verified, and retrained."""

from dataclasses import replace

import pytest

from tests.worlds.stops import check_resumed
from train import runs, trainer
from train.data import DocumentRemoval
from train.errors import RecipeError
from train.model import PRESETS, preset


pytestmark = pytest.mark.integration
SMALL = [name for name in PRESETS if name.endswith("-nano")]
every_preset = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(scope="module")
def trained(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """`trained(name)`: a run of the architecture in the sizes of the tiny recipe, made once."""
    made: dict[str, runs.Run] = {}

    def of(name: str) -> runs.Run:
        if name not in made:
            out = tmp_path_factory.mktemp("presets") / name
            recipe = recipe_of(name, tiny_recipe)
            made[name] = trainer.train(recipe, tiny_store, out=out, numerics=one_thread_numerics)
        return made[name]

    return of


def recipe_of(name: str, tiny_recipe):
    cfg = preset(name)
    chunk = 4 if cfg.retention else 0
    sizes = {"d_model": 32, "d_head": 8, "d_mlp": 48, "n_ctx": tiny_recipe.model.n_ctx}
    return replace(tiny_recipe, name=name, model=replace(cfg, **sizes, retention_chunk=chunk))


@every_preset
def test_a_stopped_run_goes_on_to_the_same_bits(trained, tmp_path, name):
    whole = trained(name)
    check_resumed(whole, tmp_path / "run", whole.recipe.steps * 2 // 3 - 1)


@every_preset
def test_a_run_verifies_bit_for_bit_and_is_read_back(trained, name):
    run = trained(name)
    found = trainer.verify(run, spans=2)
    assert (found.level, found.problems) == ("bit-exact", ())
    assert runs.open(run.path).recipe == run.recipe
    # The weights of a looped layer are saved once.
    weights = runs.read_tensors(run.path, run.saved[-1], "model.safetensors")
    assert sum(one.numel() for one in weights.values()) == run.recipe.model.n_params


@every_preset
def test_documents_are_removed_and_replayed(trained, tmp_path, name):
    run = trained(name)
    document = int(run.documents_read(run.recipe.steps // 2)[0])
    child = trainer.retrain_without(run, tmp_path / "without", DocumentRemoval((document,)))
    assert child.steps[-1] == run.steps[-1]
    weights = [one.saved[-1].files["model.safetensors"] for one in (child, run)]
    assert weights[0] != weights[1]


@every_preset
def test_heads_are_detected_and_what_does_not_hold_is_said(trained, openbook, name):
    cfg = trained(name).config
    detected = openbook("detect", trained(name).path, "--sequences", 4, "--length", 3)
    assert (detected.code, detected.err) == (0, "")
    assert detected.out.startswith("head     induction  previous token  (mean attention")
    fixed = not (cfg.retention or cfg.embed_mix or cfg.value_residual)
    assert ("\nname moving " in detected.out) == fixed
    assert ("no scores of copying and name moving: what a head writes" in detected.out) != fixed


# What published families have more than the small presets.
PARTS = {
    "pythia": {"n_key_value_heads": 4, "rotary_channels": 4},
    "mistral": {
        "n_key_value_heads": 2, "window": 3, "qkv_bias": True, "rope_scaling": "llama3",
        "rope_original_ctx": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_published_families_train_stop_and_verify(
    tiny_store, tiny_recipe, one_thread_numerics, tmp_path, name
):
    sizes = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 48}
    sizes |= {"n_ctx": tiny_recipe.model.n_ctx}
    recipe = replace(tiny_recipe, model=replace(preset(name), **{**sizes, **PARTS[name]}))
    run = trainer.train(recipe, tiny_store, out=tmp_path / name, numerics=one_thread_numerics)
    assert run.ledger[-1].loss < run.ledger[0].loss
    assert trainer.verify(run, spans=1).level == "bit-exact"
    check_resumed(run, tmp_path / "run", recipe.steps * 2 // 3 - 1)


def test_a_recipe_whose_model_reads_ahead_says_why_it_is_refused(tiny_recipe):
    cfg = replace(preset("strawberry-nano"), attention="retention-published")
    with pytest.raises(RecipeError, match=r"retention-published: a position that depends on later"):
        replace(tiny_recipe, model=cfg)
    assert replace(tiny_recipe, model=cfg, allow_reading_ahead=True).model.reads_ahead
