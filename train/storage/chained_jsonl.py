"""Chained logs: append-only files with one JSON row per line, each chained to the previous row.

A row's `chain` is derived from the sha256 of the previous chain and the row's own content, so an
edited, dropped, repeated or moved row is detected and named, even in a file that is still being
written. A process killed at any moment leaves complete rows and at most one partial line, which the
next writer cuts off.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from train.errors import DamagedError, TrainError
from train.storage import atomic, lock
from train.storage.foreign_files import read_foreign_bytes
from train.storage.regular_files import open_foreign, reading


__all__ = ["MOST_CHAIN_BYTES", "ChainRow", "ChainWriter", "parse_chain", "read_chain"]
__all__ += ["write_chain"]

ChainRow = atomic.JsonObject
MOST_CHAIN_BYTES = 1 << 32  # 20 million rows of a ledger


class ChainWriter:
    """A writer that appends rows to a file and locks it against other writers.

    Attributes:
        rows: The rows that the file had when it was opened.
    """

    def __init__(
        self,
        path: Path,
        keep: Callable[[ChainRow], bool] = bool,
        *,
        finite: bool = True,
        counter: str | None = None,
    ) -> None:
        """Continue after the last row of the file; create the file if it is missing.

        Args:
            path: The file.
            keep: Predicate on rows. The first row for which it is false is cut off, together with
                all later rows.
            finite: True refuses NaN and infinite numbers by a ValueError; JSON has neither.
            counter: Key under which each row holds its own number, from 0; it is checked too.

        Raises:
            TrainError: Another process is writing the file.
            DamagedError: A row is unreadable or does not follow from the one before it.
        """
        self.path, self._finite = path, finite
        if path.exists() or path.is_symlink():
            open_foreign(path).close()  # refuses what is no regular file
        with atomic.disk_guard(path):
            self._file = path.open("a+b")
        try:
            refusal = TrainError(f"another process is writing {path}; wait for it or end it")
            lock.lock_descriptor(self._file.fileno(), refusal)
            if (size := os.fstat(self._file.fileno()).st_size) > MOST_CHAIN_BYTES:
                raise DamagedError(f"{path}: {size} bytes, and at most {MOST_CHAIN_BYTES} are read")
            self._file.seek(0)
            found = _parsed(path, self._file.read(), whole=False, counter=counter)
            kept = next((n for n, (row, _) in enumerate(found) if not keep(row)), len(found))
            self.rows: list[ChainRow] = [row for row, _ in found[:kept]]
            os.ftruncate(self._file.fileno(), found[kept - 1][1] if kept else 0)
        except BaseException:
            self._file.close()
            raise
        self._chain = self.rows[-1]["chain"] if kept else ""
        self._name_synced = bool(kept)

    def append(self, content: ChainRow, *, sync: bool = True) -> ChainRow:
        """Write one row and return it with its chain.

        Args:
            content: The row; a chain in it is ignored.
            sync: True makes the row durable now; False leaves it to the next `sync`.

        Raises:
            DiskError: The disk is full; at most a partial line was written.
        """
        row = _chained(content, self._chain)
        with atomic.disk_guard(self.path):
            self._file.write(_line(row, self._finite))
            self._file.flush()
        self._chain = row["chain"]
        if sync:
            self.sync()
        return row

    def sync(self) -> None:
        """Make all rows durable.

        Raises:
            DiskError: The disk is full.
        """
        with atomic.disk_guard(self.path):
            os.fsync(self._file.fileno())
            if not self._name_synced:
                atomic.sync_folder(self.path.parent)
                self._name_synced = True

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


def write_chain(path: Path, contents: Iterable[ChainRow], *, finite: bool = True) -> None:
    """Write a file of rows, completely or not at all; every chain is computed.

    Raises:
        DiskError: The disk is full.

    Examples:
        >>> storage.write_chain(folder / "log.jsonl", [{"step": 0}, {"step": 1}])
        >>> [row["step"] for row in storage.read_chain(folder / "log.jsonl")]
        [0, 1]
    """
    lines, before = [], ""
    for content in contents:
        row = _chained(content, before)
        lines.append(_line(row, finite))
        before = row["chain"]
    atomic.write_bytes(path, b"".join(lines))


def read_chain(path: Path, *, whole: bool = True, counter: str | None = None) -> list[ChainRow]:
    """Read all rows, with their chains, and check the chains.

    Args:
        path: The file.
        whole: False ignores a partial last line, which a killed process leaves.
        counter: Key under which each row holds its own number, from 0; it is checked too.

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
    data = read_foreign_bytes(path, most_bytes=MOST_CHAIN_BYTES)
    return parse_chain(data, path, whole=whole, counter=counter)


def parse_chain(
    data: bytes, path: Path, *, whole: bool = True, counter: str | None = None
) -> list[ChainRow]:
    """Parse the content of a file as `read_chain` does; errors name `path`.

    Examples:
        >>> with storage.ChainWriter(folder / "rows.jsonl") as writer:
        ...     row = writer.append({"step": 0})
        ...
        >>> data = (folder / "rows.jsonl").read_bytes()
        >>> storage.parse_chain(data, folder / "rows.jsonl") == [row]
        True
    """
    return [row for row, _ in _parsed(path, data, whole=whole, counter=counter)]


def _parsed(
    path: Path, data: bytes, *, whole: bool, counter: str | None = None
) -> list[tuple[ChainRow, int]]:
    """Return the rows, each with the offset of the byte after its line."""
    found: list[tuple[ChainRow, int]] = []
    lines = data.splitlines(keepends=True)
    before, end = "", 0
    for index, line in enumerate(lines):
        end += len(line)
        row, place = _row(line), f"line {index + 1}"
        if row is None and index == len(lines) - 1 and not whole:
            break
        if row is None:
            raise DamagedError(f"{path}: {place} is no row; the file was damaged")
        with reading(f"{path}: {place}"):  # a value can be nested too deeply to be written again
            follows = _chained(row, before) == row
        if not follows or (counter is not None and row.get(counter) != index):
            place = place if counter is None else f"the row of {counter} {index} ({place})"
            raise DamagedError(
                f"{path}: {place} does not follow from the line before it; the file was edited"
            )
        found.append((row, end))
        before = row["chain"]
    return found


def _row(line: bytes) -> ChainRow | None:
    """Return the row of a line; None if the line is partial or is not a row."""
    try:
        row = json.loads(line.decode("utf-8")) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _line(row: ChainRow, finite: bool) -> bytes:
    return (json.dumps(row, sort_keys=True, allow_nan=not finite) + "\n").encode()


def _chained(row: ChainRow, before: str) -> ChainRow:
    content = {key: value for key, value in row.items() if key != "chain"}
    text = before + json.dumps(content, sort_keys=True)
    return {**content, "chain": hashlib.sha256(text.encode()).hexdigest()[:16]}
