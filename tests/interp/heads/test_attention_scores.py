"""A head is found by what it attends to, and copying by what it saves."""

from types import SimpleNamespace

import pytest
import torch

from interp.errors import BehaviourError, EffectsError
from interp.heads import (
    KINDS,
    HeadScores,
    attention_scores,
    best_head,
    copying_loss,
    detector_scores,
    duplicate_token_heads,
    induction_heads,
    previous_token_heads,
    repeated_tokens,
)
from train import storage
from train.model import GPTConfig, init_gpt


LENGTH, WORDS = 6, list(range(1, 21))


class PlantedHeads:
    """Two layers of two heads with hand-made attention, and a model that copies perfectly.

    L0H1 attends to the token before; L1H0 attends to the token after the previous occurrence, L1H1
    to that occurrence; L0H0 attends to the first token.
    """

    cfg = SimpleNamespace(n_layers=2, n_heads=2, d_vocab=21)

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
                    attend(patterns[1, prompt, 1, query], row.index(row[query]))
        return self(tokens), dict(zip(names_filter, patterns, strict=True))

    def run_with_hooks(self, tokens, *, fwd_hooks):
        raise NotImplementedError


def attend(row: torch.Tensor, key: int) -> None:
    row.zero_()
    row[key] = 1


@pytest.fixture
def tokens() -> torch.Tensor:
    return attention_scores.repeated(WORDS, 0, n=4, length=LENGTH)


def test_a_sequence_is_an_end_of_text_and_two_equal_runs_of_different_tokens(tokens):
    assert tokens.shape == (4, 1 + 2 * LENGTH)
    assert (tokens[:, 0] == 0).all()
    assert torch.equal(tokens[:, 1 : 1 + LENGTH], tokens[:, 1 + LENGTH :])
    assert all(len(set(row[1:].tolist())) == LENGTH for row in tokens)


def test_the_planted_induction_head_scores_one_and_is_found(tokens):
    scores = induction_heads(PlantedHeads(), tokens)
    expected = torch.tensor([
        # H0 H1
        [0.0, 0],  # the previous token is never the one after the previous occurrence
        [1.0, 0],
    ])  # fmt: skip
    torch.testing.assert_close(scores, expected)
    assert best_head(scores) == ("L1H0", 1.0)


def test_the_planted_previous_token_head_scores_one_and_is_found(tokens):
    scores = previous_token_heads(PlantedHeads(), tokens)
    assert best_head(scores) == ("L0H1", 1.0)
    # At position 1 everybody who attends to the first token attends to the one before.
    assert scores[0, 0] == pytest.approx(1 / (2 * LENGTH))


def test_the_planted_duplicate_token_head_scores_one_and_is_found(tokens):
    scores = duplicate_token_heads(PlantedHeads(), tokens)
    expected = torch.tensor([
        # H0 H1
        [0.0, 0],
        [0.0, 1],
    ])  # fmt: skip
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("induction", "L1H0"), ("previous token", "L0H1"), ("duplicate token", "L1H1")],
)
def test_a_score_knows_its_interval_and_how_many_sequences_it_rests_on(tokens, kind, name):
    found = detector_scores(PlantedHeads(), tokens, kind)
    assert (found.top(1), found[name], found.n) == ([name], 1.0, 4)
    assert found.interval(name) is None  # all sequences agree, which leaves none
    # A model that was built by hand cannot be built anew, so nothing is above its control.
    assert found.control is None
    assert found.above_control == []
    alone = detector_scores(PlantedHeads(), tokens[:1], kind)
    assert (alone.n, alone.interval(name)) == (1, None)
    twice = detector_scores(PlantedHeads(), tokens[[0, 0]], kind)
    assert (twice.n, twice.interval(name)) == (1, None)


def test_a_kind_that_nobody_knows_is_refused_with_the_nearest(tokens):
    with pytest.raises(BehaviourError, match="not scored for 'inducton', did you mean 'induction'"):
        detector_scores(PlantedHeads(), tokens, "inducton")


