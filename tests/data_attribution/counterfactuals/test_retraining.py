"""Removing documents removes what they taught, and removing random ones of their kind does not.

The run has learned by heart which of twelve values each of twelve keys has, from twenty documents a
pair. The twenty of one pair are taken out: only that pair may be forgotten.
"""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from data_attribution import counterfactuals, queries
from data_attribution.attribution import Source, Sources
from data_attribution.cli import formatting
from data_attribution.counterfactuals import document_sets, retraining
from data_attribution.errors import CounterfactualError
from data_attribution.queries import Query
from interp import behaviours
from interp.metrics import Metric
from tests.worlds.figures import traces
from train import runs, storage
from train.data import RemovalChoice
from train.errors import DiskError


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pairs(lookup_behaviour):
    """A behaviour for each pair."""
    whole = behaviours.read(lookup_behaviour)
    parts = ("clean", "corrupt", "answer", "foil")
    return [
        replace(
            whole, name=f"pair {k}", **{part: getattr(whole, part)[k : k + 1] for part in parts}
        )
        for k in range(whole.n_prompts)
    ]


@pytest.fixture(scope="module")
def of_pair_3(lookup_store):
    """The twenty documents that say which value the third key has."""
    said = (lookup_store.text(document) for document in range(lookup_store.n_documents))
    return [document for document, text in enumerate(said) if text == "k3 is v3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("counterfactuals")


@pytest.fixture(scope="module")
def found(lookup_run, of_pair_3, pairs, place):
    torch.set_num_threads(1)
    return once(lookup_run, of_pair_3, pairs, out=place)


# One control instead of two: half the trainings.
once = partial(counterfactuals.without, seeds=1)


def recalls(scores):
    return [score.recall.tolist() for score in scores]


def test_only_what_the_documents_taught_is_forgotten(found):
    assert recalls(found.before) == [[1.0]] * 12
    assert recalls(found.after) == [[1.0]] * 3 + [[0.0]] + [[1.0]] * 8
    fell = [
        float(after.log_prob[0] - before.log_prob[0])
        for before, after in zip(found.before, found.after, strict=True)
    ]
    assert fell[3] < -3
    assert max(abs(change) for k, change in enumerate(fell) if k != 3) < 0.5


def test_removing_another_text_with_all_its_copies_forgets_that_one_alone(found, lookup_run):
    """The control is as redundant as what was removed: all twenty documents of another pair."""
    assert len(found.control[0]) == len(found.removed) == 20
    (gone,) = {lookup_run.store.text(one) for one in found.control[0]}
    forgotten = [k for k, right in enumerate(recalls(found.controls[0])) if right != [1.0]]
    assert len(forgotten) == 1
    assert forgotten != [3]
    (removed,) = {lookup_run.store.text(one) for one in found.removed}
    assert gone != removed


def test_the_scores_of_the_full_run_are_its_own(found, lookup_run, pairs):
    for score, pair in zip(found.before, pairs, strict=True):
        with torch.inference_mode():
            last = lookup_run.load()(pair.clean)[0, -1].double()
        expected = last[int(pair.answer)] - last[list(pair.candidates)].logsumexp(0)
        assert score.log_prob == pytest.approx([expected.item()], abs=1e-5)
        difference = last[int(pair.answer)] - last[int(pair.foil)]
        assert score.logit_difference == pytest.approx([difference.item()], abs=1e-5)


def test_the_retrained_run_has_the_parents_order_and_has_not_read_the_documents(found, lookup_run):
    retrained = runs.open(found.runs[0], store=lookup_run.store.path)
    assert retrained.removal.documents == found.removed
    assert [row.digest for row in retrained.ledger] == [row.digest for row in lookup_run.ledger]
    assert all(len(retrained.steps_reading(document)) == 0 for document in found.removed)


def test_retrained_runs_are_found_by_what_they_lack_and_measured_alike(
    found, lookup_run, of_pair_3, pairs, place
):
    def ranked(first: int, *others: int) -> Sources:
        source = Source(first, "", "", "", 1.0, "lexical", (), 0, 1, duplicates=others)
        return Sources("pair", "lexical", (source,), {})

    there = counterfactuals.found(lookup_run, ranked(*of_pair_3), out=place)
    assert [str(one.path) for one in there] == list(found.runs)
    again = counterfactuals.compare(lookup_run, there[0], there[1:], pairs)
    assert [one.row() for one in again.changes] == [one.row() for one in found.changes]
    assert (again.removed, again.control) == (found.removed, found.control)
    assert (again.named, again.together, again.avoided) == (found.named, "near", found.avoided)
    untouched = next(one for one in range(240) if one not in {*found.removed, *found.control[0]})
    assert counterfactuals.found(lookup_run, ranked(untouched), out=place) == []
    with pytest.raises(CounterfactualError, match="was not retrained from run"):
        counterfactuals.compare(lookup_run, lookup_run, [], pairs)


def test_the_manifests_record_how_the_documents_were_chosen(found, lookup_run, of_pair_3):
    retrained, control = (runs.open(one, store=lookup_run.store.path) for one in found.runs)
    named, drawn = found.choices
    assert (retrained.removal_choice, control.removal_choice) == (named, drawn)
    assert named == RemovalChoice("named", named=tuple(of_pair_3), together="near")
    assert (drawn.kind, drawn.matched_to) == ("matched-random", found.removed)
    # What is recorded is enough to draw the same documents again.
    assert control.removal.documents == counterfactuals.matched_random(
        lookup_run, drawn.matched_to, seed=drawn.seed, avoid=drawn.avoided
    )
    assert (drawn.seed, drawn.rule) == (0, document_sets.RULE)
    inputs = ("recipe", "numerics", "data", "order", "parent", "removed")  # the choice is none
    asked = storage.canonical_json({one: control.predicate[one] for one in inputs})
    assert control.id == sha256(asked.encode()).hexdigest()[:12]


def test_a_retrained_run_is_opened_the_second_time(found, lookup_run, of_pair_3, pairs, place):
    trained = []
    again = once(
        lookup_run, of_pair_3[::-1], pairs, out=place, progress=lambda *done: trained.append(done)
    )
    assert trained == []
    assert again.runs == found.runs
    assert again.to_dict() == found.to_dict()


def test_a_retrained_run_that_was_stopped_before_it_was_declared_finished_is_finished(
    tiny_run, tmp_path, monkeypatch
):
    read = int(tiny_run.documents_read(20)[0])

    def fail(*_arguments):
        raise DiskError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "finish_manifest", fail)
        with pytest.raises(DiskError):
            retraining.retrain(tiny_run, [read], out=tmp_path)
    (path,) = tmp_path.iterdir()
    stopped = runs.open(path)
    assert stopped.steps[-1] == tiny_run.steps[-1]
    assert not stopped.finished
    assert retraining.retrain(tiny_run, [read], out=tmp_path).finished


