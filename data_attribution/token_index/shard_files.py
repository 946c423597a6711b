"""The files of one shard of a token index: a stretch of tokens.bin whose suffixes are sorted.

    shard-000.suffixes.u32   positions in the shard, sorted by the suffix that starts there
              .buckets.i64   where each first token's suffixes begin; also the unigram counts
              .keys.u64      the first tokens of every 64th suffix (`prefix_table`)
              .json          its store and stretch, and the files' sha256; sealed

The .json is written last, when the other files are complete and on disk: a shard is finished when
its .json exists. Files are written under temporary names of their process and renamed, so that a
process that outlived its parent by a moment cannot write into the files of the next.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from data_attribution.token_index import prefix_table, suffix_array
from train import storage
from train.errors import DamagedError
from train.short_repr import short_repr


__all__ = ["Arrays", "Shard", "Task", "finished", "listed", "read", "sort", "sorter_of"]

SCHEMA = 2
SUFFIXES, BUCKETS, KEYS, ABOUT = ".suffixes.u32", ".buckets.i64", ".keys.u64", ".json"
PIECE = 1 << 22  # entries hashed and written at a time


@dataclass(frozen=True)
class Shard:
    """The tokens [start, stop) of tokens.bin: whole documents, all in training or all held out."""

    name: str
    start: int
    stop: int
    held_out: bool

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens, including end-of-text."""
        return self.stop - self.start


@dataclass(frozen=True)
class Arrays:
    """The arrays of a shard, memory-mapped; `keys` ascend with the ranks."""

    suffixes: UInt32[np.ndarray, " token"]
    buckets: Int64[np.ndarray, " bucket"]
    keys: UInt64[np.ndarray, " key"]

    __repr__ = short_repr


@dataclass(frozen=True)
class Task:
    """All inputs of sorting a shard, as plain values."""

    shard: Shard
    folder: str
    tokens: str  # path of tokens.bin
    dtype: str
    vocab_size: int
    store: str  # fingerprint of the token store
    sha256: str  # sha256 of tokens.bin
    threads: int = 1

    __repr__ = short_repr


def sort(task: Task) -> None:
    """Sort a shard and write its files, the sealed .json last.

    Raises:
        DiskError: The disk is full.
        SorterError: The shard has too many tokens.
    """
    shard, folder = task.shard, Path(task.folder)
    tokens = np.memmap(task.tokens, task.dtype, "r").view(np.ndarray)[shard.start : shard.stop]
    buckets = suffix_array.buckets(tokens, task.vocab_size)
    suffixes = suffix_array.build(tokens, threads=task.threads, counts=np.diff(buckets))
    arrays = {
        SUFFIXES: suffixes.astype("<u4", copy=False),
        BUCKETS: buckets.astype("<i8", copy=False),
        KEYS: prefix_table.build(tokens, suffixes).astype("<u8", copy=False),
    }
    with storage.disk_guard(folder / (shard.name + SUFFIXES)):
        written = {
            shard.name + kind: _write(folder / (shard.name + kind), array)
            for kind, array in arrays.items()
        }
        storage.sync_folder(folder)
    about = {**_about(task), "sorter": suffix_array.SORTER, "files": written}
    storage.write_json(folder / (shard.name + ABOUT), storage.seal(about))


def finished(task: Task) -> dict[str, storage.FileEntry] | None:
    """Return `listed` for a shard that an earlier build finished, if every byte is unchanged."""
    files = listed(task)
    for name, file in (files or {}).items():
        there = Path(task.folder) / name
        if not there.is_file() or storage.sha256_file(there) != file["sha256"]:
            return None
    return files


def listed(task: Task) -> dict[str, storage.FileEntry] | None:
    """Return the files of a finished shard by name, each with size and sha256, or None."""
    path = Path(task.folder) / (task.shard.name + ABOUT)
    try:
        about = storage.read_sealed(path)
    except DamagedError:
        return None
    if {name: about.get(name) for name in _about(task)} != _about(task):
        return None
    return {**about["files"], path.name: storage.file_entry(path)}


def read(folder: Path, name: str, n_tokens: int, vocab_size: int) -> Arrays:
    """Return the arrays of a shard; suffixes and keys stay on disk until they are read.

    Raises:
        DamagedError: They have not the lengths that so many tokens of such a vocabulary need.
    """
    place = folder / (name + SUFFIXES)
    with storage.reading(place):
        found = Arrays(
            np.memmap(place, "<u4", "r").view(np.ndarray),
            np.fromfile(folder / (name + BUCKETS), "<i8"),
            np.memmap(folder / (name + KEYS), "<u8", "r").view(np.ndarray),
        )
    buckets = found.buckets
    fits = len(found.suffixes) == n_tokens and len(buckets) == vocab_size + 1
    fits = fits and len(found.keys) == -(-n_tokens // prefix_table.STRIDE)
    fits = fits and buckets[0] == 0 and buckets[-1] == n_tokens and (np.diff(buckets) >= 0).all()
    if not fits:
        raise DamagedError(
            f"{place}: {len(found.suffixes)} suffixes in {len(buckets) - 1} groups, and "
            f"{n_tokens} tokens of {vocab_size} kinds are indexed"
        )
    return found


def sorter_of(folder: Path, name: str) -> str:
    """Return the name of the sorter that sorted a shard."""
    return storage.read_sealed(folder / (name + ABOUT))["sorter"]


def _about(task: Task) -> dict[str, object]:
    """Return the entries of a shard's .json that must match the task.

    Files and sorter are left out: numpy and libsais, with which earlier versions could sort, gave
    the same files.
    """
    return {
        "schema": SCHEMA,
        "store": task.store,
        "tokens": task.sha256,
        "start": task.shard.start,
        "stop": task.shard.stop,
        "held_out": task.shard.held_out,
        "vocab_size": task.vocab_size,
    }


def _write(path: Path, array: np.ndarray) -> dict[str, object]:
    """Write an array whole or not at all, and hash it meanwhile; return its size and sha256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file, ThreadPoolExecutor(1) as beside:
            for start in range(0, len(array), PIECE):
                piece = array[start : start + PIECE].data
                hashed = beside.submit(digest.update, piece)
                file.write(piece)
                hashed.result()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return {"bytes": array.nbytes, "sha256": digest.hexdigest()}
