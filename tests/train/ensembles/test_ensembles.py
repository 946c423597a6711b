"""An ensemble averages probabilities: of one member it is that member, bit for bit."""

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.worlds.tuning import tiny_tuning_store
from train import ensembles, trainer
from train.data import DocumentRemoval
from train.ensembles import EnsembleEvaluation, HeldOutScores, learned_weights
from train.errors import StoreError, TrainError
from train.statistics import Estimate


@pytest.fixture(scope="module")
def other_run(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """The tiny recipe from other weights, in another order."""
    recipe = replace(tiny_recipe, init_seed=1, order_seed=1)
    out = tmp_path_factory.mktemp("runs") / "other"
    return trainer.train(recipe, tiny_store, out=out, numerics=one_thread_numerics)


@pytest.fixture(scope="module")
def pair(tiny_run, other_run):
    return ensembles.ensemble_of([tiny_run, other_run])


@pytest.fixture(scope="module")
def pair_scores(pair):
    return ensembles.held_out_scores(pair.members)


# --- identities ----------------------------------------------------------------------------------


def test_an_ensemble_of_one_is_its_member_bit_for_bit(tiny_run):
    alone = ensembles.ensemble_of([tiny_run])
    tokens = torch.from_numpy(tiny_run.store.tokens[:32].astype(np.int64).reshape(2, 16))
    with torch.inference_mode():
        expected = tiny_run.load()(tokens).log_softmax(dim=-1)
    assert torch.equal(alone.log_probabilities(tokens), expected)
    scores = ensembles.held_out_scores(alone.members)
    assert np.array_equal(scores.mixture(np.ones(1)), scores.values[0].astype(np.float64))
    found = ensembles.evaluate(alone)
    assert found.ensemble.loss == found.rows[0].loss
    assert found.ensemble.difference == Estimate(0.0, None, None)
    learned = ensembles.evaluate(alone, learn=True)
    assert learned.weights == (1.0,)
    assert learned.ensemble.loss == learned.rows[0].loss


def test_the_score_of_a_token_is_what_the_model_gives_it_in_its_window(tiny_run):
    """Computed anew: one window at a time, and the last one as short as what is left."""
    scores = ensembles.held_out_scores(ensembles.ensemble_of([tiny_run]).members)
    store, model = tiny_run.store, tiny_run.load()
    edges = [*range(store.train_tokens - 1, store.n_tokens - 1, 16), store.n_tokens - 1]
    expected = []
    for first, last in pairwise(edges):
        window = torch.from_numpy(store.tokens[first : last + 1].astype(np.int64))
        with torch.inference_mode():
            expected.append(
                model(window[None, :-1])[0].log_softmax(-1)[range(last - first), window[1:]]
            )
    assert len(scores.values[0]) == store.n_tokens - store.train_tokens
    np.testing.assert_allclose(scores.values[0], torch.cat(expected), rtol=0, atol=2e-6)


def test_the_loss_is_the_trainers_held_out_loss(tiny_run):
    """`held_out_loss` reads whole windows only, so the tokens behind them are left out here."""
    recipe, store = replace(tiny_run.recipe, eval_windows=10**6), tiny_run.store
    whole = (store.n_tokens - store.train_tokens) // 16 * 16
    scores = ensembles.held_out_scores(ensembles.ensemble_of([tiny_run]).members)
    expected = trainer.held_out_loss(tiny_run.load(), store, recipe, tiny_run.numerics)
    assert -scores.values[0][:whole].mean() == pytest.approx(expected, abs=1e-6)


def test_every_token_belongs_to_the_document_that_holds_it(pair_scores, tiny_store):
    """An end-of-text belongs to the document before it."""
    first = np.searchsorted(tiny_store.starts, tiny_store.train_tokens)
    assert pair_scores.tokens.tolist() == (tiny_store.lengths[first:] + 1).tolist()
    assert np.all(np.diff(pair_scores.documents) >= 0)


def test_probabilities_are_averaged_and_not_logits(pair, pair_scores, tiny_run, other_run):
    tokens = torch.from_numpy(tiny_run.store.tokens[:16].astype(np.int64)[None])
    with torch.inference_mode():
        logits = [run.load()(tokens) for run in (tiny_run, other_run)]
    mean = torch.stack([one.softmax(-1) for one in logits]).mean(0)
    assert torch.allclose(pair.log_probabilities(tokens), mean.log(), atol=1e-6)
    of_logits = torch.stack(logits).mean(0).log_softmax(-1)
    assert not torch.allclose(of_logits, mean.log(), atol=1e-3)
    expected = np.log(np.exp(pair_scores.values.astype(np.float64)).mean(axis=0))
    np.testing.assert_allclose(pair_scores.mixture(np.array([0.5, 0.5])), expected, atol=1e-12)


def test_a_weight_of_0_leaves_a_member_out(tiny_run, other_run, pair_scores):
    tokens = torch.from_numpy(tiny_run.store.tokens[:16].astype(np.int64)[None])
    weighted = ensembles.ensemble_of([tiny_run, other_run], weights=[1.0, 0.0])
    alone = ensembles.ensemble_of([tiny_run])
    assert torch.equal(weighted.log_probabilities(tokens), alone.log_probabilities(tokens))
    mixed = pair_scores.mixture(np.array([0.0, 1.0]))
    assert np.array_equal(mixed, pair_scores.values[1].astype(np.float64))


def test_the_mean_of_one_checkpoint_is_the_checkpoint_bit_for_bit(tiny_run):
    expected = tiny_run.load(8).state_dict()
    for times in (1, 10):
        # The same checkpoint ten times is no ensemble, but its mean is the hardest case: tenths.
        ensemble = ensembles.ensemble_of([(tiny_run, 8)])
        many = replace(ensemble, members=ensemble.members * times, weights=(1 / times,) * times)
        found = ensembles.average_weights(many).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_weights_are_averaged_tensor_by_tensor(tiny_run):
    mean = ensembles.average_weights(ensembles.ensemble_of([(tiny_run, 8), (tiny_run, 24)]))
    one, other = tiny_run.load(8).state_dict(), tiny_run.load(24).state_dict()
    for key, value in mean.state_dict().items():
        assert torch.allclose(value, (one[key] + other[key]) / 2, atol=1e-7)
    assert mean.origin.run_id == "mean of 2 checkpoints"


# --- learned weights -----------------------------------------------------------------------------


def test_learned_weights_are_the_best_that_there_are():
    """Expectation maximisation, which cannot get worse, ends at the same weights."""
    draw = np.random.default_rng(0)
    values = np.log(draw.dirichlet(np.ones(5), size=(3, 400))[:, :, 0] + 1e-3)
    weights = np.full(3, 1 / 3)
    for _ in range(3000):
        shares = np.exp(values) * weights[:, None]
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    np.testing.assert_allclose(ensembles.learn_weights(values), weights, atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_learned_weights_never_do_worse_where_they_were_learned(seed):
    draw = np.random.default_rng(seed)
    values = -draw.exponential(2.0, size=(4, 30)).astype(np.float32)
    scores = HeldOutScores(values, np.arange(30), np.zeros(30, dtype=np.int64))
    learned = scores.mixture(ensembles.learn_weights(values)).mean()
    assert learned >= scores.mixture(np.full(4, 1 / 4)).mean()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_equal_weights_are_kept_while_a_step_leads_away_from_them(monkeypatch, steps):
    """Both members are nearly as good, and the first steps of AdamW are far too long for that."""
    monkeypatch.setattr(learned_weights, "STEPS", steps)
    one, other = np.log(np.random.default_rng(0).uniform(0.1, 1, size=2))
    values = np.array([[one, other], [other, one + 1e-3]])
    scores = HeldOutScores(values, np.arange(2), np.zeros(2, dtype=np.int64))
    learned = scores.mixture(ensembles.learn_weights(values)).mean()
    assert learned >= scores.mixture(np.full(2, 1 / 2)).mean()


def test_equal_members_keep_equal_weights():
    values = np.log(np.random.default_rng(0).uniform(0.1, 1, size=(1, 50))).repeat(3, axis=0)
    assert ensembles.learn_weights(values).tolist() == pytest.approx([1 / 3] * 3)


def test_weights_are_learned_on_one_half_and_reported_on_the_other(pair, pair_scores):
    found = ensembles.evaluate(pair, learn=True)
    fitted, reported = pair_scores.half(0), pair_scores.half(1)
    assert found.weights == pytest.approx(ensembles.learn_weights(fitted.values))
    assert (found.learned_on, found.n_documents) == (len(fitted.halves), len(reported.halves))
    assert found.learned_on + found.n_documents == len(pair_scores.halves)
    assert [row.name for row in found.rows[2:]] == ["equal weights", "learned weights"]
    assert found.rows[0].loss.value == pytest.approx(-reported.values[0].mean())


def test_copies_of_a_text_are_in_the_same_half(
    tmp_path, tiny_recipe, one_thread_numerics, make_store
):
    """Else the reported half would hold what the weights were learned on."""
    texts = [f"a b c {number // 3}" for number in range(90)]
    store = make_store(texts, held_out=0.4)
    run = trainer.train(tiny_recipe, store, out=tmp_path / "run", numerics=one_thread_numerics)
    scores = ensembles.held_out_scores(ensembles.ensemble_of([run]).members)
    first = int(np.searchsorted(store.starts, store.train_tokens))
    halves = {}
    for number, half in enumerate(scores.halves):
        halves.setdefault(store.text(first + number), set()).add(int(half))
    assert len(halves) > 4
    assert all(len(one) == 1 for one in halves.values())
    assert set(scores.halves) == {0, 1}


# --- the table -----------------------------------------------------------------------------------


def test_differences_are_paired_by_document(pair):
    found = ensembles.evaluate(pair)
    for row in found.rows:
        assert row.difference.value == pytest.approx(found.ensemble.loss.value - row.loss.value)
    # Documents differ more from each other than the members do on one document.
    row = found.rows[0]
    assert row.difference.high - row.difference.low < (row.loss.high - row.loss.low) / 2


def test_checkpoints_of_one_run_are_averaged_in_weights_too(tiny_run):
    found = ensembles.evaluate(ensembles.ensemble_of([(tiny_run, 16), tiny_run]))
    names = [row.name for row in found.rows]
    assert names[2:] == ["mean of weights", "mean of probabilities"]
    mean = ensembles.average_weights(ensembles.ensemble_of([(tiny_run, 16), tiny_run]))
    recipe = replace(tiny_run.recipe, eval_windows=10**6)
    expected = trainer.held_out_loss(mean, tiny_run.store, recipe, tiny_run.numerics)
    assert found.rows[2].loss.value == pytest.approx(expected, abs=0.05)  # without the last window


def test_a_saved_evaluation_is_read_back(pair, tmp_path):
    found = ensembles.evaluate(pair, learn=True)
    found.save(tmp_path / "ensemble.json")
    assert EnsembleEvaluation.load(tmp_path / "ensemble.json") == found


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.2, -0.1, "better beyond its interval"), (-0.2, 0.0, "not"), (0.1, 0.2, "not")],
)
def test_only_an_interval_below_0_is_an_improvement(low, high, said):
    assert ensembles.verdict(Estimate((low + high) / 2, low, high)) == said
    assert ensembles.verdict(Estimate(-0.1, None, None)) == "not"