def test_an_untrained_model_is_not_above_another_untrained_one():
    cfg = GPTConfig(n_layers=2, n_heads=4, d_model=32, n_ctx=16, d_vocab=21)
    tokens = attention_scores.repeated(WORDS, 0, n=8, length=LENGTH)
    above = [
        detector_scores(init_gpt(cfg, seed), tokens, kind, seed=100 + seed).above_control
        for seed in range(10)
        for kind in KINDS
    ]
    assert sum(map(bool, above)) <= 1


def test_the_interval_covers_what_other_sequences_of_the_same_model_give():
    cfg = GPTConfig(n_layers=1, n_heads=2, d_model=32, n_ctx=16, d_vocab=21, init_std=0.5)
    gpt, inside = init_gpt(cfg, 0), 0
    truth = induction_heads(gpt, attention_scores.repeated(WORDS, 0, n=4000, length=LENGTH))
    for seed in range(100):
        few = attention_scores.repeated(WORDS, 0, n=16, length=LENGTH, seed=seed + 1)
        found = detector_scores(gpt, few, "induction")
        assert found.low is not None
        assert found.high is not None
        inside += ((found.low <= truth) & (truth <= found.high)).sum().item()
    assert 0.90 <= inside / 200 <= 0.99


def test_scores_survive_a_file_and_make_a_table_and_a_figure(tokens, tmp_path):
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=16, d_vocab=21)
    found = detector_scores(init_gpt(cfg, 0), tokens, "induction")
    found.save(tmp_path / "scores.json")
    back = HeadScores.load(tmp_path / "scores.json")
    assert back.to_dict() == found.to_dict()
    frame = back.to_frame()
    assert list(frame.columns) == [
        "layer", "head", "place", "score", "low", "high", "untrained",
    ]  # fmt: skip
    assert frame["place"].tolist() == found.names == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert "induction, n=4 sequences" in found.plot().layout.title.text
    assert "HeadScores(induction, 2 layers x 2 heads" in repr(back)
    with pytest.raises(EffectsError, match="no head 'L2H0' was scored, did you mean"):
        found["L2H0"]
    storage.write_json(tmp_path / "other.json", storage.seal({"schema": "other"}))
    with pytest.raises(EffectsError, match=r"is no 'openbook.head-scores/1'"):
        HeadScores.load(tmp_path / "other.json")


def test_a_perfect_copier_loses_nothing_on_the_second_copy(tokens):
    copying = copying_loss(PlantedHeads(), tokens)
    assert copying.first == pytest.approx(torch.tensor(21.0).log().item())
    assert copying.second == pytest.approx(0.0, abs=1e-6)
    assert (copying.top1, copying.n) == (1.0, 4)
    assert copying.gap == pytest.approx(copying.first)


def test_sequences_that_do_not_repeat_are_refused(tokens):
    tokens[0, -1] = 0
    with pytest.raises(BehaviourError, match="are not an end-of-text and two equal copies"):
        copying_loss(PlantedHeads(), tokens)


def test_a_vocabulary_too_small_for_a_run_is_refused():
    with pytest.raises(BehaviourError, match="24 different tokens cannot be drawn from 20"):
        attention_scores.repeated(WORDS, 0)


def test_tokens_are_drawn_from_the_whole_vocabulary_of_a_planted_store_too(store):
    tokens = repeated_tokens(store, n=1000)
    assert tokens.shape == (1000, 49)
    assert set(tokens[:, 1:].flatten().tolist()) == {*range(store.tokenizer.vocab_size)} - {
        store.tokenizer.eot
    }


def test_scores_say_on_how_many_different_tokens_they_were_measured(tokens):
    few = tokens[:1].repeat(3, 1)
    model = PlantedHeads()
    for found in (detector_scores(model, few, "induction"), copying_loss(model, few)):
        assert found.material == (
            f"3 sequences of twice {(few.shape[1] - 1) // 2} random tokens, "
            f"{len(few[0, 1:].unique())} different ones of a vocabulary of {model.cfg.d_vocab}"
        )
