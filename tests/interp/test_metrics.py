"""A metric reads what it says it reads, and gives by any route what whole logits give."""

import math

import pytest
import torch

from interp import metrics
from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from interp.metrics import Metric
from interp.patching import engine
from train.model import GPT, GPTConfig, init_gpt


ASKED = Behaviour(
    "two prompts",
    clean=torch.tensor([[1, 2, 3], [4, 5, 6]]),
    corrupt=torch.tensor([[1, 2, 4], [4, 5, 7]]),
    answer=torch.tensor([0, 3]),
    foil=torch.tensor([3, 1]),
)
# Logits at the last position: of the first prompt 2 against -1, of the second 5 against 1.
LOGITS = torch.zeros(2, 3, 4)
LOGITS[0, -1] = torch.tensor([2.0, 0, 0, -1])
LOGITS[1, -1] = torch.tensor([0, 1.0, 0, 5])


@pytest.fixture(scope="module")
def model() -> GPT:
    cfg = GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=30, init_std=0.3, vocab_multiple=64
    )
    return init_gpt(cfg, seed=0).eval()


def test_the_logit_difference_is_answer_minus_foil():
    metric = metrics.logit_difference(ASKED)
    assert metric.of_logits(LOGITS).tolist() == [3.0, 4.0]
    torch.testing.assert_close(metric.of_logits(LOGITS), ASKED.score(LOGITS))
    # Tokens 0, 1 and 3 are asked about; nobody reads token 2.
    assert metric.columns is not None
    assert metric.columns.tolist() == [0, 1, 3]


def test_the_probability_is_the_softmax_of_the_answer():
    expected = [
        math.exp(2) / (math.exp(2) + 2 + math.exp(-1)),
        math.exp(5) / (math.exp(5) + math.e + 2),
    ]
    probability = metrics.probability(ASKED).of_logits(LOGITS)
    torch.testing.assert_close(probability, torch.tensor(expected))
    log = metrics.log_probability(ASKED).of_logits(LOGITS)
    torch.testing.assert_close(log.exp(), probability)


@pytest.mark.parametrize("make", metrics.METRICS.values(), ids=metrics.METRICS.keys())
def test_rows_may_come_in_any_number_and_order(make):
    metric = make(ASKED)
    read = LOGITS[:, metric.reads(3)]
    read = read if metric.columns is None else read[..., metric.columns]
    order = torch.tensor([1, 0, 0, 1, 1])
    torch.testing.assert_close(
        metric.score(read[order], order), metric.of_logits(LOGITS)[order], rtol=0, atol=0
    )


@pytest.mark.parametrize("positions", [(-1,), (0,), (3, -1), (-1, 2, 0), (2, 2)])
def test_positions_are_read_in_the_order_given(model, positions):
    tokens = torch.randint(30, (5, 6), generator=torch.Generator().manual_seed(0))
    weights = torch.arange(1.0, len(positions) + 1)[:, None]
    metric = metrics.custom(
        "weighted", lambda x: (weights * x[..., :2]).sum((1, 2)), unit="x", positions=positions
    )
    with torch.inference_mode():
        logits = model(tokens)
        by_hand = sum(
            ((i + 1) * logits[:, position, :2].sum(dim=1) for i, position in enumerate(positions)),
            start=torch.zeros(()),
        )
    torch.testing.assert_close(metric.of_logits(logits), by_hand)
    through_the_engine = engine.unpatched(model, tokens, [metric])[0]
    torch.testing.assert_close(through_the_engine, by_hand.double(), rtol=0, atol=1e-5)


def test_a_padded_vocabulary_is_never_read(model):
    seen = []
    metric = metrics.custom("width", lambda x: seen.append(x.shape[-1]) or x[:, 0, 0], unit="x")
    tokens = torch.zeros(1, 4, dtype=torch.long)
    engine.unpatched(model, tokens, [metric])
    assert seen == [30], "of 64 rows inside"


@pytest.mark.parametrize(("positions", "said"), [((6,), "6"), ((-7,), "-7"), ((), "none")])
def test_a_position_outside_the_prompts_is_refused(positions, said):
    metric = Metric("odd", "x", lambda logits, row: logits[:, 0, 0], positions=positions)
    with pytest.raises(BehaviourError, match=rf"'odd' reads position {said} of prompts of 6"):
        metric.reads(6)


def test_a_name_that_is_none_offers_the_nearest():
    assert metrics.named("probability", ASKED).unit == "probability"
    with pytest.raises(BehaviourError, match="did you mean 'log-probability'"):
        metrics.named("log-probabilty", ASKED)


@pytest.mark.parametrize("metric", ["probability", metrics.probability, metrics.probability(ASKED)])
def test_an_object_a_name_and_a_function_are_the_same_metric(metric):
    resolved = metrics.resolve(metric, ASKED)
    expected = [
        math.exp(2) / (math.exp(2) + 2 + math.exp(-1)),
        math.exp(5) / (math.exp(5) + math.e + 2),
    ]
    assert resolved.of_logits(LOGITS).tolist() == pytest.approx(expected, rel=1e-6)


def test_no_metric_is_the_logit_difference():
    assert metrics.resolve(None, ASKED).of_logits(LOGITS).tolist() == [3.0, 4.0]


def test_an_object_is_refused_where_prompts_are_split():
    assert metrics.made_for("probability", ASKED).name == "probability"
    with pytest.raises(
        BehaviourError, match="'probability' is an object and belongs to all prompts"
    ):
        metrics.made_for(metrics.probability(ASKED), ASKED)
