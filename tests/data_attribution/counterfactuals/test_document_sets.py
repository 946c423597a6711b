"""Controls are drawn at random among the likest documents, and no two of one question are equal.

One document has one likest other. If it were always taken, every seed would give the same control,
controls would differ by nothing, and any effect would be proved.
"""

from unittest.mock import Mock

import numpy as np
import pytest

from data_attribution import counterfactuals
from data_attribution.counterfactuals import retraining
from data_attribution.errors import CounterfactualError
from interp import behaviours
from tests.test_golden_files import GOLDEN
from train import runs
from train.data import TokenStore
from train.runs import Run


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def golden():
    return runs.open(GOLDEN / "run")


def run_of(lengths, firsts):
    """What the draws ask of a run: documents of given lengths, first read at given steps."""
    lengths, firsts = np.array(lengths, np.int64), np.array(firsts, np.int64)
    run = Mock(spec=Run, store=Mock(spec=TokenStore, lengths=lengths, n_documents=len(lengths)))
    run.first_steps_learned = lambda some: firsts[np.array(some)]
    run.store.document = lambda one: Mock(sha256=str(one))
    return run


def all_drawn(run, document, avoid=()):
    """Every document that some seed draws as the control of this one."""
    return {
        counterfactuals.matched_random(run, [document], seed=seed, avoid=avoid)[0]
        for seed in range(80)
    }


def test_a_control_is_one_of_the_eight_nearest_in_length():
    """The length of a document is its number here, and all were first read at the same step."""
    run = run_of(range(100), [5] * 100)
    assert all_drawn(run, 50) == {46, 47, 48, 49, 51, 52, 53, 54}
    assert all_drawn(run, 0) == set(range(1, 9))
    # 3,000 tokens from any other document: those of the nearest length nevertheless.
    assert all_drawn(run_of([*range(100), 3000], [5] * 101), 100) == set(range(92, 100))


def test_of_one_length_it_is_one_of_the_eight_that_were_first_read_at_the_nearest_steps():
    assert all_drawn(run_of([7] * 100, range(100)), 50) == {46, 47, 48, 49, 51, 52, 53, 54}
    # The odd ones were never read.
    firsts = [one if one % 2 == 0 else -1 for one in range(100)]
    assert all_drawn(run_of([7] * 100, firsts), 50) == {42, 44, 46, 48, 52, 54, 56, 58}


def test_farther_lengths_are_drawn_only_until_there_are_eight():
    """Others as long were read late, and those one token longer at the same time as document 0."""

    def drawn(n_as_long):
        firsts = [0, *range(90, 90 + n_as_long), *[1] * 20]
        return all_drawn(run_of([7] * (1 + n_as_long) + [8] * 20, firsts), 0)

    assert drawn(8) == set(range(1, 9))
    assert drawn(7) <= set(range(8, 28))


def test_the_same_seed_gives_the_same_documents_and_several_seeds_different_ones(golden):
    removed, avoid = (3, 14, 15, 40), (1, 2)
    several = counterfactuals.matched_random_sets(golden, removed, 4, avoid=avoid)
    assert len({*several.values()}) == 4
    for seed, control in several.items():
        again = counterfactuals.matched_random(golden, removed, seed=seed, avoid=avoid)
        assert again == control
        assert len({*control}) == len(removed)
        assert not {*control} & {*removed, *avoid}


def test_a_seed_that_draws_a_control_again_is_left_out():
    run = run_of(range(100), [5] * 100)
    several = counterfactuals.matched_random_sets(run, [50], 8)
    assert {one for (one,) in several.values()} == {46, 47, 48, 49, 51, 52, 53, 54}
    assert [*several] != [*range(8)]
    for seed, control in several.items():
        assert counterfactuals.matched_random(run, [50], seed=seed) == control


def test_more_controls_than_there_are_different_ones_are_refused():
    run = run_of([7] * 4, [0, 1, 2, -1])
    assert {*counterfactuals.matched_random_sets(run, [0], 2).values()} == {(1,), (2,)}
    said = "3 different controls were asked for, and 150 draws .* gave 2; ask for at most 2"
    with pytest.raises(CounterfactualError, match=said):
        counterfactuals.matched_random_sets(run, [0], 3)


def test_both_controls_of_one_document_are_different_runs(golden, monkeypatch, tmp_path):
    """Of 97 documents, 95 had one likest other, which was both controls: noise 0 proved it all."""
    asked, wanted = behaviours.read(GOLDEN / "results" / "behaviour.json"), []

    class Drawn(Exception):
        """The trainings are not needed: what they are to remove is known before."""

    def note(_run, several, choices, **_options):
        wanted.append((several, choices))
        raise Drawn

    monkeypatch.setattr(retraining, "retrain_each", note)
    for document in (3, 4, 5):
        with pytest.raises(Drawn):
            counterfactuals.without(golden, [document], asked, together="none", out=tmp_path)
    for (removed, *controls), (_, *choices) in wanted:
        assert len({removed, *controls}) == 3
        for control, choice in zip(controls, choices, strict=True):
            again = counterfactuals.matched_random(
                golden, removed, seed=choice.seed, avoid=choice.avoided
            )
            assert again == control
