"""A ledger says what was done; a row that was touched is named."""

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from train import runs
from train.errors import DamagedError, DiskError
from train.runs import LedgerRow


def rows(n: int) -> list[LedgerRow]:
    return [
        LedgerRow(step, 1e-3, 3.0 - step / 10, 1.0, step * 64, f"{step:016x}", 0.1)
        for step in range(n)
    ]


@pytest.fixture
def written(tmp_path):
    writer = runs.LedgerWriter(tmp_path / runs.LEDGER, [])
    kept = [writer.append(row) for row in rows(6)]
    writer.close()
    return tmp_path / runs.LEDGER, kept


class FullDisk(io.RawIOBase):
    """A file with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        fits = bytes(data)[: self.room]
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(fits)
        self.written += fits
        return len(fits)


def test_a_full_disk_is_one_line_when_a_row_is_written_and_when_the_file_is_closed(
    tmp_path, monkeypatch
):
    """Python keeps what did not fit and writes it again when the file is closed, in `finally`."""
    path = tmp_path / runs.LEDGER
    disk = FullDisk(400)
    full = io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8", newline="")
    opened = Path.open

    def on_full_disk(place: Path, *mode, **options):
        return full if place == path else opened(place, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_full_disk)
        writer = runs.LedgerWriter(path, [])

    def write() -> None:
        try:
            for row in rows(6):
                writer.append(row)
        finally:
            writer.close()

    with pytest.raises(DiskError, match=r"the disk is full while writing .*ledger\.jsonl"):
        write()
    path.write_bytes(disk.written)
    assert [row.step for row in runs.read_ledger(path, whole=False)] == [0, 1]


def test_rows_read_back(written):
    path, kept = written
    assert runs.read_ledger(path) == kept


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
        runs.read_ledger(path)


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
        runs.read_ledger(path)


def test_a_torn_last_line_is_damage_unless_the_run_is_unfinished(written):
    path, kept = written
    path.write_bytes(path.read_bytes()[:-20])
    assert runs.read_ledger(path, whole=False) == kept[:-1]
    with pytest.raises(DamagedError, match="line 6 is no row"):
        runs.read_ledger(path)


def test_a_writer_continues_behind_the_rows_it_is_given(written):
    path, kept = written
    writer = runs.LedgerWriter(path, kept[:3])
    writer.append(replace(kept[3], seconds=9.0))
    writer.close()
    assert [row.step for row in runs.read_ledger(path)] == [0, 1, 2, 3]
