"""What was done, step by step: one line of JSON a step, each chained to the one before.

A row's `chain` is the sha256 of the row before it and of its own content, so an edited, dropped or
repeated row is found and named even in a run that is still under way. Loss, gradient norm and the
digest of the windows read are what a replay must reproduce exactly; `seconds` is not.
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
    """One step.

    Attributes:
        step: Counted from 0; takes checkpoint `step` to checkpoint `step + 1`.
        loss: Nats per counted target, before the update.
        tokens: Targets that carried loss, this step's included, since step 0.
        digest: Of the windows read (`train.data.Batch`).
        held_out: Held-out loss measured before the update, where the recipe asks for one.
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
        """This row with its chain, given the chain of the row before."""
        content = {key: value for key, value in asdict(self).items() if key != "chain"}
        text = before + json.dumps(content, sort_keys=True)
        return replace(self, chain=hashlib.sha256(text.encode()).hexdigest()[:16])

    def agrees(self, other: "LedgerRow") -> bool:
        """Whether a replay of this step did the same, to the last bit."""
        same = ("step", "lr", "loss", "grad_norm", "tokens", "digest")
        return all(getattr(self, key) == getattr(other, key) for key in same)


class LedgerWriter:
    """Appends rows; after a kill the file is a prefix of the rows and at most half a line."""

    def __init__(self, path: Path, kept: list[LedgerRow]):
        """Continue behind the `kept` rows, dropping whatever a killed process wrote past them."""
        self.path = path
        self.chain = kept[-1].chain if kept else ""
        storage.write_text(path, "".join(_line(row) for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: LedgerRow) -> LedgerRow:
        """Write one row and return it with its chain.

        Raises:
            DiskError: The disk is full; at most half a line was written.
        """
        row = row.chained(self.chain)
        with storage.disk_guard(self.path):
            self._file.write(_line(row))
            self._file.flush()
        self.chain = row.chain
        return row

    def sync(self) -> None:
        """Make the rows durable; called before a checkpoint that rests on them.

        Raises:
            DiskError: The disk is full.
        """
        with storage.disk_guard(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the rows stay.

        Raises:
            DiskError: The disk is full, and a row that did not fit is still waiting.
        """
        with storage.disk_guard(self.path):
            self._file.close()


def read_ledger(path: Path, *, whole: bool = True) -> list[LedgerRow]:
    """All rows, their chain checked.

    Args:
        path: The ledger.
        whole: False stops silently at a torn last line, as a killed process leaves one.

    Raises:
        DamagedError: A row is unreadable or does not follow from the one before it.
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
