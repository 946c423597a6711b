"""The page of a behaviour says what was measured on what, for a fact of the released run."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest

from data_attribution import attribution, counterfactuals, evaluation, report, token_index
from data_attribution.counterfactuals import FactChange
from data_attribution.report.behaviour_page import behaviour_html
from interp import behaviours


FACT = "capital of runethi"


def text_of(results) -> str:
    """The page as a reader sees it, on one line."""
    body = behaviour_html(results).split("</style>")[1].split('<script type="application/json"')[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture(scope="module")
def results(released_run):
    """The page's results for one fact, with the proof that came with the run."""
    token_index.build(released_run.store)
    return report.gather(released_run, behaviours.load("fact:runethi", released_run))


def test_a_mean_over_several_foils_is_not_the_number_of_the_one_that_is_shown(results):
    text = text_of(results)
    foils = results.behaviour.n_prompts
    assert (results.check.n, foils > 1) == (1, True)
    assert f"logit difference, mean over {foils} foils" in text
    assert f"{results.score.value:.2f} nats, n = 1 prompt, no interval" in text
    shown = results.examples[0].score
    assert shown != pytest.approx(results.score.value, abs=0.1)
    assert f"{shown:.2f} nats, n = 1 prompt, no interval, for this foil alone" in text


def test_the_heads_of_a_single_fact_are_followed_over_training(results):
    curve = results.curves["heads"].curve("L0H3")
    assert curve[-1].step == results.run.steps[-1]
    assert curve[-1].value == pytest.approx(results.heads["L0H3"], abs=1e-5)
    refused = "; ".join(f"{step:,}" for step, _ in results.curves["heads"].refused)
    assert f"No share at 4 checkpoints (steps {refused})" in text_of(results)


def test_the_headline_names_the_mlp_that_restores_more_than_any_head(results):
    (name,) = results.mlps.top(1)
    assert results.mlps[name] > results.heads[results.heads.top(1)[0]]
    text = text_of(results)
    assert "L0H3 alone restores 0.50 of the answer's lead, n = 1 prompt; next" in text
    assert f"the MLP of layer {name[1]} {results.mlps[name]:.2f}" in text


def test_documents_carry_the_label_of_the_truth_table(results):
    fact = next(one for one in results.run.store.truth["facts"] if one["name"] == FACT)
    rows = results.run.store.rows
    for one in results.sources:
        label = results.labels.get(one.document)
        assert (label == "states it") == (int(rows[one.document]) in fact["documents"])
        assert (label == "distractor") == (int(rows[one.document]) in fact["distractors"])
    stating = [one for one in results.sources if results.labels.get(one.document) == "states it"]
    held = {number for one in stating for number in one.group}
    text = text_of(results)
    assert f"{len(stating)} of these {len(results.sources)} state what was asked" in text
    assert f"with their copies {len(held)} of the {len(fact['documents'])} that do" in text
    assert text.count("· states it") == len(stating)


def test_a_document_is_called_by_its_file_where_there_are_several(results, monkeypatch):
    assert "planted</code> " not in text_of(results)
    whole = type(results.run.store).document
    monkeypatch.setattr(
        type(results.run.store),
        "document",
        lambda store, k: replace(whole(store, k), shard=f"file-{k}.py"),
    )
    first = results.sources.documents[0]
    assert f"1. document {first} file-{first}.py lexical" in text_of(results)


def test_a_share_of_a_reading_is_explained(results):
    assert "counts as that part" not in text_of(results)
    half = replace(results.exposures[0], shares=results.exposures[0].shares / 2.1)
    text = text_of(replace(results, exposures=(half, *results.exposures[1:])))
    assert "readings with its copies, where a step that reads a part of a document counts" in text


def test_a_page_of_words_says_how_to_ask_the_gradients(results):
    again = f"openbook report {results.run.path} fact:runethi --sources sources.json"
    assert again in text_of(results)
    sources = replace(results.sources, method="fused")
    assert again not in text_of(replace(results, sources=sources))


def test_a_behaviour_that_is_no_fact_has_no_labels(released_run):
    assert evaluation.planted_labels(released_run, "ioi") == {}
    capital = evaluation.planted_labels(released_run, "capital")
    one = evaluation.planted_labels(released_run, "fact:runethi")
    assert {key for key, said in one.items() if said == "states it"} < {*capital}


