"""A recipe in a file is a recipe: every field survives, every mistake is one line, runs repeat."""

import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worlds.commands import refused
from train import recipes, runs, storage, trainer
from train.data import read_batch
from train.errors import RecipeError
from train.model import PRESETS, GPTConfig, preset
from train.model.architecture import CHOICES
from train.recipes import PLANTED, Recipe


EXECUTABLE = Path(sys.executable).with_name("openbook")
TYPES = {key: kind for key, kind in typing.get_type_hints(Recipe).items() if key != "model"}
TYPES |= {f"model.{key}": kind for key, kind in typing.get_type_hints(GPTConfig).items()}
TINY = """
batch_size = 4
steps = 6
lr = 1e-2
min_lr = 0
warmup_steps = 2
checkpoint_every = 2

[model]
n_layers = 1
n_heads = 2
d_model = 16
n_ctx = 16
d_vocab = 1
"""


@pytest.fixture
def written(tmp_path):
    """`written(text)` or `written(text, name)`: the path of a file with this text."""

    def write(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def value_of(recipe: Recipe, key: str) -> object:
    return getattr(recipe.model if key.startswith("model.") else recipe, key.removeprefix("model."))


def changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    """The recipe with other values, without any code that reads files."""
    model = {key[6:]: value for key, value in changes.items() if key.startswith("model.")}
    others = {key: value for key, value in changes.items() if not key.startswith("model.")}
    return replace(recipe, **others, model=replace(recipe.model, **model))


def candidates(key: str) -> Iterator[object]:
    """Values that the field could have instead of PLANTED's."""
    value = value_of(PLANTED, key)
    kind = TYPES[key]
    if typing.get_origin(kind) is typing.Literal:
        values = typing.get_args(kind)
    elif isinstance(value, str):
        values = CHOICES.get(key.removeprefix("model."), ("another",))
    elif isinstance(value, bool):
        values = (not value,)
    elif isinstance(value, float):
        values = (value / 2, 0.5)
    else:
        values = (2,) if value is None else (value * 2, value // 2, value + 1, value + 2)
    yield from (other for other in values if other != value)


# Fields that only have another value together with others.
RETENTION = {
    "model.attention": "retention", "model.norm": "rmsnorm", "model.mlp": "swiglu",
    "model.bias": False, "model.retention_chunk": 4, "model.aft_passes": 1,
}  # fmt: skip
MUON = {"optimizer": "muon"}
DISTILLED = {"distill_weight": 0.5}
DECAYING = {"weight_decay_end": 0.5}
AHEAD = {"model.mtp": True}
ROTATED = {"model.position": "rope"}
SCALED = {**ROTATED, "model.rope_scaling": "llama3"}
LOOP = {"model.n_layers": 4, "model.loop_layers": 1, "model.loop_passes": 2}


def with_another(key: str) -> Recipe:
    """PLANTED with another value of the field, and of a second one if they belong together."""
    seconds = [{}, RETENTION, LOOP, MUON, DISTILLED, DECAYING, AHEAD, ROTATED, SCALED]
    seconds += [{other: value} for other in TYPES for value in candidates(other)]
    for value in candidates(key):
        for second in seconds:
            try:
                return changed(PLANTED, {**second, key: value})
            except RecipeError:
                continue
    raise AssertionError(f"no recipe has another {key}")


# --- files ---------------------------------------------------------------------------------------


def test_a_preset_gives_the_architecture_and_single_fields_change_it(written):
    path = written('base = "planted"\n[model]\npreset = "modern-nano"\nn_layers = 2')
    recipe = recipes.read(path)
    assert recipe.model == replace(preset("modern-nano"), n_layers=2)
    assert recipe.steps == PLANTED.steps
    assert recipes.load("planted", {"model.preset": "modern-nano", "model.n_layers": 2}) == replace(
        recipe, name="planted"
    )
    again = recipes.read(written(recipes.to_toml(recipe)))
    assert again == recipe


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_file(name, written):
    recipe = recipes.load("planted", {"model.preset": name})
    assert recipe.model == preset(name)
    assert recipes.read(written(recipes.to_toml(recipe))) == recipe


def test_an_unknown_preset_is_refused_with_the_nearest_name(written):
    path = written('base = "planted"\n[model]\npreset = "modem-nano"')
    with pytest.raises(RecipeError, match="did you mean 'modern-nano'"):
        recipes.read(path)


@pytest.mark.parametrize("key", sorted(set(TYPES) - {"model.causal"}))
def test_every_field_survives_a_file(key, written):
    recipe = with_another(key)
    assert value_of(recipe, key) != value_of(PLANTED, key)
    again = recipes.read(written(recipes.to_toml(recipe)))
    assert again == recipe
    assert storage.canonical_json(recipes.to_dict(again)) == storage.canonical_json(
        recipes.to_dict(recipe)
    )
    assert recipes.load("planted", {one: value_of(recipe, one) for one in TYPES}) == recipe


def test_the_one_field_that_no_recipe_may_have_is_refused_in_a_file(written):
    path = written('base = "planted"\n[model]\ncausal = false')
    with pytest.raises(RecipeError, match="sees its own target"):
        recipes.read(path)


@given(name=st.text(), lr=st.floats(min_value=1e-300, max_value=1e300))
def test_any_name_and_any_number_survive_a_file(tmp_path_factory, name, lr):
    recipe = replace(PLANTED, name=name, lr=lr, min_lr=0.0)
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(recipes.to_toml(recipe), encoding="utf-8")
    assert recipes.read(path) == recipe


@pytest.mark.parametrize("name", sorted(recipes.PURPOSES))
def test_a_named_recipe_is_the_same_by_name_and_as_the_base_of_a_file(name, written):
    assert recipes.load(name) == recipes.by_name(name)
    path = written(f'base = "{name}"\nname = "{name}"')
    assert recipes.read(path) == recipes.load(path) == recipes.by_name(name)


def test_every_named_recipe_says_its_purpose():
    named = {one.name for one in vars(recipes).values() if isinstance(one, Recipe)}
    assert set(recipes.PURPOSES) == named


def test_a_file_changes_what_it_says_and_is_called_after_itself(written):
    path = written('base = "planted"\nlr = 1\nmin_lr = 0\n[model]\nrope_theta = 500', "wide.toml")
    recipe = recipes.read(path)
    model = replace(PLANTED.model, rope_theta=500.0)
    assert recipe == replace(PLANTED, name="wide", lr=1.0, min_lr=0.0, model=model)
    # A float that was written as a whole number has the digest of a float.
    assert '"lr": 1.0,' in storage.canonical_json(recipes.to_dict(recipe))


def test_sizes_that_follow_from_others_follow_from_the_new_ones(written):
    model = recipes.load("planted", {"model.d_model": 256, "model.n_heads": 8}).model
    assert (model.n_key_value_heads, model.d_head, model.d_mlp) == (8, 32, 1024)
    shown = recipes.to_toml(PLANTED)
    assert "\n# d_head = 32  # follows from other sizes\n" in shown
    edited = recipes.read(written(shown.replace("\nd_model = 128\n", "\nd_model = 256\n")))
    assert (edited.model.d_head, edited.model.d_mlp) == (64, 1024)
    fixed = recipes.load("planted", {"model.d_head": 16})
    path = written(recipes.to_toml(fixed), "fixed.toml")
    assert recipes.load(path, {"model.d_model": 256}).model.d_head == 16


def test_a_base_in_another_folder_is_found_from_its_file(written, tmp_path, monkeypatch):
    (tmp_path / "deeper").mkdir()
    written(TINY, "common.toml")
    path = written('base = "../common.toml"\nsteps = 9', "deeper/mine.toml")
    monkeypatch.chdir("/")
    recipe = recipes.read(path)
    assert (recipe.name, recipe.steps, recipe.batch_size) == ("mine", 9, 4)


def test_a_byte_order_mark_is_no_part_of_a_recipe(written):
    path = written(TINY)
    plain = recipes.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert recipes.read(path) == plain


def test_a_recipe_that_is_no_text_is_refused_by_name(written):
    path = written("")
    for content, words in (
        (b"\xff\xfe", "not UTF-8 (invalid start byte at byte 0)"),
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer, not the file itself"),
    ):
        path.write_bytes(content)
        with pytest.raises(RecipeError) as error:
            recipes.read(path)
        assert str(error.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = 1e-3\nsteps = \n", "not readable as TOML (Invalid value (at line 2, column 9))"),
        ("lr = 1\nlr = 2\n", "not readable as TOML (Cannot overwrite a value (at line 2,"),
        ('base = "plantd"', "no recipe is called 'plantd', did you mean 'planted'?"),
        ("base = 3", "base is 3; it must be a string"),
        ('base = "othr.toml"', "othr.toml: there is no such file, did you mean 'other.toml'"),
        ('base = "othr.toml"', "mine.toml: its base "),
        ("learning_rate = 3", "no field 'learning_rate', did you mean 'lr'?"),
        ("[model]\nn_embd = 3", "no field 'model.n_embd', did you mean 'model.d_model'?"),
        ("[modle]\nn_layers = 3", "no table [modle]; the only one is [model]"),
        ('base = "modern"', "'modern', which is an architecture; write a recipe file with preset"),
        ("stpes = 3", "no field 'stpes', did you mean 'steps'"),
        ("n_layers = 3", "no field 'n_layers', did you mean 'model.n_layers'?"),
        ("[model]\nn_layer = 3", "no field 'model.n_layer', did you mean 'model.n_layers'"),
        ("[model]\nlr = 3", "no field 'model.lr', did you mean 'lr'?"),
        ("[model.n_layers]\nx = 3", "model.n_layers is {'x': 3}; it must be a whole number"),
        ('model = "gpt2"', 'model is "gpt2"; it must be a table, [model]'),
        ('steps = "10"', 'steps is "10"; it must be a whole number'),
        ("steps = 1.0", "steps is 1.0; it must be a whole number"),
        ("steps = true", "steps is true; it must be a whole number"),
        ("lr = true", "lr is true; it must be a number"),
        ("lr = 2026-11-29", "lr is 2026-11-29; it must be a number"),
        ("lr = 1" + "0" * 400, "lr is a number of more than 64 bits"),
        ("lr = 1" + "0" * 5000, "not readable as TOML (Exceeds the limit"),
        ("lr = " + "[" * 100_000, "not readable as TOML (nested too deeply"),
        ("name = 3", "name is 3; it must be a string"),
        ("micro_batch_size = false", "micro_batch_size is false; it must be a whole number"),
        ('sampler = "tile"', "no sampler is called 'tile', did you mean 'tiles'?"),
        ("sampler = 1", "sampler is 1; it must be a string"),
        ("[model]\nbias = 1", "model.bias is 1; it must be true or false"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(written, text, words):
    written("", "other.toml")
    path = written(text)
    with pytest.raises(RecipeError) as error:
        recipes.read(path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(path.parent))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 0", "has 0 steps of 32 windows"),
        ("lr = nan", "has lr=nan; it must be above 0"),
        ("late_batch = 32", "has late_batch=32"),
        ('[model]\nmlp = "gelo"', "no mlp is called 'gelo', did you mean 'gelu'"),
        ("[model]\nn_heads = 3", "d_model 128 is no multiple of 3 heads; give d_head"),
        ("[model]\nn_layers = 0", "n_layers is 0; it must be at least 1"),
    ],
)
def test_an_impossible_value_in_a_file_is_named_with_the_recipe(written, text, words):
    with pytest.raises(RecipeError) as error:
        recipes.read(written(f'base = "planted"\n{text}'))
    assert words in str(error.value)
    assert str(error.value).startswith("recipe 'mine'")


def test_all_that_a_file_lacks_is_said_at_once(written):
    lacking = "steps, min_lr, warmup_steps, model.n_heads, model.n_ctx, model.d_vocab"
    text = "batch_size = 1\nlr = 1\n[model]\nn_layers = 1\nd_model = 8"
    with pytest.raises(RecipeError, match=f"recipe 'mine' lacks {lacking}; give them, or a base"):
        recipes.read(written(text))


def test_bases_that_lead_in_a_circle_are_refused(written, tmp_path):
    one, two = written('base = "two.toml"', "one.toml"), written('base = "one.toml"', "two.toml")
    with pytest.raises(RecipeError) as error:
        recipes.read(one)
    circle = " -> ".join(map(str, (one, two, one)))
    assert str(error.value) == f"{one}: its base leads back to it ({circle}); remove one base"
    own = written('base = "own.toml"', "own.toml")
    (tmp_path / "alias.toml").symlink_to(own)
    for path in (own, tmp_path / "alias.toml"):
        with pytest.raises(RecipeError, match="its base leads back to it"):
            recipes.read(path)


def test_a_missing_file_offers_its_neighbours_and_the_named_recipes(written, tmp_path):
    written("", "large.toml")
    for name, near in (("lage.toml", "large.toml"), ("planted.toml", "planted")):
        with pytest.raises(RecipeError, match=f"no such file, did you mean '{near}'"):
            recipes.load(tmp_path / name)


# --- values that no training has -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0), ("lr", -1.0), ("lr", float("inf")), ("lr", float("nan")),
        ("min_lr", -1e-9), ("min_lr", 1.0), ("warmup_steps", -1), ("beta1", 1.0), ("beta1", -0.1),
        ("beta2", 1.5), ("eps", 0.0), ("weight_decay", -0.1), ("grad_clip", 0.0),
        ("micro_batch_size", -1), ("checkpoint_every", 0), ("optimizer_every", 0),
        ("eval_every", -1), ("eval_windows", 0),
        ("distill_weight", 1.5), ("distill_temperature", 0.0), ("ema_decay", 1.0),
        ("weight_decay_end", -0.5), ("weight_decay_hold", 1.0),
        ("stochastic_depth", 1.0), ("data_budget", -1), ("mtp_weight", -0.1),
    ],
)  # fmt: skip
def test_a_value_with_which_no_training_works_is_refused(key, value):
    with pytest.raises(RecipeError) as error:
        replace(PLANTED, **{key: value})
    assert str(error.value).startswith(f"recipe 'planted' has {key}={value!r}; it must be ")


