"""Every method is put to planted facts, and what the truth says of them is what is counted.

A corpus of sixteen facts in two relations is planted, each with two wordings: half are asked in a
wording they were stated in, half are not, and all have a distractor that names the same words.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_attribution import attribution, evaluation, gradients, lexical, token_index
from data_attribution.errors import EvidenceError
from data_attribution.evaluation import EvaluationOptions, facts, method_evaluation, scope
from data_attribution.evaluation.scope import CaseRankings
from data_attribution.ranking import Ranking
from train import runs, trainer
from train.data import Corpus, Document, build_store


pytestmark = pytest.mark.integration
FORMS = {"colour": ("{e} is {v}", "one sees {v} on {e}"), "shape": ("{e} has {v}", "{v} makes {e}")}
EXPOSURES = (18, 18, 18, 18, 9, 9, 9, 9) * 2


def planted():
    """Texts in a random order, and the truth table over them."""
    texts, facts = [], []
    for k, exposures in enumerate(EXPOSURES):
        relation = ("colour", "shape")[k % 2]
        form = k // 2 % 2
        said = FORMS[relation][form].format(e=f"e{k}", v=f"v{k}")
        rows = list(range(len(texts), len(texts) + exposures))
        facts.append(
            {
                "name": f"{relation} of e{k}",
                "entity": f"e{k}",
                "relation": relation,
                "value": f"v{k}",
                "exposures": exposures,
                "documents": rows,
                "distractors": [rows[-1] + 1],
                "forms": {str(form): rows},
                "held_out_form": 1 - form,
                "paraphrase_only": form == 1,
            }
        )
        texts += [said] * exposures + [f"v{k} went and e{k} stayed"]
    shuffled = np.random.default_rng(0).permutation(len(texts))
    place = {int(row): new for new, row in enumerate(shuffled)}
    for fact in facts:
        for part in ("documents", "distractors"):
            fact[part] = [place[row] for row in fact[part]]
    relations = {
        name: {"forms": [one.replace("{e}", "{entity}").replace("{v}", "{value}") for one in forms],
               "values": [f"v{k}" for k in range(start, 16, 2)]}
        for start, (name, forms) in enumerate(FORMS.items())
    }  # fmt: skip
    empty = {"openings": [], "closings": []}
    truth = {"facts": facts, "relations": relations, "ioi": empty}
    return [texts[row] for row in shuffled], truth


@pytest.fixture(scope="module")
def run(tiny_recipe, one_thread_numerics, tmp_path_factory):
    torch.set_num_threads(1)
    texts, truth = planted()
    documents = [Document(f"p@0/{row}", text, "p", "0", row) for row, text in enumerate(texts)]
    corpus = Corpus("p", "p", "0", lambda: iter(documents), tokenizer="word", truth=lambda: truth)
    folder = tmp_path_factory.mktemp("evaluating")
    store = build_store(corpus, out=folder / "store")
    token_index.build(store)
    recipe = replace(tiny_recipe, name="facts", steps=200, batch_size=8, checkpoint_every=40)
    recipe = replace(recipe, optimizer_every=40)
    return trainer.train(recipe, store, out=folder / "run", numerics=one_thread_numerics)


@pytest.fixture(scope="module")
def chosen(run):
    return evaluation.planted_facts(run, n=4)


def text_of(run, documents):
    return {run.store.text(one) for one in documents}


# --- the cases -----------------------------------------------------------------------------------


def test_a_case_knows_the_documents_that_state_its_fact_and_those_that_do_not(run, chosen):
    assert [case.kind for case in chosen] == ["verbatim"] * 4 + ["paraphrase"] * 4
    for case in chosen:
        entity = case.name.split()[-1]
        value = entity.replace("e", "v")
        assert text_of(run, case.distractors) <= {f"{value} went and {entity} stayed"}
        (said,) = text_of(run, case.relevant)
        assert {entity, value} <= set(said.split())
        asked = run.store.tokenizer.decode(case.behaviour.clean[0, 1:].numpy())
        assert said.startswith(asked) == (case.kind == "verbatim")
        assert len(case.relevant) <= case.exposures


def test_cases_are_dealt_by_seed_and_by_the_number_of_exposures(run, chosen):
    assert [case.name for case in evaluation.planted_facts(run, n=4)] == [
        case.name for case in chosen
    ]
    other = [case.name for case in evaluation.planted_facts(run, n=4, seed=1)]
    assert other != [case.name for case in chosen]
    assert [case.exposures for case in chosen] == [9, 18, 9, 18] * 2
    assert {case.exposures for case in evaluation.planted_facts(run, n=8, least=10)} == {18}
    with pytest.raises(EvidenceError, match="stated 19 times or more"):
        evaluation.planted_facts(run, least=19)
    with pytest.raises(EvidenceError, match="-1 facts of each kind are none"):
        evaluation.planted_facts(run, n=-1)
    with pytest.raises(EvidenceError, match="stated 1 times or more"):
        evaluation.planted_facts(run, most=0)


def test_components_are_chosen_on_other_facts(run, chosen):
    others = facts.other_facts(run, chosen, least=1, n=6)
    assert len(others) == 6
    assert not {case.name for case in others} & {case.name for case in chosen}
    names = method_evaluation.localised(run, chosen, least=1, k=2)
    assert len(names) == 2
    assert set(names) <= {"L0H0", "L0H1", "L0.mlp"}


# --- rankings for all at once --------------------------------------------------------------------


def test_shared_gradients_are_those_of_one_question_at_a_time(run, chosen):
    found = evaluation.rankings_by_method(run, chosen, within=("L0H1", "L0.mlp"))
    requests = [attribution.make_request(run, case.behaviour) for case in chosen]
    documents = np.unique(
        np.concatenate([lexical.candidates(request, limit=300) for request in requests])
    )
    for case in (chosen[0], chosen[-1]):
        for method, within in (("gradient", None), ("localised", ("L0H1", "L0.mlp"))):
            request = attribution.make_request(run, case.behaviour, candidates=documents)
            (alone,) = gradients.rank_by_gradients([request], within=within)
            ours = found[method].by_case[case.name]
            assert ours.documents.tolist() == alone.documents.tolist()
            np.testing.assert_allclose(ours.scores, alone.scores, rtol=1e-5)
        parts = {name: found[name].by_case[case.name] for name in attribution.DEFAULT}
        fused = found["fused"].by_case[case.name]
        assert fused.documents.tolist() == attribution.fuse(parts).documents.tolist()


def test_gradients_of_all_documents_rank_more_than_words_preselect(run, chosen):
    """Both are the same gradients: among the preselected documents they agree about the order."""
    found = evaluation.rankings_by_method(
        run, chosen, each=2, within=("L0H1", "L0.mlp"), unselected=True
    )
    name = chosen[0].name
    for method in ("gradient", "localised"):
        some, every = found[method].by_case[name], found[f"{method} (all)"].by_case[name]
        assert len(some.documents) < len(every.documents) == run.store.n_documents
        scores = dict(zip(every.documents.tolist(), every.scores, strict=True))
        ours = [scores[one] for one in some.documents.tolist()]
        np.testing.assert_allclose(some.scores, ours, rtol=1e-4, atol=1e-6)
    parts = {one: found[one].by_case[name] for one in attribution.DEFAULT}
    assert found["fused"].by_case[name].documents.tolist() == (
        attribution.fuse(parts).documents.tolist()
    )


def test_a_document_that_was_not_read_is_passed_over(run, chosen, monkeypatch):
    found = evaluation.rankings_by_method(run, chosen[:1])
    (name,) = found["bm25"].by_case
    documents = found["bm25"].by_case[name].documents.tolist()
    top = evaluation.first_read(run, found["bm25"].by_case, first=5)
    assert top[name] == documents[:5]
    unread = documents[1]
    steps = type(run).steps_reading
    monkeypatch.setattr(
        type(run),
        "steps_reading",
        lambda self, one: steps(self, one)[:0] if one == unread else steps(self, one),
    )
    top = evaluation.first_read(run, found["bm25"].by_case, first=5)
    assert top[name] == [one for one in documents if one != unread][:5]


# --- the whole table -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(run, tmp_path_factory):
    torch.set_num_threads(1)
    asked = EvaluationOptions(
        n=4, k=3, patched=1, replayed=1, removal=1, unrelated=(), subsets=5, steps=20
    )
    return evaluation.evaluate(
        run, asked, within=("L0H0", "L0.mlp"), out=tmp_path_factory.mktemp("weights")
    )


METHODS = ["bm25", "lexical", "gradient", "localised", "fused"]


def test_every_method_has_its_row_with_n_and_interval(table):
    frame = table.to_frame()
    for measure in ("recall@3", "MRR", "in first n", "distinct texts"):
        rows = frame[frame["measure"] == measure]
        named = [*METHODS, *method_evaluation.NULLS]
        assert list(rows[rows["kind"] == "verbatim"]["method"]) == named
        assert set(rows[rows["kind"] == "paraphrase"]["n"]) == {4}
        assert (rows["low"] <= rows["value"]).all()
        assert (rows["value"] <= rows["high"] + 1e-9).all()
    assert set(frame[frame["measure"] == "tail patch"]["method"]) >= {"random", "fused"}
    assert set(frame[frame["measure"] == "LDS"]["method"]) >= {"random", "fused", "gradient"}
    removal = frame[frame["measure"] == "removal"]
    assert list(removal["method"]) == ["fused", "bm25", "gradient", "random"]
    overlapping = frame[frame["measure"] == "lists that overlap"]
    assert set(overlapping["n"]) == set(removal["n"])
    json.dumps(table.to_dict())


def test_replay_stands_beside_rows_of_its_own_facts_and_documents(table, run):
    """Whatever is measured of replay, every other method has a row of the same kind and n."""
    frame = table.to_frame()
    beside = frame[frame["kind"].str.endswith(", replayed")]
    assert set(frame[frame["method"] == "replay"]["kind"]) <= set(beside["kind"])
    for _, rows in beside.groupby(["kind", "measure"]):
        assert {"replay", *METHODS} <= set(rows["method"])
        assert set(rows["n"]) == {1}
    about = table.provenance["replayed"]
    assert len(about["facts"]) == 2
    assert about["documents"] == len(
        np.unique(np.concatenate([run.documents_read(step) for step in range(180, 200)]))
    )
    assert table.provenance["candidates"] < run.store.n_documents
    assert "replayed: the 2 most stated facts" in table.lines().splitlines()[-1]


def test_the_facts_of_replay_lose_the_documents_that_its_steps_did_not_read(run, chosen):
    """Of every ranking nothing else is left either."""
    case, other = chosen[1], chosen[0]
    kept = frozenset(sorted(case.relevant)[::2])
    ranking = Ranking(np.array(sorted(case.relevant)), np.arange(len(case.relevant), 0.0, -1))
    by_case = {one.name: ranking for one in (case, other)}
    replayed = ranking.among(np.array(sorted(kept)))
    found = {
        "bm25": CaseRankings(by_case, 0.0),
        "replay": CaseRankings({case.name: replayed}, 0.0),
    }
    whole, exam = scope.of([other, case], found)
    assert whole.methods == ("bm25",)
    assert (whole.label, whole.among, len(whole.cases)) == ("", None, 2)
    assert exam.methods == ("bm25", "replay")
    assert [one.name for one in exam.cases] == [case.name]
    assert exam.cases[0].relevant == kept
    tops = exam.tops(run, found, exam.cases, first=3)
    assert tops["bm25"] == tops["replay"] == {case.name: sorted(kept)[:3]}
    assert set(exam.random(run, first=50, seed=0)) == kept
    assert len(whole.random(run, first=50, seed=0)) == 50


def test_a_method_that_says_the_same_of_every_subset_foretells_nothing():
    """0 and no refusal: leaving its facts out would count only those where it had something."""
    subsets, actual = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3)), np.arange(5.0)
    assert method_evaluation.lds_or_zero(np.zeros(4), subsets, actual) == 0
    assert method_evaluation.lds_or_zero(np.array([0, 1, 2, 3.0]), subsets, actual) != 0


def test_words_find_what_was_stated_in_them(table):
    """Three of three come first: the wording, entity and value are all the document's."""
    assert table.value("bm25", "verbatim", "recall@3")["value"] == 1
    assert table.value("lexical", "verbatim", "MRR")["value"] == 1


