"""The commands that train again do what every option says, or refuse it in one line."""

import inspect
import json
from dataclasses import replace

import pytest

from data_attribution import counterfactuals
from data_attribution.attribution import Source, Sources
from data_attribution.cli import formatting
from data_attribution.cli.counterfactual import counterfactual_command
from data_attribution.cli.trace import CONTROLS
from data_attribution.errors import CounterfactualError
from tests.worlds.commands import refused


pytestmark = pytest.mark.integration


@pytest.fixture
def at(lookup_run, lookup_behaviour, tmp_path):
    return "counterfactual", lookup_run.path, lookup_behaviour, "--runs", tmp_path / "runs"


def test_what_is_measured_twice_is_refused(openbook, at, tmp_path):
    asked = at[2]
    refused(openbook(*at, "--without", 3, "--unrelated", asked), 2, "is asked twice")
    heads = ("--component", "L0H0", "--component", "L0H0")
    refused(openbook(*at, "--without", 3, *heads), 2, "'direct effect of L0H0", "is asked twice")
    assert not (tmp_path / "runs").exists()


def test_one_control_is_cheap_and_holds_no_copy_of_a_row_below_the_top(
    openbook, at, lookup_run, tmp_path
):
    """Of two rows the first is removed; the second stands for all documents of another pair."""
    store = lookup_run.store
    of_pair = {k: [d for d in range(240) if store.text(d) == f"k{k} is v{k}"] for k in (3, 5)}
    first, second = (
        Source(of_pair[k][0], f"lookup/{k}", "", "", 1.0, "lexical", (0,), 0, 1) for k in (3, 5)
    )
    rows = (first, replace(second, duplicates=tuple(of_pair[5][1:])))
    kept = tmp_path / "sources.json"
    Sources("k3", "lexical", rows, {}).save(kept)
    asked = (*at, "--without", kept, "--top", 1, "--together", "none", "--seeds", 1)
    result = json.loads(openbook(*asked, "--json").out)
    assert result["removed"] == of_pair[3][:1]
    assert result["avoided"] == 19 + 20
    assert len(result["control"]) == 1
    assert [row["within noise"] for row in result["effects"]] == [None]
    assert "noise unknown: one control" in openbook(*asked).out


def test_documents_are_named_by_file_and_by_index_and_the_first_are_removed(
    openbook, at, lookup_run, tmp_path
):
    store = lookup_run.store
    three, five = (next(d for d in range(240) if store.text(d) == f"k{k} is v{k}") for k in (3, 5))
    kept = tmp_path / "sources.json"
    Sources("k3", "lexical", (Source(three, "", "", "", 1.0, "lexical", (0,), 0, 1),), {}).save(
        kept
    )
    both = (*at, "--without", five, "--without", kept, "--together", "none", "--seeds", 0, "--json")
    assert json.loads(openbook(*both).out)["removed"] == sorted([five, three])
    assert json.loads(openbook(*both, "--top", 1).out)["removed"] == [five]


def test_a_number_stands_for_the_facts_that_are_stated_so_often(openbook, lookup_run, monkeypatch):
    def forget(_run, names, **_options):
        raise CounterfactualError(f"to forget: {names}")

    monkeypatch.setattr(
        counterfactuals, "removable_facts", lambda _run, exposures: [f"stated {exposures} times"]
    )
    monkeypatch.setattr(counterfactuals, "forget_facts", forget)
    command = ("forget", lookup_run.path)
    refused(openbook(*command), 2, "to forget: ['stated 16 times']")
    refused(openbook(*command, "capital of a"), 2, "to forget: ['capital of a']")
    refused(openbook(*command, 32), 2, "to forget: ['stated 32 times']")


def test_the_commands_draw_as_many_controls_as_the_library():
    """Two, from which the effect of chance is known."""
    defaults = {
        name: inspect.signature(function).parameters[name].default
        for function, name in (
            (counterfactual_command, "seeds"),
            (counterfactuals.without, "seeds"),
            (counterfactuals.validate_sources, "controls"),
        )
    }
    assert {*defaults.values(), CONTROLS} == {2}


def test_an_effect_without_controls_is_not_said_to_be_beyond_any(openbook, at):
    asked = (*at, "--without", 3, "--together", "none", "--seeds")
    without = openbook(*asked, 0)
    assert without.code == 0, without.err
    assert ", compared with the full run: no random documents were removed, " in without.out
    assert "beyond" not in without.out
    full = next(line for line in without.out.splitlines() if line.startswith("full run"))
    assert " +0.000 by definition " in full  # the run differs from itself by nothing
    assert ", beyond 1 removal of random documents, " in openbook(*asked, 1).out


def test_rows_of_several_behaviours_are_told_apart():
    row = {"setting": "full run", "recall": 1.0, "recall low": 0.5, "recall high": 1.0}
    row |= {"change": 0.0, "change low": None, "change high": None, "n": 5}
    empty = dict.fromkeys(("runs", "effects", "removed", "named", "control"), ()) | {"avoided": 0}
    rows = [{**row, "behaviour": name} for name in ("ioi", "capital")]
    _, *lines = formatting.counterfactual_lines({**empty, "rows": rows}).splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["full run: ioi", "full run: capital"]
    (_, line, *_) = formatting.counterfactual_lines({**empty, "rows": rows[:1]}).splitlines()
    assert line.startswith("full run  ")
