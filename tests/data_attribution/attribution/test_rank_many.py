"""Many targets are ranked as each of them alone, and what they have in common is done once."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from data_attribution import attribution, metagradients, queries, token_index
from data_attribution.attribution import Gradient, Lexical, Replay
from data_attribution.errors import EvidenceError
from data_attribution.gradients import features
from data_attribution.metagradients import influences
from interp import behaviours
from interp.behaviours import Behaviour
from train import runs


METHODS = (Lexical(), Gradient(within=("L0.mlp",)), Replay(steps=4))
# Words choose 30 of 240 documents for each target: the lists of two targets differ.
FEW = (Lexical(), Gradient(within=("L0.mlp",), candidates=30), Replay(steps=4))


@pytest.fixture(scope="module")
def run(lookup_run, tmp_path_factory):
    store = tmp_path_factory.mktemp("indexed") / "store"
    shutil.copytree(lookup_run.store.path, store)
    run = runs.open(lookup_run.path, store=store)
    token_index.build(run.store)
    return run


@pytest.fixture(scope="module")
def pairs(lookup_behaviour) -> list[Behaviour]:
    """Two of the twelve pairs, each as a behaviour."""
    whole = behaviours.read(lookup_behaviour)
    parts = ("clean", "corrupt", "answer", "foil")
    return [
        replace(
            whole, name=f"pair {k}", **{name: getattr(whole, name)[k : k + 1] for name in parts}
        )
        for k in (1, 3)
    ]


def test_every_target_is_ranked_as_it_is_alone(run, pairs):
    targets = [*pairs, "k3 is v3"]
    together = attribution.rank_many(run, targets, methods=FEW)
    scored = [set(rankings["gradient"].documents.tolist()) for rankings in together]
    assert scored[0] != scored[1]
    for target, rankings in zip(targets, together, strict=True):
        (alone,) = attribution.rank_many(run, [target], methods=FEW)
        assert [*rankings] == [*alone] == ["lexical", "gradient", "replay"]
        for name, ranking in rankings.items():
            assert set(ranking.documents.tolist()) == set(alone[name].documents.tolist())
            by_document = np.argsort(ranking.documents), np.argsort(alone[name].documents)
            largest = np.abs(alone[name].scores).max()
            np.testing.assert_allclose(
                ranking.scores[by_document[0]],
                alone[name].scores[by_document[1]],
                atol=1e-5 * largest,
            )
            assert ranking.details == {**alone[name].details, **_answer(ranking.details)}
        assert rankings["gradient"].details["scored"] == 30


def _answer(details: dict) -> dict:
    """The answer of a replay: the last digits depend on how many queries are answered at once."""
    return {name: value for name, value in details.items() if name == "answer"}


def test_gradients_and_replay_are_computed_once_for_all_targets(run, pairs, monkeypatch):
    collected, replays = [], []
    document_features, influence = features.document_features, influences.influence

    def counting(model, store, documents, *others, **options):
        collected.extend(documents.tolist())
        return document_features(model, store, documents, *others, **options)

    def replaying(run, several, **options):
        replays.append(len(several))
        return influence(run, several, **options)

    monkeypatch.setattr(features, "document_features", counting)
    monkeypatch.setattr(influences, "influence", replaying)
    together = attribution.rank_many(run, pairs, methods=FEW)
    union = {one for rankings in together for one in rankings["gradient"].documents.tolist()}
    assert sorted(collected) == sorted(union)
    assert len(union) < 60
    assert replays == [2]


def test_candidates_are_all_that_is_ranked_and_sources_come_from_the_same_rankings(run, pairs):
    chosen = np.array([3, 7, 50, 100])
    (rankings,) = attribution.rank_many(run, pairs[:1], methods=METHODS, candidates=chosen)
    for ranking in rankings.values():
        assert set(ranking.documents.tolist()) <= {*chosen.tolist()}
    sources = attribution.documents(run, pairs[0], methods=METHODS, candidates=chosen, fold=False)
    fused = attribution.fuse(rankings)
    assert [*sources.documents] == [
        one for one in fused.documents.tolist() if len(run.steps_learned(one))
    ]
    assert [one.score for one in sources] == fused.scores[: len(sources)].tolist()


def test_a_query_has_no_words_and_leaves_them_out_for_all(run, pairs):
    query = queries.query_of_behaviour(pairs[0])
    rankings = attribution.rank_many(run, [query, pairs[1]], methods="fused")
    assert [[*one] for one in rankings] == [["gradient"], ["gradient"]]
    with pytest.raises(EvidenceError, match="no words that lexical evidence could look for"):
        attribution.rank_many(run, [query], methods="lexical")


def test_what_cannot_be_ranked_together_is_refused(run, pairs):
    with pytest.raises(EvidenceError, match="no targets were given"):
        attribution.rank_many(run, [])
    requests = [attribution.make_request(run, pairs[0], seed=seed) for seed in (0, 1)]
    for method in (Gradient(), Replay(steps=4)):
        with pytest.raises(EvidenceError, match="2 requests to 1 runs with 2 seeds"):
            method.rank_documents(requests)
    with pytest.raises(EvidenceError, match="0 requests"):
        metagradients.rank_by_replay([])