def test_a_file_can_undo_the_micro_batches_of_its_base(written, tiny_store, tiny_recipe):
    recipe = recipes.read(written('base = "gpt2-124m"\nmicro_batch_size = 0'))
    batch = read_batch(tiny_store, runs.order_of(tiny_recipe, tiny_store), 0)
    parts = list(batch.parts(recipe.micro_batch_size))
    assert [len(part.inputs) for part in parts] == [tiny_recipe.batch_size]


def test_a_warm_up_may_be_longer_than_a_short_trial():
    assert replace(PLANTED, steps=3).warmup_steps == 100


# --- commands ------------------------------------------------------------------------------------


def test_the_named_recipes_are_listed(openbook):
    listed = openbook("recipes")
    assert (listed.code, listed.err) == (0, "")
    assert openbook("recipes", "list").out == listed.out
    rows = [line.split(maxsplit=3) for line in listed.out.splitlines()]
    assert rows[0] == ["recipe", "parameters", "tokens", "purpose"]
    assert rows[1][:3] == ["planted", "529,920", "4,300,800"]
    assert rows[5][:3] == ["gpt2-124m", "124,439,808", "27,500,478,464"]
    (first, *_) = json.loads(openbook("recipes", "list", "--json").out)["recipes"]
    assert [str(one) for one in first.values()] == [rows[1][0], "529920", "4300800", rows[1][3]]


