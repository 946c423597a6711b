"""Intervals and differences of scores, and what the tool refuses to call a difference."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from interp import model_evaluation
from interp.errors import EvaluationError
from interp.model_evaluation import Measure, Overlap, Score
from interp.results import Provenance
from train.errors import DamagedError
from train.statistics import Estimate, paired_shares_interval, ratio_interval, wilson


ORIGIN = Provenance("made", "0" * 64, 0, "", "", "full", {}, 0, "float32", "cpu")


def score(model: str, *measures: Measure, **parts: object) -> Score:
    n = measures[0].n
    about = {
        "protocol": "sst2", "version": "1.0", "settings": "made", "items_sha256": "0",
        "keys": tuple(f"{one:016x}" for one in range(n)), "groups": (),
        "overlap": "not searched", "provenance": ORIGIN,
    }  # fmt: skip
    return Score(model=model, measures=measures, **{**about, **parts})


def accuracy(right: np.ndarray) -> Measure:
    return Measure("accuracy", "share", right.astype(float), np.ones(len(right)))


def answers(n: int, *shares: float) -> list[np.ndarray]:
    """Answers of models that are right on items of their own choice, as often as given."""
    draw = np.random.default_rng(0)
    return [draw.permutation(n) < round(share * n) for share in shares]


def test_two_hundred_items_do_not_tell_apart_what_a_table_once_called_progress():
    """The SST-2 column of a published comparison: 49.5, 53.5, 49.5 % beside 56.0 %, 200 items."""
    base, *others = (
        score(name, accuracy(right))
        for name, right in zip("abcd", answers(200, 0.56, 0.495, 0.535, 0.495), strict=True)
    )
    for other in others:
        difference = model_evaluation.compare(other, base, "accuracy")
        assert difference.estimate.low < 0 < difference.estimate.high
        assert difference.verdict == "not told apart"
        with pytest.raises(EvaluationError, match="200 items do not tell them apart"):
            difference.called()


def test_the_same_shares_on_many_items_are_a_difference():
    base, other = (
        score(name, accuracy(right))
        for name, right in zip("ab", answers(20_000, 0.56, 0.495), strict=True)
    )
    difference = model_evaluation.compare(other, base, "accuracy")
    assert (difference.verdict, difference.called()) == ("lower", "lower")
    assert model_evaluation.compare(base, other, "accuracy").verdict == "higher"
    assert difference.estimate.value == pytest.approx(-0.065)


def test_pairing_shows_what_two_separate_intervals_hide():
    right = np.arange(500) < 250
    better = right.copy()
    better[250:262] = True  # twelve more, and none fewer
    base, other = score("a", accuracy(right)), score("b", accuracy(better))
    ours, theirs = other.measure("accuracy").estimate, base.measure("accuracy").estimate
    assert ours.low < theirs.high  # the intervals overlap
    assert model_evaluation.compare(other, base, "accuracy").verdict == "higher"


def test_no_item_right_by_either_model_is_no_proof_that_they_are_equal():
    nothing = np.zeros(200, bool)
    difference = model_evaluation.compare(
        score("a", accuracy(nothing)), score("b", accuracy(nothing)), "accuracy"
    )
    assert difference.verdict == "not told apart"
    assert difference.estimate.low < -0.01
    assert difference.estimate.high > 0.01


@pytest.mark.parametrize("shares", [(0.9, 0.03, 0.02), (0.5, 0.1, 0.1), (0.0, 0.05, 0.15)])
def test_the_interval_of_paired_shares_covers_the_truth(shares):
    both, first, second = shares
    draw = np.random.default_rng(0)
    covered, n_draws = 0, 2000
    cells = draw.multinomial(100, (both, first, second, 1 - sum(shares)), size=n_draws)
    for counts in cells:
        kind = np.repeat(np.arange(4), counts)
        low, high = paired_shares_interval(kind < 2, (kind == 0) | (kind == 2))
        covered += low <= second - first <= high
    assert 0.93 < covered / n_draws < 0.985


def test_the_interval_of_paired_shares_is_that_of_a_published_table():
    """Newcombe 1998, table II: 36 both, 12 only one, 2 only the other, 0 neither; method 10."""
    kind = np.repeat(np.arange(4), (36, 12, 2, 0))
    low, high = paired_shares_interval((kind == 0) | (kind == 2), kind < 2)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


def test_a_positive_correlation_of_answers_is_corrected_for_continuity():
    """20 both, 12 only one, 2 only the other, 16 neither; Newcombe's method 10 written out."""
    kind = np.repeat(np.arange(4), (20, 12, 2, 16))
    low, high = paired_shares_interval((kind == 0) | (kind == 2), kind < 2)
    correlation = (20 * 16 - 12 * 2 - 50 / 2) / np.sqrt(32 * 18 * 22 * 28)
    (low_1, high_1), (low_2, high_2) = wilson(22 / 50, 50), wilson(32 / 50, 50)
    below, above = (
        np.sqrt(one**2 - 2 * correlation * one * other + other**2)
        for one, other in ((32 / 50 - low_2, high_1 - 22 / 50), (high_2 - 32 / 50, 22 / 50 - low_1))
    )
    assert (low, high) == pytest.approx((0.2 - below, 0.2 + above))
    assert (round(low, 4), round(high, 4)) == (0.0562, 0.3292)


