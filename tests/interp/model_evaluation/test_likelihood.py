"""Log-probabilities of texts equal those of one row at a time, written out.

The second implementation here takes each row alone, without padding, and asks the model for all
logits of all positions.
"""

import numpy as np
import pytest
import torch

from interp import model_evaluation
from interp.errors import EvaluationError
from tests.worlds.evaluation_files import drawn_model
from tests.worlds.models import shaken
from train.model import GPTConfig


@pytest.fixture(scope="module")
def model():
    return drawn_model(n_ctx=24)


def alone(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-probability of a continuation and whether it is greedy, in one plain forward pass."""
    ids = torch.tensor([(context + continuation)[-(model.cfg.n_ctx + 1) :]])
    with torch.no_grad():
        log_probabilities = model(ids[:, :-1]).double().log_softmax(-1)[0]
    rows = log_probabilities[-len(continuation) :]
    own = rows[torch.arange(len(continuation)), torch.tensor(continuation)]
    return own.sum().item(), rows.argmax(-1).tolist() == continuation


def test_scores_equal_those_of_one_row_at_a_time(model):
    pairs = [
        ("The old man sat down and opened the", " door"),
        ("", " A sentence behind end-of-text."),
        ("a", " b c d e f g h i j"),
        ("woman door man back old came house in", " Gaul"),
        (" ".join(["long"] * 60), " story"),
    ] * 3
    encode = model.tokenizer.encode
    rows = [model_evaluation.continuation_row(model.tokenizer, *pair, 24) for pair in pairs]
    scored = model_evaluation.score_rows(model, rows)
    for (context, continuation), one in zip(pairs, scored, strict=True):
        before = encode(context).tolist() if context else [model.tokenizer.eot]
        value, greedy = alone(model, before, encode(continuation).tolist())
        assert one.log_probabilities.sum() == pytest.approx(value, abs=2e-5)
        assert bool(one.highest.all()) == greedy
    assert [bool(one.highest.all()) for one in scored[:5]] == [False, False, False, True, False]


def test_batches_change_no_score_beyond_rounding_and_the_same_rows_give_the_same_bits(model):
    generator = np.random.default_rng(0)
    rows = [
        model_evaluation.TokenRow(tuple(generator.integers(50257, size=n).tolist()), 1)
        for n in generator.integers(2, 24, size=300).tolist()
    ]
    together = model_evaluation.score_rows(model, rows)
    single = [model_evaluation.score_rows(model, [row])[0] for row in rows[:20]]
    for one, other in zip(together, single, strict=False):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=2e-5)
    again = model_evaluation.score_rows(model, rows)
    assert all(
        np.array_equal(one.log_probabilities, other.log_probabilities)
        for one, other in zip(together, again, strict=True)
    )


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(model):
    one = model_evaluation.continuation_row(model.tokenizer, "He said ", "so", 24)
    other = model_evaluation.continuation_row(model.tokenizer, "He said", " so", 24)
    assert one == other
    assert one.n_scored == 1


def test_a_context_that_does_not_fit_loses_its_first_tokens_and_the_answer_none(model):
    row = model_evaluation.continuation_row(model.tokenizer, "one two " * 40, "three four", 24)
    assert (len(row.tokens), row.n_scored) == (25, 2)


@pytest.mark.parametrize(
    ("continuation", "match"),
    [
        ("", "adds no token to its context 'He said'.*give a longer continuation"),
        (" too long" * 30, "a context of 24 holds at most 24; evaluate a model with a longer"),
    ],
)
def test_a_continuation_that_cannot_be_scored_is_refused(model, continuation, match):
    with pytest.raises(EvaluationError, match=match):
        model_evaluation.continuation_row(model.tokenizer, "He said", continuation, 24)


@pytest.mark.parametrize("n_scored", [-1, 0, 3, 4])
def test_a_row_that_scores_no_token_or_its_first_one_is_refused(n_scored):
    with pytest.raises(EvaluationError, match=f"{n_scored} of 3 tokens are to be scored"):
        model_evaluation.TokenRow((1, 2, 3), n_scored)


def test_a_diverged_model_is_refused_and_has_no_score():
    """The argmax of NaN is the first token, and NaN is below no accuracy of 0."""
    model = drawn_model(n_ctx=24)
    with torch.no_grad():
        model.embed.weight[7] = float("nan")  # of one token: its logit is NaN everywhere
    with pytest.raises(EvaluationError, match="not finite, so it has diverged"):
        model_evaluation.score_rows(model, [model_evaluation.TokenRow((3, 4), 1)])
    with pytest.raises(EvaluationError, match="not finite, so it has diverged"):
        model_evaluation.greedy_texts(model, ["The old man"], until=[], n_new=2)


@pytest.mark.parametrize("n_words", [0, 1, 4, 5, 6, 10, 11, 23])
def test_rolling_windows_score_every_token_once_behind_all_that_fits(model, n_words):
    text, n_ctx = "word" + " word" * (n_words - 1) if n_words else "", 5
    tokens = [model.tokenizer.eot, *model.tokenizer.encode(text).tolist()]
    rows = model_evaluation.rolling_rows(model.tokenizer, text, n_ctx)
    scored = [token for row in rows for token in row.tokens[-row.n_scored :]]
    assert scored == tokens[1:]
    assert sum(row.n_scored for row in rows) == n_words
    # All windows but the only one are full, and the last one looks back as far as it can.
    assert all(len(row.tokens) == min(n_ctx, n_words) + 1 for row in rows)


def test_equal_logits_count_as_highest_for_the_first_token_alone():
    model = shaken(GPTConfig(n_layers=1, n_heads=1, d_model=8, n_ctx=4, d_vocab=9))
    with torch.no_grad():
        model.embed.weight.zero_()
    rows = [model_evaluation.TokenRow((3, token), 1) for token in (0, 1)]
    assert [one.highest.tolist() for one in model_evaluation.score_rows(model, rows)] == [
        [True],
        [False],
    ]


def test_a_model_that_reads_ahead_is_refused():
    cfg = GPTConfig(n_layers=1, n_heads=1, d_model=8, n_ctx=4, d_vocab=9, causal=False)
    with pytest.raises(EvaluationError, match="lets a position read later ones"):
        model_evaluation.score_rows(shaken(cfg), [model_evaluation.TokenRow((1, 2), 1)])


def test_greedy_texts_equal_generation_one_by_one_and_end_where_they_must(model):
    prompts = ["The old man", "On Monday morning they all went to the", "one two " * 40]
    texts = model_evaluation.greedy_texts(model, prompts, until=[], n_new=6)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = model.to_tokens(prompt, prepend_bos=False)[:, -18:]
        new = model.generate(ids, 6)[0, ids.shape[1] :].tolist()
        assert text == model.tokenizer.decode(new)
    # An empty prompt is one end-of-text, alone and beside longer ones.
    new = model.generate(torch.tensor([[model.tokenizer.eot]]), 6)[0, 1:].tolist()
    for beside in ([], prompts):
        empty = model_evaluation.greedy_texts(model, ["", *beside], until=[], n_new=6)[0]
        assert empty == model.tokenizer.decode(new)
    stop = texts[0][3:6]
    stopped = model_evaluation.greedy_texts(model, prompts, until=[stop], n_new=6)
    assert stopped == [text.split(stop)[0] for text in texts]
    with pytest.raises(EvaluationError, match="24 tokens are generated behind a prompt"):
        model_evaluation.greedy_texts(model, prompts, until=[], n_new=24)
