"""A run with a data budget reads the begin of the store alone, epoch after epoch."""

from dataclasses import replace

import numpy as np
import pytest

from data_attribution.tracing import exposure
from train import recipes, runs, trainer
from train.data import Corpus, Document, build_store
from train.errors import RecipeError, StoreError


pytestmark = pytest.mark.integration

BUDGET = 400


@pytest.fixture(scope="module")
def run(tiny_recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    return trainer.train(
        replace(tiny_recipe, data_budget=BUDGET), tiny_store,
        out=tmp_path_factory.mktemp("budget") / "r", numerics=one_thread_numerics,
    )  # fmt: skip


def test_every_epoch_reads_every_window_of_the_budget_once_in_a_new_order(run):
    windows = (BUDGET - 1) // 16
    read = np.concatenate([run.order.starts(step) for step in range(24)]) // 16
    assert read.max() == windows - 1
    epochs = [read[first : first + windows] for first in range(0, len(read), windows)]
    assert len(epochs) == 4
    for epoch in epochs[:-1]:
        assert sorted(epoch) == list(range(windows))
    assert not np.array_equal(epochs[0], epochs[1])


def test_documents_behind_the_budget_are_never_read(run):
    store = run.store
    inside = np.unique(np.concatenate([run.documents_read(step) for step in range(24)]))
    begins = store.starts[inside]
    assert begins.max() < BUDGET
    outside = int(np.flatnonzero(store.starts >= BUDGET)[0])
    assert len(run.steps_reading(outside)) == 0
    for document in inside[:5]:
        read = [step for step in range(24) if document in run.documents_read(step)]
        assert run.steps_reading(int(document)).tolist() == read


def test_the_whole_store_as_a_budget_is_the_plain_order(tiny_run, tiny_store):
    whole = replace(tiny_run.recipe, data_budget=tiny_store.train_tokens)
    assert runs.order_of(whole, tiny_store) == tiny_run.order


def test_it_replays_and_is_another_run(run, tiny_run):
    assert trainer.verify(run).level == "bit-exact"
    assert run.id != tiny_run.id


def test_an_epoch_of_a_trace_is_one_of_the_budget(run, tiny_run):
    steps = exposure.exposure_of_documents(run, [0]).epoch
    assert steps == pytest.approx(((BUDGET - 1) // 16) / 4)
    assert exposure.exposure_of_documents(tiny_run, [0]).epoch == (run.store.train_tokens - 1) / 64


def test_nanogpts_sampler_stays_within_the_budget(tiny_recipe, tiny_store, tmp_path):
    recipe = replace(tiny_recipe, sampler="nanogpt", data_budget=100, steps=8)
    run = trainer.train(recipe, tiny_store, out=tmp_path / "r")
    assert max(run.order.starts(step).max() for step in range(8)) + 16 < 100


@pytest.mark.parametrize("budget", [16, 10**9])
def test_a_budget_that_the_store_or_a_window_does_not_fit_is_refused(
    budget, tiny_recipe, tiny_store
):
    with pytest.raises(StoreError, match=f"data_budget={budget}, windows of 16 .* from 17 to"):
        recipes.resolve(tiny_recipe, tiny_store, data_budget=budget)


def test_a_budget_and_late_documents_are_refused(tiny_recipe, late_store):
    with pytest.raises(RecipeError, match="late_batch=1 and data_budget=30, which ends before"):
        recipes.resolve(tiny_recipe, late_store, late_batch=1, data_budget=30)


@pytest.fixture(scope="module")
def late_store(tmp_path_factory):
    documents = [
        Document(f"late@0/{row}", f"a b c d e f g h i j {row}", "late", "0", row, late=row > 8)
        for row in range(12)
    ]
    corpus = Corpus("late", "late", "0", lambda: iter(documents), tokenizer="word")
    return build_store(corpus, out=tmp_path_factory.mktemp("late") / "store")
