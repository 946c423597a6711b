"""Ranked documents survive a round trip, and say what they are."""

import json
import pickle

import pytest

from data_attribution.attribution import Effect, Source, Sources
from data_attribution.attribution.sources import Evidence
from data_attribution.errors import EvidenceError
from train import storage
from train.errors import DamagedError


def source(document: int, steps: tuple[int, ...] = (3, 8), **fields: object) -> Source:
    whole = {
        "document": document,
        "id": f"made/{document}",
        "text": "… a b c …",
        "span": "b",
        "score": 10.0 - document,
        "grade": "lexical",
        "steps": steps,
        "start": 1,
        "length": 1,
        "duplicates": (document + 100,),
    }
    return Source(**{**whole, **fields})


SOURCES = Sources("a b", "lexical", tuple(source(k) for k in range(5)), {"run": "0123"})


def test_what_is_saved_is_what_is_loaded(tmp_path):
    SOURCES.save(tmp_path / "sources.json")
    assert Sources.load(tmp_path / "sources.json") == SOURCES


def test_evidence_intervals_and_effects_survive_too(tmp_path):
    effect = Effect("a b", "nats", -2.0, -2.5, -1.5, together=16, controls=2)
    evidence = {"lexical": Evidence(1, 10.0), "gradient": Evidence(3, 0.2, 0.1, 0.3)}
    whole = source(0, near=(7, 8), low=9.0, high=11.0, evidence=evidence, effect=effect)
    kept = Sources("a b", "fused", (whole,), {})
    kept.save(tmp_path / "sources.json")
    assert Sources.load(tmp_path / "sources.json") == kept
    assert kept.groups == ((0, 100, 7, 8),)
    shown = kept.show().iloc[0]
    assert (shown["score"], shown["ranks"]) == ("10 [9, 11]", "lexical 1, gradient 3")


def test_what_schema_1_held_is_read(tmp_path):
    path = tmp_path / "sources.json"
    SOURCES.save(path)
    content = storage.read_sealed(path)
    new = ("near", "low", "high", "evidence", "effect")
    items = [{k: v for k, v in one.items() if k not in new} for one in content["items"]]
    storage.write_json(path, storage.seal({**content, "schema": 1, "items": items}))
    assert Sources.load(path) == SOURCES


def test_the_top_are_the_first_with_all_their_provenance():
    top = SOURCES.top(2)
    assert (top.documents, top.ids) == ((0, 1), ("made/0", "made/1"))
    assert top.provenance == SOURCES.provenance
    assert SOURCES.top(99) == SOURCES


def test_a_frame_has_a_row_a_document_and_a_column_a_field():
    frame = SOURCES.to_frame()
    assert frame["document"].tolist() == [0, 1, 2, 3, 4]
    assert frame["steps"].tolist()[0] == (3, 8)
    assert list(SOURCES.top(0).to_frame().columns) == list(frame.columns)


def test_many_steps_are_shown_shortened():
    shown = Sources("a", "lexical", (source(0, tuple(range(20))), source(1)), {}).show()
    assert shown["read at steps"].tolist() == ["0, 1, 2 and 17 more", "3, 8"]
    assert shown.index.tolist() == [1, 2]
    assert pickle.loads(pickle.dumps(shown)).equals(shown)


def test_pandas_does_not_cut_the_steps_of_a_long_training():
    steps = tuple(range(1_234_567, 1_234_567 + 98_765))
    page = Sources("a", "lexical", (source(0, steps),), {}).show().to_html()
    assert "<td>1,234,567; 1,234,568; 1,234,569 and 98,762 more</td>" in page


def test_an_edited_file_is_refused(tmp_path):
    path = tmp_path / "sources.json"
    SOURCES.save(path)
    path.write_text(path.read_text().replace("10.0", "11.0"))
    with pytest.raises(DamagedError, match=r"sources\.json"):
        Sources.load(path)


def test_another_result_is_not_taken_for_sources(tmp_path):
    path = tmp_path / "effects.json"
    storage.write_json(path, storage.seal({"kind": "effects", "schema": 1}))
    with pytest.raises(EvidenceError, match="holds 'effects', version 1; 'sources', version 2"):
        Sources.load(path)


def test_the_file_is_json_that_others_can_read(tmp_path):
    SOURCES.save(tmp_path / "sources.json")
    content = json.loads((tmp_path / "sources.json").read_text())
    assert content["items"][0]["steps"] == [3, 8]


@pytest.mark.parametrize(
    ("provenance", "unit"),
    [
        ({"formula": "bm25 k1=1.2 b=0.75"}, "BM25: weighted inverse document frequencies in nats"),
        ({"formula": "maximal spans"}, "nats of surprise of the shared spans"),
        (
            {"formula": "a + b, each on a scale of length 1"},
            "sum of 2 scores on scales",
        ),
        ({"gradient": {"kind": "adam-cosine"}}, "cosine of gradients, -1 to 1"),
        ({"gradient": {"kind": "dot"}}, "comparable within this ranking only"),
        ({"replay": {"unit": "nats"}}, "change of the query in nats a unit of the weight"),
    ],
)
def test_every_kind_of_score_has_a_unit_in_the_table(provenance, unit):
    found = Sources("a", "some", (source(0, (1,)),), provenance)
    assert unit in found.unit
    assert repr(found.show()).endswith(f"\nscore: {found.unit}")
