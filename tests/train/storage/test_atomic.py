"""Files are whole or absent, and a sealed file notices every flipped bit."""

import os

import pytest

from train import storage
from train.errors import DamagedError, DiskError


def test_a_sealed_file_reads_back(tmp_path):
    storage.write_json(tmp_path / "a.json", storage.seal({"b": 1, "text": "µ"}))
    assert storage.read_sealed(tmp_path / "a.json")["b"] == 1


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, storage.seal({"b": [1, 2.5, None], "c": {"d": "x"}}))
    whole = path.read_bytes()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"a\.json"):
            storage.read_sealed(path)


def test_a_failed_folder_leaves_nothing(tmp_path):
    def write():
        with storage.new_folder(tmp_path / "store") as place:
            (place / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "stale").write_text("stale")
    with storage.new_folder(tmp_path / "store") as place:
        (place / "whole").write_text("whole")
    assert os.listdir(tmp_path) == ["store"]
    assert os.listdir(tmp_path / "store") == ["whole"]


def test_what_does_not_fit_on_the_disk_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "new" / "store"
    storage.check_room(path, 1, remedy="")
    with pytest.raises(DiskError, match=r"store takes .* TB more .* free on its disk; shrink it"):
        storage.check_room(path, 1 << 60, remedy="shrink it")
