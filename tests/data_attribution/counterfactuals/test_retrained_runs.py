"""Retrained runs in one folder are told apart by what their manifests record.

Nothing is trained: each run is a copy of the retrained run among the golden files, with other
removed documents in its manifest. That one was written before choices were recorded.
"""

import shutil
from pathlib import Path

import pytest

from data_attribution import counterfactuals
from data_attribution.attribution import Source, Sources
from data_attribution.errors import CounterfactualError, DamagedRunWarning
from interp import behaviours
from tests.test_golden_files import GOLDEN
from train import runs, storage
from train.data import RemovalChoice
from train.errors import DamagedError


NAMED = RemovalChoice("named", named=(3,), together="near")


@pytest.fixture
def run(tmp_path) -> runs.Run:
    """The parent of all retrained runs."""
    for part in ("run", "store"):
        shutil.copytree(GOLDEN / part, tmp_path / part)
    return runs.open(tmp_path / "run")


@pytest.fixture
def old(run) -> Path:
    """The retrained run without documents 3 and 14, which does not record why."""
    (path,) = (run.path / "counterfactuals").iterdir()
    return path


def another(old: Path, name: str, removed: tuple[int, ...], choice: RemovalChoice | None) -> Path:
    """A run beside the old one, which lacks other documents."""
    path = shutil.copytree(old, old.with_name(name))
    content = storage.read_sealed(path / runs.MANIFEST)
    content["predicate"]["removed"]["documents"] = list(removed)
    if choice:
        content["predicate"]["removal_choice"] = choice.to_dict()
    storage.write_json(path / runs.MANIFEST, storage.seal(content))
    return path


def ranked(*documents: int) -> Sources:
    rows = [Source(one, f"{one}", "", "", 1.0, "lexical", (), 0, 1) for one in documents]
    return Sources("asked", "lexical", tuple(rows), {})


def names(found: list[runs.Run]) -> list[str]:
    return [one.path.name for one in found]


def drawn_for(*documents: int) -> RemovalChoice:
    return RemovalChoice("matched-random", seed=0, matched_to=documents, avoided=(5, 6))


def test_of_a_run_of_earlier_versions_the_choice_is_not_recorded(run, old):
    assert runs.open(old).removal_choice is None
    assert names(counterfactuals.found(run, ranked(3))) == [old.name]


def test_controls_are_those_that_were_drawn_for_the_documents(run, old):
    another(old, "random", (7, 8), drawn_for(3, 14))
    another(old, "random for others", (9, 10), drawn_for(11, 12))
    another(old, "another question", (11, 12), RemovalChoice("named", named=(11, 12)))
    another(old, "listed", (4, 13), drawn_for(3, 14))
    assert names(counterfactuals.found(run, ranked(3, 4))) == [old.name, "random"]


def test_a_control_of_earlier_versions_still_counts(run, old):
    another(old, "unknown", (7, 8), None)
    another(old, "other mode", (9, 10), RemovalChoice("named", named=(9, 10)))
    assert names(counterfactuals.found(run, ranked(3))) == [old.name, "unknown"]


def test_a_random_removal_that_holds_the_first_source_answers_no_question_about_it(run, old):
    another(old, "random", (20, 21), drawn_for(3, 14))
    assert counterfactuals.found(run, ranked(20)) == []


def test_a_retraining_that_was_drawn_as_a_control_before_it_was_asked_for_is_found(run, old):
    """Opening it again records nothing, so what shows the question is the list or its controls."""
    another(old, "asked", (20, 21), drawn_for(3, 14))
    assert names(counterfactuals.found(run, ranked(20, 21))[:1]) == ["asked"]
    assert counterfactuals.found(run, ranked(20)) == []
    another(old, "its control", (22, 23), drawn_for(20, 21))
    assert "its control" in names(counterfactuals.found(run, ranked(20, 21)))
    assert names(counterfactuals.found(run, ranked(20))[:1]) == ["asked"]
    assert names(counterfactuals.found(run, ranked(3))) == [old.name, "asked"]


def test_two_controls_without_the_same_documents_are_refused(run, old):
    """Equal controls differ by nothing, so any effect would be proved."""
    paths = [another(old, name, (7, 8), drawn_for(3, 14)) for name in ("one", "two")]
    opened = [runs.open(path) for path in paths]
    asked = behaviours.read(GOLDEN / "results" / "behaviour.json")
    with pytest.raises(CounterfactualError, match="two lack the same 2 documents, and one"):
        counterfactuals.compare(run, runs.open(old), opened, asked)


def test_the_choice_is_passed_on_to_the_result(run, old):
    named = another(old, "named", (3, 14), NAMED)
    control = another(old, "random", (7, 8), drawn_for(3, 14))
    opened = [runs.open(path) for path in (named, control)]
    asked = behaviours.read(GOLDEN / "results" / "behaviour.json")
    result = counterfactuals.compare(run, opened[0], opened[1:], asked)
    assert result.choices == (NAMED, drawn_for(3, 14))
    assert (result.named, result.together, result.avoided) == ((3,), "near", 2)
    assert result.to_dict()["choices"] == [
        {"kind": "named", "named": [3], "together": "near"},
        {"kind": "matched-random", "seed": 0, "matched_to": [3, 14], "avoided": [5, 6]},
    ]
    unknown = counterfactuals.compare(run, runs.open(old), [], asked)
    assert unknown.to_dict()["choices"] == [None]
    assert (unknown.choices, unknown.named, unknown.together) == ((None,), (3, 14), "none")


@pytest.mark.parametrize("file", ["manifest.json", "checkpoints/index.json"])
def test_a_damaged_folder_is_named_and_left_out(run, old, file):
    damaged = another(old, "damaged", (3, 14), NAMED)
    (damaged / file).write_text("{}", encoding="utf-8")
    with pytest.warns(DamagedRunWarning, match="counterfactuals/damaged is left out") as told:
        assert names(counterfactuals.found(run, ranked(3))) == [old.name]
    assert len(told) == 1


def test_a_run_whose_weights_are_damaged_is_left_out_and_the_next_one_taken(run, old):
    better = another(old, "better", (3, 4), None)
    control = another(old, "control", (7, 8), None)
    for path in (better, control):
        weights = path / runs.open(path).saved_at(None).folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.warns(DamagedRunWarning) as told:
        assert names(counterfactuals.found(run, ranked(3, 4))) == [old.name]
    assert [str(one.message).split(" is left out")[0] for one in told] == [
        str(better),
        str(control),
    ]


def test_a_choice_of_an_unknown_kind_is_refused_and_its_run_left_out(run, old):
    path = another(old, "odd", (3, 14), NAMED)
    content = storage.read_sealed(path / runs.MANIFEST)
    content["predicate"]["removal_choice"]["kind"] = "by hand"
    storage.write_json(path / runs.MANIFEST, storage.seal(content))
    with pytest.warns(DamagedRunWarning, match="not as 'by hand'"):
        assert names(counterfactuals.found(run, ranked(3))) == [old.name]
    content["predicate"]["removal_choice"]["kind"] = 3
    storage.write_json(path / runs.MANIFEST, storage.seal(content))
    with pytest.raises(DamagedError, match=r"removal_choice\.kind is 3, and a text is expected"):
        runs.open(path)
