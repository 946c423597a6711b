"""`openbook lens` prints what the library found, keeps it, and refuses in one line."""

import json

import pytest
import typer
from typer.testing import CliRunner

from interp.cli.lens import lens_command
from interp.errors import InterpError, ModelError
from interp.heads import Contributions
from interp.lenses import Readings


@pytest.fixture
def lens(lookup_run, lookup_behaviour):
    app = typer.Typer()
    app.command()(lens_command)

    def call(*options: object):
        arguments = [lookup_run.path, lookup_behaviour, *options]
        return CliRunner().invoke(app, [str(one) for one in arguments])

    return call


def test_the_last_depth_is_printed_with_n_interval_and_control(lens, tmp_path):
    done = lens("--out", tmp_path / "read.json", "--plot", tmp_path / "read.html")
    assert done.exit_code == 0, done.output
    assert "lookup: logit lens at position 2, n=12 prompts; control: never trained" in done.output
    assert (
        "  L0.resid_post     0.000 [0.000, 0.000]          control" in done.output
    )  # KL to itself
    assert Readings.load(tmp_path / "read.json").n == 12
    assert (tmp_path / "read.html").is_file()


def test_direct_contributions_are_json_that_adds_up(lens, tmp_path):
    done = lens("--kind", "direct", "--json", "--out", tmp_path / "parts.json")
    found = json.loads(done.output)
    assert sum(found["average"]["values"]) == pytest.approx(found["score"]["values"], abs=1e-4)
    assert Contributions.load(tmp_path / "parts.json").names == tuple(found["names"])
    assert "L0H0<2" in lens("--kind", "direct", "--positions", "each", "--json").output


def test_a_tuned_lens_is_fitted_once_and_used_again(lens, tmp_path):
    kept = tmp_path / "lens.json"
    first = lens("--kind", "tuned", "--train-tokens", "--fit-steps", 3, "--save-lens", kept)
    assert "training tokens in" in first.output
    assert "bits per token from the model (control: lens fitted to" in first.output
    again = lens("--kind", "tuned", "--lens", kept)
    assert first.output.startswith(again.output.rstrip())


def test_what_cannot_be_is_refused_in_one_line(lens):
    held = lens("--kind", "tuned")
    assert isinstance(held.exception, ModelError)
    assert "say --train-tokens" in str(held.exception)
    other = lens("--kind", "direct", "--train-tokens")
    assert isinstance(other.exception, InterpError)
    assert "belong to --kind tuned, not to --kind direct" in str(other.exception)
