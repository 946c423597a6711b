"""Several processes write one file or folder: readers find a whole one, and nothing is lost."""

import multiprocessing
import os
import shutil
import stat
import threading

import pytest

from train import storage
from train.errors import DiskError, TrainError
from train.storage import atomic


SIZE, WRITES = 1 << 18, 100


def _write_often(path, letter):
    for _ in range(WRITES):
        storage.write_bytes(path, letter * SIZE)


def test_four_writers_of_one_file_never_tear_it(tmp_path):
    path, letters = tmp_path / "a.bin", (b"a", b"b", b"c", b"d")
    storage.write_bytes(path, b"0" * SIZE)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in letters]
    for writer in writers:
        writer.start()
    torn = 0
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        torn += len(content) != SIZE or len(set(content)) != 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert torn == 0
    assert path.read_bytes()[:1] in letters
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_writer_left_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    path = tmp_path / "a.bin"
    left = tmp_path / ".a.bin.0123abcd.partial"
    left.write_bytes(b"half")
    living, descriptor = atomic.create_partial(path)
    assert not left.exists()
    storage.write_bytes(path, b"whole")
    assert living.exists()
    os.close(descriptor)
    storage.write_bytes(path, b"whole")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_scratch_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    left = tmp_path / ".a.scratch-0123"
    left.mkdir()
    (left / "half").write_text("half")
    with storage.scratch_folder(tmp_path / "a") as living:
        assert not left.exists()
        with storage.scratch_folder(tmp_path / "a") as second:
            assert living.is_dir()
            assert second != living
    assert os.listdir(tmp_path) == []


def test_the_permissions_of_an_older_file_are_kept(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    storage.write_bytes(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_followed_and_what_is_no_file_is_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    storage.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    storage.write_bytes(tmp_path / "pipe", b"new")
    reader.join()
    assert read == [b"new"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    storage.write_bytes(tmp_path.__class__("/dev/null"), b"new")


def test_a_second_writer_of_a_folder_is_refused_and_the_first_is_unharmed(tmp_path):
    with storage.new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        refusal = pytest.raises(TrainError, match="is being written by another process")
        with refusal, storage.new_folder(tmp_path / "out"):
            pass
    refusal = pytest.raises(TrainError, match="exists already")
    with refusal, storage.new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="names are exchanged at once on Linux")
def test_a_replaced_folder_is_there_at_every_moment(tmp_path):
    path, missing, done = tmp_path / "index", [], threading.Event()
    path.mkdir()
    (path / "a").write_text("0")

    def look():
        while not done.is_set():
            try:
                (path / "a").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(100):
        with storage.new_folder(path, replace=True) as folder:
            (folder / "a").write_text(str(number))
    done.set()
    reader.join()
    assert missing == []
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="names are exchanged at once on Linux")
def test_a_replaced_folder_is_there_between_any_two_of_its_changes(tmp_path, monkeypatch):
    path, ready, seen = tmp_path / "index", tmp_path / "ready", []

    def looking(call):
        def look(*arguments, **options):
            seen.append((path / "a").read_text())
            made = call(*arguments, **options)
            seen.append((path / "a").read_text())
            return made

        return look

    for folder, text in ((path, "old"), (ready, "new")):
        folder.mkdir()
        (folder / "a").write_text(text)
    for place, name in (
        (os, "replace"), (shutil, "rmtree"), (atomic, "exchange"), (atomic, "sync_folder"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, looking(getattr(place, name)))
    storage.replace_folder(ready, path)
    change = seen.index("new")
    assert seen == ["old"] * change + ["new"] * (len(seen) - change)
    assert 5 < change < len(seen) - 3


def test_without_the_exchange_a_folder_is_still_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    for number in range(2):
        with storage.new_folder(tmp_path / "index", replace=True) as folder:
            (folder / "a").write_text(str(number))
    assert (tmp_path / "index" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["index"]


def test_a_failing_disk_is_a_disk_error(tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError, match="the disk failed while writing"):
        storage.write_bytes(tmp_path / "a.bin", b"new")
    assert os.listdir(tmp_path) == []