def test_readings_are_counted_on_both_sides_of_the_rise(results):
    onset = results.curves["score"].onset("fact:runethi logit difference")
    steps = [step for one in results.exposures for step in one.steps.tolist()]
    before = sum(step < onset.before for step in steps)
    between = sum(onset.before <= step < onset.step for step in steps)
    text = text_of(results)
    assert before > 0
    assert between > 0
    assert (
        f"Of the {len(steps)} readings of these documents {before} happened before and {between} "
        "between these checkpoints"
    ) in text
    # The fact is a late one: nothing that states it was read before step 1,000.
    assert "readings of those that state it 0 happened before" in text


def test_a_proof_of_several_facts_says_what_it_knows_of_this_one(results):
    text = text_of(results)
    assert f"“{FACT}” is one of the 9, stated by 16 of the 144 documents" in text
    assert "what became of it alone was not kept in the file" in text
    told = FactChange(FACT, 7, 7, 1, (7,), -4.5, (-0.03,))
    others = [FactChange(name, 7, 7, 0, (7,), -4.0, (0.0,)) for name in results.proof.facts[1:]]
    known = replace(results, proof=replace(results.proof, by_fact=(told, *others)))
    text = text_of(known)
    assert "answered right in 7 of 7 wordings before, in 1 without them, in 7 without as" in text
    assert "this one 7 → 1 of 7 wordings" in text


def test_documents_that_stayed_are_called_too_little_only_where_the_answer_is_lost(results):
    stayed = sum(results.removed.isdisjoint(one.group) for one in results.sources)
    read_again = f"The other {stayed} were read again as before"
    assert f"{read_again}." in text_of(results)
    for right, said in ((0, ", and were not enough to keep the answer."), (1, ".")):
        told = FactChange(FACT, 7, 7, right, (7,), -4.5, (-0.03,))
        known = replace(results, proof=replace(results.proof, by_fact=(told,)))
        assert f"{read_again}{said}" in text_of(known)


def test_facts_that_are_remembered_without_their_documents_prove_nothing(results):
    remembered = [
        replace(one, share=replace(one.share, low=0.9, recall=1.0, high=1.0))
        if (one.setting, one.group) == ("documents removed", "removed")
        else one
        for one in results.proof.groups
    ]
    shown = text_of(replace(results, proof=replace(results.proof, groups=tuple(remembered))))
    assert "Not shown. Trained again" in shown


def test_the_cards_of_several_methods_have_the_rank_by_each(results):
    sources = attribution.documents(
        results.run, results.behaviour, methods="lexical+gradient:kind=cosine,rank=1", limit=4,
        candidates=np.arange(28_400, 28_900),
    )  # fmt: skip
    text = text_of(replace(results, sources=sources, exposures=results.exposures[:4]))
    first = sources.items[0].evidence
    ranks = " · ".join(f"{name} rank {part.rank:,}" for name, part in first.items())
    assert len(first) == 2
    assert ranks in text
    assert "words count from 0 to 1, gradients from -1/2 to 1/2" in text


def test_facts_without_any_that_were_never_stated_have_nothing_to_fall_to(results):
    groups = tuple(one for one in results.proof.groups if one.group != "never stated")
    text = text_of(replace(results, proof=replace(results.proof, groups=groups)))
    assert "Chance unknown. Trained again" in text
    assert "never stated stand" not in text


def test_a_group_without_answers_is_said_to_be_not_measured(results):
    none = [
        replace(one, share=replace(one.share, n=0, recall=None))
        if (one.setting, one.group) == ("control removed", "removed")
        else one
        for one in results.proof.groups
    ]
    shown = text_of(replace(results, proof=replace(results.proof, groups=tuple(none))))
    assert "not measured without as many others" in shown


def test_the_command_of_the_proof_names_its_controls(results):
    text = text_of(results)
    assert "'trade of vumuthi' --controls 1 openbook forget" in text
    assert "until then all trainings are the same" in text
    assert "Each fact is asked in 7 wordings" in text
    removed = counterfactuals.documents_of(
        results.run, [one for one in results.run.store.truth["facts"] if one["name"] == FACT]
    )
    assert {*removed} <= {*results.proof.removed}
