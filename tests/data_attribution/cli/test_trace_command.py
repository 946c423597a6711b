"""A run that has learned twelve pairs is traced: the pair that is asked for comes first."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_attribution import attribution, component_queries, counterfactuals
from data_attribution.attribution import Gradient, Lexical, Replay, Sources
from data_attribution.cli import formatting
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.gradients import GradientOptions
from interp import behaviours, metrics
from interp.behaviours import Behaviour
from tests.worlds.commands import refused
from tests.worlds.stores import indexed_copy
from train import runs


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def indexed(lookup_store, tmp_path_factory) -> Path:
    return indexed_copy(lookup_store, tmp_path_factory.mktemp("indexed") / "lookup")


@pytest.fixture(scope="module")
def run(lookup_run, indexed):
    return runs.open(lookup_run.path, store=indexed)


@pytest.fixture(scope="module")
def third(lookup_behaviour) -> Behaviour:
    """What k3 is, and not what k4 is."""
    asked = behaviours.read(lookup_behaviour)
    return Behaviour("k3", asked.clean[3:4], asked.clean[4:5], asked.answer[3:4], asked.answer[4:5])


@pytest.mark.parametrize("method", ["lexical", "bm25", "gradient", "fused", "lexical+replay"])
def test_every_method_puts_the_pair_that_is_asked_for_first(run, third, method):
    sources = attribution.documents(run, third, methods=method, limit=3)
    assert {run.store.text(one) for one in sources.groups[0]} == {"k3 is v3"}
    assert len(sources.groups[0]) == 20  # twenty documents say so, and are one row
    asked = [one.name for one in attribution.parse(method)]
    assert list(sources.items[0].evidence) == [*asked]
    assert sources.items[0].evidence[asked[0]].rank == 1


def test_the_grade_of_a_row_is_the_strongest_evidence_that_speaks_for_it(run, third):
    sources = attribution.documents(run, third, limit=100)
    first = sources.items[0]
    assert first.grade == "gradient"
    assert set(first.evidence) == {"lexical", "gradient"}
    # Every document says "is"; of those that name another key, gradients say nothing.
    assert {one.grade for one in sources.items[2:]} == {"lexical"}


def test_a_row_that_no_method_speaks_for_has_no_grade_in_whatever_order_they_are_named(run, third):
    """All 240 documents have a gradient, so all rank; words alone name those that share one."""
    alone = attribution.documents(run, third, methods="gradient", limit=240)
    grades = [one.grade for one in alone]
    assert (grades[0], set(grades)) == ("gradient", {"gradient", "none"})
    both, turned = (
        {
            one.document: one.grade
            for one in attribution.documents(run, third, methods=name, limit=240)
        }
        for name in ("lexical+gradient", "gradient+lexical")
    )
    assert both == turned
    assert set(both.values()) == {"gradient", "lexical"}


def test_components_are_named_in_the_result(run, third):
    sources = attribution.documents(run, third, methods=[Gradient(within=["L0.mlp"])], limit=2)
    assert sources.provenance["within"] == ["L0.mlp"]
    whole = attribution.documents(run, third, methods="gradient", limit=2)
    assert sources.items[0].score != whole.items[0].score


def test_a_method_answers_for_the_candidates_alone(run, third):
    some = np.flatnonzero([run.store.text(k) != "k3 is v3" for k in range(240)])[:40]
    for method in ("lexical", "gradient", "fused"):
        sources = attribution.documents(run, third, methods=method, candidates=some, fold=False)
        assert set(sources.documents) <= {*some.tolist()}


def test_a_question_is_what_gradients_follow_and_the_behaviour_lends_its_words(run, third):
    question = component_queries.named("previous-token:L0H1", run, n=4)
    some = np.arange(40)
    alone = attribution.documents(run, query=question, candidates=some, fold=False)
    assert (alone.query, alone.method) == ("previous token score of L0H1", "gradient")
    assert alone.provenance["left out"] == ["lexical"]
    beside = attribution.documents(run, third, query=question, candidates=some, fold=False)
    assert (beside.query, beside.method) == (alone.query, "fused")
    assert beside.provenance["left out"] == []
    of_behaviour = attribution.documents(run, third, candidates=some, fold=False)
    scores, also, others = (
        {one.document: one.evidence["gradient"].score for one in found}
        for found in (alone, beside, of_behaviour)
    )
    assert scores == also
    rows = [[one[k] for k in range(40)] for one in (scores, others)]
    assert np.asarray(np.corrcoef(rows))[0, 1] < 0.9
    words = [
        {one.document: one.evidence["lexical"].score for one in found if "lexical" in one.evidence}
        for found in (beside, of_behaviour)
    ]
    assert words[0] == words[1] != {}


def test_a_probes_direction_is_followed_and_scores_are_linear_in_it(run, third):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    some = np.arange(40)

    def scores(scale: float, place: str = "L0.resid_post") -> np.ndarray:
        question = component_queries.probe_direction(third.clean, place, scale * direction)
        found = attribution.documents(run, query=question, candidates=some, fold=False)
        return np.array([one.score for one in sorted(found, key=lambda one: one.document)])

    once = scores(1.0)
    assert (once != 0).any()
    np.testing.assert_allclose(scores(-2.0), -2 * once, rtol=1e-4, atol=1e-4 * abs(once).max())
    assert np.corrcoef(once, scores(1.0, "L0.resid_pre"))[0, 1] < 0.999


def test_how_gradients_are_compared_is_asked_for_and_said(run, third):
    cosine = attribution.documents(run, third, methods=[Gradient("cosine", rank=8)], limit=2)
    told = cosine.provenance["gradient"]
    assert (told["kind"], told["rank"]) == ("cosine", 8)
    assert abs(cosine.items[0].score) <= 1


def test_names_of_methods_stand_for_what_they_fuse(run):
    assert attribution.parse("fused") == (Lexical(), Gradient())
    assert attribution.parse("fused+replay") == (Lexical(), Gradient(), Replay())
    assert attribution.parse("gradient+fused") == (Gradient(), Lexical())
    assert attribution.parse("fused", words=False) == (Gradient(),)
    assert attribution.choose_methods("fused", run) == (Lexical(), Gradient())


def test_what_nothing_would_look_at_is_refused(run, third):
    question = component_queries.named("prefix-matching:L0H0", run, n=2)
    metric = metrics.named("probability", third)
    for asked, said in (
        ({}, "nothing was asked"),
        ({"query": question, "methods": "lexical"}, "no words that lexical evidence"),
        ({"query": question, "methods": "gradient+bm25"}, "no words that bm25 evidence"),
        ({"target": third, "query": question, "methods": "bm25"}, "a question was given, and"),
        ({"target": third, "query": question, "metric": metric}, "is a number already"),
        ({"target": "k3", "metric": metric}, "the probability of a text is a number already"),
        ({"target": third, "methods": [Lexical(), Lexical()]}, "none of a kind twice"),
        ({"target": third, "methods": []}, "give at least one"),
        ({"target": third, "metric": metric, "methods": "lexical"}, "a metric was given, and lex"),
    ):
        with pytest.raises(EvidenceError, match=said):
            attribution.documents(run, **asked)
    for given in ("probability", metrics.probability):
        with pytest.raises(EvidenceError, match="the metric probability was given beside it"):
            attribution.documents(run, "k3", metric=given)
    with pytest.raises(QueryError, match="an effect on a behaviour"):
        component_queries.named("direct-effect:L0H0", run)
    with pytest.raises(QueryError, match="did you mean 'prefix-matching'"):
        component_queries.named("prefix-match:L0H0", run)
    with pytest.raises(QueryError, match=r"no head L0H2: .* layers 0 to 0 of heads 0 to 1"):
        component_queries.named("prefix-matching:L0H2", run)


def test_removing_the_first_row_proves_it(run, third, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run.path, copied)
    own = runs.open(copied, store=run.store.path)
    sources = attribution.documents(own, third, limit=3)
    proved, proof = counterfactuals.validate_sources(own, third, sources, top=1, controls=2)
    first = proved.items[0]
    assert (first.grade, first.effect.together) == ("counterfactual", 20)
    assert first.effect.high < 0
    assert len(proof.control) == 2
    assert [one.effect for one in proved.items[1:]] == [None, None]


def test_the_command_ranks_and_keeps_and_draws_a_page(openbook, run, indexed, tmp_path):
    kept, page = tmp_path / "sources.json", tmp_path / "page.html"
    ended = openbook(
        "trace", "sentence", run.path, "k3 is v3", "--store", indexed, "--method",
        "lexical+gradient:within=L0.mlp,within=embed", "--limit", 2, "--out", kept, "--page", page,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("fused evidence (lexical + gradient, each on a scale of length 1)")
    assert lines[0].endswith("within L0.mlp, embed")
    assert lines[1] == "scores: sum of 2 scores on scales of length 1"
    assert "k3 is v3\tduplicates: 19" in lines[2]
    assert lines[-1] == Sources.meaning
    methods = [Lexical(), Gradient(within=["L0.mlp", "embed"])]
    by_object = attribution.documents(run, "k3 is v3", methods=methods, limit=2)
    by_object.save(tmp_path / "by_object.json")
    assert (tmp_path / "by_object.json").read_bytes() == kept.read_bytes()
    assert Sources.load(kept).items[0].span == "k3 is v3"
    assert "<mark>" in page.read_text()


def test_the_command_follows_a_head_and_a_window_of_the_replay(openbook, run, indexed, tmp_path):
    at = ("trace", "head", run.path, "--store", indexed, "--limit", 2)
    ended = openbook(*at, "previous-token:L0H0")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("gradient evidence (adam of projected gradients of the log-odds) ")
    assert "left out: lexical (the question has no words)" in ended.out
    replay = ("--method", f"replay:steps=3,scratch={tmp_path}")
    ended = openbook(*at, "previous-token:L0H0", *replay)
    assert (ended.code, list(tmp_path.iterdir())) == (0, [])
    assert "replay of steps 157 to 159, from the checkpoint at 120" in ended.out
    kinds = ("--method", "gradient:kind=cosine,rank=8")
    ended = openbook(*at, "previous-token:L0H0", *kinds)
    assert ended.out.startswith("gradient evidence (cosine of projected")


def test_a_page_of_a_text_shows_its_stretches_above_the_documents(openbook, run, indexed, tmp_path):
    page = tmp_path / "page.html"
    ended = openbook(
        "trace", "sentence", run.path, "k1 is v1 k2 is v3", "--store", indexed,
        "--method", "lexical", "--page", page,
    )  # fmt: skip
    assert ended.code == 0
    shown = page.read_text()
    assert shown.index(">The text</h2>") < shown.index(">Documents</h2>")
    assert {*re.findall(r'href="#(span-\d)"', shown)} == {"span-0", "span-1", "span-2"}


def test_a_text_in_a_file_is_traced_span_by_span(openbook, run, indexed, tmp_path):
    (tmp_path / "said.txt").write_text("k1 is v1 k2 is v3")
    at = ("trace", "text", run.path, "--store", indexed)
    ended = openbook(*at, tmp_path / "said.txt", "--limit", 1)
    spans = [line.split("\t")[1] for line in ended.out.splitlines() if " nats " in line]
    assert spans == ["'k1 is v1'", "'k2 is'", "'is v3'"]
    assert ended.out.startswith("3 of 3 spans of at least 1 token kept, which hold 100% of 6 token")
    given = openbook(*at, "k1 is v1 k2 is v3", "--limit", 1, "--json")
    found = json.loads(given.out)
    assert [one["span"]["text"] for one in found["spans"]] == ["k1 is v1", "k2 is", "is v3"]
    # Twenty documents hold it, and each is read as often as the run goes through its store.
    assert found["spans"][0]["readings"] == pytest.approx(
        sum(
            len(run.steps_reading_tokens(int(start), int(start) + 3))
            for k, start in enumerate(run.store.starts)
            if run.store.text(k) == "k1 is v1"
        ),
        rel=0.2,
    )


def test_the_terminal_says_the_numbers_of_the_page(openbook, run, indexed, tmp_path):
    page, out = tmp_path / "page.html", tmp_path / "found.json"
    at = ("trace", "text", run.path, "k1 is v1 k2 is v3", "--store", indexed, "--page", page)
    ended = openbook(*at, "--minimum", 3, "--out", out)
    head, *_, last = ended.out.splitlines()
    assert head.startswith("1 of 1 span of at least 3 tokens kept, which hold 50% of 6 tokens; run")
    assert "As a whole, the text does not stand in the training text" in ended.out
    assert last == f"page: {page}"
    said = "50% of its 6 tokens<small>in 1 span of at least 3 tokens</small>"
    assert said in page.read_text()
    assert json.loads(out.read_text())["provenance"]["minimum"] == 3
    by_chance = openbook(*at, "--json")
    found = json.loads(by_chance.out)
    minimum = found["provenance"]["minimum"]
    assert minimum > 1
    assert f"{found['covered']:.0%} of its 6 tokens<small>in {found['found']} s" in page.read_text()
    assert f"of at least {minimum} tokens</small>" in page.read_text()
    assert (found["page"], found["whole"]["longest"], found["sentences"][0]["places"]) == (
        str(page), 3, 0)  # fmt: skip
    none = openbook(*at, "--minimum", 5)
    assert (none.code, none.err) == (0, "")
    assert none.out.startswith("0 of 0 spans of at least 5 tokens kept, which hold 0% of 6 tokens;")
    assert "No 5 tokens in a row of it" in page.read_text()


def test_the_metric_that_is_followed_is_said_and_is_what_a_proof_measures(
    openbook, run, indexed, lookup_behaviour, tmp_path
):
    copied = tmp_path / "run"
    shutil.copytree(run.path, copied)
    at = ("trace", "documents", copied, lookup_behaviour, "--store", indexed, "--limit", 1)
    at += ("--method", "gradient", "--prompts", 2)
    asked = (*at, "--metric", "probability", "--prove", 1, "--controls", 0, "--json")
    found = json.loads(openbook(*asked).out)
    assert found["provenance"]["metric"] == "probability"
    effect = found["items"][0]["effect"]
    assert effect["unit"] == "probability"
    said = openbook(*asked[:-1]).out.splitlines()
    assert ", by its probability" in said[0]
    assert said[-2].endswith("compared with the full run: no random documents were removed")
    alone = json.loads(openbook(*at, "--controls", 0, "--json").out)
    assert alone["items"][0]["effect"]["together"] == effect["together"]
    plain = json.loads(openbook(*at, "--json").out)
    assert plain["provenance"]["metric"] == "logit difference"
    head = json.loads(openbook(*at, "--metric", "direct-effect:L0H0", "--json").out)
    assert head["provenance"]["question"].startswith("direct effect of L0H0")
    words = json.loads(openbook(*at, "--method", "lexical", "--json").out)
    assert "metric" not in words["provenance"]


@pytest.fixture
def without_moments(muon_run, tiny_store, tmp_path):
    return runs.open(muon_run.path, store=indexed_copy(tiny_store, tmp_path / "tiny"))


def test_the_default_says_what_it_uses_where_the_optimizer_has_no_moments(
    openbook, without_moments, monkeypatch
):
    monkeypatch.setattr(formatting, "LONG", -1.0)  # so that any time is announced
    at = (without_moments.path, "w1 w2 w3", "--store", without_moments.store.path)
    ended = openbook("trace", "sentence", *at, "--limit", 2)
    assert ended.code == 0, ended.err
    said, cost = ended.err.splitlines()
    assert said == (
        "no method was named, so lexical+gradient:kind=curvature is used: the run was trained "
        "with muon, which keeps no second moments of gradients"
    )
    # 111 are not held out, and as many are sampled for the curvature.
    assert re.fullmatch(
        r"gradients of at most 222 documents: about \d+ s \((8|64) documents timed\)", cost
    )
    named = openbook("trace", "sentence", *at, "--method", "fused")
    refused(named, 2, "was trained with muon")
    assert openbook("trace", "sentence", *at, "--method", "lexical").err == ""


def test_gradients_are_built_in_a_metric_that_the_run_has(openbook, run, without_moments, tmp_path):
    with_moments = ("gradients", "build", run.path, "--store", run.store.path, "--rank", 4)
    ended = openbook(*with_moments, "--folder", tmp_path / "adam")
    assert (ended.code, ended.err.count("\n")) == (0, 1), ended.err
    kept = json.loads((tmp_path / "adam" / "gradients.json").read_text())
    assert kept["metric"] == GradientOptions().metric == "adam"
    at = ("gradients", "build", without_moments.path, "--store", without_moments.store.path)
    ended = openbook(*at, "--rank", 4, "--folder", tmp_path / "gradients")
    assert ended.code == 0, ended.err
    assert ended.err.startswith("no metric was named, so plain is used: the run was trained with")
    assert json.loads((tmp_path / "gradients" / "gradients.json").read_text())["metric"] == "plain"
    named = openbook(*at, "--metric", "adam", "--folder", tmp_path / "b")
    assert (named.code, named.out) == (2, "")
    assert "was trained with muon" in named.err
