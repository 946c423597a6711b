"""A ledger says what was done; a row that was touched is named."""

import json
from dataclasses import replace

import pytest

from train import ledger
from train.errors import DamagedError
from train.ledger import Row


def rows(n: int) -> list[Row]:
    return [
        Row(step, 1e-3, 3.0 - step / 10, 1.0, step * 64, f"{step:016x}", 0.1) for step in range(n)
    ]


@pytest.fixture
def written(tmp_path):
    writer = ledger.Writer(tmp_path / ledger.NAME, [])
    kept = [writer.append(row) for row in rows(6)]
    writer.close()
    return tmp_path / ledger.NAME, kept


def test_rows_read_back(written):
    path, kept = written
    assert ledger.read(path) == kept


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize(
    "field", ["step", "lr", "loss", "grad_norm", "tokens", "digest", "seconds", "held_out"]
)
def test_an_edited_row_is_named(written, step, field):
    path, _ = written
    lines = path.read_text().splitlines()
    row = json.loads(lines[step])
    row[field] = {"step": 77, "tokens": 77, "digest": "f" * 16}.get(field, 77.0)
    lines[step] = json.dumps(row, sort_keys=True)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedError, match=rf"row of step {step} \(line {step + 1}\)"):
        ledger.read(path)


@pytest.mark.parametrize("change", ["drop", "repeat", "swap"])
def test_dropped_repeated_and_swapped_rows_are_found(written, change):
    path, _ = written
    lines = path.read_text().splitlines(keepends=True)
    changed = {
        "drop": lines[:2] + lines[3:],
        "repeat": lines[:3] + lines[2:],
        "swap": [*lines[:2], lines[3], lines[2], *lines[4:]],
    }
    path.write_text("".join(changed[change]))
    with pytest.raises(DamagedError, match=r"line [34]"):
        ledger.read(path)


def test_a_torn_last_line_is_damage_unless_the_run_is_unfinished(written):
    path, kept = written
    path.write_bytes(path.read_bytes()[:-20])
    assert ledger.read(path, whole=False) == kept[:-1]
    with pytest.raises(DamagedError, match="line 6 is no row"):
        ledger.read(path)


def test_a_writer_continues_behind_the_rows_it_is_given(written):
    path, kept = written
    writer = ledger.Writer(path, kept[:3])
    writer.append(replace(kept[3], seconds=9.0))
    writer.close()
    assert [row.step for row in ledger.read(path)] == [0, 1, 2, 3]
