"""`openbook lens` and `openbook decompose` print what the library found, and keep it."""

import json

import pytest

from interp.heads import Contributions
from interp.lenses import Readings


@pytest.fixture
def at(lookup_run, lookup_behaviour):
    return lookup_run.path, lookup_behaviour


def test_the_last_depth_is_printed_with_n_interval_and_control(openbook, at, tmp_path):
    done = openbook(
        "lens", "logit", *at, "--out", tmp_path / "read.json", "--plot", tmp_path / "read.html"
    )
    assert done.code == 0, done.err
    head = "lookup: logit lens at position 2, n=12 prompts; control: never trained; intervals are "
    assert head in done.out
    itself = "0.000 [the same on all 12 prompts]"  # KL of the last depth to itself
    assert f"  L0.resid_post     {itself}  control" in done.out
    assert Readings.load(tmp_path / "read.json").n == 12
    assert (tmp_path / "read.html").is_file()


def test_direct_contributions_are_json_that_adds_up(openbook, at, tmp_path):
    done = openbook("decompose", *at, "--json", "--out", tmp_path / "parts.json")
    found = json.loads(done.out)
    assert sum(found["average"]["values"]) == pytest.approx(found["score"]["values"], abs=1e-4)
    assert Contributions.load(tmp_path / "parts.json").names == tuple(found["names"])
    assert "L0H0<2" in openbook("decompose", *at, "--over", "sources", "--json").out


def test_a_tuned_lens_is_fitted_once_and_then_used(openbook, at, tmp_path):
    kept = tmp_path / "lens.json"
    fitted = openbook(
        "lens", "fit", at[0], "--out", kept, "--train-tokens", "--fit-steps", 3, "--json"
    )
    assert fitted.code == 0, fitted.err
    assert json.loads(fitted.out)["fit"]["region"] == "training"
    assert json.loads(fitted.out)["evaluation"]["lenses"] == ["logit", "tuned", "control"]
    read = openbook("lens", "tuned", *at, kept, "--out", tmp_path / "read.json")
    assert read.code == 0, read.err
    head = "lookup: tuned lens at position 2, n=12 prompts; control: never trained; intervals are "
    assert head in read.out
    assert "training tokens in" in read.out
    assert Readings.load(tmp_path / "read.json").kind == "tuned"


def test_what_cannot_be_is_refused_in_one_line(openbook, at, tmp_path):
    held = openbook("lens", "fit", at[0], "--out", tmp_path / "lens.json")
    assert (held.code, held.err.count("\n")) == (2, 1)
    assert "say --train-tokens" in held.err
    missing = openbook("lens", "tuned", *at, tmp_path / "lens.json")
    assert "a file was expected" in missing.err
