"""A page prints the command that made its ranking, or none: what a file holds is data."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_attribution.attribution import Sources
from data_attribution.report.behaviour_results import BehaviourResults
from data_attribution.report.ranking_command import command_of_ranking
from data_attribution.report.text import typed_text
from tests.worlds.commands import refused
from train import storage
from train.errors import DamagedError


ASKED = {"methods": "lexical", "limit": 3, "seed": 0, "text": "a b"}


def sources(**asked: object) -> Sources:
    return Sources("a b", "lexical", (), {"asked": {**ASKED, **asked}})


def printed(**asked: object) -> str:
    """The command of a page whose other results do not matter."""
    found = object.__new__(BehaviourResults)
    run: Any = SimpleNamespace(path=Path("RUN"))
    vars(found).update(run=run, sources=sources(**asked), traced="", behaviour=None)
    return command_of_ranking(found).removeprefix("openbook ")


def test_a_text_that_looks_like_an_option_comes_last():
    assert printed() == "trace sentence RUN 'a b' --method lexical --limit 3 --out sources.json"
    for text in ("- 1", "--page"):
        assert printed(text=text).endswith(f"--out sources.json {typed_text(text)}")
    assert typed_text("- 1", "--before 3") == "--before 3 -- '- 1'"


@pytest.mark.parametrize("command", [("exposure", "text"), ("trace", "sentence")])
def test_a_command_reads_such_a_text_behind_the_run(openbook, tmp_path, command):
    """The run is missing, which is said once the arguments are read."""
    words = ["--json", "--", "- 1"]
    refused(openbook(*command, tmp_path / "none", *words), 2, "no run at")
    assert "No such option" in openbook(*command, tmp_path / "none", "- 1").err


@pytest.mark.parametrize(
    "asked",
    [
        {"candidates": {"n": 3, "sha256": "0" * 64}},
        {"fold": False},
        {"unspelled": ["gradient.log_odds=None"]},
    ],
)
def test_what_no_option_says_has_no_command(asked):
    plain = {"candidates": None, "fold": True, "unspelled": []}
    assert printed(**plain) == printed()
    assert printed(**plain | asked) == ""


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"limit": "20; touch /tmp/a"}, "asked.limit is '20; touch /tmp/a', and a whole number"),
        ({"seed": "0"}, "asked.seed is '0', and a whole number"),
        ({"methods": ["lexical"]}, "asked.methods is list, and a text"),
        ({"fold": 1}, "asked.fold is 1, and true or false"),
        ({"text": None}, "asked.text is None, and a text"),
    ],
)
def test_a_ranking_that_was_asked_for_in_another_form_is_refused(tmp_path: Path, asked, problem):
    path = tmp_path / "sources.json"
    sources(**asked).save(path)
    with pytest.raises(DamagedError, match=problem):
        Sources.load(path)


def test_a_ranking_without_its_limit_is_refused_and_a_plain_one_is_read(tmp_path: Path):
    path = tmp_path / "sources.json"
    sources().save(path)
    assert Sources.load(path).provenance == {"asked": ASKED}
    content = storage.read_sealed(path)
    del content["provenance"]["asked"]["limit"]
    storage.write_json(path, storage.seal(content))
    with pytest.raises(DamagedError, match=r"asked\.limit is missing"):
        Sources.load(path)
    replace(sources(), provenance={"asked": 3}).save(path)
    with pytest.raises(DamagedError, match="asked is 3, and an object"):
        Sources.load(path)
