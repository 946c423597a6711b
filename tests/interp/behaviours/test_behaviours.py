"""A behaviour says exactly what it asks, in prompts that differ only where they must."""

from types import SimpleNamespace

import pytest
import torch

from interp import behaviours
from interp.behaviours import Behaviour
from interp.errors import BehaviourError, CapabilityError, ModelError
from tests.worlds.known import known
from train.data import gpt2_tokenizer
from train.errors import DamagedError
from train.statistics import wilson


def contrast(**changed) -> Behaviour:
    parts = {
        "name": "copy the first token",
        "clean": torch.tensor([[0, 3, 3]]),
        "corrupt": torch.tensor([[1, 3, 3]]),
        "answer": torch.tensor([0]),
        "foil": torch.tensor([1]),
    }
    return Behaviour(**{**parts, **changed})


class Says:
    """A model that gives fixed logits at every position of every prompt."""

    def __init__(self, *logits: float) -> None:
        self.logits = torch.tensor(logits)

    cfg = SimpleNamespace(n_layers=0)

    def __call__(self, tokens):
        return self.logits.expand(*tokens.shape, -1)

    def run_with_cache(self, tokens, *, names_filter):
        return self(tokens), {}

    def run_with_hooks(self, tokens, *, fwd_hooks):
        return self(tokens)


def differences(behaviour: Behaviour) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in behaviour.clean != behaviour.corrupt]


# What is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corrupt": torch.tensor([[0, 3, 3]])}, "1 of 1 corrupt prompts are equal"),
        ({"foil": torch.tensor([0])}, "on 1 of 1 prompts the answer is its own foil"),
        ({"subject": (2, 5)}, r"subject at \(2, 5\) of 3 positions"),
        ({"candidates": (1, 2)}, "2 candidates, and an answer that is none"),
    ],
)
def test_a_behaviour_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(BehaviourError, match=message):
        contrast(**changed)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("corrupt", torch.tensor([[1, 3]]), r"clean prompts of shape \(1, 3\) and corrupt"),
        ("answer", torch.tensor([0, 1]), "1 prompts, 2 answers and 1 foils"),
    ],
)
def test_unequal_shapes_are_refused_where_nobody_checks_annotations(field, value, message):
    behaviour = contrast()
    object.__setattr__(behaviour, field, value)
    with pytest.raises(BehaviourError, match=message):
        behaviour.__post_init__()


def test_an_unknown_name_offers_the_nearest(store):
    with pytest.raises(BehaviourError, match="did you mean 'capital'"):
        behaviours.load("captial", store)
    entity = store.truth["facts"][0]["entity"]
    with pytest.raises(BehaviourError, match=f"did you mean 'fact:{entity}'"):
        behaviours.load(f"fact:{entity}x", store)


def test_a_model_without_a_tokenizer_cannot_state_a_behaviour():
    with pytest.raises(ModelError, match="without a tokenizer"):
        behaviours.load("ioi", SimpleNamespace())


# Scores and checks


def test_the_score_is_the_logit_difference_at_the_last_position():
    logits = torch.zeros(1, 3, 4)
    logits[0, -1] = torch.tensor([5.0, 2.0, 0, 0])
    logits[0, 0] = 99
    assert contrast().score(logits).tolist() == [3.0]
    assert contrast().score(logits[:, -1:]).tolist() == [3.0]


def test_accuracy_is_counted_among_the_candidates_and_top1_among_all():
    model = Says(2.0, 1.0, 3.0, 4.0)
    assert behaviours.measure(model, contrast()).accuracy == 1.0
    assert behaviours.measure(model, contrast()).top1 == 0.0
    assert behaviours.measure(model, contrast(candidates=(0, 1))).accuracy == 1.0
    assert behaviours.measure(model, contrast(candidates=(0, 1, 2))).accuracy == 0.0


def test_a_model_that_cannot_do_it_is_refused_with_the_numbers():
    with pytest.raises(CapabilityError, match=r"accuracy 0.00 .* on 1 prompt,.* difference -1"):
        behaviours.check(Says(1.0, 2.0, 0, 0), contrast())
    with pytest.raises(CapabilityError, match="nan"):
        behaviours.check(Says(float("nan"), 2.0, 0, 0), contrast())
    assert behaviours.check(Says(2.0, 1.0, 0, 0), contrast()).score == 1.0


class SaysItsToken(Says):
    """A model that is right on prompts whose first token is not 2."""

    def __call__(self, tokens):
        right, wrong = torch.tensor([2.0, 1.0, 0, 0]), torch.tensor([1.0, 2.0, 0, 0])
        return torch.where((tokens[:, :1] == 2)[..., None], wrong, right).expand(*tokens.shape, -1)