def test_progress_says_which_of_the_trainings_it_is_of(lookup_run, of_pair_3, tmp_path):
    told = []
    retraining.retrain_each(
        lookup_run,
        [of_pair_3, of_pair_3[:1]],
        [RemovalChoice("named")] * 2,
        out=tmp_path,
        progress=lambda *one: told.append(one),
    )
    assert list(dict.fromkeys(what.split(",")[0] for what, *_ in told)) == ["1 of 2", "2 of 2"]


def test_sources_are_as_good_as_their_documents(found, lookup_run, of_pair_3, pairs, place):
    items = tuple(
        Source(document, f"lookup/{document}", "", "", 1.0, "lexical", (0,), 0, 1)
        for document in of_pair_3
    )
    sources = Sources("k3 is v3", "lexical", items, {})
    given = once(lookup_run, sources, pairs, out=place)
    assert given.to_dict() == found.to_dict()


def test_no_control_holds_a_copy_of_a_removed_document_or_of_a_row_below_the_top(
    lookup_run, of_pair_3, pairs, place
):
    """The third row stands for one document of pair 5, with one of pair 7 folded into it."""
    store = lookup_run.store
    of_pair_5, of_pair_7 = (
        [one for one in range(store.n_documents) if store.text(one) == f"k{k} is v{k}"]
        for k in (5, 7)
    )
    items = [
        Source(document, f"lookup/{document}", "", "", 1.0, "lexical", (0,), 0, 1)
        for document in (*of_pair_3[:2], of_pair_5[0])
    ]
    items[2] = replace(items[2], near=(of_pair_7[0],))
    sources = Sources("k3 is v3", "lexical", tuple(items), {})
    found = counterfactuals.without(
        lookup_run, sources, pairs, top=2, together="none", out=place, seeds=2
    )
    assert found.named == found.removed == tuple(of_pair_3[:2])
    # Eighteen copies of the two, and all twenty of each of the others, which no row lists.
    assert found.avoided == found.to_dict()["avoided"] == 18 + 20 + 20
    drawn = {store.text(one) for control in found.control for one in control}
    assert not drawn & {"k3 is v3", "k5 is v5", "k7 is v7"}
    assert "58 further documents (named in" in formatting.counterfactual_lines(found.to_dict())


