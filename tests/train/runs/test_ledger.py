"""A ledger says what was done; a row that was touched is named."""

import errno
import io
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.test_golden_files import GOLDEN
from train import runs, storage
from train.errors import DamagedError, DiskError
from train.runs import LedgerRow, ledger


def rows(n: int) -> list[LedgerRow]:
    return [
        LedgerRow(step, 1e-3, 3.0 - step / 10, 1.0, step * 64, f"{step:016x}", 0.1)
        for step in range(n)
    ]


@pytest.fixture
def written(tmp_path):
    with runs.ledger_writer(tmp_path / runs.LEDGER, 0) as writer:
        kept = [LedgerRow(**writer.append(asdict(row), sync=False)) for row in rows(6)]
    return tmp_path / runs.LEDGER, kept


class FullDisk(io.FileIO):
    """A file on a disk that has room for 400 bytes more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a+")
        self.room = 400

    def write(self, data) -> int:
        fits = bytes(data)[: self.room]
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(fits)
        return super().write(fits)


def test_a_full_disk_is_one_line_when_a_row_is_written_and_when_the_file_is_closed(
    tmp_path, monkeypatch
):
    """Python keeps what did not fit and writes it again when the file is closed, in `finally`."""
    path = tmp_path / runs.LEDGER
    opened = Path.open

    def on_full_disk(place: Path, *mode, **options):
        return io.BufferedRandom(FullDisk(place)) if place == path else opened(place, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_full_disk)
        writer = runs.ledger_writer(path, 0)

    def write() -> None:
        try:
            for row in rows(6):
                writer.append(asdict(row), sync=False)
        finally:
            writer.close()

    with pytest.raises(DiskError, match=r"the disk is full while writing .*ledger\.jsonl"):
        write()
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


def test_a_writer_continues_at_its_step_and_cuts_off_later_rows(written):
    path, kept = written
    with runs.ledger_writer(path, 3) as writer:
        writer.append(asdict(replace(kept[3], seconds=9.0)), sync=False)
        writer.sync()
    assert runs.read_ledger(path)[:3] == kept[:3]
    assert [row.step for row in runs.read_ledger(path)] == [0, 1, 2, 3]


def test_a_ledger_that_is_written_at_once_has_the_same_bytes(written, tmp_path):
    path, _ = written
    runs.write_ledger(tmp_path / "copy", rows(6))
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    first = path.read_text().splitlines()[0]
    assert first == (
        '{"chain": "6dffc1c69d805c48", "digest": "0000000000000000", "grad_norm": 1.0, '
        '"held_out": null, "loss": 3.0, "lr": 0.001, "seconds": 0.1, "step": 0, "tokens": 0}'
    )


def test_a_chained_row_with_other_keys_is_refused(tmp_path):
    storage.write_chain(tmp_path / runs.LEDGER, [{"step": 0, "colour": "red"}])
    with pytest.raises(DamagedError, match="is no row of a ledger"):
        runs.read_ledger(tmp_path / runs.LEDGER)


def test_rows_are_checked_once_and_again_when_a_byte_is_another(written, monkeypatch):
    path, kept = written
    checks: list[int] = []
    parse = storage.parse_chain

    def counted(data: bytes, *about, **how):
        checks.append(len(data))
        return parse(data, *about, **how)

    monkeypatch.setattr(storage, "parse_chain", counted)
    reader = ledger.LedgerReader(path)
    assert reader.rows() == kept
    reader.rows().clear()  # each caller has a list of its own
    assert reader.rows() == kept
    assert len(checks) == 1
    content = path.read_bytes()
    stat = path.stat()
    path.write_bytes(content.replace(b"64", b"65", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    with pytest.raises(DamagedError, match="does not follow"):
        reader.rows()
    path.write_bytes(content)
    with runs.ledger_writer(path, 6) as writer:
        writer.append(asdict(rows(7)[-1]), sync=False)
    assert [row.step for row in reader.rows()] == [*range(7)]


def test_an_open_run_reads_its_ledger_through_one_reader(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    run = runs.open(tmp_path / "run")
    assert run.ledger == run.ledger == runs.read_ledger(tmp_path / "run" / runs.LEDGER)
    assert run.ledger[3] is run.ledger[3]  # the rows of one parse
    path = tmp_path / "run" / runs.LEDGER
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DamagedError):
        _ = run.ledger
