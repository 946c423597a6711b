"""Walking back through a run: its own states, bounded in number, and what hangs on them."""

import errno
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_attribution import attribution, metagradients, queries, token_index
from data_attribution.errors import EvidenceError
from data_attribution.metagradients import influences, optimizer_vectors, replay
from data_attribution.metagradients.influences import Tally
from data_attribution.metagradients.replay import ReplayTrail
from train import runs, trainer
from train.data import DocumentRemoval, TokenStore
from train.errors import DiskError


pytestmark = pytest.mark.integration


class Counting(ReplayTrail):
    """A trail that knows how many states lay on disk at once."""

    most = 0

    def keep(self, state):
        super().keep(state)
        self.most = max(self.most, len(list(self.folder.iterdir())))


@pytest.fixture(scope="module")
def asked(tiny_run):
    texts = [tiny_run.store.text(row) for row in (3, 40)]
    return [queries.query_of_text(one, tiny_run.store.tokenizer, n_ctx=16) for one in texts]


@pytest.fixture(scope="module")
def found(tiny_run, asked):
    return metagradients.influence(tiny_run, asked)


@pytest.mark.parametrize("room", [30, 9, 8])
@pytest.mark.parametrize(("first", "last"), [(0, 23), (3, 17), (16, 16), (5, 15)])
def test_the_states_walked_through_are_the_trainers_own(tiny_run, tmp_path, room, first, last):
    trail = Counting(tiny_run, tiny_run.numerics, tmp_path, room)
    walked = list(replay.backwards(trail, first, last))
    assert [step for step, _ in walked] == list(range(last + 1, first - 1, -1))
    for step, kept in walked:
        state = trainer.load_state(tiny_run, step, tiny_run.numerics)
        for _ in trail.advance(state, step):
            pass
        expected = optimizer_vectors.of_state(state)
        for name in ("weights", "first", "second"):
            assert torch.equal(getattr(kept, name), getattr(expected, name)), (step, name)
    assert trail.most <= room
    assert list(tmp_path.iterdir()) == []
    assert trail.differing == set()


def test_any_room_of_four_states_or_more_is_kept_to_or_refused_beforehand():
    for room, n_states in itertools.product(range(1, 14), range(1, 60)):
        assert replay.room_for(n_states, room) == (n_states <= most_through(room))


