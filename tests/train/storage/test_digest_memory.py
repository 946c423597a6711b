"""A large file is hashed once; what is remembered holds only while the file is left alone."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from train import storage
from train.errors import DamagedError
from train.storage import atomic, digest_memory


HOUR = 3600 * 10**9
CONTENT = b"a large file, which is long because the limit of this test is short"


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """The paths that are hashed, with a memory of this test's own and a file limit of 9 bytes."""
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_memory, "HASHED", 9)
    monkeypatch.setattr(digest_memory, "SETTLED_NS", -HOUR)  # whenever it was written
    done, whole = [], atomic.sha256_file

    def counted(path, progress=None):
        done.append(path)
        return whole(path, progress)

    monkeypatch.setattr(atomic, "sha256_file", counted)
    return done


@pytest.fixture
def large(tmp_path):
    """A file above the limit, and its sha256."""
    path = tmp_path / "large.bin"
    path.write_bytes(CONTENT)
    return path, hashlib.sha256(CONTENT).hexdigest()


def entry(path: Path) -> Path:
    state = path.stat()
    name = f"{state.st_dev:x}-{state.st_ino:x}.json"
    return storage.cache_folder() / digest_memory.MEMORY / name


def check(path: Path, sha256: str) -> None:
    storage.check_once(path, sha256, "store.json", "build it again")


def test_an_unchanged_large_file_is_hashed_once(hashes, large):
    path, sha256 = large
    for _ in range(3):
        check(path, sha256)
    assert hashes == [path]
    assert json.loads(entry(path).read_text())["path"] == str(path)


def test_a_small_file_is_hashed_on_every_check_and_never_remembered(hashes, tmp_path):
    path = tmp_path / "small.bin"
    path.write_bytes(b"small")
    for _ in range(3):
        check(path, hashlib.sha256(b"small").hexdigest())
    assert not entry(path).exists()


def test_a_change_is_refused_though_the_file_was_remembered(hashes, large):
    path, sha256 = large
    check(path, sha256)
    path.write_bytes(CONTENT.replace(b"a", b"b", 1))
    for _ in range(2):  # a digest that did not fit is not remembered either
        with pytest.raises(DamagedError, match=r"large\.bin: its sha256 is not the one in store"):
            check(path, sha256)


def test_a_change_with_the_old_time_of_modification_is_refused(hashes, large):
    path, sha256 = large
    check(path, sha256)
    before = path.stat()
    path.write_bytes(CONTENT.replace(b"a", b"b", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DamagedError, match="its sha256 is not the one in"):
        check(path, sha256)


def test_another_file_in_its_place_is_hashed(hashes, large, tmp_path):
    path, sha256 = large
    check(path, sha256)
    (tmp_path / "other").write_bytes(CONTENT)
    os.replace(tmp_path / "other", path)
    check(path, sha256)
    assert hashes == [path, path]


def test_a_file_that_changed_shortly_before_is_not_trusted_twice(hashes, large, monkeypatch):
    """Within the resolution of its clock a file system gives a later change the same time."""
    monkeypatch.setattr(digest_memory, "SETTLED_NS", HOUR)
    path, sha256 = large
    for _ in range(3):
        check(path, sha256)
    assert hashes == [path] * 3


def test_a_time_in_the_future_is_not_trusted(hashes, large):
    path, sha256 = large
    ahead = time.time_ns() + 2 * HOUR
    os.utime(path, ns=(ahead, ahead))
    for _ in range(2):
        check(path, sha256)
    assert hashes == [path] * 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 1}', "[" * 100_000, "\udcff"])
def test_a_damaged_memory_is_no_memory(content, hashes, large):
    path, sha256 = large
    check(path, sha256)
    entry(path).write_bytes(content.encode(errors="surrogateescape"))
    check(path, sha256)
    assert hashes == [path] * 2
    check(path, sha256)  # it was written anew
    assert hashes == [path] * 2


def test_a_cache_that_cannot_be_written_costs_time_only(hashes, large, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "file"))
    path, sha256 = large
    for _ in range(2):
        check(path, sha256)
    assert hashes == [path] * 2


def test_the_limit_a_lie_is_believed_by_readers_and_seen_by_verify(hashes, large):
    """Documented: the memory guards against damage; only a full hash proves the content."""
    path, sha256 = large
    check(path, sha256)
    path.write_bytes(CONTENT.replace(b"a", b"b", 1))
    now = path.stat()
    lie = json.loads(entry(path).read_text())
    lie |= {"mtime_ns": now.st_mtime_ns, "ctime_ns": now.st_ctime_ns}
    entry(path).write_text(json.dumps({**lie, "hashed_at_ns": time.time_ns() + 10**9}))
    check(path, sha256)
    with pytest.raises(DamagedError, match="its sha256 is not the one in"):
        storage.check_digest(path, sha256, "store.json", "build it again")


def test_progress_is_told_in_megabytes(tmp_path):
    path = tmp_path / "zeros"
    path.write_bytes(bytes(20_000_000))
    told = []
    found = storage.sha256_file(path, lambda *what: told.append(what))
    assert found == storage.sha256_file(path)
    assert told == [("MB", 16, 20), ("MB", 20, 20)]
