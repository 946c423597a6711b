"""The ledger of a run: a chained log (`train.storage.chained_jsonl`) with a row per training step.

A replay must reproduce loss, gradient norm and the digest of the windows exactly, but not the
seconds.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from train import storage
from train.errors import DamagedError


__all__ = ["LEDGER", "LedgerReader", "LedgerRow", "ledger_writer", "read_ledger", "write_ledger"]

LEDGER = "ledger.jsonl"
SHAPE = {
    "step": int,
    "lr": float,
    "loss": float,
    "grad_norm": float,
    "tokens": int,
    "digest": str,
    "seconds": float,
    "held_out?": (None, float),
    "chain": str,
}


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

    def agrees(self, other: "LedgerRow") -> bool:
        """Return whether a replay of this step agrees to the last bit."""
        same = ("step", "lr", "loss", "grad_norm", "tokens", "digest")
        return all(getattr(self, key) == getattr(other, key) for key in same)


def ledger_writer(path: Path, step: int) -> storage.ChainWriter:
    """Open the ledger of a run that goes on at `step`; later rows are cut off.

    Rows are appended as dictionaries (`dataclasses.asdict`), and are synced before the checkpoint
    that follows them.

    Raises:
        TrainError: Another process is writing the ledger.
        DamagedError: A row is unreadable, out of order, or does not follow from the one before it.
        DiskError: The disk is full.
    """
    return storage.ChainWriter(path, lambda row: row["step"] < step, finite=False, counter="step")


def write_ledger(path: Path, rows: Iterable[LedgerRow]) -> None:
    """Write a ledger of these rows, completely or not at all."""
    storage.write_chain(path, map(asdict, rows), finite=False)


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
        (2100, 2099, 4171352)
    """
    return LedgerReader(path, whole=whole).rows()


class LedgerReader:
    """A reader of one ledger, which parses and checks a content once.

    The file is read and hashed at every call, so a row that was appended or edited since is seen;
    what takes the time are the rows, each with its chain.
    """

    def __init__(self, path: Path, *, whole: bool = True) -> None:
        self._path, self._whole = path, whole
        self._sha256, self._rows = b"", []

    def rows(self) -> list[LedgerRow]:
        """Return all rows, as `read_ledger` does."""
        data = storage.read_foreign_bytes(self._path, most_bytes=storage.MOST_CHAIN_BYTES)
        digest = sha256(data).digest()
        if digest != self._sha256:
            self._rows = _parsed(data, self._path, whole=self._whole)
            self._sha256 = digest
        return [*self._rows]


def _parsed(data: bytes, path: Path, *, whole: bool) -> list[LedgerRow]:
    rows = storage.parse_chain(data, path, whole=whole, counter="step")
    for number, row in enumerate(rows, 1):
        storage.check_shape(row, SHAPE, f"{path}: line {number} is no row of a ledger")
    try:
        return [LedgerRow(**row) for row in rows]
    except TypeError as error:
        raise DamagedError(f"{path}: a line is no row of a ledger ({error})") from None
