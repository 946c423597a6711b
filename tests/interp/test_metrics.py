"""A metric reads what it says it reads, and gives by any route what whole logits give."""

import math
from dataclasses import replace

import pytest
import torch

from interp import attribution_patching, metrics, patching
from interp.behaviours import Behaviour
from interp.circuits import edge_attribution_patching
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


@pytest.mark.parametrize("positions", [(-1,), (0,), (3, -1), (-1, 2, 0), (2, 2), None])
def test_positions_are_read_in_the_order_given(model, positions):
    tokens = torch.randint(30, (5, 6), generator=torch.Generator().manual_seed(0))
    read = range(6) if positions is None else positions
    weights = torch.arange(1.0, len(read) + 1)[:, None]
    metric = metrics.custom(
        "weighted", lambda x: (weights * x[..., :2]).sum((1, 2)), unit="x", positions=positions
    )
    with torch.inference_mode():
        logits = model(tokens)
        by_hand = sum(
            ((i + 1) * logits[:, position, :2].sum(dim=1) for i, position in enumerate(read)),
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


PATTERN = "blocks.1.attn.hook_pattern"


@pytest.fixture(scope="module")
def attended() -> Metric:
    """Attention of head 0 of layer 1 from the last position to the first."""
    return Metric(
        "attention to the first",
        "share",
        lambda logits, row, values: values[PATTERN][:, 0, -1, 0],
        hooks=(PATTERN,),
    )


def test_a_metric_may_read_values_at_hook_points(model, attended):
    values = {PATTERN: torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))}
    expected = values[PATTERN][:, 0, 2, 0]
    assert torch.equal(attended.of_logits(LOGITS, values=values), expected)


@pytest.fixture(scope="module")
def learned(model) -> Behaviour:
    """Prompts whose answers are the most probable tokens, so that the model does the behaviour."""
    clean = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + 1) % 30
    with torch.inference_mode():
        last = model(clean)[:, -1]
    return Behaviour("most probable", clean, corrupt, last.argmax(-1), last.argmin(-1))


@pytest.mark.parametrize(
    ("measure", "hooked"),
    [
        (patching.heads, False),  # by the engine
        (patching.heads, True),  # by whole passes, since the model has hooks of its own
        (attribution_patching.attribution, False),
        (edge_attribution_patching.eap, False),
        (edge_attribution_patching.exact_edge_effects, False),
    ],
)
def test_where_only_logits_are_computed_a_metric_of_other_values_is_refused(
    model, learned, attended, measure, hooked
):
    if hooked:
        model.add_hook("blocks.0.hook_mlp_out", lambda value, point: value)
    try:
        with pytest.raises(BehaviourError, match=rf"'attention to the first' needs .* {PATTERN}"):
            measure(model, learned, metric=lambda behaviour: attended)
    finally:
        model.reset_hooks()


def test_a_name_with_underscores_is_the_name_with_hyphens():
    assert metrics.named("logit_difference", ASKED).name == "logit difference"
    assert metrics.resolve("log_probability", ASKED).name == "log-probability"


def answers_logit(logits):
    """A number of one's own: it looks answers up by the index of the prompt."""
    return logits[torch.arange(len(ASKED.answer)), -1, ASKED.answer] - logits[:, 0, 2]


def test_a_function_of_logits_is_a_metric(model):
    metric = metrics.resolve(answers_logit, ASKED)
    assert metric.name == "answers_logit"
    by_hand = answers_logit(model(ASKED.clean))
    torch.testing.assert_close(metric.of_logits(model(ASKED.clean)), by_hand)
    # Rows in any number and order, each prompt as often as the engine has patches.
    order = torch.tensor([1, 1, 0, 1, 0])
    torch.testing.assert_close(metric.score(model(ASKED.clean)[order], order), by_hand[order])


def test_sweeps_and_estimates_take_a_function_of_logits(model):
    asked = replace(ASKED, answer=model(ASKED.clean)[:, -1].argmax(-1))
    asked = replace(asked, foil=(asked.answer + 1) % 30)

    def difference(logits):
        row = torch.arange(2)
        return logits[row, -1, asked.answer] - logits[row, -1, asked.foil]

    mine, named = (patching.heads(model, asked, metric=one) for one in (difference, None))
    torch.testing.assert_close(mine.values, named.values)
    assert (mine.metric, named.metric) == ("difference", "logit difference")
    both = [
        attribution_patching.attribution(model, asked, metric=one).values
        for one in (difference, None)
    ]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda logits: logits[:, -1, 0].mean(),
            r"returned \[\], and one number per prompt.* \[2\]",
        ),
        (lambda logits: logits[:, -1], r"returned \[2, 30\]"),
        (lambda logits: 3.0, "returned float"),
        (lambda asked: metrics.probability(ASKED), "returned Metric"),
    ],
)
def test_a_function_that_gives_no_number_per_prompt_is_refused(function, said, model):
    with pytest.raises(BehaviourError, match=said):
        metrics.resolve(function, ASKED).of_logits(model(ASKED.clean))


def test_a_function_of_logits_belongs_to_all_prompts():
    with pytest.raises(BehaviourError, match="'answers_logit' reads logits and belongs to all"):
        metrics.made_for(answers_logit, ASKED)