# --- data efficiency -----------------------------------------------------------------------------


def test_the_baseline_is_linear_in_the_logarithm_of_its_tokens():
    curve = ensembles.BaselineCurve((100, 1000, 100_000), (4.0, 3.0, 2.0))
    assert [round(curve.tokens_for(loss)) for loss in (4.0, 3.5, 3.0, 2.5, 2.0)] == [
        100, 316, 1000, 10_000, 100_000,
    ]  # fmt: skip
    found = curve.efficiency(Estimate(3.0, 2.5, 4.1), tokens=1000)
    assert (found.value, found.low, found.high) == (pytest.approx(1), None, pytest.approx(10))


def test_an_ensemble_is_compared_with_a_baseline_on_the_same_documents(
    tiny_run, tiny_store, tiny_recipe, tmp_path, one_thread_numerics
):
    """A member that is a baseline too has the loss of the curve's point, and an efficiency of 1."""
    short = replace(tiny_recipe, steps=4)
    few = trainer.train(short, tiny_store, out=tmp_path / "few", numerics=one_thread_numerics)
    alone = ensembles.ensemble_of([tiny_run])
    for learn in (False, True):
        found = ensembles.evaluate(alone, learn=learn, baseline=[tiny_run, few])
        assert found.baseline.tokens == (4 * 4 * 16, found.n_train_tokens)
        assert found.baseline.losses[1] == pytest.approx(found.ensemble.loss.value, abs=1e-12)
        assert found.efficiency.value == pytest.approx(1)
        found.save(tmp_path / f"{learn}.json")
        assert EnsembleEvaluation.load(tmp_path / f"{learn}.json") == found
    between = ensembles.ensemble_of([tiny_run, few])
    assert 0 < ensembles.evaluate(between, baseline=[few, tiny_run]).efficiency.value < 1
    with pytest.raises(TrainError, match="lies outside; train it on fewer"):
        ensembles.evaluate(ensembles.ensemble_of([(tiny_run, 0)]), baseline=[few, tiny_run])


