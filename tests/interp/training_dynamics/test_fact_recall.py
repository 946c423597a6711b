"""Recall is counted per exposure, on the right forms, among the right values."""

from types import SimpleNamespace

import pytest
import torch

from interp import training_dynamics
from interp.errors import BehaviourError
from tests.worlds.figures import traces
from train.data.planted import corpus


class Remembers:
    """Knows the value of every fact stated `well` times or more, in every form but `not_form`.

    Otherwise it finds the first value of the relation likeliest.
    """

    cfg = SimpleNamespace(n_layers=0)

    def __init__(self, store, well: int, not_form: int | None = None) -> None:
        self.tokenizer = store.tokenizer
        self.answers = {}
        for fact in store.truth["facts"]:
            relation = store.truth["relations"][fact["relation"]]
            for form, text in enumerate(relation["forms"]):
                known = fact["exposures"] >= well and form != not_form
                query = text.partition(" {value}")[0].format(entity=fact["entity"])
                value = fact["value"] if known else relation["values"][0]
                self.answers[query] = int(store.tokenizer.encode(value)[0])

    def __call__(self, tokens):
        logits = torch.zeros(*tokens.shape, self.tokenizer.vocab_size)
        logits[..., 5] = 100.0  # a word that is no value: the answer is sought among the values
        for row, prompt in enumerate(tokens.tolist()):
            assert prompt[0] == self.tokenizer.eot
            logits[row, -1, self.answers[self.tokenizer.decode(prompt[1:])]] = 10.0
        return logits

    def run_with_cache(self, tokens, *, names_filter):
        raise NotImplementedError

    def run_with_hooks(self, tokens, *, fwd_hooks):
        raise NotImplementedError


def test_every_level_is_counted_and_only_known_facts_are_recalled(store):
    recall = training_dynamics.recall_by_exposure(
        Remembers(store, well=16), store.truth, store.tokenizer
    )
    assert [level.exposures for level in recall.levels] == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    assert [level.n for level in recall.levels] == list(corpus.FACTS_AT.values())
    for level in recall.levels[1:]:
        expected = 1.0 if level.exposures >= 16 else pytest.approx(0.04, abs=0.15)
        assert level.seen.recall == expected
        assert level.paraphrase.recall == expected
        assert level.seen.n == level.paraphrase.n == level.n
        assert level.seen.low <= level.seen.recall <= level.seen.high


def test_late_facts_are_a_level_of_their_own(store):
    recall = training_dynamics.recall_by_exposure(
        Remembers(store, well=16), store.truth, store.tokenizer
    )
    assert (recall.late.exposures, recall.late.n, recall.late.seen.recall) == (16, 36, 1.0)
    early = {**store.truth, "facts": [f for f in store.truth["facts"] if not f["late"]]}
    without = training_dynamics.recall_by_exposure(Remembers(store, 16), early, store.tokenizer)
    assert without.late is None
    assert [one.seen for one in without.levels] == [one.seen for one in recall.levels]


def test_a_fact_never_stated_has_no_seen_form_and_is_asked_in_all(store):
    never = training_dynamics.recall_by_exposure(
        Remembers(store, 1), store.truth, store.tokenizer
    ).at(0)
    assert (never.seen.n, never.seen.recall, never.seen.log_prob) == (0, None, None)
    assert never.paraphrase.n == 30
    # Form 0 is forgotten, six forms of seven are known, and a guess is right by chance.
    never = training_dynamics.recall_by_exposure(
        Remembers(store, 0, not_form=0), store.truth, store.tokenizer
    )
    values = {name: relation["values"][0] for name, relation in store.truth["relations"].items()}
    guessed = sum(
        values[fact["relation"]] == fact["value"]
        for fact in store.truth["facts"]
        if fact["exposures"] == 0
    )
    assert never.at(0).paraphrase.recall == pytest.approx((180 + guessed) / 210)


def test_seen_and_paraphrase_are_told_apart(store):
    recall = training_dynamics.recall_by_exposure(
        Remembers(store, 1, not_form=0), store.truth, store.tokenizer
    )
    facts = [fact for fact in store.truth["facts"] if fact["exposures"] == 64]
    held_out = sum(fact["held_out_form"] == 0 for fact in facts)
    guessed = recall.at(64).paraphrase.recall * 30 - (30 - held_out)
    assert 0 <= guessed <= 3, "form 0 is the one that was held out of a third of the facts"
    assert 0.5 <= recall.at(64).seen.recall < 1


def test_the_log_probability_is_taken_among_the_values(store):
    answers = training_dynamics.recall_of_facts(
        Remembers(store, 1), store.truth["facts"][:2], store.truth, store.tokenizer
    )
    assert [answer.form for answer in answers] == [*range(7), *range(7)]
    expected = -torch.log(1 + 23 * torch.exp(torch.tensor(-10.0))).item()
    assert [a.log_prob for a in answers if a.correct and a.exposures] == [
        pytest.approx(expected, abs=1e-6)
    ] * sum(a.correct and a.exposures > 0 for a in answers)


def test_the_baseline_is_the_commonest_value_by_documents(store):
    recall = training_dynamics.recall_by_exposure(Remembers(store, 1), store.truth, store.tokenizer)
    weight = {}
    for fact in store.truth["facts"]:
        key = fact["relation"], fact["value"]
        weight[key] = weight.get(key, 0) + fact["exposures"]
    best = {r: max((w, v) for (rr, v), w in weight.items() if rr == r)[1] for r, _ in weight}
    guessed = [
        best[fact["relation"]] == fact["value"]
        for fact in store.truth["facts"]
        if fact["exposures"] == 128
    ]
    assert recall.at(128).baseline == pytest.approx(sum(guessed) / 30)
    assert recall.at(128).baseline < 0.34


def test_facts_are_found_by_name_and_by_entity(store):
    fact = store.truth["facts"][3]
    assert training_dynamics.facts_named(store.truth, [fact["name"], fact["entity"]]) == [
        fact,
        fact,
    ]
    with pytest.raises(BehaviourError, match="no fact is called 'capital of nowhere'"):
        training_dynamics.facts_named(store.truth, ["capital of nowhere"])


def test_a_table_and_a_figure_show_every_level(store):
    recall = training_dynamics.recall_by_exposure(
        Remembers(store, 16), store.truth, store.tokenizer
    )
    assert len(recall.to_frame()) == 9
    assert list(traces(recall.plot())[0].x) == ["0", "1", "2", "4", "8", "16", "32", "64", "128"]
    with pytest.raises(BehaviourError, match="the levels are 0, 1, 2"):
        recall.at(3)
