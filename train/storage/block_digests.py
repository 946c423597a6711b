"""Digests by block: reading a part of a large file checks that part, at the speed of memory.

A file that is read in parts through a memory map has, beside its sha256, one 64-bit xxh3 digest for
each block of 256 KiB (xxh3 reads 23 GB per second where sha256 reads 1.8). A block is checked when
it is first read in a process, and `BlockCheck` remembers which were. A file that was written before
there were digests by block is checked as a whole before its first use, as
`train.storage.digest_memory` does.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int64

from train.errors import DamagedError
from train.storage.artifact import FileEntry
from train.storage.digest_memory import check_once


__all__ = ["BlockCheck", "block_entry"]

BLOCK_BYTES = 1 << 18


def block_entry(content: Path | np.ndarray) -> FileEntry:
    """Return the entry of a file in a manifest: its size, its sha256 and its digests by block.

    Args:
        content: The file, which is read once, or the array that it will hold.

    Examples:
        >>> storage.block_entry(np.arange(4, dtype="u1"))["xxh3"]
        '60dab036a58211f2'
    """
    whole, digests, n_bytes = hashlib.sha256(), [], 0
    for block in _blocks_of_file(content) if isinstance(content, Path) else _blocks(content):
        whole.update(block)
        digests.append(xxhash.xxh3_64_hexdigest(block))
        n_bytes += len(block)
    return {
        "bytes": n_bytes,
        "sha256": whole.hexdigest(),
        "block_bytes": BLOCK_BYTES,
        "xxh3": "".join(digests),
    }


def _blocks_of_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    octets = np.ascontiguousarray(array).reshape(-1).view("u1").data
    for first in range(0, len(octets), BLOCK_BYTES):
        yield octets[first : first + BLOCK_BYTES]


class BlockCheck:
    """The digests of one file's blocks, and which of them were compared in this process.

    Attributes:
        by_block: False for a file that was written before there were digests by block.
    """

    def __init__(self, path: Path, entry: FileEntry, manifest: str, remedy: str) -> None:
        """Describe a file.

        Args:
            path: The file.
            entry: Its entry in the manifest.
            manifest: Name of the manifest, for messages.
            remedy: What to do about damage, for messages.
        """
        self.path, self.by_block = path, "xxh3" in entry
        self._entry, self._manifest, self._remedy = entry, manifest, remedy
        self._block_bytes = entry.get("block_bytes", BLOCK_BYTES)
        self._digests = np.frombuffer(bytes.fromhex(entry.get("xxh3", "")), ">u8")
        self._unseen = np.ones(-(-entry["bytes"] // self._block_bytes), bool)

    def check(self, array: np.ndarray, start: int, stop: int) -> None:
        """Check the rows [start, stop) of the memory-mapped array that is the whole file.

        Raises:
            DamagedError: A block of them was changed.
        """
        if start < stop and len(self._unseen):
            row = array.nbytes // len(array)
            first, last = start * row // self._block_bytes, (stop * row - 1) // self._block_bytes
            self._check(array, first + np.flatnonzero(self._unseen[first : last + 1]))

    def check_rows(self, array: np.ndarray, rows: Int64[np.ndarray, " row"]) -> None:
        """Check some rows of the memory-mapped array that is the whole file.

        Raises:
            DamagedError: A block of them was changed.
        """
        if not len(rows) or not self._unseen.any():
            return
        row = array.nbytes // len(array)
        edges = np.zeros(len(self._unseen) + 1, np.int64)
        np.add.at(edges, rows * row // self._block_bytes, 1)
        np.add.at(edges, ((rows + 1) * row - 1) // self._block_bytes + 1, -1)
        self._check(array, np.flatnonzero((np.cumsum(edges[:-1]) > 0) & self._unseen))

    def _check(self, array: np.ndarray, blocks: Int64[np.ndarray, " block"]) -> None:
        if not len(blocks):
            return
        if not self.by_block:
            check_once(self.path, self._entry["sha256"], self._manifest, self._remedy)
            self._unseen[:] = False
            return
        octets, size = np.asarray(array).reshape(-1).view("u1").data, self._block_bytes
        for block in blocks.tolist():
            held = octets[block * size : (block + 1) * size]
            if xxhash.xxh3_64_intdigest(held) != int(self._digests[block]):
                raise DamagedError(
                    f"{self.path}: its bytes {block * size:,} to {block * size + len(held):,} are "
                    f"not what {self._manifest} lists; {self._remedy}"
                )
            self._unseen[block] = False