@pytest.mark.parametrize(("loss", "amount"), [(1.99, "more"), (4.01, "fewer")])
def test_a_loss_that_the_baseline_was_not_measured_at_is_refused(loss, amount):
    curve = ensembles.BaselineCurve((100, 1000), (4.0, 2.0))
    with pytest.raises(TrainError, match=f"{loss} lies outside; train it on {amount} tokens too"):
        curve.tokens_for(loss)


@pytest.mark.parametrize(
    ("tokens", "losses", "words"),
    [
        ((100,), (3.0,), "1 numbers of tokens and 1 losses"),
        ((100, 200), (3.0, 3.0), "must give a lower loss"),
        ((200, 100), (3.0, 2.0), "must give a lower loss"),
    ],
)
def test_a_baseline_that_is_no_curve_is_refused(tokens, losses, words):
    with pytest.raises(TrainError, match=words):
        ensembles.BaselineCurve(tokens, losses)


def test_a_token_counts_once_however_often_it_was_read(tiny_run):
    members = ensembles.ensemble_of([(tiny_run, 8), tiny_run]).members
    order, read = tiny_run.order, set()
    for step in range(24):
        for start in order.starts(step):
            read |= set(range(start + 1, start + 17))
    assert ensembles.distinct_tokens(members) == len(read)
    assert ensembles.distinct_tokens(members[:1]) == 8 * 4 * 16  # less than an epoch