def test_a_ranking_of_distractors_is_told_from_one_of_statements_by_the_first_n(table):
    """The control can fail: where words alone are ranked, the distractors come first."""
    for kind in ("verbatim", "paraphrase"):
        worst = table.value("distractors first", kind, "in first n")["value"]
        assert worst < 1
        assert table.value("distractors first", kind, "MRR")["value"] == pytest.approx(0.5)
        # One text states each fact here: it is found behind the one distractor.
        assert table.value("distractors first", kind, "distinct texts")["value"] == 1
        assert table.value("random order", kind, "in first n")["value"] < 0.5


def test_removing_what_was_found_takes_more_than_random_documents(table):
    fused = table.value("fused", "both", "removal")
    random = table.value("random", "both", "removal")
    assert fused["value"] < random["value"] - 0.5
    # The control takes out other facts whole, and eight facts are half of this small world.
    assert table.value("fused", "both", "times random")["value"] > 0


def test_facts_that_are_stated_too_seldom_to_be_removed_are_refused(run, monkeypatch):
    """Before anything is ranked: what the truth says is known at once."""
    monkeypatch.setattr(method_evaluation, "rankings_by_method", None)
    with pytest.raises(EvidenceError, match="none of the 8 facts is stated by 19 documents"):
        evaluation.evaluate(run, EvaluationOptions(n=4, k=19, removal=1), within=("L0.mlp",))


