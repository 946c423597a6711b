"""Documents whose gradient pulls a question up come first, and what is said of them can be checked.

The lookup run has learned twelve pairs; the documents that state a pair taught it.
"""

import inspect
import shutil
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_attribution import component_queries, gradients, queries, token_index
from data_attribution.cli.gradients import gradients_build
from data_attribution.errors import EvidenceError
from data_attribution.gradients import GradientOptions, features, preconditioner, similarity
from data_attribution.gradients.features import Features
from data_attribution.ranking import Ranking
from data_attribution.request import Request
from interp import behaviours, models
from interp.behaviours import Behaviour
from train import runs


@pytest.fixture(scope="module")
def index(lookup_store):
    return token_index.build(lookup_store)


@pytest.fixture(scope="module")
def pair(lookup_behaviour) -> Behaviour:
    """The third pair alone."""
    whole = behaviours.read(lookup_behaviour)
    rows = {name: getattr(whole, name)[3:4] for name in ("clean", "corrupt", "answer", "foil")}
    return replace(whole, name="pair 3", **rows)


@pytest.fixture(scope="module")
def request_of(lookup_run, index):
    def made(target: Behaviour, **options: Any) -> Request:
        question = options.pop("question", None) or queries.query_of_behaviour(target)
        return Request(lookup_run, index, target, question, **options)

    return made


def ranking(request: Request, **options: Any) -> Ranking:
    """The ranking of one request."""
    (only,) = gradients.rank_by_gradients([request], **options)
    return only


def stating(store, pair: Behaviour) -> set[int]:
    """Documents that hold the answer of a pair."""
    held = np.flatnonzero(store.tokens == int(pair.answer[0]))
    return set(store.document_at(held).tolist())


@pytest.mark.parametrize("kind", ["adam-cosine", "cosine", "curvature"])
def test_a_text_is_spoken_for_most_by_its_own_copies(request_of, lookup_store, pair, kind):
    """The gradient of a text's log-probability is that of its loss, turned round: cosine 1."""
    start = lookup_store.starts[stating(lookup_store, pair).pop()]
    text = [*lookup_store.tokens[start : start + 3].tolist(), lookup_store.eot]
    question = queries.query_of_text(text, lookup_store.tokenizer, n_ctx=16)
    found = ranking(request_of(pair, question=question), how=GradientOptions(kind, None))
    assert set(found.documents[:20].tolist()) == stating(lookup_store, pair)
    np.testing.assert_allclose(found.scores[:20], 1, atol=1e-4)
    assert found.scores[20] < 0.99
    assert found.details["kind"] == kind


def test_a_step_along_a_documents_gradient_moves_the_question_by_its_score(
    request_of, lookup_run, lookup_store, pair
):
    """The sign and the scale of `dot`: without projection, by finite differences."""
    # Not the table: its two uses are two components, and a step on one is a step on the other.
    within = ("pos_embed", "L0.attn", "L0.mlp")
    found = ranking(request_of(pair), within=within, how=GradientOptions("dot", None, rank=4096))
    model = models.load(lookup_run).double()
    question, rate = queries.query_of_behaviour(pair), 1e-6
    before = queries.query_scores(model, question, torch.tensor([0])).item()
    for place in (0, 100, 239):
        document = int(found.documents[place])
        start, length = lookup_store.starts[document], lookup_store.lengths[document]
        text = queries.query_of_text(
            [*lookup_store.tokens[start : start + length].tolist(), lookup_store.eot],
            lookup_store.tokenizer,
            n_ctx=16,
        )
        moved = models.load(lookup_run).double()
        # One step down the document's summed loss, on the weights that belong to components.
        (-(length + 1) * queries.query_scores(moved, text, torch.tensor([0])).sum()).backward()
        with torch.no_grad():
            for name, one in moved.named_parameters():
                if name.startswith("pos") or ".attn" in name or ".mlp" in name:
                    one -= rate * one.grad
        after = queries.query_scores(moved, question, torch.tensor([0])).item()
        assert (after - before) / rate == pytest.approx(found.scores[place], rel=1e-3, abs=1e-4)