def test_copies_go_with_the_documents_that_are_named(found, lookup_run, of_pair_3, pairs, place):
    two = once(lookup_run, of_pair_3[:2], pairs, out=place)
    assert two.named == tuple(of_pair_3[:2])
    assert two.removed == tuple(of_pair_3) == found.removed
    assert two.runs == found.runs


def test_a_head_is_asked_as_a_behaviour_is(lookup_run, of_pair_3, pairs, place):
    """What the retrained model answers, beside what two controls do, on the question's prompts."""
    pattern = "blocks.0.attn.hook_pattern"
    metric = Metric(
        "attention to the key",
        "share",
        lambda logits, row, values: values[pattern][:, 0, -1, 1],
        hooks=(pattern,),
    )
    asked = Query(metric.name, pairs[0].clean, metric)
    avoid = counterfactuals.kept_out(lookup_run, of_pair_3, of_pair_3)
    control = counterfactuals.matched_random(lookup_run, of_pair_3, seed=0, avoid=avoid)
    key = lookup_run.store.text(control[0]).split()[0]  # the first control takes out its pair
    other = pairs[int(key.removeprefix("k"))]
    found = counterfactuals.without(
        lookup_run, of_pair_3, [pairs[3], asked], unrelated=[other], out=place
    )
    assert len(found.control) == 2  # by default
    assert [one.name for one in found.changes] == ["pair 3", "attention to the key", other.name]
    assert [one.related for one in found.changes] == [True, True, False]
    last = [runs.open(path, store=lookup_run.store.path).load() for path in found.runs]
    of_head = found.changes[1]
    for values, model in zip((of_head.after, *of_head.controls), last, strict=True):
        assert values == pytest.approx(queries.measure_query(model, asked))
    assert len(found.before) == 2  # behaviours only
    assert found.effect() == found.effect("pair 3") == found.changes[0].effect
    assert found.effect("pair 3").mean < -3
    # One of two controls takes this pair out, which leaves the effect on it open.
    aside = found.effect(other.name)
    assert aside.low < 0 < aside.high
    rows = json.loads(json.dumps(found.to_dict()))["effects"]
    assert [row["question"] for row in rows] == [one.name for one in found.changes]
    with pytest.raises(CounterfactualError, match="'pair 12' was not asked"):
        found.effect("pair 12")


def test_one_prompt_gives_the_change_no_interval(found):
    frame = found.to_frame()
    assert len(frame) == 3 * 12
    assert frame["n"].tolist() == [1] * 36
    assert (frame["recall low"] <= frame["recall"]).all()
    assert (frame["recall"] <= frame["recall high"]).all()
    full = frame[frame["setting"] == "full run"]
    assert full["change"].tolist() == [0.0] * 12
    assert frame["change low"].isna().all()
    assert frame["change high"].isna().all()
    lines = formatting.counterfactual_lines(found.to_dict())
    assert "one prompt, no interval" in lines
    assert "one prompt, and fewer than two controls, noise unknown: one control" in lines
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_several_prompts_bound_the_change(lookup_run, pairs, of_pair_3, place):
    parts = ("clean", "corrupt", "answer", "foil")
    joined = {part: torch.cat([getattr(pair, part) for pair in pairs]) for part in parts}
    asked = replace(pairs[3], name="all pairs", **joined)
    found = counterfactuals.without(lookup_run, of_pair_3, asked, out=place, control="none")
    _, row = json.loads(json.dumps(found.to_dict()))["rows"]
    assert row["n"] == 12
    assert row["change low"] < row["change"] < row["change high"]