def test_a_run_that_was_stopped_is_evaluated_as_far_as_its_last_checkpoint(run, tmp_path):
    """190 steps are in the ledger and 160 in the weights: nothing behind them is drawn or cited."""

    def stop(what, done, steps):
        if done == 190:
            raise KeyboardInterrupt

    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        trainer.train(run.recipe, run.store, out=path, numerics=run.numerics, progress=stop)
    stopped = runs.open(path, store=run.store.path)
    assert (stopped.steps_done, stopped.steps[-1]) == (190, 160)
    asked = EvaluationOptions(n=1, k=3, each=20, patched=0, subsets=4, steps=6)
    found = evaluation.evaluate(stopped, asked, within=("L0.mlp",))
    assert found.provenance["steps"] == [154, 159]
    assert found.value("gradient", "verbatim", "LDS")["n"] == 1


def test_the_command_prints_the_table(openbook, run):
    found = openbook(
        "attribution", "evaluate", run.path, "--facts", 2, "--tail-patch", 0, "--within", "L0.mlp",
        "--replay", 1, "--steps", 20
    )  # fmt: skip
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split()[:5] == ["method", "facts", "in", "first", "n"]
    assert [line.split()[0] for line in lines[1:11:2]] == METHODS
    assert {line.split()[0] for line in lines[11:-3]} == {
        *METHODS, "replay", "random", "distractors"
    }  # fmt: skip
    assert f"run {run.id}" in lines[-3]
    assert "localised to L0.mlp" in lines[-3]
    assert "replay answers for no other" in lines[-2]
    assert lines[-1] == evaluation.Evaluation.meaning


def test_a_run_of_other_text_is_refused_in_one_line(openbook, tiny_run):
    found = openbook("attribution", "evaluate", tiny_run.path)
    assert found.code == 2
    assert found.err.count("\n") == 1
    assert "has no truth table" in found.err
