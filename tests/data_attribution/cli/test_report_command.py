"""`openbook report` shows a ranking and a proof that were made before, of this run and kind."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_attribution.attribution import Sources
from tests.worlds.commands import refused
from tests.worlds.retrained import proof_of
from tests.worlds.stores import indexed_copy
from train import storage


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def indexed(lookup_store, tmp_path_factory) -> Path:
    return indexed_copy(lookup_store, tmp_path_factory.mktemp("indexed") / "lookup")


@pytest.fixture
def at(lookup_run, lookup_behaviour, indexed, tmp_path, monkeypatch) -> tuple:
    monkeypatch.chdir(tmp_path)
    return "report", lookup_run.path, lookup_behaviour, "--store", indexed, "--steps", "0,160"


@pytest.fixture
def ranking(openbook, lookup_run, indexed, tmp_path) -> Path:
    """A ranking for a text, which is not what the page is about."""
    path = tmp_path / "sources.json"
    ended = openbook(
        "trace", "sentence", lookup_run.path, "k3 is v3", "--store", indexed,
        "--method", "lexical", "--limit", 2, "--out", path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return path


@pytest.fixture
def proof(lookup_run, tmp_path) -> Path:
    path = tmp_path / "proof.json"
    storage.write_json(path, storage.seal(proof_of(lookup_run.id)))
    return path


def rankings(path: Path) -> set[str]:
    """The commands of a page that rank documents by a method that they name."""
    blocks = re.findall(r'<div class="command"><code>(.*?)</code>', path.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in html.unescape(block).splitlines()]
    return {line for line in lines if line.startswith("openbook trace") and "--method" in line}


def test_a_ranking_is_shown_with_the_command_that_made_it(openbook, at, ranking, tmp_path):
    ended = openbook(*at, "--sources", ranking)
    assert (ended.code, ended.err) == (0, "")
    assert "documents: " + ", ".join(map(str, Sources.load(ranking).documents)) in ended.out
    assert "nothing retrained yet" in ended.out
    (traced,) = rankings(tmp_path / "page.html")
    assert traced == (
        f"openbook trace sentence {at[1]} 'k3 is v3' --method lexical --limit 2 --out sources.json"
    )
    words = traced.replace("'k3 is v3'", "TEXT").split()
    words[words.index("TEXT")] = "k3 is v3"
    again = openbook(*words[1:], "--store", at[4])
    assert again.code == 0, again.err
    assert Sources.load(tmp_path / "sources.json") == Sources.load(ranking)


def test_a_ranking_by_the_default_method_is_repeated_by_its_command(openbook, at, tmp_path):
    made = openbook(
        "trace", "documents", *at[1:5], "--limit", 20, "--out", tmp_path / "a.json",
        "--method", "lexical+gradient:kind=cosine,rank=4",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert openbook(*at, "--sources", tmp_path / "a.json").code == 0
    (traced,) = rankings(tmp_path / "page.html")
    assert traced == (
        f"openbook trace documents {at[1]} {at[2]} --method lexical+gradient:kind=cosine,rank=4 "
        "--out sources.json"
    )


def test_a_proof_is_shown_beside_a_ranking(openbook, at, ranking, proof, tmp_path):
    ended = openbook(*at, "--sources", ranking, "--proof", proof)
    assert (ended.code, ended.err) == (0, "")
    assert "proof: retrained without 3 documents, among them " in ended.out
    assert "recall 1.00 → 0.10" in (tmp_path / "page.html").read_text()


def test_a_proof_alone_stands_beside_a_ranking_by_words(openbook, at, proof, tmp_path):
    ended = openbook(*at, "--proof", proof, "--limit", 3)
    assert (ended.code, ended.err) == (0, "")
    assert "by lexical evidence" in ended.out
    (traced,) = rankings(tmp_path / "page.html")
    assert traced.endswith("--method lexical --limit 3 --out sources.json")


def test_files_of_other_commands_and_of_other_runs_are_refused(
    openbook, at, ranking, proof, tmp_path
):
    refused(
        openbook(*at, "--sources", proof), 2, "was written by `openbook counterfactual`; a file of "
        "`openbook trace documents --out` or",
    )  # fmt: skip
    refused(
        openbook(*at, "--proof", ranking), 2, "was written by `openbook trace documents` or",
        "a file of `openbook counterfactual --out` or `openbook forget --out` is read here",
    )  # fmt: skip
    found = Sources.load(ranking)
    replace(found, provenance={**found.provenance, "run": "0" * 12}).save(tmp_path / "other.json")
    refused(openbook(*at, "--sources", tmp_path / "other.json"), 2, "ranked in run 000000000000")
    storage.write_json(tmp_path / "others.json", storage.seal(proof_of("0" * 12)))
    refused(openbook(*at, "--proof", tmp_path / "others.json"), 2, "proof is of run 000000000000")
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_replaced_and_nothing_else_is(openbook, at, ranking, proof, tmp_path):
    refused(openbook(*at, "--out", ranking), 2, "exists and is no page or figure")
    before = ranking.read_bytes()
    (tmp_path / "page.html").write_text("<!doctype html>zqx")
    ended = openbook(*at, "--sources", ranking, "--proof", proof, "--json")
    assert ended.code == 0, ended.err
    assert "zqx" not in (tmp_path / "page.html").read_text()
    assert ranking.read_bytes() == before