def test_a_prompt_that_is_asked_twice_counts_once(lookup_run, pairs, of_pair_3, place):
    parts = ("clean", "corrupt", "answer", "foil")
    twice = {
        part: torch.cat([getattr(pairs[k], part) for k in (3, 5, 3)]) for part in parts
    }  # fmt: skip
    asked = replace(pairs[3], name="two pairs", **twice)
    found = counterfactuals.without(lookup_run, of_pair_3, asked, out=place, control="none")
    assert found.to_frame()["n"].tolist() == [2, 2]
    assert sorted(found.after[0].recall) == [0.0, 1.0]
    assert found.control == ()
    as_question = replace(queries.query_of_behaviour(asked), name="as a question")
    asked_so = counterfactuals.without(
        lookup_run, of_pair_3, [asked, as_question], out=place, control="none"
    )
    behaviour, question = asked_so.changes
    assert behaviour.effect.n == question.effect.n == len(question.after) == 2
    assert question.after == pytest.approx(asked_so.after[0].logit_difference, abs=1e-5)


def test_a_figure_has_a_colour_for_each_retrained_run_and_none_for_the_full_one(found):
    figure = found.plot()
    assert [bar.name for bar in traces(figure)] == [
        "without the documents",
        "without 20 matched random",
    ]
    assert list(traces(figure)[0].x) == [f"pair {k}" for k in range(12)]
    assert traces(figure)[0].y[3] < -3


# --- the control ---------------------------------------------------------------------------------


def with_partners(run):
    """A document of each of some lengths, of which at least two others were read."""
    lengths = run.store.lengths
    read = [one for one in range(run.store.n_documents) if len(run.steps_reading(one))]
    alike = [[one for one in read if lengths[one] == length] for length in np.unique(lengths)]
    return [group[0] for group in alike if len(group) > 2]


@pytest.mark.parametrize("seed", range(5))
def test_the_control_is_disjoint_about_as_long_and_was_read(tiny_run, seed):
    documents = with_partners(tiny_run)
    assert len(documents) > 10
    control = counterfactuals.matched_random(tiny_run, documents, seed=seed)
    lengths = tiny_run.store.lengths
    assert not set(control) & set(documents)
    assert len(set(control)) == len(documents)
    difference = np.sort(lengths[list(control)]) - np.sort(lengths[documents])
    assert abs(difference).mean() < 0.1 * lengths[documents].mean()
    assert all(len(tiny_run.steps_reading(document)) for document in control)