def in_groups(**changed) -> Behaviour:
    """Forty prompts of four groups; those of the last begin with token 2."""
    last = torch.arange(40)[:, None] >= 30
    middle = torch.arange(40)[:, None].expand(40, 2)
    clean = torch.cat([torch.where(last, 2, 0), middle], dim=1)
    corrupt = torch.cat([torch.ones(40, 1, dtype=torch.int64), middle], dim=1)
    zeros, groups = torch.zeros(40, dtype=torch.int64), tuple(k // 10 for k in range(40))
    parts = {"clean": clean, "corrupt": corrupt, "answer": zeros, "foil": zeros + 1}
    return contrast(**{**parts, "groups": groups, **changed})


def test_prompts_of_a_group_count_once_in_an_interval():
    model = SaysItsToken()
    grouped, apart = (behaviours.measure(model, in_groups(groups=one)) for one in
                      (in_groups().groups, ()))  # fmt: skip
    assert (grouped.accuracy, grouped.n) == (0.75, 4)
    assert (apart.accuracy, apart.n) == (0.75, 40)
    assert grouped.interval == wilson(0.75, 4)
    assert apart.interval == wilson(0.75, 40)
    assert in_groups().of([5, 31, 32]).cases == [0, 1, 1]


def test_groups_that_do_not_fit_the_prompts_are_refused():
    with pytest.raises(BehaviourError, match="40 prompts and 3 groups"):
        in_groups(groups=(0, 1, 2))
    twice = contrast().clean.repeat(2, 1)
    with pytest.raises(BehaviourError, match="1 of 1 prompts stand in several groups"):
        contrast(
            clean=twice, corrupt=contrast().corrupt.repeat(2, 1), answer=torch.tensor([0, 0]),
            foil=torch.tensor([1, 2]), groups=(0, 1),
        )  # fmt: skip


# Keeping


def test_groups_are_kept_in_a_file_that_older_versions_refuse(tmp_path):
    in_groups().save(tmp_path / "asked.json")
    again = behaviours.read(tmp_path / "asked.json")
    assert again.cases == in_groups().cases
    assert again.sha256 == in_groups().sha256 != in_groups(groups=()).sha256
    assert '"openbook.behaviour/3"' in (tmp_path / "asked.json").read_text()


def test_a_saved_behaviour_comes_back_the_same(tmp_path, store):
    for name in ("ioi", "capital"):
        behaviour = behaviours.load(name, store, n_prompts=4)
        behaviour.save(tmp_path / "asked.json")
        again = behaviours.load(tmp_path / "asked.json", store)
        assert again.to_dict() == behaviour.to_dict()
        assert again.sha256 == behaviour.sha256


def test_a_changed_file_is_found(tmp_path):
    contrast().save(tmp_path / "asked.json")
    text = (tmp_path / "asked.json").read_text()
    (tmp_path / "asked.json").write_text(text.replace('"answer": [\n  0', '"answer": [\n  2'))
    with pytest.raises(DamagedError, match=r"asked\.json"):
        behaviours.read(tmp_path / "asked.json")


def test_the_digest_is_of_what_is_measured_not_of_its_description():
    assert contrast().sha256 == contrast(description="else").sha256
    assert contrast().sha256 != contrast(candidates=(0, 1)).sha256


# What the planted behaviours ask


@pytest.mark.parametrize("name", ["ioi", "induction", "capital", "maker", "trade"])
def test_prompts_differ_at_the_subject_only_and_the_seed_decides_them(store, name):
    behaviour = behaviours.load(name, store, n_prompts=12)
    assert behaviour.n_prompts == 12
    assert (behaviour.clean[:, 0] == store.tokenizer.eot).all()
    first, last = known(behaviour.subject)
    assert differences(behaviour) == [list(range(first, last))] * 12
    assert behaviours.load(name, store, n_prompts=12).sha256 == behaviour.sha256
    assert behaviours.load(name, store, n_prompts=12, seed=1).sha256 != behaviour.sha256


def test_ioi_asks_held_out_pairs_in_both_orders_and_swaps_the_one_who_acts(store):
    ioi = store.truth["ioi"]
    behaviour = behaviours.load("ioi", store, n_prompts=40)
    held = {frozenset(pair) for pair in ioi["held_out_pairs"]}
    orders = []
    for clean, corrupt, answer, foil in zip(
        behaviour.clean, behaviour.corrupt, behaviour.answer, behaviour.foil, strict=True
    ):
        first, second, subject = names_in(clean, store)
        assert frozenset((first, second)) in held
        assert names_in(corrupt, store)[2] == word(answer, store)
        assert (subject, {first, second}) == (word(foil, store), {subject, word(answer, store)})
        orders.append(subject == first)
    assert sum(orders) == 20


def test_ioi_with_other_names_asks_the_same_of_two_people_that_the_corrupt_prompt_does_not_name(
    store,
):
    behaviour = behaviours.load("ioi:names", store, n_prompts=40)
    held = {frozenset(pair) for pair in store.truth["ioi"]["held_out_pairs"]}
    spoken = set(store.truth["ioi"]["names"])
    first, last = known(behaviour.subject)
    for row, (clean, corrupt) in enumerate(zip(behaviour.clean, behaviour.corrupt, strict=True)):
        said, instead = names_in(clean, store), names_in(corrupt, store)
        assert not {*said} & {*instead}
        assert frozenset(said) in held
        assert frozenset(instead) in held
        # The one who acts stands in the same place of the two, and all other words stay.
        assert said.index(said[2]) == instead.index(instead[2])
        differ = differences(behaviour)[row]
        assert (first, last - 1) == (differ[0], differ[-1])
        assert len(differ) == 3
        assert {word(clean[pos], store) for pos in differ} <= spoken
        assert word(behaviour.foil[row], store) == said[2]
        assert {word(behaviour.answer[row], store), said[2]} == {*said}


def test_an_ioi_combination_can_be_asked_alone(store):
    held_out = store.truth["ioi"]["held_out_combinations"][0]
    behaviour = behaviours.load("ioi:{}-{}".format(*held_out), store, n_prompts=6)
    assert "held-out combination" in behaviour.description
    opening = store.truth["ioi"]["openings"][held_out[0]].split()[0]
    assert word(behaviour.clean[0, 1], store) == opening


def test_a_fact_is_asked_in_its_canonical_form_against_others_with_other_values(store):
    fact = next(f for f in store.truth["facts"] if f["exposures"] == 16)
    behaviour = behaviours.load(f"fact:{fact['entity']}", store, n_prompts=10)
    form = store.truth["relations"][fact["relation"]]["forms"][0]
    query = form.partition(" {value}")[0].format(entity=fact["entity"])
    assert store.tokenizer.decode(behaviour.clean[0, 1:].tolist()) == query
    assert {word(token, store) for token in behaviour.answer} == {fact["value"]}
    assert len(known(behaviour.candidates)) == 24


def test_a_relation_asks_each_well_known_fact_once(store):
    behaviour = behaviours.load("capital", store)
    place = behaviour.subject[0]
    asked = [word(token, store) for token in behaviour.clean[:, place]]
    known = {
        f["entity"]: f["value"]
        for f in store.truth["facts"]
        if f["relation"] == "capital" and f["exposures"] >= 16
    }
    assert sorted(asked) == sorted(known)
    assert [known[entity] for entity in asked] == [word(t, store) for t in behaviour.answer]


def test_induction_asks_what_followed_before(store):
    behaviour = behaviours.load("induction", store, n_prompts=8)
    for row, answer in zip(behaviour.clean.tolist(), behaviour.answer.tolist(), strict=True):
        before = row.index(row[-1])
        assert row[before + 1] == answer
        assert row.count(answer) == 1
    assert all(f not in row for row, f in zip(behaviour.clean, behaviour.foil, strict=True))


def word(token: torch.Tensor, store) -> str:
    return store.tokenizer.tokens([int(token)])[0]


def names_in(prompt: torch.Tensor, store) -> list[str]:
    words = store.tokenizer.tokens(prompt.tolist())
    return [one for one in words if one in store.truth["ioi"]["names"]]


# Any tokenizer


@pytest.fixture(scope="module")
def gpt2():
    return SimpleNamespace(tokenizer=gpt2_tokenizer())


def test_ioi_for_gpt2_has_single_token_names_and_one_changed_token(gpt2):
    behaviour = behaviours.load("ioi", gpt2, n_prompts=10)
    assert all(len(changed) == 1 for changed in differences(behaviour))
    assert behaviour.clean[0, 0] == 50256
    text = gpt2.tokenizer.decode(behaviour.clean[0].tolist())
    answer = gpt2.tokenizer.decode([int(behaviour.answer[0])])
    assert answer.startswith(" ")
    assert text.count(answer) == 1
    assert text.count(gpt2.tokenizer.decode([int(behaviour.foil[0])])) == 2


def test_induction_works_in_any_vocabulary(gpt2):
    behaviour = behaviours.load("induction", gpt2, n_prompts=5)
    assert behaviour.clean.shape == (5, 1 + 16 + 8)
    assert behaviours.names(gpt2) == ["induction", "ioi"]


def test_a_vocabulary_without_the_words_is_refused(store):
    words = SimpleNamespace(tokenizer=store.tokenizer)
    with pytest.raises(BehaviourError, match=r"0 of \d+ names are one token"):
        behaviours.load("ioi", words)


def test_templates_of_ones_own_are_read_from_toml(tmp_path, store):
    (tmp_path / "cats.toml").write_text(
        'clean = ["the {a} cat"]\ncorrupt = ["the {b} cat"]\nanswer = "{a}"\nfoil = "{b}"\n'
        '[slots]\na = "kinds"\nb = "kinds"\n[lists]\nkinds = ["old", "red", "wild", "unheard"]\n'
    )
    behaviour = behaviours.load(tmp_path / "cats.toml", store, n_prompts=3)
    assert differences(behaviour) == [[2]] * 3
    (tmp_path / "cats.toml").write_text('clean = ["the cat"]')
    with pytest.raises(BehaviourError, match="has no answer and no corrupt"):
        behaviours.load(tmp_path / "cats.toml", store)
    with pytest.raises(BehaviourError, match="no such file"):
        behaviours.load(tmp_path / "dogs.toml", store)
