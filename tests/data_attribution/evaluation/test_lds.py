"""Scores that are right foretell what retraining does, and others do not.

The oracle is a question whose answer is a sum over the documents that are left, so that the right
scores are known; retraining is held against `train.trainer.retrain_without`, weight by weight.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from data_attribution import evaluation, queries
from data_attribution.counterfactuals import Retrainings
from data_attribution.errors import CounterfactualError, EvidenceError
from interp import behaviours
from train import trainer
from train.data import DocumentRemoval
from train.errors import DamagedError


pytestmark = pytest.mark.integration
TRUE = np.random.default_rng(7).standard_normal(200)
SUBSETS = evaluation.draw_subsets(range(200), n=40, share=0.05, seed=3)
LEFT = np.array([TRUE.sum() - TRUE[list(one)].sum() for one in SUBSETS])


def same_weights(ours, theirs):
    return all(
        torch.equal(one, other)
        for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


# --- the score -----------------------------------------------------------------------------------


def test_the_true_scores_score_one_and_their_opposite_minus_one():
    found = evaluation.lds_score(TRUE, SUBSETS, LEFT)
    assert (found.rho, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.n == 40
    assert evaluation.lds_score(-TRUE, SUBSETS, LEFT).rho == pytest.approx(-1)


def test_neither_scale_nor_what_all_subsets_share_matters():
    assert evaluation.lds_score(100 * TRUE + 5, SUBSETS, 0.1 * LEFT - 3).rho == pytest.approx(1)


def test_random_scores_score_nothing():
    draw = np.random.default_rng(0)
    found = [evaluation.lds_score(draw.standard_normal(200), SUBSETS, LEFT) for _ in range(50)]
    assert abs(np.mean([one.rho for one in found])) < 0.06
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.85


def test_it_is_the_rank_correlation_with_an_interval_around_it():
    scores = TRUE + np.random.default_rng(1).standard_normal(200)
    found = evaluation.lds_score(scores, SUBSETS, LEFT)
    rho, _ = spearmanr([-scores[list(one)].sum() for one in SUBSETS], LEFT)
    assert found.rho == pytest.approx(rho)
    assert found.low < found.rho < found.high
    again = evaluation.lds_score(scores, SUBSETS, LEFT, seed=1)
    assert again.rho == found.rho
    assert again.low == pytest.approx(found.low, abs=0.1)


def test_equal_scores_share_their_rank():
    halves = (TRUE > 0).astype(float)
    rho, _ = spearmanr([-halves[list(one)].sum() for one in SUBSETS], LEFT)
    assert evaluation.lds_score(halves, SUBSETS, LEFT).rho == pytest.approx(rho)


def test_a_document_without_a_score_changes_nothing():
    whole = evaluation.spread(np.array([4, 1]), np.array([2.0, -1.0]), 6)
    assert whole.tolist() == [0, -1, 0, 0, 2, 0]
    assert evaluation.predicted_change(whole, [(1, 4), (0, 5), (4,)]).tolist() == [-1, 0, -2]


@pytest.mark.parametrize(
    ("predicted", "actual", "said"),
    [
        (np.zeros(200), LEFT, "predictions of 40 subsets run from 0 to 0"),
        (TRUE, np.ones(40), "answers of 40 subsets run from 1 to 1"),
        (TRUE, np.full(40, np.nan), "answers of 40 subsets"),
        (TRUE, LEFT[:39], "40 subsets with 39 answers"),
    ],
)
def test_what_cannot_be_correlated_is_refused(predicted, actual, said):
    with pytest.raises(EvidenceError, match=said):
        evaluation.lds_score(predicted, SUBSETS, actual)


# --- the draw ------------------------------------------------------------------------------------


def test_subsets_are_drawn_by_seed_alone_and_without_repeats():
    drawn = evaluation.draw_subsets(range(300, 400), n=12, share=0.1, seed=5)
    assert drawn == evaluation.draw_subsets(np.arange(300, 400), n=12, share=0.1, seed=5)
    assert drawn != evaluation.draw_subsets(range(300, 400), n=12, share=0.1, seed=6)
    assert {len(one) for one in drawn} == {10}
    assert all(list(one) == sorted(set(one)) and one[0] >= 300 for one in drawn)


def test_every_document_is_drawn_equally_often():
    drawn = evaluation.draw_subsets(range(50), n=2000, share=0.1, seed=0)
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    assert counts.sum() == 2000 * 5
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


@pytest.mark.parametrize(("count", "n", "share"), [(20, 0, 0.1), (20, 4, 0.0), (1, 4, 0.5)])
def test_subsets_that_cannot_be_are_refused(count, n, share):
    with pytest.raises(EvidenceError, match="cannot be drawn"):
        evaluation.draw_subsets(range(count), n=n, share=share)


# --- the retraining ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_twice(tiny_run):
    """Documents that are read before step 12 and behind it."""
    every = range(tiny_run.store.n_documents)
    steps = {one: tiny_run.steps_reading(one) for one in every}
    return [one for one in every if (steps[one] < 12).any() and (steps[one] >= 12).any()]


@pytest.mark.parametrize("mode", ["blank", "loss"])
def test_retrained_weights_are_those_of_a_branch(tiny_run, read_twice, tmp_path, mode):
    subset = tuple(read_twice[:5])
    branch = trainer.retrain_without(tiny_run, tmp_path / "branch", DocumentRemoval(subset, mode))
    ours = Retrainings(tiny_run, mode).without(subset[::-1])
    assert same_weights(ours, branch.load())
    assert not same_weights(ours, tiny_run.load())


def test_in_a_window_only_what_is_read_there_is_left_out(tiny_run, read_twice):
    """Step 12 is no checkpoint: what is done again before it is done as the run did it."""
    window = Retrainings(tiny_run, "loss", first=12)
    one, other = window.without(read_twice[:3]), window.without(read_twice[3:6])
    state = trainer.replay(tiny_run, 0, 11).state
    joined = DocumentRemoval(tuple(read_twice[:3]), "loss")
    numerics, order = tiny_run.numerics, tiny_run.order
    steps = trainer.training_steps(
        state, tiny_run.recipe, tiny_run.store, order, numerics, 24, joined
    )
    assert len(list(steps)) == 12
    assert same_weights(one, state.model)
    assert not same_weights(one, other)
    assert not same_weights(one, Retrainings(tiny_run, "loss").without(read_twice[:3]))


def test_weights_are_kept_and_found_again_and_checked(tiny_run, read_twice, tmp_path):
    steps = []
    again = Retrainings(tiny_run, "loss", out=tmp_path)
    first = again.without(read_twice[:2], lambda *one: steps.append(one))
    assert len(steps) > 0
    steps.clear()
    assert same_weights(again.without(read_twice[:2], lambda *one: steps.append(one)), first)
    assert steps == []
    (kept,) = tmp_path.iterdir()
    assert not same_weights(replace(again, mode="blank").without(read_twice[:2]), first)
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    with pytest.raises(DamagedError, match="are not what the file's name says"):
        again.without(read_twice[:2])


def test_what_a_subset_takes_from_a_question_is_measured(
    lookup_run, lookup_store, lookup_behaviour
):
    """The subset that holds what is said of key 3 loses it, the other does not."""
    whole = behaviours.read(lookup_behaviour)
    parts = ("clean", "corrupt", "answer", "foil")
    asked = [
        queries.query_of_behaviour(
            replace(whole, **{one: getattr(whole, one)[k : k + 1] for one in parts})
        )
        for k in (3, 6)
    ]
    said = [lookup_store.text(one) for one in range(lookup_store.n_documents)]
    of_3 = tuple(one for one, text in enumerate(said) if text == "k3 is v3")
    of_9 = tuple(one for one, text in enumerate(said) if text == "k9 is v9")
    reported = []
    found = evaluation.retrained_on_subsets(
        lookup_run, [of_3, of_9], asked, progress=lambda *one: reported.append(one)
    )
    full = [queries.measure_query(lookup_run.load(), one).mean() for one in asked]
    assert found.shape == (2, 2)
    assert found[0, 0] < full[0] - 3
    assert found[0, 1] > full[0] - 1
    assert min(found[1]) > full[1] / 2  # nats; which nonce values stay apart varies
    assert [one[1:] for one in reported] == [(1, 2), (2, 2)]


def test_a_document_that_is_not_read_there_is_refused(tiny_run):
    early = [one for one in range(60) if tiny_run.steps_reading(one).size > 0][:1]
    last = int(tiny_run.steps_reading(early[0]).max())
    never = tiny_run.store.n_documents - 1
    with pytest.raises(CounterfactualError, match="1 of the 2 documents were never read in 24"):
        evaluation.retrained_on_subsets(tiny_run, [(*early, never)], [])
    with pytest.raises(CounterfactualError, match=f"never read from step {last + 1} on of 24"):
        evaluation.retrained_on_subsets(tiny_run, [tuple(early)], [], first=last + 1)
