"""Reading a part of a file checks the blocks of that part, each once in a process."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import xxhash

from train import storage
from train.errors import DamagedError
from train.storage import block_digests, digest_memory


ROWS, WIDTH = 40, 5  # 40 rows of 10 bytes: 400 bytes in blocks of 64
CONTENT = np.arange(ROWS * WIDTH, dtype="<u2").reshape(ROWS, WIDTH)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(block_digests, "BLOCK_BYTES", 64)
    CONTENT.tofile(tmp_path / "values.bin")
    return tmp_path / "values.bin"


def mapped(path: Path) -> np.ndarray:
    return np.memmap(path, "<u2", "r", shape=(ROWS, WIDTH))


def check_of(path: Path, entry: storage.FileEntry) -> storage.BlockCheck:
    return storage.BlockCheck(path, entry, "manifest.json", "write it again")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def test_an_entry_is_the_same_of_a_file_and_of_an_array(path):
    entry = storage.block_entry(path)
    assert entry == storage.block_entry(CONTENT)
    whole = path.read_bytes()
    assert (entry["bytes"], entry.get("block_bytes")) == (400, 64)
    assert entry["sha256"] == hashlib.sha256(whole).hexdigest()
    blocks = [xxhash.xxh3_64_hexdigest(whole[at : at + 64]) for at in range(0, 400, 64)]
    assert entry.get("xxh3") == "".join(blocks)
    assert storage.block_entry(CONTENT[:0])["bytes"] == 0


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_flip_is_refused_by_whoever_reads_its_block_and_by_nobody_else(path, at):
    entry = storage.block_entry(path)
    flip(path, at)
    array = mapped(path)
    for row in range(ROWS):
        touched = set(range(row * 10 // 64, (row * 10 + 9) // 64 + 1))
        for read in (
            lambda check, row=row: check.check(array, row, row + 1),
            lambda check, row=row: check.check_rows(array, np.array([row, row])),
        ):
            if at // 64 not in touched:
                read(check_of(path, entry))
                continue
            first = at // 64 * 64
            last = min(first + 64, 400)
            said = rf"values\.bin: its bytes {first} to {last} are not what manifest\.json lists"
            with pytest.raises(DamagedError, match=said):
                read(check_of(path, entry))


def test_scattered_rows_check_their_blocks_only(path):
    entry = storage.block_entry(path)
    flip(path, 130)  # in the third block, which holds the rows 12 to 19
    check, array = check_of(path, entry), mapped(path)
    check.check_rows(array, np.array([39, 0, 20, 11]))
    with pytest.raises(DamagedError, match="bytes 128 to 192"):
        check.check_rows(array, np.array([39, 19]))
    check.check_rows(array, np.empty(0, np.int64))
    check.check(array, 3, 3)


def test_a_block_is_compared_once_in_a_process(path, monkeypatch):
    entry, compared = storage.block_entry(path), []
    whole = xxhash.xxh3_64_intdigest
    monkeypatch.setattr(
        block_digests.xxhash, "xxh3_64_intdigest", lambda held: compared.append(1) or whole(held)
    )
    check, array = check_of(path, entry), mapped(path)
    for _ in range(3):
        check.check(array, 0, 10)
        check.check_rows(array, np.array([5, 1]))
    assert len(compared) == 2
    for _ in range(3):
        check.check(array, 0, ROWS)
    assert len(compared) == 7


def test_a_row_may_be_longer_than_a_block(path):
    entry = storage.block_entry(path)
    flip(path, 250)
    long = np.memmap(path, "<u2", "r", shape=(2, 100))
    with pytest.raises(DamagedError, match="bytes 192 to 256"):
        check_of(path, entry).check_rows(long, np.array([1]))


def test_a_file_without_digests_by_block_is_checked_as_a_whole(path, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "cache"))
    whole = storage.file_entry(path)
    for largest in (1 << 23, 0):  # as a small file, and as a large one
        monkeypatch.setattr(digest_memory, "HASHED", largest)
        check = check_of(path, whole)
        assert not check.by_block
        check.check(mapped(path), 0, 1)
        flip(path, 399)
        check.check(mapped(path), 39, 40)  # it was checked in this process
        with pytest.raises(DamagedError, match="its sha256 is not the one in manifest"):
            check_of(path, whole).check(mapped(path), 0, 1)
        flip(path, 399)
