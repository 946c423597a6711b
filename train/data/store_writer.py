"""Writers of token files and document tables, which append part by part.

A region is a sequence of documents that lie end to end. Its tokens are written to a buffered file
and its table to parquet row groups, so a corpus of any size needs the memory of a few thousand
table rows. The exception is `lay_rows`, which copies the documents of one region into packed rows
of another: packing needs all documents, so it keeps the table of the first region in memory (about
300 bytes per document).
"""

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.data.packing import pack
from train.short_repr import short_repr


__all__ = ["ROWS_PER_GROUP", "SCHEMA", "Lot", "Region", "fingerprint", "lay_rows"]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int32()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("title", pa.string()),
        ("url", pa.string()),
    ]
)
# Reading one document from its group takes milliseconds; 8 million documents are 1,000 groups.
ROWS_PER_GROUP = 8192
TOKENS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Lot:
    """Encoded documents of one region; in `tokens` an end-of-text follows each document."""

    tokens: np.ndarray
    lengths: np.ndarray
    columns: Mapping[str, list]

    __repr__ = short_repr


class Region:
    """A token file and its document table, written together.

    `opened_with` is the token that precedes the first document, if any.
    """

    def __init__(
        self, tokens: Path, table: Path, dtype: np.dtype, opened_with: int | None = None
    ) -> None:
        self.tokens_path, self.table_path = tokens, table
        self.dtype = dtype
        self.end = 0
        self._rows: list[pa.Table] = []
        self._tokens = tokens.open("wb", buffering=1 << 20)
        self._table = table.open("wb")
        self._writer = pq.ParquetWriter(
            self._table,
            SCHEMA,
            compression="zstd",
            use_dictionary=["source", "shard"],  # pyright: ignore[reportArgumentType]
        )
        if opened_with is not None:
            self.write(np.array([opened_with]))

    def __enter__(self) -> "Region":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            # Files are still open here only after an error, which a second one must not hide.
            for close in (self._writer.close, self._table.close, self._tokens.close):
                with suppress(OSError):
                    close()

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens; call `describe` to add their documents to the table."""
        self._tokens.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self.end += len(tokens)

    def append(self, lot: Lot) -> None:
        """Append encoded documents and their table rows."""
        starts = self.end + np.cumsum(lot.lengths + 1) - (lot.lengths + 1)
        columns = {**lot.columns, "start": starts, "length": lot.lengths.astype(np.int32)}
        self.write(lot.tokens)
        self.describe(pa.Table.from_pydict(columns, schema=SCHEMA))

    def describe(self, rows: pa.Table) -> None:
        """Append rows to the table; they are written as whole row groups."""
        self._rows.append(rows)
        if sum(part.num_rows for part in self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def extend(self, other: "Region") -> None:
        """Append all documents of a closed region."""
        offset = self.end
        with other.tokens_path.open("rb") as file:
            shutil.copyfileobj(file, self._tokens, 1 << 20)
        self.end += other.end
        with pq.ParquetFile(other.table_path) as file:
            for batch in file.iter_batches(ROWS_PER_GROUP):
                rows = pa.Table.from_batches([batch])
                starts = rows.column("start").to_numpy() + offset
                self.describe(rows.set_column(1, SCHEMA.field("start"), pa.array(starts)))

    def close(self) -> None:
        """Write everything to disk; a second call does nothing."""
        if not self._table.closed:
            self._flush()
            self._writer.close()
            self._table.close()
            self._tokens.close()

    def remove(self) -> None:
        """Delete both files, after their content was copied into another region."""
        self.tokens_path.unlink()
        self.table_path.unlink()

    def _flush(self) -> None:
        rows = pa.concat_tables(self._rows) if self._rows else SCHEMA.empty_table()
        if rows.num_rows:
            self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
        self._rows = []


def lay_rows(target: Region, source: Region, *, row_length: int, eot: int, seed: int) -> None:
    """Append the documents of the closed region `source` to `target` in packed rows."""
    if not source.end:
        return
    table = pq.read_table(source.table_path)
    lengths = table.column("length").to_numpy().astype(np.int64)
    come_from = table.column("start").to_numpy()
    starts, n_rows = pack(lengths, row_length=row_length, seed=seed)
    order = np.argsort(starts)
    offset = target.end
    tokens = np.memmap(source.tokens_path, dtype=source.dtype, mode="r")
    at_once = max(1, TOKENS_AT_ONCE // row_length) * row_length
    # Tokens that no document covers are padding. They are written through a file, because writing
    # to a memory map on a full disk kills the process.
    for first in range(0, n_rows * row_length, at_once):
        last = min(first + at_once, n_rows * row_length)
        block = np.full(last - first, eot, dtype=source.dtype)
        inside = slice(*np.searchsorted(starts[order], [first, last]))
        for document in order[inside].tolist():
            place, length, origin = starts[document], lengths[document], come_from[document]
            block[place - first : place - first + length] = tokens[origin : origin + length]
        target.write(block)
    rows = table.take(pa.array(order))
    placed = pa.array(starts[order] + offset)
    target.describe(rows.set_column(1, SCHEMA.field("start"), placed))


def fingerprint(table_path: Path) -> str:
    """Return the sha256 over the lines `id sha256 start length` of a document table.

    In a tuning store the number of prompt tokens follows.
    """
    digest = hashlib.sha256()
    with pq.ParquetFile(table_path) as file:
        columns = ["id", "sha256", "start", "length"]
        columns += [one for one in file.schema_arrow.names if one == "prompt_tokens"]
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=columns):
            rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            digest.update("".join(" ".join(map(str, row)) + "\n" for row in rows).encode())
    return digest.hexdigest()
