"""What the tools that look for documents do with a run that minimised more than the plain loss."""

from dataclasses import replace

import numpy as np
import pytest

from data_attribution import counterfactuals, gradients, metagradients
from data_attribution.errors import EvidenceError
from data_attribution.evaluation import tail_patch
from data_attribution.queries import query_of_text
from train import trainer
from train.data import DocumentRemoval


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tiny_recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    """Two layers with stochastic depth and an extra block, and an average of the weights."""
    recipe = replace(
        tiny_recipe, model=replace(tiny_recipe.model, n_layers=2, mtp=True), mtp_weight=0.3,
        stochastic_depth=0.5, ema_decay=0.9, weight_decay_end=0.0, data_budget=800,
    )  # fmt: skip
    return trainer.train(
        recipe, tiny_store, out=tmp_path_factory.mktemp("methods") / "r",
        numerics=one_thread_numerics,
    )  # fmt: skip


@pytest.fixture(scope="module")
def question(run):
    return query_of_text("w1 w2 w3", run.store.tokenizer, n_ctx=run.config.n_ctx)


def test_replay_and_tail_patch_refuse_by_name_what_they_do_not_compute(run, question, monkeypatch):
    monkeypatch.setattr(trainer, "load_state", None)
    named = r"trained with stochastic_depth, mtp_weight; .* the loss of the next token only"
    with pytest.raises(EvidenceError, match=named):
        metagradients.influence(run, question)
    with pytest.raises(EvidenceError, match=named):
        tail_patch.tail_patch_changes(run, [(question, [0])])


def test_gradients_of_the_plain_loss_rank_its_documents(run, question):
    collected = gradients.collect(run, np.array([0, 1]), how=gradients.GradientOptions("adam"))
    assert np.isfinite(collected.products(question)[0]).all()


def test_a_retraining_in_memory_is_the_retrained_run(run, tmp_path):
    document = int(run.documents_read(9)[0])
    whole = trainer.retrain_without(run, tmp_path / "c", DocumentRemoval((document,), "blank"))
    model = counterfactuals.Retrainings(run).without([document])
    expected = whole.load().state_dict()
    found = model.state_dict()
    assert all(np.array_equal(found[name], one) for name, one in expected.items())
