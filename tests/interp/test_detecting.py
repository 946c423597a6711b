"""A head is found by what it attends to, and copying by what it saves."""

from types import SimpleNamespace

import pytest
import torch

from interp import detecting
from interp.errors import BehaviourError


LENGTH, WORDS = 6, list(range(1, 21))


class PlantedHeads:
    """Two layers of two heads with hand-made attention, and a model that copies perfectly.

    L0H1 attends to the token before; L1H0 attends to the token after the previous occurrence; the
    other two attend to the first token.
    """

    cfg = SimpleNamespace(n_layers=2, n_heads=2)

    def __call__(self, tokens):
        logits = torch.zeros(*tokens.shape, 21)
        for prompt, row in enumerate(tokens.tolist()):
            for pos, token in enumerate(row):
                if token in row[:pos]:
                    logits[prompt, pos, row[row.index(token) + 1]] = 100.0
        return logits

    def run_with_cache(self, tokens, *, names_filter):
        n, pos = tokens.shape
        patterns = torch.zeros(2, n, 2, pos, pos)
        patterns[..., 0] = 1
        for prompt, row in enumerate(tokens.tolist()):
            for query in range(1, pos):
                attend(patterns[0, prompt, 1, query], query - 1)
                if row[query] in row[:query]:
                    attend(patterns[1, prompt, 0, query], row.index(row[query]) + 1)
        return self(tokens), dict(zip(names_filter, patterns, strict=True))

    def run_with_hooks(self, tokens, *, fwd_hooks):
        raise NotImplementedError


def attend(row: torch.Tensor, key: int) -> None:
    row.zero_()
    row[key] = 1


@pytest.fixture
def tokens() -> torch.Tensor:
    return detecting.repeated(WORDS, 0, n=4, length=LENGTH)


def test_a_sequence_is_an_end_of_text_and_two_equal_runs_of_different_tokens(tokens):
    assert tokens.shape == (4, 1 + 2 * LENGTH)
    assert (tokens[:, 0] == 0).all()
    assert torch.equal(tokens[:, 1 : 1 + LENGTH], tokens[:, 1 + LENGTH :])
    assert all(len(set(row[1:].tolist())) == LENGTH for row in tokens)


def test_the_planted_induction_head_scores_one_and_is_found(tokens):
    scores = detecting.induction_heads(PlantedHeads(), tokens)
    expected = torch.tensor([
        # H0 H1
        [0.0, 0],  # the previous token is never the one after the previous occurrence
        [1.0, 0],
    ])  # fmt: skip
    torch.testing.assert_close(scores, expected)
    assert detecting.best(scores) == ("L1H0", 1.0)


def test_the_planted_previous_token_head_scores_one_and_is_found(tokens):
    scores = detecting.previous_token_heads(PlantedHeads(), tokens)
    assert detecting.best(scores) == ("L0H1", 1.0)
    # At position 1 everybody who attends to the first token attends to the one before.
    assert scores[0, 0] == pytest.approx(1 / (2 * LENGTH))


def test_a_perfect_copier_loses_nothing_on_the_second_copy(tokens):
    copying = detecting.copying(PlantedHeads(), tokens)
    assert copying.first == pytest.approx(torch.tensor(21.0).log().item())
    assert copying.second == pytest.approx(0.0, abs=1e-6)
    assert (copying.top1, copying.n) == (1.0, 4)
    assert copying.gap == pytest.approx(copying.first)


def test_sequences_that_do_not_repeat_are_refused(tokens):
    tokens[0, -1] = 0
    with pytest.raises(BehaviourError, match="are not an end-of-text and two equal copies"):
        detecting.copying(PlantedHeads(), tokens)


def test_a_vocabulary_too_small_for_a_run_is_refused():
    with pytest.raises(BehaviourError, match="24 different tokens cannot be drawn from 20"):
        detecting.repeated(WORDS, 0)


def test_planted_nonce_words_are_used_where_there_are_some(store):
    tokens = detecting.repeated_tokens(store, n=2)
    words = set(store.tokenizer.tokens(tokens[:, 1:].flatten().tolist()))
    assert words <= set(store.truth["induction"]["words"])
    assert tokens.shape == (2, 49)