def test_the_control_depends_on_its_seed_alone(lookup_run, of_pair_3):
    drawn = [counterfactuals.matched_random(lookup_run, of_pair_3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_documents_to_avoid_are_never_drawn(lookup_run, of_pair_3):
    avoided = set(range(0, lookup_run.store.n_documents, 2))
    for seed in range(3):
        control = counterfactuals.matched_random(
            lookup_run, of_pair_3, seed=seed, avoid=sorted(avoided)
        )
        assert not avoided & set(control)


def test_the_control_of_a_text_with_all_its_copies_is_another_text_with_all_its_copies(lookup_run):
    """Removing all copies takes a text out of the training; scattered documents leave theirs."""
    shas: dict[str, list[int]] = {}
    for document in range(lookup_run.store.n_documents):
        if len(lookup_run.steps_reading(document)):
            shas.setdefault(lookup_run.store.document(document).sha256, []).append(document)
    groups = [some for some in shas.values() if len(some) > 1]
    sizes = Counter(map(len, groups))
    some = next(one for one in groups if sizes[len(one)] > 2)
    for seed in range(3):
        control = counterfactuals.matched_random(lookup_run, some, seed=seed)
        assert list(control) in groups
        assert len(control) == len(some)
        assert not {*control} & {*some}
    # Without one of the copies the text stays, and so do those of the control.
    scattered = counterfactuals.matched_random(lookup_run, some[:-1], seed=0)
    assert len(scattered) == len(some) - 1
    assert not any({*scattered}.issuperset(one) for one in groups)
    # One document of every other text is to be avoided: they are drawn one by one.
    avoid = [other[0] for other in groups if other != some]
    alone = counterfactuals.matched_random(lookup_run, some, seed=0, avoid=avoid)
    assert len(alone) == len(some)
    assert not {*alone} & {*avoid}


def test_a_control_that_would_need_more_documents_than_were_read_is_refused(lookup_run):
    most = range(lookup_run.store.n_documents - 5)
    with pytest.raises(CounterfactualError, match="read no other of the 240 in the store"):
        counterfactuals.matched_random(lookup_run, most, seed=0)


# --- what is refused -----------------------------------------------------------------------------


def test_a_document_that_was_never_read_is_refused(tiny_run, pairs, tmp_path):
    held_out = tiny_run.store.n_documents - 1
    assert len(tiny_run.steps_reading(held_out)) == 0
    refused = f"1 of the 2 documents were never read in 24 steps .first: document {held_out}."
    for call in (
        lambda: counterfactuals.without(tiny_run, [held_out, 0], pairs, out=tmp_path),
        lambda: counterfactuals.matched_random(tiny_run, [held_out, 0], seed=0),
    ):
        with pytest.raises(CounterfactualError, match=refused):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("documents", "said"),
    [([], "no documents to remove"), ([3, 240], "documents 3 to 240 are not all among the 240")],
)
def test_documents_that_are_none_are_refused(lookup_run, pairs, tmp_path, documents, said):
    with pytest.raises(CounterfactualError, match=said):
        counterfactuals.without(lookup_run, documents, pairs, out=tmp_path)


def test_sources_of_another_store_are_refused(lookup_run, pairs, tmp_path):
    row = Source(3, "lookup/3", "", "", 1.0, "lexical", (0,), 0, 1)
    other = Sources("k3 is v3", "lexical", (row,), {"store": "f" * 64})
    both: list[dict[str, Any]] = [{"documents": other}, {"documents": [3], "avoid": other}]
    for given in both:
        with pytest.raises(CounterfactualError, match="of token store ffffffffffff, and the run"):
            counterfactuals.without(lookup_run, behaviour=pairs[3], out=tmp_path, **given)


def test_without_documents_for_a_control_nothing_is_trained(lookup_run, pairs, tmp_path):
    asked = (lookup_run, range(240 - 20), pairs[3])
    with pytest.raises(CounterfactualError, match="a control needs documents beside the"):
        counterfactuals.without(*asked, together="none", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"top": 0}, "the first 0 documents are none"),
        ({"top": -1}, "the first -1 documents are none"),
        ({"seeds": 0}, "0 matched random controls are none; ask for 2, or for control='none'"),
        ({"seeds": -2}, "-2 matched random controls are none"),
        ({"unrelated": True}, "'pair 3' is asked twice"),
        ({"behaviour": []}, "nothing is asked"),
    ],
)
def test_what_would_be_done_otherwise_than_said_is_refused(lookup_run, pairs, tmp_path, how, said):
    asked = {"behaviour": pairs[3]} | how
    if "unrelated" in how:
        asked["unrelated"] = pairs[3:4]
    with pytest.raises(CounterfactualError, match=said):
        counterfactuals.without(lookup_run, [1, 2], out=tmp_path, **asked)
    assert list(tmp_path.iterdir()) == []


def test_several_controls_have_a_row_each(found, pairs):
    several = replace(found, control=found.control * 2, controls=found.controls * 2)
    settings = several.to_frame()["setting"].unique().tolist()
    drawn = [f"without 20 matched random, control {number}" for number in (1, 2)]
    assert settings == ["full run", "without the documents", *drawn]
    assert len(list(product(settings, pairs))) == len(several.to_frame())