def test_only_what_is_asked_for_counts(request_of, lookup_run, pair):
    within = ranking(
        request_of(pair), within=("L0.mlp",), how=GradientOptions("dot", None, rank=64)
    )
    model = models.load(lookup_run)
    selection = gradients.select_weights(model.cfg, ["L0.mlp"])
    asked = features.query_features(model, queries.query_of_behaviour(pair), selection, rank=64)
    given = features.document_features(
        model, lookup_run.store, within.documents, selection, rank=64
    )
    np.testing.assert_allclose(
        within.scores, similarity.products(asked, given)[:, 0], rtol=1e-5, atol=1e-6
    )
    assert within.details["sites"] == ["L0.mlp.up", "L0.mlp.down"]


def test_candidates_given_are_all_that_is_scored_and_checkpoints_add_up(request_of, pair):
    chosen = np.array([7, 3, 100, 3])
    last = ranking(request_of(pair, candidates=chosen))
    assert sorted(last.documents.tolist()) == [3, 7, 100]
    first = ranking(request_of(pair, candidates=chosen), how=GradientOptions(steps=(80,)))
    both = ranking(request_of(pair, candidates=chosen), how=GradientOptions(steps=(80, 160)))
    for document in (3, 7, 100):
        one, two, mean = (
            found.scores[found.documents == document][0] for found in (first, last, both)
        )
        assert mean == pytest.approx((one + two) / 2, rel=1e-6)


@pytest.fixture
def kept_run(lookup_run, tmp_path):
    """The run with the gradients of its whole corpus beside it."""
    shutil.copytree(lookup_run.path, tmp_path / "run")
    run = runs.open(tmp_path / "run", store=lookup_run.store.path)
    gradients.build_gradient_store(run, piece=100)
    return run


def test_gradients_that_are_kept_are_compared_and_not_collected_again(
    kept_run, lookup_run, index, pair, monkeypatch
):
    question = queries.query_of_behaviour(pair)
    expected = ranking(Request(lookup_run, index, pair, question))
    monkeypatch.setattr(features, "document_features", None)
    found = ranking(Request(kept_run, index, pair, question))
    by_document = [np.argsort(one.documents) for one in (found, expected)]
    assert (found.details["kept"], expected.details["kept"]) == (True, False)
    assert len(found.documents) == 240
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(
        found.scores[by_document[0]], expected.scores[by_document[1]], atol=2e-3 * largest
    )
    some = ranking(Request(kept_run, index, pair, question, candidates=np.array([5, 200])))
    for document, score in zip(some.documents, some.scores, strict=True):
        assert score == pytest.approx(found.scores[found.documents == document][0], rel=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        GradientOptions("cosine"),
        GradientOptions(log_odds=None),
        GradientOptions(rank=16),
        GradientOptions(steps=(80,)),
    ],
)
def test_gradients_that_were_collected_otherwise_are_left_alone(kept_run, how):
    selection = gradients.select_weights(kept_run.config)
    assert similarity.stored(kept_run, selection, GradientOptions()) is not None
    assert similarity.stored(kept_run, selection, how, (how.steps or (None,))[0]) is None
    assert (
        similarity.stored(
            kept_run, gradients.select_weights(kept_run.config, ["L0.mlp"]), GradientOptions()
        )
        is None
    )


def test_a_request_with_another_seed_reads_what_is_kept_under_its_own(kept_run, index, pair):
    asked = Request(kept_run, index, pair, queries.query_of_behaviour(pair))
    first, other = (ranking(replace(asked, seed=seed)) for seed in (0, 1))
    assert other.details["kept"]
    assert other.details["seeds"] == [0]
    assert np.array_equal(first.documents, other.documents)
    assert np.array_equal(first.scores, other.scores)


