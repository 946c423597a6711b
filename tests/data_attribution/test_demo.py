"""A demo opens only what it would make itself, and says which of its claims do not hold."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from data_attribution import demo
from data_attribution.errors import DemoError
from train import corpora, loop, recipes, token_store


@pytest.fixture(scope="module")
def planted():
    return corpora.open("planted")


@pytest.fixture(scope="module")
def store(planted, tmp_path_factory):
    return token_store.build(planted, out=tmp_path_factory.mktemp("data") / "planted")


@pytest.fixture(autouse=True)
def _today(planted, monkeypatch):
    """The corpus is drawn once for the whole file."""
    monkeypatch.setattr(corpora, "open", lambda _: planted)


@pytest.fixture(scope="module")
def recipe(store):
    return recipes.resolve(recipes.PLANTED, store, steps=2)


@pytest.fixture(scope="module")
def run(store, recipe, one_thread_numerics, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "planted"
    return loop.run(recipe, store, out=out, numerics=one_thread_numerics)


def test_the_store_and_the_run_of_today_are_opened(store, recipe, run, tmp_path):
    demo.refuse_other(store, run.path, recipe)
    demo.refuse_other(store, tmp_path / "not there yet", recipe)


def test_a_run_by_another_recipe_is_refused_with_what_differs(store, recipe, run):
    wider = replace(recipe, lr=1e-3, model=replace(recipe.model, d_model=64))
    said = rf"model.d_model {recipe.model.d_model}, not 64.*; remove .*{run.path.name}$"
    with pytest.raises(DemoError, match=said) as refused:
        demo.refuse_other(store, run.path, wider)
    assert f"lr {recipe.lr}, not 0.001" in str(refused.value)
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


def test_a_store_of_other_texts_or_another_truth_is_refused(
    store, planted, recipe, tmp_path, monkeypatch
):
    texts, truth = list(planted.read()), planted.truth()
    texts[7] = replace(texts[7], text="another")
    n, run_path = len(texts), tmp_path / "run"
    for said, changes in (
        (f"{n - 1:,} of them among the {n:,} of today's", {"read": lambda: iter(texts)}),
        ("with another truth table", {"truth": lambda: {**truth, "seed": -1}}),
    ):
        monkeypatch.setattr(corpora, "open", lambda _, changes=changes: replace(planted, **changes))
        with pytest.raises(DemoError, match=f"{said}.*; remove {store.path} and {run_path}$"):
            demo.refuse_other(store, run_path, recipe)


def test_a_store_packed_by_another_seed_is_refused(store, recipe, tmp_path):
    with pytest.raises(DemoError, match="was packed by seed 0, not 1"):
        demo.refuse_other(store, tmp_path, replace(recipe, order_seed=1))


def test_a_run_on_another_store_is_refused(store, recipe, run):
    moved = replace(store, manifest={**store.manifest, "fingerprint": "0" * 64})
    with pytest.raises(DemoError, match="trained on another store"):
        demo.refuse_other(moved, run.path, recipe)


def test_what_is_there_is_opened_and_nothing_is_trained(store, run, monkeypatch):
    monkeypatch.setattr(recipes, "PLANTED", replace(recipes.PLANTED, steps=2))
    again = demo.trained(store.path, run.path, lambda _: nullcontext(lambda *_: None))
    assert again.id == run.id
