"""`--out` replaces nothing but a result of the kind that the command writes."""

import pytest


pytestmark = pytest.mark.integration


def test_out_replaces_a_result_of_its_own_kind_only(
    openbook, lookup_run, lookup_behaviour, tmp_path
):
    heads = tmp_path / "heads.json"
    asked = (lookup_run.path, lookup_behaviour)
    assert openbook("patch", *asked, "--out", heads).code == 0
    first = heads.read_bytes()
    assert openbook("patch", *asked, "--over", "mlps", "--out", heads).code == 0
    second = heads.read_bytes()
    assert second != first
    refused = openbook("ablate", *asked, "--components", heads, "--out", heads)
    assert refused.code == 2
    assert f"{heads} holds openbook.effects, which `openbook ablate` does not" in refused.err
    assert refused.out == ""
    assert heads.read_bytes() == second


def test_out_replaces_no_file_that_is_no_result(openbook, lookup_run, tmp_path):
    notes = tmp_path / "notes.txt"
    for text in ("my notes", "{}", '{"digest": "no"}', ""):
        notes.write_text(text)
        refused = openbook("run", "show", lookup_run.path, "--out", notes)
        assert (refused.code, refused.out) == (2, "")
        assert f"{notes} exists and is no result of openbook" in refused.err
        assert notes.read_text() == text


def test_pages_and_figures_replace_only_their_like(openbook, lookup_run, tmp_path):
    notes = tmp_path / "notes.html"
    asked = ("emergence", lookup_run.path, "previous-token", "--plot", notes)
    for text in ("my notes", "{}", "<notes></notes>"):
        notes.write_text(text)
        refused = openbook(*asked)
        assert (refused.code, refused.out) == (2, "")
        assert f"{notes} exists and is no page or figure" in refused.err
        refused = openbook("trace", "text", lookup_run.path, "k1 is v1", "--page", notes)
        assert f"{notes} exists and is no page or figure" in refused.err
        assert notes.read_text() == text
    for text in ("", "<!DOCTYPE html><p>old"):
        notes.write_text(text)
        assert openbook(*asked).code == 0
        assert notes.read_text().startswith("<!doctype html>")


def test_out_may_be_a_device_or_a_pipe(openbook, lookup_run):
    assert openbook("run", "show", lookup_run.path, "--out", "/dev/null").code == 0


def test_results_without_a_schema_are_told_apart_by_their_keys(openbook, lookup_run, tmp_path):
    out = tmp_path / "a.json"
    assert openbook("run", "show", lookup_run.path, "--out", out).code == 0
    assert openbook("run", "show", lookup_run.path, "--out", out).code == 0
    before = out.read_bytes()
    refused = openbook("run", "steps", lookup_run.path, 0, "--out", out)
    assert refused.code == 2
    assert refused.out  # printed, so that nothing is lost
    assert "holds another kind of result" in refused.err
    assert out.read_bytes() == before
