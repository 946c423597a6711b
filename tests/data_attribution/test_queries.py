"""A question is the number that another part of the house computes, and has a gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_attribution import component_queries, queries
from data_attribution.counterfactuals import effect_size
from data_attribution.errors import QueryError
from interp import behaviours, metrics, models
from interp.errors import BehaviourError, ModelError
from interp.heads import attention_scores, decompose_logits, detector_scores, repeated_tokens
from train.data import train_words
from train.model import GPT, GPTConfig, init_gpt
from train.statistics import n_prompts


WORDS = train_words([" ".join(f"w{number}" for number in range(30))])


@pytest.fixture(scope="module")
def model() -> GPT:
    """Two layers whose attention is far from uniform, so that heads differ."""
    cfg = GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=32, d_vocab=WORDS.vocab_size, init_std=0.3
    )
    made = init_gpt(cfg, 0)
    made.tokenizer = WORDS
    return made.eval()


@pytest.fixture(scope="module")
def repeated() -> torch.Tensor:
    return attention_scores.repeated(range(2, 30), WORDS.eot, n=6, length=8)


def by_hand(model: GPT, context: list[int], text: list[int]) -> list[float]:
    """Log-probability of every token of a text that fits the context."""
    ids = torch.tensor([[WORDS.eot, *context, *text]])
    found = model(ids)[0].log_softmax(-1)
    first = len(context)
    return [found[first + at, token].item() for at, token in enumerate(text)]


def test_a_text_is_asked_for_by_the_mean_log_probability_of_its_tokens(model):
    question = queries.query_of_text("w1 w2 w3", WORDS, n_ctx=32)
    expected = np.mean(by_hand(model, [], WORDS.encode("w1 w2 w3").tolist()))
    assert queries.measure_query(model, question) == pytest.approx([expected], rel=1e-5)


def test_a_context_is_read_and_not_asked_for(model):
    question = queries.query_of_text("w3", WORDS, n_ctx=32, context="w1 w2")
    alone = queries.query_of_text("w3", WORDS, n_ctx=32)
    context, text = (WORDS.encode(part).tolist() for part in ("w1 w2", "w3"))
    (found,) = queries.measure_query(model, question)
    assert found == pytest.approx(by_hand(model, context, text)[0], rel=1e-5)
    assert found != pytest.approx(queries.measure_query(model, alone)[0], rel=1e-3)


def test_continuations_are_texts_after_their_context_one_case_each(model):
    texts = [("w1 w2", "w3"), ("w4", "w5 w6 w7"), ("w1 w2 w3 w4 w5", "w2 w9")]
    pairs = [tuple(WORDS.encode(part).tolist() for part in one) for one in texts]
    query = queries.query_of_continuations(pairs, WORDS.eot, name="three")
    alone = [
        queries.measure_query(
            model, queries.query_of_text(text, WORDS, n_ctx=32, context=context)
        ).item()
        for context, text in texts
    ]
    assert queries.measure_query(model, query).tolist() == pytest.approx(alone, abs=1e-5)
    assert query.cases.tolist() == [0, 1, 2]
    grouped = queries.query_of_continuations(pairs, WORDS.eot, name="three", groups=[4, 9, 4])
    assert grouped.cases.tolist() == [0, 1, 0]
    with pytest.raises(QueryError, match="3 continuations and 2 groups"):
        queries.query_of_continuations(pairs, WORDS.eot, name="three", groups=[4, 9])


@pytest.mark.parametrize("pairs", [[], [([1, 2], [3]), ([1], [])]])
def test_nothing_to_continue_with_is_refused(pairs):
    with pytest.raises(QueryError, match="'none' holds no continuation"):
        queries.query_of_continuations(pairs, WORDS.eot, name="none")


@given(st.lists(st.integers(0, 29), min_size=1, max_size=40), st.integers(1, 32))
@settings(max_examples=30)
def test_however_a_text_is_cut_its_prompts_have_the_mean_over_all_its_tokens(text, n_ctx):
    model = init_gpt(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=32, d_vocab=40), 0)
    ids = [WORDS.eot, *text]
    rows = [ids[at : at + n_ctx + 1] for at in range(0, len(text), n_ctx)]
    every = [
        model(torch.tensor([row[:-1]]))[0].log_softmax(-1)[at, token].item()
        for row in rows
        for at, token in enumerate(row[1:])
    ]
    assert len(every) == len(text)
    found = queries.measure_query(model, queries.query_of_text(text, WORDS, n_ctx=n_ctx))
    assert found.mean() == pytest.approx(np.mean(every), rel=1e-4)


def test_windows_that_are_equal_are_cases_of_their_own(model):
    """A text that repeats itself every four tokens: its mean is that over all its tokens."""
    period = WORDS.encode("w1 w2 w3").tolist()
    text = [*period, WORDS.eot] * 4 + period[:2]
    question = queries.query_of_text(text, WORDS, n_ctx=4)
    assert len(question.tokens) == 5
    assert len(question.tokens.unique(dim=0)) == 2
    values = queries.measure_query(model, question)
    found = effect_size.by_prompt(values, question.cases)
    assert found.mean() == pytest.approx(values.mean())
    # Merged, the last window, of two tokens, would count for as much as the others together.
    merged = effect_size.by_prompt(values, n_prompts(question.tokens))
    assert merged.mean() != pytest.approx(values.mean(), rel=0.05)


def test_windows_that_hold_nothing_but_context_are_left_out(model):
    question = queries.query_of_text([3], WORDS, n_ctx=4, context=[5] * 8)
    assert question.tokens.tolist() == [[5, WORDS.eot, WORDS.eot, WORDS.eot]]


def test_a_text_without_a_token_is_refused():
    with pytest.raises(QueryError, match="holds no token"):
        queries.query_of_text("", WORDS, n_ctx=8)


def test_a_behaviour_is_asked_for_by_its_logit_difference(lookup_run, lookup_behaviour):
    model = models.load(lookup_run)
    behaviour = behaviours.read(lookup_behaviour)
    found = queries.measure_query(model, queries.query_of_behaviour(behaviour))
    expected = behaviour.score(model(behaviour.clean)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", ["probability", metrics.probability])
def test_a_behaviour_may_be_asked_for_by_another_metric(lookup_run, lookup_behaviour, metric):
    model, behaviour = models.load(lookup_run), behaviours.read(lookup_behaviour)
    query = queries.query_for(behaviour, metric=metric, tokenizer=WORDS, n_ctx=32)
    expected = metrics.probability(behaviour).of_logits(model(behaviour.clean)).detach().numpy()
    assert query.unit == "probability"
    np.testing.assert_allclose(queries.measure_query(model, query), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["induction", "previous token", "duplicate token"])
@pytest.mark.parametrize("head", ["L0H1", "L1H0"])
def test_a_head_is_asked_for_the_attention_it_is_found_by(model, repeated, kind, head):
    question = component_queries.attention(repeated, head, kind)
    found = queries.measure_query(model, question).mean()
    layer, number = int(head[1]), int(head[3])
    expected = detector_scores(model, repeated, kind).values[layer, number].item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_prefix_matching_and_previous_token_are_drawn_in_the_words_of_the_model(model):
    for ask, kind in (
        (component_queries.prefix_matching, "induction"),
        (component_queries.previous_token, "previous token"),
    ):
        question = ask(model, "L1H1", n=4, length=6, seed=3)
        tokens = repeated_tokens(model, n=4, length=6, seed=3)
        assert torch.equal(question.tokens, tokens)
        assert question.name == f"{kind} score of L1H1"


def test_a_place_is_read_along_a_direction_at_its_position(model, repeated):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    cached = model.run_with_cache(repeated)[1]["blocks.1.hook_resid_mid"]
    for place, at in (
        ("L1.resid_mid", [-1]),
        ("L1.resid_mid@3", [3]),
        ("L1.resid_mid@2,5", [2, 5]),
    ):
        found = queries.measure_query(
            model, component_queries.probe_direction(repeated, place, direction)
        )
        expected = (cached[:, at] @ direction).mean(dim=1)
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-5)


def test_every_prompt_may_have_a_direction_of_its_own(model, repeated):
    directions = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    question = component_queries.probe_direction(repeated, "L0H1.v@4", directions)
    cached = model.run_with_cache(repeated)[1]["blocks.0.attn.hook_v"]
    found = queries.query_scores(model, question, torch.tensor([5, 2]))
    expected = (cached[[5, 2], 4, 1] * directions[[5, 2]]).sum(-1)
    torch.testing.assert_close(found, expected)


def test_the_direct_effect_of_a_head_is_its_part_of_the_logit_difference(
    lookup_run, lookup_behaviour
):
    model, behaviour = models.load(lookup_run), behaviours.read(lookup_behaviour)
    parts = decompose_logits(model, behaviour)
    for head in ("L0H0", "L0H1"):
        question = component_queries.direct_effect(model, behaviour, head)
        assert queries.measure_query(model, question).mean() == pytest.approx(parts[head], abs=1e-4)


@pytest.mark.parametrize("kind", ["text", "head", "place"])
def test_every_question_has_a_gradient_in_the_weights_that_it_depends_on(model, repeated, kind):
    question = {
        "text": lambda: queries.query_of_text("w1 w2", WORDS, n_ctx=8),
        "head": lambda: component_queries.attention(repeated, "L1H0", "induction"),
        "place": lambda: component_queries.probe_direction(repeated, "L0.mlp", torch.ones(16)),
    }[kind]()
    model.zero_grad()
    queries.query_scores(model, question, torch.tensor([0])).sum().backward()
    touched = {name for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    assert "blocks.0.attn.qkv.weight" in touched
    assert ("blocks.1.attn.qkv.weight" in touched) is (kind != "place")
    assert ("blocks.1.mlp.up.weight" in touched) is (kind == "text")


def test_what_is_no_head_or_holds_no_vector_is_refused(model, repeated):
    with pytest.raises(QueryError, match=r"'L0\.mlp' is no head"):
        component_queries.attention(repeated, "L0.mlp", "induction")
    with pytest.raises(QueryError, match="holds no vector"):
        component_queries.probe_direction(repeated, "L0H1.pattern@3", torch.ones(8))
    with pytest.raises(ModelError, match="names no place"):
        component_queries.prefix_matching(model, "H1")
    with pytest.raises(BehaviourError, match="not an end-of-text and two equal copies"):
        component_queries.attention(repeated[:, :-1], "L0H1", "induction")