def test_what_show_prints_is_a_file_of_the_same_recipe(openbook, written, tmp_path):
    shown = openbook("recipes", "show", "planted")
    assert (shown.code, shown.err) == (0, "")
    assert recipes.read(written(shown.out)) == PLANTED
    settings = ("--set", "model.n_layers=4", "--set", "lr = 1e-3", "--set", "model.position=rope")
    path = written(openbook("recipes", "show", "planted", *settings, "--set", "name=deep").out)
    model = replace(PLANTED.model, n_layers=4, position="rope")
    deep = replace(PLANTED, name="deep", lr=1e-3, model=model)
    assert recipes.read(path) == deep
    assert openbook("recipes", "show", path).out == path.read_text()
    kept = tmp_path / "kept.json"
    assert json.loads(openbook("recipes", "show", path, "--json", "--out", kept).out)["lr"] == 1e-3
    assert storage.read_sealed(kept)["model"] == recipes.to_dict(deep)["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plantd",), "no recipe is called 'plantd', did you mean 'planted'?"),
        (("none.toml",), "none.toml: there is no such file"),
        (("planted", "--set", "lr"), "--set 'lr' has no field or no value"),
        (("planted", "--set", "lr="), "--set 'lr=' has no field or no value"),
        (("planted", "--set", "=3"), "--set '=3' has no field or no value"),
        (("planted", "--set", "lr=1", "--set", "lr=2"), "--set lr is given twice"),
        (("planted", "--set", "lr=fast"), 'lr is "fast"; it must be a number'),
        (("planted", "--set", "lr=" + "1" * 5000), "it must be a number"),
        (("planted", "--set", "steps=1.5"), "steps is 1.5; it must be a whole number"),
        (("planted", "--set", "model.n_layer=3"), "did you mean 'model.n_layers'"),
        (("planted", "--set", "base=text-small"), "a recipe has no field 'base'"),
        (("planted", "--set", "model.n_heads=3"), "recipe 'planted': d_model 128 is no multiple"),
        (("planted", "--out", "mine.toml"), "`openbook recipes show planted > mine.toml`"),
    ],
)
def test_a_wrong_recipe_or_setting_is_one_line(openbook, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(openbook("recipes", "show", *arguments), 2, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--steps 10", "steps=20"), ("--seed 1", "init_seed=1"), ("--order-seed 1", "order_seed=2"),
        ("--batch-size 4", "batch_size=8"), ("--micro-batch-size 2", "micro_batch_size=4"),
        ("--eval-every 5", "eval_every=0"),
    ],
)  # fmt: skip
def test_an_option_and_a_setting_of_the_same_field_are_refused(
    openbook, tiny_store, tmp_path, option, setting
):
    command = ("train", "planted", tiny_store.path, "--out", tmp_path / "run", *option.split())
    key = setting.partition("=")[0]
    words = f"{option} and --set {setting} both set {key}; give one of them"
    refused(openbook(*command, "--set", setting), 2, words)


