"""The study's page shows what its saved numbers say, and the script reads them rightly."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.worlds.scripts import FOLDER, benchmark


DOCS = FOLDER.parent / "docs"
PAGE, NUMBERS, FIGURE = (DOCS / f"circuit-formation.{end}" for end in ("md", "json", "svg"))


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return benchmark("circuit_formation")


def made(study, **changed):
    """A run that copies from step 200 on, and does IOI from step 300 on but for a lapse."""
    stages = {"copying gap, nats": 6.0, "IOI accuracy": 1.0}
    values = {
        "name": "gpt2-nano",
        "seed": 0,
        "run_id": "0123456789ab",
        "loss": 1.7,
        "steps": [0, 100, 200, 300, 400],
        "gap": [0.0, 0.1, 4.0, 5.9, 6.0],
        "ioi": [0.5, 0.8, 0.6, 0.9, 1.0],
        "attention": {"L0H0": [0.1, 0.2, 0.3, 0.2, 0.1], "L1H2": [0.0, 0.1, 0.2, 0.7, 0.8]},
        "effects": {"300": {"L0H0": 0.3, "L1H2": 0.05}, "400": {"L0H0": 0.2, "L1H2": 0.7}},
        "stages": {stage: dict(stages) for stage in study.STAGES},
        "facts": {"SFT": [0.0, 0.9, 0.3], "DPO": [0.0, 0.0, 0.6]},
    }
    return study.Formation(**{**values, **changed})


def test_onsets_and_heads_are_read_off_the_curves(study):
    one = made(study)
    assert one.copying == (100, 200)
    assert one.able == 300  # .8 at 100 was not for good
    assert one.leader(200) == ("L0H0", 0.3)
    assert one.leader(400) == ("L1H2", 0.8)
    assert one.deciders(300) == {"L0H0": 0.3}
    assert list(one.deciders(400)) == ["L1H2", "L0H0"]
    never = made(study, ioi=[0.5] * 5, effects={})
    assert never.able is None
    assert never.deciders(never.able) == {}
    assert made(study, ioi=[0.8] * 5).able == 0


def test_changes_by_a_stage_are_paired_by_seed_and_marked_if_they_leave_out_zero(study):
    seeds = []
    for seed, gap in enumerate((6.0, 5.0, 7.0)):
        one = made(study, seed=seed)
        one.stages["pretraining"]["copying gap, nats"] = gap
        one.stages["SFT"]["copying gap, nats"] = gap - 1.0 - 0.01 * seed
        one.stages["DPO"]["copying gap, nats"] = gap - 1.5 + seed
        one.stages["control"].pop("copying gap, nats")
        seeds.append(one)
    rows = study.stages_table({"gpt2-nano": seeds}).splitlines()
    (row,) = [row for row in rows if "copying gap" in row]
    assert row.split(" | ")[1:] == [
        "6.00",
        "**-1.01 [-1.03, -0.99]**",
        "+0.51 [-2.00, +3.02]",
        "not done |",
    ]


def test_saved_numbers_come_back_by_name_and_seed(study, tmp_path):
    runs = [made(study, seed=1), made(study, name="retro-nano"), made(study)]
    content = {"measured_on": "here", "runs": [asdict(one) for one in runs]}
    (tmp_path / "saved.json").write_text(json.dumps(content))
    found = study.saved(tmp_path / "saved.json")
    assert list(found) == ["retro-nano", "gpt2-nano"]
    assert [one.seed for one in found["gpt2-nano"]] == [0, 1]
    assert found["gpt2-nano"][0] == runs[2]


def test_the_page_and_the_figure_show_the_saved_numbers(study):
    found = study.saved(NUMBERS)
    assert {name: len(formed) for name, formed in found.items()} == dict.fromkeys(study.NAMES, 3)
    page = PAGE.read_text(encoding="utf-8")
    for table in (study.formation_table, study.stages_table, study.facts_table):
        assert table(found) in page
    for formed in found.values():
        for one in formed:
            assert one.run_id in page
    assert FIGURE.read_text(encoding="utf-8") == study.figure(found)


def test_the_saved_numbers_are_small():
    assert Path(NUMBERS).stat().st_size < 200_000