def most_through(room: int) -> int:
    return max(room, room // 2 * most_through(room - room // 2)) if room >= 4 else room


def test_a_state_that_was_put_back_goes_on_to_the_same_bits(tiny_run):
    state = trainer.load_state(tiny_run, 16, tiny_run.numerics)
    begin = optimizer_vectors.of_state(state)
    trail = ReplayTrail(tiny_run, tiny_run.numerics, tiny_run.path, 2)
    for _ in range(2):
        list(trail.advance(state, 24))
        assert torch.equal(
            optimizer_vectors.of_state(state).weights,
            optimizer_vectors.flat(list(tiny_run.load().parameters())),
        )
        optimizer_vectors.put_back(state, begin, 16)


def test_scores_do_not_hang_on_how_much_lies_on_disk_or_how_many_windows_pass_at_once(
    tiny_run, asked, found
):
    states_of = 12 * sum(one.numel() for one in tiny_run.load().parameters())
    other = metagradients.influence(tiny_run, asked, room=8 * states_of, windows=1)
    assert other.replayed > found.replayed
    assert np.array_equal(other.documents, found.documents)
    np.testing.assert_allclose(other.scores, found.scores, rtol=1e-3, atol=2e-6)


def test_questions_asked_together_are_answered_as_alone(tiny_run, asked, found):
    alone = metagradients.influence(tiny_run, asked[1])
    np.testing.assert_allclose(alone.scores[0], found.scores[1], rtol=1e-4, atol=1e-7)
    assert alone.answers[0] == found.answers[1]
    assert found.answers[1] == pytest.approx(
        queries.measure_query(tiny_run.load(), asked[1]).mean()
    )


def test_leaving_a_document_out_of_the_last_steps_takes_away_what_its_score_says(tiny_run, asked):
    found = metagradients.influence(tiny_run, asked[0], first=22)
    earlier = [tiny_run.documents_read(step) for step in range(16, 22)]
    only = np.setdiff1d(found.documents, np.concatenate(earlier))
    scores = found.scores[0, np.searchsorted(found.documents, only)]
    largest = np.argsort(-np.abs(scores))[:4]
    changes = []
    for document in only[largest].tolist():
        removal = DocumentRemoval((document,), mode="loss")
        model = trainer.replay(tiny_run, 22, 23, removal=removal).state.model
        changes.append(found.answers[0] - queries.measure_query(model, asked[0]).mean())
    # Quarters of batches go at once, and the smaller changes bend: a fifth of the largest.
    np.testing.assert_allclose(scores[largest], changes, atol=0.2 * np.abs(changes).max())


def test_scores_of_a_span_are_those_of_its_steps(tiny_run, asked):
    """The last step alone: a document of it counts, one of the step before does not."""
    last = metagradients.influence(tiny_run, asked[0], first=23)
    assert last.documents.tolist() == tiny_run.documents_read(23).tolist()
    two = metagradients.influence(tiny_run, asked[0], first=22)
    assert set(two.documents) == {*tiny_run.documents_read(22), *tiny_run.documents_read(23)}
    only = np.setdiff1d(tiny_run.documents_read(23), tiny_run.documents_read(22))
    places = [np.searchsorted(one.documents, only) for one in (last, two)]
    np.testing.assert_allclose(
        last.scores[0, places[0]], two.scores[0, places[1]], rtol=1e-4, atol=1e-9
    )


def test_a_document_that_a_run_already_lacks_is_not_scored(tiny_run, asked, found, tmp_path):
    lacking = tuple(found.documents[:3].tolist())
    child = trainer.retrain_without(
        tiny_run, tmp_path / "child", DocumentRemoval(lacking, mode="loss")
    )
    again = metagradients.influence(child, asked[0], first=child.steps[0])
    assert not set(lacking) & set(again.documents)


def test_a_ranking_names_the_stretch_that_speaks_most_for_the_answer(tiny_run, asked, found):
    ranking = found.ranking()
    assert np.all(np.diff(ranking.scores) <= 0)
    assert ranking.scores[0] == found.scores[0].max()
    best = int(ranking.documents[0])
    offset, length = ranking.where(best)
    row = int(np.searchsorted(found.documents, best))
    begin = found.target_starts[row]
    inside = found.target_scores[0, begin + offset : begin + offset + length].sum()
    n_tokens = int(tiny_run.store.lengths[best])
    targets = found.target_scores[0, begin : begin + n_tokens]
    assert inside == pytest.approx(max(
        targets[start:stop].sum()
        for start in range(n_tokens) for stop in range(start + 1, n_tokens + 1)
    ))  # fmt: skip
    assert ranking.details["steps"] == [0, 23]
    assert ranking.details["bit-exact replay"]


def test_the_scores_of_targets_add_up_to_those_of_documents(found):
    sums = np.add.reduceat(found.target_scores, found.target_starts, axis=1)
    np.testing.assert_allclose(sums, found.scores)
    assert found.scores.any(axis=1).all()


@pytest.mark.parametrize(
    ("scores", "stretch"),
    [([], (0, 0)), ([-1.0, -3.0], (0, 1)), ([1.0, -2.0, 3.0, 1.0], (2, 2)), ([2, -1, 2], (0, 3))],
)
def test_the_heaviest_stretch(scores, stretch):
    assert influences.heaviest(np.array(scores, float)) == stretch


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first": 5, "last": 24}, "has done 0 to 23"),
        ({"first": 7, "last": 3}, "steps 7 to 3"),
        ({"room": 1000}, "give more room"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_line(tiny_run, asked, changes, said):
    with pytest.raises(EvidenceError, match=said):
        metagradients.influence(tiny_run, asked, **changes)
    with pytest.raises(EvidenceError, match="no question"):
        metagradients.influence(tiny_run, [])


def test_an_interrupt_leaves_nothing_on_disk(tiny_run, asked, tmp_path):
    def interrupt(what, done, total):
        if what == "steps differentiated" and done == 3:
            assert list(tmp_path.rglob("*.f32"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metagradients.influence(tiny_run, asked, scratch=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_run, asked, tmp_path, monkeypatch):
    def full(path, kept):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(optimizer_vectors, "write", full)
    with pytest.raises(DiskError, match="the disk is full"):
        metagradients.influence(tiny_run, asked, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_found_for_a_target_is_added_to_its_document_as_often_as_it_was_read():
    """Windows of 4 targets overlap; documents 0 and 2 count, 1 does not; what follows is padding.

    Offset    0    1  2  3    4  5    6  7  8    9 10
    Token    eot   a  b eot   c eot   d  e eot  eot eot
    """
    store = TokenStore(Path("held"), {})
    # A store reads these from its folder when they are asked for.
    store.__dict__.update(starts=np.array([1, 4, 6]), lengths=np.array([2, 1, 2]))
    documents, starts = np.array([0, 2]), np.array([0, 3])
    tally = Tally(store, 4, documents, starts, np.zeros((2, 6)))
    found = torch.tensor([[1.0, -2, 3, 4], [10, -20, -30, 40], [100, 200, -300, 400]])
    tally.add(np.array([0, 0, 5]), torch.stack([found, -2 * found]))
    #            a    b   eot    d    e   eot
    expected = [11, -22, -27, 100, 200, -300]
    assert tally.totals.tolist() == [expected, [-2 * one for one in expected]]


def test_what_states_a_pair_speaks_most_for_it(lookup_run, tmp_path):
    """Twenty of 240 documents say "k3 is v3"; the question is how probable that text is."""
    shutil.copytree(lookup_run.store.path, tmp_path / "store")
    run = runs.open(lookup_run.path, store=tmp_path / "store")
    token_index.build(run.store)
    request = attribution.make_request(run, "k3 is v3")
    (ranking,) = metagradients.rank_by_replay([request], window=metagradients.ReplayOptions(24))
    says = [run.store.text(int(one)) == "k3 is v3" for one in ranking.documents]
    assert sum(says[:10]) >= 8
    assert ranking.details["steps"] == [136, 159]
    (default,) = metagradients.rank_by_replay([request])
    epoch = -(-run.store.train_tokens // run.recipe.tokens_per_step)
    assert default.details["steps"] == [160 - epoch, 159]
    sources = attribution.documents(run, "k3 is v3", methods="replay", limit=3, fold=False)
    assert {one.grade for one in sources.items} == {"replay"}


def test_a_run_of_muon_is_refused_by_name(muon_run, asked):
    with pytest.raises(EvidenceError, match="with muon; replay differentiates") as error:
        metagradients.influence(muon_run, asked)
    assert "\n" not in str(error.value)
