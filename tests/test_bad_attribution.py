"""What attribution cannot answer is one line that says why, and leaves nothing half-written."""

import json
import shutil

import numpy as np
import pytest

from tests.worlds.commands import left, refused
from tests.worlds.stores import indexed_copy
from train import runs, storage


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def indexed(tiny_store, tmp_path_factory):
    """The tiny store, copied and sorted."""
    return indexed_copy(tiny_store, tmp_path_factory.mktemp("indexed") / "store")


@pytest.fixture
def trace(openbook, tiny_run, indexed):
    """`trace("sentence", *options)`: `openbook trace sentence` of the tiny run."""

    def call(command: str, *options: object):
        return openbook("trace", command, tiny_run.path, "--store", indexed, *options)

    return call


def held_out_word(store) -> str:
    """A word of the vocabulary that stands in the held-out region alone."""
    tokens = np.asarray(store.tokens)
    alone = np.setdiff1d(tokens[store.train_tokens :], tokens[: store.train_tokens])
    return store.tokenizer.decode(alone[:1])


def test_a_text_that_stands_nowhere(trace, tiny_store):
    word = held_out_word(tiny_store)
    refused(
        trace("sentence", word, "--method", "lexical"), 2,
        "no document of 120 has lexical evidence", repr(word), "gradient evidence needs no word",
    )  # fmt: skip
    refused(trace("text", word), 2, "no 1 tokens in a row of the 1 of the text")
    refused(trace("sentence", "w1 elsewhere"), 2, "'elsewhere' is not in the vocabulary")


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_text(trace, empty):
    refused(trace("sentence", empty), 2, "the text is empty")
    refused(trace("text", empty), 2, "the text is empty")


def test_a_text_longer_than_a_million_tokens(trace, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("w1 " * 1_000_001)
    said = "1,000,001 tokens, and at most 1,000,000 are traced"
    refused(trace("sentence", path.read_text()), 2, said)
    refused(trace("text", path), 2, said)
    assert left(tmp_path) == ["long.txt"]


def test_a_file_that_is_no_text(trace, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"w1 \xff\xfe")
    refused(trace("text", tmp_path / "model.bin"), 2, "is not UTF-8 text (at byte 3)")
    refused(trace("text", tmp_path / "none.txt"), 2, "there is no file")


def test_evidence_that_there_is_not(trace, lookup_behaviour):
    refused(trace("sentence", "w1", "--method", "gradeint"), 2, "did you mean 'gradient'?")
    refused(trace("sentence", "w1", "--method", "lexical+"), 2, "no evidence is called ''")
    refused(
        trace("sentence", "w1", "--method", "lexical:within=L0H0"), 2,
        "lexical evidence has no option 'within=L0H0'; its options are none",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("sentence", "w1", "--method", "lexical+bm25:kind=dot"), "bm25 evidence has no option"),
        (
            ("sentence", "w1", "--method", "fused:rank=8"),
            "give options to the methods, lexical+gradient:rank=8",
        ),
        (
            ("sentence", "w1", "--method", "gradient:scratch=."),
            "its options are kind=..., rank=..., damping=..., within=...",
        ),
        (("sentence", "w1", "--method", "replay:steps=few"), "gives no number; write steps=8"),
        (("sentence", "w1", "--method", "gradient:rank=0"), "to rank 1 or more, not 0"),
        (("sentence", "w1", "--method", "gradient+gradient:rank=8"), "none of a kind twice"),
        (("head", "previous-token:L9H0"), "no head L9H0"),
        (("head", "previous-token"), "names no head; write previous-token:L1H0"),
        (("head", "prevoius-token:L0H0"), "did you mean 'previous-token'"),
        (("head", "direct-effect:L0H0"), "RUN BEHAVIOUR --metric direct-effect:L0H0"),
        (("head", "previous-token:L0H0", "--method", "lexical"), "has no words that lexical"),
        (("sentence", "w1", "--method", "gradient:kind=cosin"), "did you mean 'cosine'"),
        (
            ("sentence", "w1", "--method", "gradient:damping=0.5"),
            "damping 0.5 belongs to curvature, not adam",
        ),
    ],
)
def test_options_that_would_do_nothing_and_questions_that_there_are_not(trace, given, said):
    refused(trace(*given), 2, said)


def test_components_that_there_are_not(trace, tmp_path):
    def within(component: object):
        return trace("sentence", "w1", "--method", f"gradient:within={component}")

    refused(within("L7H0"), 2, "L7H0")
    refused(within("head 3"), 2, "'head 3'")
    refused(within(tmp_path / "none.json"), 2, "there is no file", "none.json")
    storage.write_json(tmp_path / "sources.json", storage.seal({"kind": "sources", "schema": 2}))
    refused(within(tmp_path / "sources.json"), 2, "sources.json")


def test_a_page_and_a_result_that_have_no_place(trace, tmp_path):
    at = ("sentence", "w1", "--method", "lexical")
    refused(trace(*at, "--page", tmp_path / "none" / "page.html"), 2, "no folder")
    refused(trace(*at, "--out", tmp_path), 2, "a folder")
    assert left(tmp_path) == []


def test_an_index_of_another_store(openbook, lookup_run, indexed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(lookup_run.store.path, store, ignore=shutil.ignore_patterns("index"))
    shutil.copytree(indexed / "index", store / "index")
    at = ("trace", "sentence", lookup_run.path, "k3", "--store", store)
    refused(openbook(*at), 2, "index", "openbook index build")


def test_an_index_that_is_cut_short(openbook, tiny_run, indexed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(indexed, store)
    largest = max((store / "index").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-4])
    at = ("trace", "sentence", tiny_run.path, "w1", "--store", store)
    refused(openbook(*at), 3, largest.name)


def test_sources_that_were_changed_by_hand(openbook, trace, tiny_run, lookup_behaviour, tmp_path):
    kept = tmp_path / "sources.json"
    assert trace("sentence", "w1", "--method", "lexical", "--limit", 2, "--out", kept).code == 0
    kept.write_text(kept.read_text().replace('"lexical"', '"proven"'))
    at = ("counterfactual", tiny_run.path, lookup_behaviour, "--without", kept)
    refused(openbook(*at), 3, "sources.json")
    assert not (tiny_run.path / "counterfactuals").exists()


def test_a_document_that_was_never_read_is_not_removed(openbook, tiny_run, lookup_behaviour):
    never = next(k for k in range(tiny_run.store.n_documents) if not len(tiny_run.steps_reading(k)))
    at = ("counterfactual", tiny_run.path, lookup_behaviour, "--without", never)
    refused(openbook(*at), 2, "were never read", f"document {never}")
    refused(openbook(*at[:-1], 9999), 2, "9999", "120")
    assert not (tiny_run.path / "counterfactuals").exists()


def test_weights_whose_training_is_not_known_have_no_documents(openbook, tiny_run, tmp_path):
    manifest = json.loads((tiny_run.path / "manifest.json").read_text())
    assert runs.open(tiny_run.path).knowledge == manifest["predicate"]["knowledge"] == "full"
    out = tmp_path / "hf"
    assert openbook("run", "export", tiny_run.path, "--out", out).code == 0
    imported = tmp_path / "imported"
    assert openbook("run", "import", out, "--out", imported).code == 0
    refused(openbook("trace", "sentence", imported, "w1"), 2, "weights-only")
