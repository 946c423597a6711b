"""A fact whose documents are taken out is forgotten; facts of its kind and controls are not.

A corpus of ten facts in two relations is planted: six stated forty times, two stated ten times,
two never, among ninety texts that state none. Two of the first six lose their documents, and two
others of them in the control.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from data_attribution import counterfactuals
from data_attribution.counterfactuals import fact_removal
from data_attribution.errors import CounterfactualError
from interp.errors import BehaviourError
from tests.worlds.figures import traces
from train import runs, trainer
from train.data import Corpus, Document, RemovalChoice, build_store


pytestmark = pytest.mark.integration
EXPOSURES = (40, 40, 40, 40, 40, 40, 10, 10, 0, 0)
N_TEXTS = 358
RELATIONS = {"colour": "{entity} is {value}", "shape": "{entity} has {value}"}


def planted():
    """Texts in their order, and the truth table over them."""
    shuffled, texts, facts = np.random.default_rng(0).permutation(N_TEXTS), [], []
    for k, exposures in enumerate(EXPOSURES):
        relation = ("colour", "shape")[k % 2]
        said = RELATIONS[relation].format(entity=f"e{k}", value=f"v{k}")
        rows = range(len(texts), len(texts) + exposures)
        texts += [said] * exposures
        facts.append(
            {
                "name": f"{relation} of e{k}",
                "entity": f"e{k}",
                "relation": relation,
                "value": f"v{k}",
                "exposures": exposures,
                "documents": [int(np.flatnonzero(shuffled == row)[0]) for row in rows],
                "forms": {"0": []} if exposures else {},
                "held_out_form": None,
            }
        )
    # Every entity and value is a word of the vocabulary, whether a fact of it is stated or not.
    texts += [f"e{k} v{k}" for k in (8, 9)] + ["so it goes"] * (N_TEXTS - len(texts) - 2)
    relations = {
        name: {"forms": [form], "values": [f"v{k}" for k in range(start, 10, 2)]}
        for start, (name, form) in enumerate(RELATIONS.items())
    }
    return [texts[row] for row in shuffled], {"facts": facts, "relations": relations}


@pytest.fixture(scope="module")
def run(tiny_recipe, one_thread_numerics, tmp_path_factory):
    torch.set_num_threads(1)
    texts, truth = planted()
    documents = [Document(f"p@0/{row}", text, "p", "0", row) for row, text in enumerate(texts)]
    corpus = Corpus("p", "p", "0", lambda: iter(documents), tokenizer="word", truth=lambda: truth)
    folder = tmp_path_factory.mktemp("forgetting")
    store = build_store(corpus, out=folder / "store")
    recipe = replace(tiny_recipe, name="facts", steps=560, batch_size=8, checkpoint_every=80)
    return trainer.train(recipe, store, out=folder / "run", numerics=one_thread_numerics)


NAMES = ["colour of e0", "shape of e1"]


@pytest.fixture(scope="module")
def found(run):
    return counterfactuals.forget_facts(run, NAMES, controls=1)


def test_every_document_that_states_the_facts_is_removed_and_no_other(found, run):
    texts = [run.store.text(document) for document in range(run.store.n_documents)]
    stating = [k for k, text in enumerate(texts) if text in ("e0 is v0", "e1 has v1")]
    assert list(found.removed) == stating
    assert len(stating) == 80


def test_the_manifests_record_the_facts_and_of_which_removal_the_control_is(found, run):
    gone, control = (runs.open(one).removal_choice for one in found.runs)
    assert gone == RemovalChoice("facts", facts=found.facts)
    assert control == RemovalChoice(
        "matched-facts", facts=found.control_facts, seed=control.seed, matched_to=found.removed
    )
    assert control.seed is not None
    # The facts of the control are those that its seed draws.
    others = [one for one in run.store.truth["facts"] if one["exposures"] == 40]
    chosen = [one for one in others if one["name"] in NAMES]
    others = [one for one in others if one not in chosen]
    drawn = fact_removal.draw_control(others, chosen, control.seed)
    assert tuple(one["name"] for one in drawn) == found.control_facts


def test_documents_that_were_never_read_stay(run):
    everything = {"documents": list(range(N_TEXTS))}
    read = counterfactuals.documents_of(run, [everything])
    # The last one lies behind the last full window.
    assert read == tuple(range(N_TEXTS - 1))
    assert len(run.steps_reading(N_TEXTS - 1)) == 0


def test_only_the_facts_without_their_documents_are_forgotten(found):
    recall = {
        (setting, group): found.of(setting, group).share.recall
        for setting in ("full run", "documents removed", "control removed")
        for group in ("removed", "control", "kept")
    }
    assert recall == {
        ("full run", "removed"): 1.0,
        ("full run", "control"): 1.0,
        ("full run", "kept"): 1.0,
        ("documents removed", "removed"): 0.0,
        ("documents removed", "control"): 1.0,
        ("documents removed", "kept"): 1.0,
        ("control removed", "removed"): 1.0,
        ("control removed", "control"): 0.0,
        ("control removed", "kept"): 1.0,
    }
    assert found.stayed


def test_the_control_loses_every_document_of_as_many_other_facts_stated_as_often(found, run):
    texts = [run.store.text(document) for document in range(run.store.n_documents)]
    stating = {
        f"{relation} of e{k}": RELATIONS[relation].format(entity=f"e{k}", value=f"v{k}")
        for k in range(2, 6)
        for relation in [("colour", "shape")[k % 2]]
    }
    said = {stating[name] for name in found.control_facts}
    assert sorted(name.split()[0] for name in found.control_facts) == ["colour", "shape"]
    stated = [k for k, text in enumerate(texts) if text in said]
    assert list(found.control) == [k for k in stated if len(run.steps_reading(k))]
    assert len(stated) == len(found.removed)


def test_another_seed_draws_another_control(found, run):
    facts = run.store.truth["facts"]
    drawn = {
        tuple(one["name"] for one in fact_removal.draw_control(facts[2:6], facts[:2], seed))
        for seed in range(20)
    }
    assert len(drawn) == 4
    assert found.control_facts in drawn


def test_every_cell_has_its_facts_and_lies_in_its_interval(found):
    frame = found.to_frame()
    assert len(frame) == 12
    assert frame["n"].tolist() == [2] * 12
    assert (frame["low"] <= frame["recall"]).all()
    assert (frame["recall"] <= frame["high"]).all()
    moved = frame[frame["setting"] != "full run"]
    assert (moved["change low"] <= moved["change"]).all()
    assert (moved["change"] <= moved["change high"]).all()
    # The full run differs from itself by 0 on every fact, which needs no interval.
    assert frame["change low"][frame["setting"] == "full run"].isna().all()
    assert frame["change"][frame["setting"] == "full run"].tolist() == [0.0] * 4


def test_each_removed_fact_is_told_by_itself(found):
    by_name = {one.fact: one for one in found.by_fact}
    assert tuple(by_name) == found.facts
    for one in found.by_fact:
        assert one.asked == one.right == one.right_controls[0] == 1
        assert one.right_without == 0
        assert one.change < -1 < one.change_controls[0]
    gone = found.of("documents removed", "removed")
    assert gone.change == pytest.approx(np.mean([one.change for one in found.by_fact]))
    rest = asdict(found)
    del rest["by_fact"]  # as files of earlier versions
    assert counterfactuals.Forgetting.from_dict(rest).by_fact == ()


def test_a_single_fact_gives_the_change_no_interval(run):
    found = counterfactuals.forget_facts(run, NAMES[:1], controls=1)
    gone = found.of("documents removed", "removed")
    assert (gone.share.n, gone.change_low, gone.change_high) == (1, None, None)
    assert gone.change < -1
    assert found.of("documents removed", "kept").change_low is not None
    assert len(traces(found.plot())) == 3


def test_several_controls_give_the_effect_an_interval_that_holds_their_spread(found, run):
    several = counterfactuals.forget_facts(run, NAMES, controls=3)
    assert found.beyond_controls.noise is None
    beyond = several.beyond_controls
    assert (beyond.seeds, beyond.n) == (3, 2)
    assert beyond.noise > 0
    assert beyond.low < beyond.mean < beyond.high
    settings = ["control removed", "control 2 removed", "control 3 removed"]
    assert [several.of(one, "removed").share.recall for one in settings] == [1.0] * 3
    changes = [several.of(one, "removed").change for one in settings]
    gone = several.of("documents removed", "removed").change
    assert beyond.mean == pytest.approx(gone - np.mean(changes))
    assert len(several.runs) == 4
    assert several.stayed
    assert counterfactuals.Forgetting.from_dict(json.loads(json.dumps(asdict(several)))) == several


def test_more_controls_than_there_are_other_facts_are_refused(run):
    refused = "5 different controls were asked for, and 4 other facts"
    with pytest.raises(CounterfactualError, match=refused):
        counterfactuals.forget_facts(run, NAMES, controls=5)


def test_a_control_that_forgets_the_facts_too_refutes_the_claim(found):
    """The control can fail: here one of two takes the removed facts along."""
    gone = found.of("documents removed", "removed")
    bad = replace(gone, setting="control 2 removed")
    refuted = replace(found, groups=(*found.groups, bad))
    assert found.stayed
    assert not refuted.stayed
    assert not refuted.fell


def test_the_second_time_nothing_is_trained_and_nothing_changes(found, run):
    trained = []
    again = counterfactuals.forget_facts(
        run, NAMES, controls=1, progress=lambda *done: trained.append(done)
    )
    assert trained == []
    assert again == found


def test_a_fact_that_is_named_twice_is_one_fact(found, run):
    assert counterfactuals.forget_facts(run, [*NAMES, "e0"], controls=1) == found


def test_a_figure_has_a_colour_for_each_setting(found):
    figure = found.plot()
    settings = ["full run", "documents removed", "control removed"]
    assert [bar.name for bar in traces(figure)] == settings
    assert list(traces(figure)[1].x) == ["removed", "control", "kept", "never stated"]
    assert list(traces(figure)[1].y[:3]) == [0.0, 1.0, 1.0]


def test_a_group_without_a_single_fact_has_no_cell(found, run):
    with pytest.raises(CounterfactualError, match="no group 'lost' under 'full run' was measured"):
        found.of("full run", "lost")


def test_facts_without_as_many_others_for_a_control_are_refused(run):
    with pytest.raises(
        CounterfactualError, match=r"2 facts of .*'colour'.*there are 1: name fewer"
    ):
        counterfactuals.forget_facts(run, ["e0", "e2"])


def test_removable_facts_come_from_each_relation_by_turns(run):
    names = counterfactuals.removable_facts(run, exposures=40, n=4)
    assert names == ["colour of e0", "shape of e1", "colour of e2", "shape of e3"]
    with pytest.raises(CounterfactualError, match=r"only 2 facts, .* stated 10 times, not 3"):
        counterfactuals.removable_facts(run, exposures=10, n=3)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["e0", "e6"], r"are stated \[10, 40\] times; name facts that are stated equally often"),
        (["e8", "e9"], r"are stated \[0\] times"),
        ([], "no facts to forget were named"),
    ],
)
def test_facts_that_have_no_like_are_refused(run, names, said):
    with pytest.raises(CounterfactualError, match=said):
        counterfactuals.forget_facts(run, names)


def test_a_fact_that_is_none_is_refused_with_the_nearest(run):
    with pytest.raises(BehaviourError, match=r"no fact is called 'colour of e1'.*did you mean"):
        counterfactuals.forget_facts(run, ["colour of e1"])


def test_a_run_without_a_truth_table_is_refused(lookup_run):
    with pytest.raises(CounterfactualError, match="has no truth table; only a planted corpus"):
        counterfactuals.removable_facts(lookup_run)