def test_the_command_keeps_what_is_compared_by_default():
    asked = inspect.signature(gradients_build).parameters
    kept = {name: asked[name].default for name in ("rank", "log_odds", "seed")}
    assert asked["metric"].default is None  # chosen by the run, see test_trace_command.py
    assert kept == {name: getattr(GradientOptions(), name) for name in kept}


def test_without_documents_and_without_kept_gradients_nothing_is_compared(lookup_run):
    with pytest.raises(EvidenceError, match="holds no gradients collected so"):
        gradients.collect(lookup_run, None)


def test_curvature_is_that_of_the_loss_of_targets_that_the_model_draws(
    lookup_run, lookup_behaviour
):
    question = queries.query_of_behaviour(behaviours.read(lookup_behaviour))
    how, documents = GradientOptions("curvature", 0.1), np.array([3, 50, 99])
    found = gradients.collect(lookup_run, documents, within=("L0.attn",), how=how)
    model = models.load(lookup_run)
    selection = gradients.select_weights(model.cfg, ["L0.attn"])

    def of(some: np.ndarray, **options: Any) -> Features:
        return features.document_features(
            model, lookup_run.store, some, selection, rank=32, **options
        )

    everyone = np.arange(240)  # fewer than are sampled: all
    metric = preconditioner.curvature(of(everyone, drawn=0))
    asked = metric.applied(features.query_features(model, question, selection, rank=32))
    expected = similarity.products(asked, metric.applied(of(documents, log_odds=0.1)), unit=True)
    np.testing.assert_allclose(found.products(question)[0], expected, rtol=1e-3, atol=1e-6)


def test_the_interval_is_over_prompts_and_one_prompt_has_none(request_of, lookup_behaviour, pair):
    several = ranking(request_of(behaviours.read(lookup_behaviour)))
    assert several.details["prompts"] == 12
    assert (several.low <= several.scores).all()
    assert (several.scores <= several.high).all()
    one = ranking(request_of(pair))
    assert (one.low, one.high) == (None, None)


def test_a_heads_own_question_can_be_asked(request_of, lookup_run, pair):
    question = component_queries.previous_token(lookup_run, "L0H0", n=3, length=6)
    found = ranking(request_of(pair, question=question), within=("L0H0",))
    assert np.isfinite(found.scores).all()
    assert np.ptp(found.scores) > 0


def test_damping_reaches_the_curvature_and_much_of_it_leaves_the_cosine(request_of, pair):
    """Above all eigenvalues of a matrix it scales every direction alike: a cosine stays."""
    chosen, within = np.arange(0, 240, 12), ("pos_embed",)
    scores = {}
    for how in (
        GradientOptions("cosine"),
        GradientOptions("curvature", damping=1e9),
        GradientOptions("curvature"),
    ):
        found = ranking(request_of(pair, candidates=chosen), within=within, how=how)
        scores[how.kind, how.damping] = found.scores[np.argsort(found.documents)]
    cosine, drowned, usual = scores.values()
    np.testing.assert_allclose(drowned, cosine, atol=1e-4)
    assert np.abs(usual - cosine).max() > 0.01


def test_a_question_without_words_is_asked_of_documents_drawn_at_random(lookup_run, index):
    question = component_queries.previous_token(lookup_run, "L0H0", n=3, length=6)
    asked = Request(lookup_run, index, None, question)
    assert "drawn of" not in ranking(asked).details  # 240 are few: all are looked at
    few = GradientOptions(candidates=30)
    found, again = ranking(asked, how=few), ranking(asked, how=few)
    assert (len(found.documents), found.details["drawn of"]) == (30, 240)
    assert set(found.documents.tolist()) == set(again.documents.tolist())
    other = ranking(replace(asked, seed=1), how=few)
    assert set(found.documents.tolist()) != set(other.documents.tolist())