@pytest.mark.integration
def test_a_file_trains_the_same_run_in_every_process_and_folder(written, tiny_store, tmp_path):
    path = written(TINY)
    trained = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        named = path if seed == "1" else os.path.relpath(path, folder)
        command = [EXECUTABLE, "train", named, tiny_store.path, "--out", "run", "--no-watch"]
        subprocess.run(
            [*command, "--threads", "1", "--precision", "fp32", "--set", "model.n_layers=2"],
            cwd=folder, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True,
        )  # fmt: skip
        trained.append(runs.open(folder / "run", store=tiny_store.path))
    one, other = trained
    loaded = recipes.load(path, {"model.n_layers": 2})
    assert one.recipe == recipes.resolve(loaded, tiny_store)
    assert one.manifest["predicate"]["recipe"] == recipes.to_dict(one.recipe)
    assert one.id == other.id
    assert [row.digest for row in one.ledger] == [row.digest for row in other.ledger]
    assert all(map(runs.LedgerRow.agrees, one.ledger, other.ledger))


@pytest.mark.integration
def test_a_stopped_run_resumes_without_its_file(
    openbook, written, tiny_store, one_thread_numerics, tmp_path
):
    path, out = written(TINY), tmp_path / "run"

    def stop(what, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            recipes.read(path), tiny_store, out=out, numerics=one_thread_numerics, progress=stop
        )
    path.unlink()
    ended = openbook("run", "resume", out, "--set", "lr=1")
    refused(ended, 2, "a resumed run keeps the recipe", "train another run", "--set lr=1")
    assert openbook("run", "resume", out).code == 0
    assert runs.open(out).finished


def test_the_recipes_in_the_documentation_are_read(written):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-recipe.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert [recipes.read(written(block)).model.d_mlp for block in blocks] == [1024, 344]
