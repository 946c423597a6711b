"""A run that was stopped is trained again as far as it went, and not as far as it was asked to."""

import shutil

import numpy as np
import pytest
import torch

from data_attribution import counterfactuals, evaluation, metagradients, token_index
from data_attribution.attribution import passages
from data_attribution.counterfactuals import Retrainings, document_sets
from data_attribution.errors import CounterfactualError
from data_attribution.queries import Query
from data_attribution.ranking import Ranking
from interp import metrics
from train import runs, trainer
from train.data import DocumentRemoval, open_store
from train.errors import TrainError


pytestmark = pytest.mark.integration


class Stop(Exception):
    """What ends the training."""


@pytest.fixture
def stopped(tiny_recipe, tiny_store, one_thread_numerics, tmp_path):
    """20 of 24 steps are in the ledger, and 16 in the last checkpoint."""

    def stop(what: str, done: int, steps: int | None) -> None:
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        trainer.train(
            tiny_recipe, tiny_store, out=tmp_path / "run", numerics=one_thread_numerics,
            progress=stop,
        )  # fmt: skip
    run = runs.open(tmp_path / "run", store=tiny_store.path)
    assert (run.finished, run.steps_done, run.steps[-1]) == (False, 20, 16)
    return run


def weights(model):
    return torch.cat([one.flatten() for one in model.state_dict().values()])


def test_it_is_trained_again_to_its_own_last_checkpoint(stopped, tiny_run, tmp_path):
    documents = [one for one in range(120) if len(stopped.steps_learned(one))][:3]
    tokens = torch.tensor([[0, 1, 2], [0, 3, 4]])
    logit = metrics.custom("logit", lambda logits: logits[:, -1, 5], unit="nats")
    asked = Query("logit", tokens, logit)

    def without(run):
        return counterfactuals.without(
            run, documents, asked, out=tmp_path / "again", control="none", together="none"
        )

    found = without(stopped)
    again = runs.open(found.runs[0], store=stopped.store.path)
    assert (again.finished, again.steps[-1], again.steps_done) == (False, 16, 16)
    in_memory = Retrainings(stopped).without(documents)
    assert torch.equal(weights(in_memory), weights(again.load()))
    # Gone on with, the run goes further than what was trained without the documents, and so does
    # that when it is asked for again: to where the unbroken run's goes.
    finished = trainer.resume(stopped.path, store=stopped.store.path)
    assert torch.equal(weights(finished.load()), weights(tiny_run.load()))
    whole = without(finished)
    assert whole.runs == found.runs
    ended = runs.open(found.runs[0], store=stopped.store.path)
    assert (ended.finished, ended.steps[-1]) == (True, 24)
    assert torch.equal(weights(ended.load()), weights(Retrainings(tiny_run).without(documents)))
    assert whole.changes[0].after.tolist() != found.changes[0].after.tolist()


def test_what_was_read_behind_the_last_checkpoint_was_not_read(stopped, tmp_path):
    steps = {one: stopped.steps_reading(one) for one in range(120)}
    late = [one for one, read in steps.items() if len(read) and read.min() >= 16]
    assert late
    assert all(len(stopped.steps_learned(one)) == 0 for one in late)
    with pytest.raises(CounterfactualError, match="never read in 16 steps"):
        document_sets.checked_documents(stopped, late[:1])
    early = [one for one, read in steps.items() if (read < 16).any()]
    for seed in range(3):
        drawn = counterfactuals.matched_random(stopped, early[:20], seed=seed)
        assert not {*drawn} & {*late}


def test_what_was_read_behind_the_last_checkpoint_is_no_source(stopped, tmp_path):
    steps = {one: stopped.steps_reading(one) for one in range(120)}
    late = [one for one, read in steps.items() if len(read) and read.min() >= 16]
    again = [one for one, read in steps.items() if len(read) and read.min() < 16 <= read.max()]
    shutil.copytree(stopped.store.path, tmp_path / "store", dirs_exist_ok=True)
    index = token_index.build(open_store(tmp_path / "store"))
    named = np.array([late[0], again[0]])
    alike = np.array([np.nan, np.nan])  # every prompt scores alike, so there is no interval
    ranking = Ranking(named, np.array([2.0, 1.0]), low=alike, high=alike)
    found = {"gradient": ranking}
    cited = passages.sources(stopped, index, ranking, limit=2, grades={}, evidence=found)
    assert cited.unread == 1
    (one,) = cited.items
    assert one.low is one.high is one.evidence["gradient"].low is one.evidence["gradient"].high
    assert one.low is None
    assert one.document == again[0]
    assert max(one.steps) < 16
    top = evaluation.first_read(stopped, {"case": ranking}, first=2)
    assert top == {"case": again[:1]}


def test_a_span_ends_at_the_last_checkpoint_and_begins_where_an_optimizer_was_kept(
    stopped, tiny_run, tmp_path
):
    assert metagradients.span(stopped, 3) == (13, 15)
    assert metagradients.span(tiny_run, 100) == (0, 23)
    late = next(one for one in range(120) if (tiny_run.steps_reading(one)[:1] > 16).any())
    child = trainer.retrain_without(tiny_run, tmp_path / "child", DocumentRemoval((late,)))
    assert child.steps[0] == 16
    assert metagradients.span(child, 20) == (16, 23)
    assert metagradients.span(child, 3) == (21, 23)


def test_it_is_not_branched_for_what_it_never_saw_nor_gone_on_with_to_no_checkpoint(
    stopped, tmp_path
):
    late = next(one for one in range(120) if (stopped.steps_reading(one)[:1] >= 16).any())
    with pytest.raises(TrainError, match="1 documents was ever read in the 16 steps before"):
        trainer.retrain_without(stopped, tmp_path / "child", DocumentRemoval((late,)))
    assert not (tmp_path / "child").exists()
    before = (stopped.path / "manifest.json").read_bytes()
    for last in (8, 20, 32):  # below the newest, between two, behind the end
        with pytest.raises(TrainError, match=rf"to step {last}; its checkpoints are \[16, 24\]"):
            trainer.resume(stopped.path, store=stopped.store.path, last=last)
    assert (stopped.path / "manifest.json").read_bytes() == before
    assert trainer.resume(stopped.path, store=stopped.store.path, last=16).steps[-1] == 16
