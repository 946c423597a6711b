"""A run that was stopped is trained again as far as it went, and not as far as it was asked to."""

import pytest
import torch

from data_attribution import counterfactuals, removals
from data_attribution.errors import CounterfactualError
from data_attribution.evaluations.retrainings import Retrainings
from data_attribution.questions import Question
from train import loop, runs


class Stop(Exception):
    """What ends the training."""


@pytest.fixture
def stopped(tiny_recipe, tiny_store, one_thread_numerics, tmp_path):
    """20 of 24 steps are in the ledger, and 16 in the last checkpoint."""

    def stop(what: str, done: int, steps: int | None) -> None:
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        loop.run(
            tiny_recipe, tiny_store, out=tmp_path / "run", numerics=one_thread_numerics,
            progress=stop,
        )  # fmt: skip
    run = runs.open(tmp_path / "run", store=tiny_store.path)
    assert (run.finished, run.steps_done, run.steps[-1]) == (False, 20, 16)
    return run


def weights(model):
    return torch.cat([one.flatten() for one in model.state_dict().values()])


def test_it_is_trained_again_to_its_own_last_checkpoint(stopped, tiny_run, tmp_path):
    documents = [one for one in range(120) if len(removals.reading(stopped, one))][:3]
    tokens = torch.tensor([[0, 1, 2], [0, 3, 4]])
    asked = Question("logit", "nats", tokens, lambda logits, values, row: logits[:, -1, 5])

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
    finished = loop.resume(stopped.path, store=stopped.store.path)
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
    assert all(len(removals.reading(stopped, one)) == 0 for one in late)
    with pytest.raises(CounterfactualError, match="never read in 16 steps"):
        removals.checked(stopped, late[:1])
    early = [one for one, read in steps.items() if (read < 16).any()]
    for seed in range(3):
        drawn = removals.matched_random(stopped, early[:20], seed=seed)
        assert not {*drawn} & {*late}