def test_what_no_score_depends_on_and_unknown_kinds_are_refused(request_of, lookup_run, pair):
    question = component_queries.previous_token(lookup_run, "L0H0", n=3, length=6)
    with pytest.raises(EvidenceError, match=r"depends on none of L0\.mlp\.up"):
        ranking(request_of(pair, question=question), within=("L0.mlp",))
    with pytest.raises(EvidenceError, match="did you mean 'cosine'"):
        GradientOptions("cosin")
    with pytest.raises(EvidenceError, match="0 candidates cannot be ranked; give 1 or more"):
        GradientOptions(candidates=0)


def made(values: list[list[float]], **options: Any) -> Features:
    array = np.array(values, dtype=np.float32)
    return Features(np.arange(len(array)), array, (("a", 0, array.shape[1]),), **options)


def test_a_document_that_pulls_along_speaks_for_and_its_length_is_taken_out_of_a_cosine():
    asked, given = made([[1, 0], [3, 0]]), made([[-2, 0], [-4, 0], [0, 5], [1, 1], [0, 0]])
    np.testing.assert_allclose(
        similarity.products(asked, given), [[2, 6], [4, 12], [0, 0], [-1, -3], [0, 0]]
    )
    cosine = similarity.products(asked, given, unit=True).mean(axis=1)
    np.testing.assert_allclose(cosine, [1, 1, 0, -(0.5**0.5), 0], atol=1e-6)


def test_documents_are_scored_in_pieces_as_at_once():
    draw = np.random.default_rng(0)
    asked, given = (made(draw.normal(size=(n, 6)).tolist()) for n in (3, 20))
    whole = similarity.products(asked, given, unit=True)
    pieces = similarity.products(asked, given, unit=True, rows=7)
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)


def test_gradients_of_other_projections_are_not_compared():
    with pytest.raises(EvidenceError, match=r"\(seed 0\) cannot be compared .*\(seed 1\)"):
        similarity.products(made([[1, 0]]), made([[1, 0]], seed=1))


def test_gradients_of_many_queries_are_held_in_blocks(
    lookup_run, lookup_behaviour, request_of, monkeypatch
):
    """Twelve queries of one to four prompts: a block holds ten prompts, and no score changes."""
    whole = behaviours.read(lookup_behaviour)
    parts = ("clean", "corrupt", "answer", "foil")
    requests = []
    for k in range(12):
        rows = {name: getattr(whole, name)[k : k + 1 + k % 4] for name in parts}
        some = replace(whole, name=f"pairs from {k}", **rows)
        requests.append(request_of(some, candidates=np.arange(k, 100 + k)))
    options = {
        "within": ("L0.mlp",),
        "how": GradientOptions(rank=16, steps=(lookup_run.steps[-2], lookup_run.steps[-1])),
    }
    query_features, alive, held = features.query_features, weakref.WeakSet(), []

    def counting(*arguments, **keywords):
        made = query_features(*arguments, **keywords)
        alive.add(made)
        held.append(sum(len(one.rows) for one in alive))
        return made

    monkeypatch.setattr(features, "query_features", counting)
    at_once = gradients.rank_by_gradients(requests, **options)
    assert max(held) == sum(len(one.query.tokens) for one in requests) > 20
    held.clear()
    monkeypatch.setattr(similarity, "MEMORY", 10 * (4 * 512 + 8 * 100))
    in_blocks = gradients.rank_by_gradients(requests, **options)
    assert 4 < max(held) <= 10
    for one, other in zip(at_once, in_blocks, strict=True):
        assert one.documents.tolist() == other.documents.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert (one.low is None) == (other.low is None)
        if one.low is not None and other.low is not None:
            assert one.low.tolist() == other.low.tolist()
        assert one.details == other.details
    held.clear()
    monkeypatch.setattr(similarity, "MEMORY", 1)
    gradients.rank_by_gradients(requests[:4], **options)
    assert max(held) == 4  # a single query is compared whole
