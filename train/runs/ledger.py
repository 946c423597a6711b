"""The ledger of a run: one JSON line per training step, each chained to the previous line.

A row's `chain` is derived from the sha256 of the previous row's chain and the row's own content, so
an edited, dropped or repeated row is detected and named, even while the run is in progress. A
replay must reproduce loss, gradient norm and the digest of the windows exactly, but not `seconds`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from train import storage
from train.errors import DamagedError


__all__ = ["LEDGER", "LedgerRow", "LedgerWriter", "read_ledger"]

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class LedgerRow:
    """One training step.

    Attributes:
        step: Number of the step, from 0; it leads from checkpoint `step` to checkpoint `step + 1`.
        loss: Loss before the update, in nats per counted target.
        grad_norm: Norm of the gradient before clipping.
        tokens: Number of targets that carried loss since step 0, including this step.
        digest: Digest of the windows read (`train.data.Batch`).
        held_out: Held-out loss before the update, at the steps where the recipe evaluates it.
    """

    step: int
    lr: float
    loss: float
    grad_norm: float
    tokens: int
    digest: str
    seconds: float
    held_out: float | None = None
    chain: str = ""

    def chained(self, before: str) -> "LedgerRow":
        """Return this row with its chain, given the chain of the previous row."""
        content = {key: value for key, value in asdict(self).items() if key != "chain"}
        text = before + json.dumps(content, sort_keys=True)
        return replace(self, chain=hashlib.sha256(text.encode()).hexdigest()[:16])

    def agrees(self, other: "LedgerRow") -> bool:
        """Return whether a replay of this step agrees to the last bit."""
        same = ("step", "lr", "loss", "grad_norm", "tokens", "digest")
        return all(getattr(self, key) == getattr(other, key) for key in same)


class LedgerWriter:
    """A writer that appends rows.

    If the process is killed, the file has a prefix of the rows and at most one partial line.
    """

    def __init__(self, path: Path, kept: list[LedgerRow]):
        """Continue after the `kept` rows, and drop what a killed process wrote after them."""
        self.path = path
        self.chain = kept[-1].chain if kept else ""
        storage.write_text(path, "".join(_line(row) for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: LedgerRow) -> LedgerRow:
        """Write one row and return it with its chain.

        Raises:
            DiskError: The disk is full; at most a partial line was written.
        """
        row = row.chained(self.chain)
        with storage.disk_guard(self.path):
            self._file.write(_line(row))
            self._file.flush()
        self.chain = row.chain
        return row

    def sync(self) -> None:
        """Sync the rows to disk; called before the checkpoint that follows them.

        Raises:
            DiskError: The disk is full.
        """
        with storage.disk_guard(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; its rows stay.

        Raises:
            DiskError: The disk is full, and a row that did not fit is still in the buffer.
        """
        with storage.disk_guard(self.path):
            self._file.close()


def read_ledger(path: Path, *, whole: bool = True) -> list[LedgerRow]:
    """Read all rows and check their chains.

    Args:
        path: The ledger.
        whole: False ignores a partial last line, which a killed process leaves.

    Raises:
        DamagedError: The file is missing, a row is unreadable, or one does not follow from the one
            before it.

    Examples:
        >>> rows = runs.read_ledger(run.path / runs.LEDGER)
        >>> len(rows), rows[-1].step, rows[-1].tokens
        (1900, 1899, 3774202)
    """
    if not path.is_file():
        raise DamagedError(f"{path}: the file is missing")
    rows: list[LedgerRow] = []
    for number, row in _parsed(path, whole):
        before = rows[-1].chain if rows else ""
        if row.step != len(rows) or row.chained(before).chain != row.chain:
            raise DamagedError(
                f"{path}: the row of step {len(rows)} (line {number}) does not follow from the "
                "row before it; the ledger was edited"
            )
        rows.append(row)
    return rows


def _parsed(path: Path, whole: bool) -> Iterator[tuple[int, LedgerRow]]:
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            yield number, LedgerRow(**json.loads(line.decode("utf-8")))
        except (ValueError, TypeError):
            if not whole and number == len(lines):
                return
            raise DamagedError(f"{path}: line {number} is no row of a ledger") from None


def _line(row: LedgerRow) -> str:
    return json.dumps(asdict(row), sort_keys=True) + "\n"