@pytest.mark.parametrize("mode", ["blank", "loss"])
def test_tokens_of_removed_documents_are_not_among_those_that_a_run_was_trained_on(
    tiny_run, tmp_path, mode
):
    store, documents = tiny_run.store, (3, 50)
    starts = np.concatenate([tiny_run.order.starts(step) for step in range(24)])
    read = {int(start) + place for start in starts for place in range(1, 17)}
    spans = [(int(store.starts[one]), int(store.lengths[one])) for one in documents]
    gone = {start + place for start, length in spans for place in range(length + 1)} & read
    assert gone
    child = trainer.retrain_without(tiny_run, tmp_path / "r", DocumentRemoval(documents, mode))
    alone, with_parent, parent = (
        ensembles.distinct_tokens(ensembles.ensemble_of(runs).members)
        for runs in ([child], [child, tiny_run], [tiny_run])
    )
    assert (parent, alone) == (len(read), len(read - gone))
    assert with_parent == parent


# --- refusals ------------------------------------------------------------------------------------


def test_runs_that_were_tuned_are_refused(tiny_run, tmp_path):
    store = tiny_tuning_store("instructions", tiny_run.tokenizer, tmp_path / "store")
    tuned = trainer.tune(tiny_run, store, "sft", out=tmp_path / "run", steps=2, batch_size=4)
    with pytest.raises(StoreError, match="was tuned on instructions"):
        ensembles.ensemble_of([tuned])


def test_members_that_do_not_fit_are_refused(tiny_run, lookup_run, muon_run, tmp_path):
    with pytest.raises(TrainError, match="without members"):
        ensembles.ensemble_of([])
    with pytest.raises(TrainError, match=f"step 24 of run {tiny_run.id} is a member twice"):
        ensembles.ensemble_of([tiny_run, (tiny_run, 24)])
    shutil.copytree(tiny_run.path, tmp_path / "copy")
    copied = replace(tiny_run, path=tmp_path / "copy")
    with pytest.raises(TrainError, match="is a member twice"):
        ensembles.ensemble_of([tiny_run, copied])
    with pytest.raises(StoreError, match="was trained on the store"):
        ensembles.ensemble_of([tiny_run, lookup_run])
    with pytest.raises(TrainError, match="no checkpoint at step 7"):
        ensembles.ensemble_of([(tiny_run, 7)])
    with pytest.raises(TrainError, match="2 numbers from 0 on"):
        ensembles.ensemble_of([tiny_run, muon_run], weights=[1.5, -0.5])


def test_equal_texts_in_another_vocabulary_are_refused(tiny_run):
    """Texts, lengths and thus the fingerprint are the same; the ids of the words are not."""
    manifest = {**tiny_run.manifest, "predicate": {**tiny_run.predicate}}
    data = {**tiny_run.predicate["data"], "tokenizer_sha256": "0" * 64}
    manifest["predicate"] |= {"data": data, "run_id": "another"}
    with pytest.raises(StoreError, match=r"on the vocabulary .* and .* on 000000000000"):
        ensembles.ensemble_of([tiny_run, replace(tiny_run, manifest=manifest)])


def test_architectures_that_differ_have_no_mean(
    tiny_run, tiny_store, tiny_recipe, tmp_path, one_thread_numerics
):
    wide = replace(tiny_recipe, model=replace(tiny_recipe.model, d_mlp=32), steps=1)
    other = trainer.train(wide, tiny_store, out=tmp_path / "wide", numerics=one_thread_numerics)
    ensemble = ensembles.ensemble_of([tiny_run, other])
    with pytest.raises(TrainError, match="different architectures"):
        ensembles.average_weights(ensemble)
    assert ensembles.evaluate(ensemble).n_tokens > 0  # their probabilities have one


def test_a_baseline_on_another_store_is_refused(tiny_run, lookup_run):
    with pytest.raises(StoreError, match="runs that are compared need the same"):
        ensembles.evaluate(ensembles.ensemble_of([tiny_run]), baseline=[lookup_run])


def test_a_store_that_holds_out_too_little_is_refused(lookup_run):
    with pytest.raises(StoreError, match="holds out 0 different documents"):
        ensembles.evaluate(ensembles.ensemble_of([lookup_run]))
