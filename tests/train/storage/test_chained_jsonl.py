"""An append-only file keeps its rows through kills, and gives away every change to them."""

import json
import os

import pytest

from train import storage
from train.errors import DamagedError, TrainError


@pytest.fixture
def path(tmp_path):
    """Four rows."""
    with storage.ChainWriter(tmp_path / "rows.jsonl") as writer:
        for number in range(4):
            writer.append({"number": number})
    return tmp_path / "rows.jsonl"


def numbers(path, **options) -> list[int]:
    return [row["number"] for row in storage.read_chain(path, **options)]


def test_what_was_appended_is_read_and_the_next_writer_goes_on(path):
    with storage.ChainWriter(path) as writer:
        assert [row["number"] for row in writer.rows] == [0, 1, 2, 3]
        writer.append({"number": 4})
    assert numbers(path) == [0, 1, 2, 3, 4]


def test_a_file_cut_anywhere_is_a_prefix_and_the_next_writer_drops_half_a_line(path):
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        assert numbers(path, whole=False) == [0, 1, 2, 3][:lines]
        with storage.ChainWriter(path) as writer:
            writer.append({"number": 9})
        assert numbers(path) == [*[0, 1, 2, 3][:lines], 9]


def test_a_torn_last_line_is_damage_in_a_file_that_should_be_whole(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="line 4 is no row"):
        storage.read_chain(path)


def test_rows_that_are_not_kept_are_cut_off_with_all_behind_them(path):
    with storage.ChainWriter(path, lambda row: row["number"] != 1) as writer:
        writer.append({"number": 7})
    assert numbers(path) == [0, 7]


def test_an_edited_dropped_repeated_or_moved_row_is_named(path):
    lines = path.read_text().splitlines(keepends=True)
    edited = [lines[0], lines[1].replace('"number": 1', '"number": 5'), *lines[2:]]
    changes = {
        "edited": (edited, 2),
        "dropped": ([lines[0], *lines[2:]], 2),
        "repeated": ([*lines[:2], *lines[1:]], 3),
        "moved": ([lines[1], lines[0], *lines[2:]], 1),
    }
    for changed, line in changes.values():
        path.write_text("".join(changed))
        with pytest.raises(DamagedError, match=rf"line {line} does not follow"):
            storage.read_chain(path)


def test_a_flipped_bit_anywhere_is_found(path):
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"rows\.jsonl: line"):
            storage.read_chain(path)


def test_a_second_writer_is_refused_while_the_first_writes(path):
    with (
        storage.ChainWriter(path) as writer,
        pytest.raises(TrainError, match="another process is writing"),
    ):
        storage.ChainWriter(path)
    assert len(writer.rows) == 4
    storage.ChainWriter(path).close()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DamagedError, match=r"none\.jsonl: the file is missing"):
        storage.read_chain(tmp_path / "none.jsonl")


def test_a_number_that_json_does_not_know_is_not_written(path):
    with storage.ChainWriter(path) as writer, pytest.raises(ValueError, match="JSON"):
        writer.append({"number": float("nan")})
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 3


def test_rows_that_count_themselves_are_counted(tmp_path):
    """A forger who chains the rows anew still cannot leave one out."""
    storage.write_chain(tmp_path / "rows.jsonl", [{"step": 0}, {"step": 2}])
    assert len(storage.read_chain(tmp_path / "rows.jsonl")) == 2
    with pytest.raises(DamagedError, match=r"the row of step 1 \(line 2\) does not follow"):
        storage.read_chain(tmp_path / "rows.jsonl", counter="step")


def test_a_row_is_synced_at_once_or_with_the_next_sync(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    with storage.ChainWriter(tmp_path / "rows.jsonl") as writer:
        writer.append({"number": 0}, sync=False)
        assert synced == []
        writer.sync()
        assert len(synced) == 2  # the row, and the folder with the name of the new file
        writer.append({"number": 1})
        assert len(synced) == 3