def test_a_loss_divides_sums_and_its_interval_takes_documents_as_cases():
    nats, tokens = np.array([30.0, 10.0, 60.0, 22.0]), np.array([10.0, 5.0, 20.0, 8.0])
    loss = Measure("loss per token", "nats", nats, tokens)
    assert loss.estimate.value == pytest.approx(122 / 43)  # not the mean of 3, 2, 3 and 2.75
    interval = ratio_interval(nats[None], tokens)
    assert interval is not None
    low, high = interval
    assert (loss.estimate.low, loss.estimate.high) == (float(low[0]), float(high[0]))
    bits = Measure("bits per byte", "bits", nats, tokens).estimate
    assert bits.value == pytest.approx(122 / 43 / np.log(2))
    perplexity = Measure("perplexity", "perplexity", nats, tokens).estimate
    assert loss.estimate.high is not None
    assert perplexity.high == pytest.approx(np.exp(loss.estimate.high))


def test_losses_are_compared_document_by_document_and_perplexities_by_their_ratio():
    draw = np.random.default_rng(0)
    tokens = draw.integers(50, 200, size=60).astype(float)
    nats = tokens * draw.normal(3, 0.8, size=60)  # documents differ far more than the models
    worse = nats + tokens * draw.normal(0.05, 0.02, size=60)
    one, other = (
        score(name, Measure("word", "perplexity", values, tokens))
        for name, values in (("a", nats), ("b", worse))
    )
    difference = model_evaluation.compare(other, one, "word")
    assert difference.verdict == "higher"
    expected = np.exp((worse - nats).sum() / tokens.sum())
    assert difference.estimate.value == pytest.approx(expected)
    assert difference.neutral == 1
    same = model_evaluation.compare(one, one, "word")
    assert (same.estimate.value, same.verdict) == (1.0, "not told apart")


def test_the_interval_of_a_perplexity_of_few_items_may_be_wider_than_the_largest_number():
    two = Measure("word", "perplexity", np.array([5.0, 150.0]), np.ones(2)).estimate
    assert two.value == pytest.approx(np.exp(77.5))
    assert two.high > 1e307
    json.dumps(asdict(two), allow_nan=False)


def test_a_number_that_is_no_number_is_no_difference():
    """No comparison with NaN holds, so neither "higher" nor "lower" may be what remains."""
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    for estimate in (nothing, Estimate(1.0, None, None), Estimate(0.0, 0.0, 0.0)):
        difference = model_evaluation.Difference("a", "b", "made", "loss", estimate, 0.0, 9)
        assert difference.verdict == "not told apart"


def test_scores_that_cannot_be_compared_are_refused():
    base = score("a", accuracy(np.ones(5, bool)))
    with pytest.raises(EvaluationError, match="on 4 items of sst2 and a on 5, of which 4 are"):
        model_evaluation.compare(score("b", accuracy(np.ones(4, bool))), base, "accuracy")
    with pytest.raises(
        EvaluationError, match=r"sst2 2\.0 cannot be compared with one of sst2 1\.0"
    ):
        model_evaluation.compare(
            score("b", accuracy(np.ones(5, bool)), version="2.0"), base, "accuracy"
        )
    with pytest.raises(EvaluationError, match="sst2 measures accuracy, and 'loss' was asked for"):
        model_evaluation.compare(base, base, "loss")
    losses = (Measure("loss", "nats", np.ones(3), np.full(3, tokens)) for tokens in (4.0, 5.0))
    one, other = (score("c", loss) for loss in losses)
    with pytest.raises(EvaluationError, match="divide by other numbers: 12 and 15 in all"):
        model_evaluation.compare(one, other, "loss")


def test_items_in_another_order_are_paired_by_what_they_are():
    right = np.array([True, False, False, True, True, False])
    first = score("a", accuracy(right))
    second = score("b", accuracy(right[::-1]))
    second = Score(**{**vars(second), "keys": first.keys[::-1]})
    low, high = paired_shares_interval(right, right)
    estimate = model_evaluation.compare(second, first, "accuracy").estimate
    assert (estimate.value, estimate.low, estimate.high) == (0, low, high)


def test_a_score_without_its_overlapping_items_is_that_of_the_others():
    right = np.array([True, True, False, False])
    overlap = Overlap(13, np.array([13, 40, 12, 6]), np.array([60, 50, 70, 6]), "store")
    one = score("a", accuracy(right), overlap=overlap)
    # The last item has only 6 tokens, and all of them occur.
    assert overlap.flagged.tolist() == [True, True, False, True]
    assert overlap.share.value == 0.75
    clean = one.without_overlap("accuracy")
    assert (clean.n, clean.part.tolist()) == (1, [0.0])
    row = one.rows()[0]
    assert (row["value"], row["n"], row["n_without_overlap"]) == (0.5, 4, 1)
    assert (row["low"], row["high"]) == wilson(0.5, 4)
    assert score("a", accuracy(right)).without_overlap("accuracy") is None


def test_a_saved_score_is_read_back_and_a_changed_one_refused(tmp_path):
    overlap = Overlap(13, np.array([13, 4]), np.array([60, 50]), "store")
    nats = Measure("loss", "nats", np.array([1.5, 2.5]), np.array([2.0, 4.0]))
    one = score("a", nats, groups=("x", "y"), overlap=overlap)
    one.save(tmp_path / "score.json")
    again = Score.load(tmp_path / "score.json")
    assert again.to_dict() == one.to_dict()
    assert again.by_group("loss")["y"].part.tolist() == [2.5]
    text = (tmp_path / "score.json").read_text()
    (tmp_path / "score.json").write_text(text.replace("2.5", "2.0"))
    with pytest.raises(DamagedError):
        Score.load(tmp_path / "score.json")
