"""Chained logs: append-only files with one JSON row per line, each chained to the previous row.

A row's `chain` is derived from the sha256 of the previous chain and the row's own content, so an
edited, dropped, repeated or moved row is detected and named, even in a file that is still being
written. A process killed at any moment leaves complete rows and at most one partial line, which the
next writer cuts off. The ledger (`train.runs.ledger`) is chained in the same way; it has its own
code because a replay must reproduce its rows.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.errors import DamagedError, TrainError
from train.storage import atomic


__all__ = ["ChainRow", "ChainWriter", "read_chain"]

ChainRow = dict[str, Any]


class ChainWriter:
    """A writer that appends rows to a file and locks it against other writers."""

    def __init__(self, path: Path, keep: Callable[[ChainRow], bool] = bool) -> None:
        """Continue after the last row of the file; create the file if it is missing.

        Args:
            path: The file.
            keep: Predicate on rows. The first row for which it is false is cut off, together with
                all later rows.

        Raises:
            TrainError: Another process is writing the file.
            DamagedError: A row is unreadable or does not follow from the one before it.
        """
        self.path = path
        with atomic.disk_guard(path):
            self._file = path.open("a+b")
        try:
            _lock(self._file.fileno(), path)
            self._file.seek(0)
            found = _parsed(path, self._file.read(), whole=False)
            dropped = next((n for n, (row, _) in enumerate(found) if not keep(row)), len(found))
            self.rows: list[ChainRow] = [row for row, _ in found[:dropped]]
            os.ftruncate(self._file.fileno(), found[dropped - 1][1] if dropped else 0)
        except BaseException:
            self._file.close()
            raise

    def append(self, content: ChainRow) -> ChainRow:
        """Write one row, make it durable, and return it with its chain.

        Raises:
            DiskError: The disk is full; at most a partial line was written.
        """
        row = _chained(content, self.rows[-1]["chain"] if self.rows else "")
        with atomic.disk_guard(self.path):
            self._file.write((json.dumps(row, sort_keys=True, allow_nan=False) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self.rows:
                atomic.sync_folder(self.path.parent)
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Close the file; its rows stay.

        Raises:
            DiskError: The disk is full, and a row that did not fit is still in the buffer.
        """
        with atomic.disk_guard(self.path):
            self._file.close()

    def __enter__(self) -> "ChainWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_chain(path: Path, *, whole: bool = True) -> list[ChainRow]:
    """Read all rows, with their chains, and check the chains.

    Args:
        path: The file.
        whole: False ignores a partial last line, which a killed process leaves.

    Raises:
        DamagedError: The file is missing, a row is unreadable, or one does not follow from the one
            before it.

    Examples:
        >>> with storage.ChainWriter(folder / "rows.jsonl") as writer:
        ...     row = writer.append({"step": 0})
        ...
        >>> storage.read_chain(folder / "rows.jsonl") == [row]
        True
    """
    if not path.is_file():
        raise DamagedError(f"{path}: the file is missing")
    return [row for row, _ in _parsed(path, path.read_bytes(), whole=whole)]


def _parsed(path: Path, data: bytes, *, whole: bool) -> list[tuple[ChainRow, int]]:
    """Return the rows, each with the offset of the byte after its line."""
    found: list[tuple[ChainRow, int]] = []
    lines = data.splitlines(keepends=True)
    before, end = "", 0
    for number, line in enumerate(lines, start=1):
        end += len(line)
        row = _row(line)
        if row is None and number == len(lines) and not whole:
            break
        if row is None:
            raise DamagedError(f"{path}: line {number} is no row; the file was damaged")
        if _chained(row, before) != row:
            raise DamagedError(
                f"{path}: line {number} does not follow from the line before it; the file was "
                "edited"
            )
        found.append((row, end))
        before = row["chain"]
    return found


def _row(line: bytes) -> ChainRow | None:
    """Return the row of a line; None if the line is partial or is not a row."""
    try:
        row = json.loads(line.decode("utf-8")) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _chained(row: ChainRow, before: str) -> ChainRow:
    content = {key: value for key, value in row.items() if key != "chain"}
    text = before + json.dumps(content, sort_keys=True)
    return {**content, "chain": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainError(f"another process is writing {path}; wait for it or end it") from None
