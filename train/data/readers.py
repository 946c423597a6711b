"""Readers of corpus files: lines of JSON, parquet, plain text, and saved `datasets` folders.

Each reader yields `(row, fields)`, or `(row, BadRow)` for a row that cannot be read, and keeps at
most a few hundred rows in memory, whatever the size of the file. Damage that other readers skip
silently is an error here: a compressed file that ends early, bytes that are not UTF-8, and lines
that are not JSON.
"""

import codecs
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import storage
from train.errors import CorpusError, DamagedError, TrainError
from train.progress import readable_size
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

__all__ = ["KINDS", "OPTIONAL_FIELDS", "BadRow", "Row", "Shard", "SkippedRow", "field_of"]
__all__ += ["fields_shown", "kind_of", "known_kind", "n_rows", "open_dataset", "read"]
__all__ += ["refuse_large", "refuse_unwritten", "stream_parquet"]

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
# Rows decoded at once from a saved dataset: 256 rows of OpenWebText are about 1.3 MB.
ROWS_AT_ONCE = 256
# Rows decoded at once from parquet. A dictionary or a shared prefix can make many rows of a long
# text from a few bytes, so the memory is that of one row; a row takes 17 microseconds this way,
# in batches of 256 rows it takes 3, and to encode 5 kB of text about 1,000.
PARQUET_ROWS_AT_ONCE = 1
# What the text of one row group of a parquet file may unpack to. Text shrinks to a fourth; the
# second number is for small files.
MOST_UNPACKED_PER_BYTE = 1000
LEAST_UNPACKED = 1 << 28
MOST_SHOWN, LONGEST_SHOWN = 20, 60  # names of fields in a message, and letters of each
# Damage of an arrow file can end the process that reads it, beyond any exception.
CHECK_ARROW = """
import sys
import pyarrow
for name in sys.argv[1:]:
    with pyarrow.memory_map(name) as file, pyarrow.ipc.open_stream(file) as batches:
        for batch in batches:
            batch.validate(full=True)
"""
OPTIONAL_FIELDS = ("title", "url")
# A JSON escape takes at most six bytes for one byte of text (`\\u0000`); the spare bytes are for
# other fields.
LINE_BYTES_PER_TEXT_BYTE = 6
LINE_SPARE_BYTES = 1 << 20
UNWRITTEN = bytes(64)


@dataclass(frozen=True)
class Shard:
    """A file, or a saved dataset, that holds rows.

    Attributes:
        name: Part of the ids of its documents.
        kind: `jsonl`, `parquet`, `text` or `saved`.
        shown: What messages call it; default: its path.
    """

    name: str
    path: Path
    kind: str
    shown: str = ""

    @property
    def title(self) -> str:
        """Return the name that messages give it."""
        return self.shown or str(self.path)

    def place(self, row: int) -> str:
        """Describe the place of a row for an error message; lines of JSON are counted from 1."""
        if self.kind == "jsonl":
            return f"{self.title}: line {row + 1}"
        return self.title if self.kind == "text" else f"{self.title}: row {row}"


@dataclass(frozen=True)
class BadRow:
    """A row that holds no document: the reason, which goes on from a row's place, and the error."""

    reason: str
    error: type[TrainError] = CorpusError

    def at(self, place: str) -> TrainError:
        """Return the error of a row at a place."""
        return self.error(f"{place} {self.reason}")


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out of a corpus; `line` is None but in lines of JSON, and counts from 1.

    `row` is None in a text file, which is left out as a whole.
    """

    file: str
    row: int | None
    line: int | None
    reason: str

    __repr__ = short_repr

    def json_line(self) -> str:
        """Return the row as a line of JSON, in ASCII and without what is None."""
        named = {"file": self.file, "row": self.row, "line": self.line, "reason": self.reason}
        return json.dumps({key: value for key, value in named.items() if value is not None}) + "\n"

    @classmethod
    def of(cls, file: str, kind: str, row: int, reason: str) -> "SkippedRow":
        """Make one of a row of a file of a kind."""
        return cls(
            file, None if kind == "text" else row, row + 1 if kind == "jsonl" else None, reason
        )


Row = tuple[int, dict[str, object] | BadRow]


def known_kind(name: str) -> str | None:
    """Return `jsonl`, `parquet` or `text`, according to a file's name; None if it says nothing."""
    path = Path(name)
    ending = path.suffix.lower()
    packed = ending in storage.COMPRESSIONS
    kind = KINDS.get(Path(path.stem).suffix.lower() if packed else ending)
    return None if packed and kind == "parquet" else kind


def kind_of(path: Path) -> str:
    """Return `jsonl`, `parquet` or `text`, according to the file's name.

    Raises:
        CorpusError: The name has no known ending.
    """
    kind = known_kind(path.name)
    if kind is None:
        known = ", ".join(KINDS)
        raise CorpusError(
            f"{path}: unknown file type {''.join(path.suffixes[-2:]) or '(no ending)'!r}; known "
            f"are {known}, all but parquet also with {', '.join(storage.COMPRESSIONS)}, folders of "
            "these, and folders saved by `datasets`"
        )
    return kind


def read(shard: Shard, text_field: str, max_document_bytes: int) -> Iterator[Row]:
    """Read the rows of a file in order, with at least the text field.

    A line that is not a JSON object, bytes of a row that are not UTF-8, and a document that is
    larger than `max_document_bytes`, or so long that it may be, are a `BadRow`.

    Raises:
        CorpusError: A columnar file lacks the text field, or unpacks to too much.
        DamagedError: The file ends early.
    """
    if shard.kind == "jsonl":
        return _json_lines(shard, max_document_bytes)
    if shard.kind == "parquet":
        return _parquet(shard.path, text_field)
    if shard.kind == "saved":
        return _saved(shard.path, text_field)
    return _text(shard, text_field, max_document_bytes)


def field_of(fields: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Return whether a row has a field, and its value; `meta.text` is `text` inside `meta`.

    A field of exactly that name goes before.

    Examples:
        >>> from train.data.readers import field_of
        >>> field_of({"meta": {"text": "a"}}, "meta.text")
        (True, 'a')
    """
    if name in fields:
        return True, fields[name]
    first, dot, rest = name.partition(".")
    inner = fields.get(first)
    if dot and isinstance(inner, Mapping):
        return field_of(inner, rest)
    return False, None


def fields_shown(fields: Mapping[str, object]) -> str:
    """Return the names of a row's fields for a message, as `--text-field` takes them."""
    names = []
    for name, value in fields.items():
        nested = value if isinstance(value, Mapping) else {}
        names += [f"{name}.{one}" for one in nested] or [name]
    names.sort()
    more = [f"and {len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
    return ", ".join([one[:LONGEST_SHOWN] for one in names[:MOST_SHOWN]] + more) or "none"


def n_rows(path: Path) -> int:
    """Return the number of rows of a parquet file, from its footer.

    Raises:
        DamagedError: The file cannot be read as parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _cut_off(path, 0, error) from None


def stream_parquet(address: str, text_field: str) -> Iterator[Row]:
    """Read a parquet file on disk or on the hub through `datasets`, without a copy on disk.

    Raises:
        CorpusError: The file has no text field.
        DamagedError: The file cannot be read as parquet.
    """
    import datasets
    import pyarrow

    path = Path(address)
    row = 0
    try:
        # In small batches, because a row group of some files holds 100,000 documents.
        stream: Any = datasets.load_dataset(
            "parquet", data_files=[address], split="train", streaming=True, batch_size=ROWS_AT_ONCE
        )
        stream = stream.select_columns(_columns(path, stream.column_names or (), text_field))
        for table in stream.with_format("arrow").iter(ROWS_AT_ONCE):
            yield from _rows(table, row)
            row += table.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _cut_off(path, row, error) from None


def open_dataset(path: Path) -> Any:
    """Open the `datasets.Dataset` saved in a folder, memory-mapped.

    Raises:
        CorpusError: The folder holds several splits.
        DamagedError: The folder cannot be read as a saved dataset.
    """
    import datasets

    if (path / "dataset_dict.json").exists():
        splits = sorted(one.name for one in path.iterdir() if one.is_dir())
        raise CorpusError(f"{path} holds the splits {', '.join(splits)}: open one of these folders")
    for entry in sorted(path.iterdir()):
        if not entry.is_dir():
            storage.open_foreign(entry).close()  # refuses pipes, at which `datasets` would wait
    for name in ("state.json", "dataset_info.json"):
        if not isinstance(storage.read_foreign_json(path / name), dict):
            raise DamagedError(f"{path / name}: not a JSON object")
    _refuse_broken_arrow(path)
    with storage.reading(path, kind="as a saved dataset"):
        try:
            return datasets.load_from_disk(str(path))
        except OSError as error:  # pyarrow's, without a number
            raise ValueError(error) from None


def _refuse_broken_arrow(path: Path) -> None:
    """Read the arrow files of a saved dataset in another process, which damage may make abort.

    Raises:
        DamagedError: They are not readable.
    """
    files = [str(one) for one in sorted(path.glob("*.arrow"))]
    ended = subprocess.run(
        [sys.executable, "-c", CHECK_ARROW, *files], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["it ended the process that read it"])[-1]
        raise DamagedError(f"{path}: not readable as a saved dataset ({said:.160})")


def _json_lines(shard: Shard, max_document_bytes: int) -> Iterator[Row]:
    longest = LINE_BYTES_PER_TEXT_BYTE * max_document_bytes + LINE_SPARE_BYTES
    with storage.open_uncompressed(shard.path) as file:
        row = -1
        while line := file.readline(longest):
            row += 1
            if len(line) == longest and not line.endswith(b"\n"):
                yield (
                    row,
                    BadRow(
                        f"is longer than {longest / 2**20:.0f} MiB, and its document may be larger "
                        "than allowed; raise --max-document-mb or cut it"
                    ),
                )
                while line and not line.endswith(b"\n"):
                    line = file.readline(longest)
                continue
            if row == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line or line.isspace():
                continue
            yield row, _json_object(line)


def _json_object(line: bytes) -> dict[str, object] | BadRow:
    try:
        content = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return BadRow(_not_utf8(error), DamagedError)
    except (ValueError, RecursionError) as error:
        return BadRow(f"is {storage.damaged_json(line, error)}; expected one object a line")
    if not isinstance(content, dict):
        return BadRow(f"holds a {type(content).__name__}; expected one object a line")
    return content


def refuse_unwritten(path: Path) -> None:
    """Refuse a file that begins with zeros, before all of it is hashed; no kind of file does.

    A disk that crashed and a download that broke off leave files of the full size without content.

    Raises:
        DamagedError: The file begins with 64 zero bytes, or there is no regular file.
    """
    with storage.open_foreign(path) as file:
        if file.read(len(UNWRITTEN)) == UNWRITTEN:
            raise DamagedError(
                f"{path}: begins with {len(UNWRITTEN)} zero bytes; it was not written whole, "
                "make or download it again"
            )


def refuse_large(path: Path, max_document_bytes: int) -> None:
    """Raise a CorpusError if a text file, packed or not, is larger than a document may be."""
    if path.stat().st_size > max_document_bytes:
        raise CorpusError(f"{path}: the document {_too_large(max_document_bytes)}")


def _too_large(max_document_bytes: int) -> str:
    size = f"{max_document_bytes / 2**20:g} MiB"
    return f"is larger than {size}; raise --max-document-mb or cut it into several"


def _text(shard: Shard, text_field: str, max_document_bytes: int) -> Iterator[Row]:
    with storage.open_uncompressed(shard.path) as file:
        # One byte more than allowed is enough to see that the document is too large.
        content = file.read(max_document_bytes + 1)
    if len(content) > max_document_bytes:
        yield 0, BadRow(_too_large(max_document_bytes))
        return
    try:
        yield 0, {text_field: content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield 0, BadRow(_not_utf8(error), DamagedError)


def _parquet(path: Path, text_field: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(path, _field_names(file.schema_arrow), text_field)
            _check_unpacked(path, file.metadata, columns)
            for batch in file.iter_batches(PARQUET_ROWS_AT_ONCE, columns=columns):
                yield from _rows(batch, row)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _cut_off(path, row, error) from None


def _cut_off(path: Path, row: int, error: BaseException) -> TrainError:
    if isinstance(error, MemoryError):
        return CorpusError(f"{path}: row {row} needs more memory than there is; write it as .jsonl")
    return DamagedError(
        f"{path}: not readable as parquet from row {row} ({_one_line(error)}); it was cut off or "
        "changed"
    )


def _saved(path: Path, text_field: str) -> Iterator[Row]:
    dataset = open_dataset(path)
    columns = _columns(path, _field_names(dataset.data.schema), text_field)
    outer = [one if one in dataset.column_names else one.partition(".")[0] for one in columns]
    arrow = dataset.select_columns(list(dict.fromkeys(outer))).with_format("arrow")
    row = 0
    for table in arrow.iter(ROWS_AT_ONCE):
        yield from _rows(table, row)
        row += table.num_rows


def _field_names(fields: "Iterable[pyarrow.Field]", outer: str = "") -> list[str]:
    """Return the names of columns, and behind each one those of the fields inside it."""
    import pyarrow

    names = []
    for field in fields:
        names.append(outer + field.name)
        if pyarrow.types.is_struct(field.type):
            names += _field_names(field.type, f"{outer}{field.name}.")
    return names


def _columns(path: Path, names: Sequence[str], text_field: str) -> list[str]:
    if text_field not in names:
        raise CorpusError(
            f"{path} has no field {text_field!r}; its fields are {', '.join(sorted(names))}: "
            "choose one with --text-field"
        )
    return [text_field, *(one for one in OPTIONAL_FIELDS if one in names and one != text_field)]


def _check_unpacked(
    path: Path, metadata: "pyarrow.parquet.FileMetaData", columns: Sequence[str]
) -> None:
    """Refuse a file that says it unpacks to far more than its size.

    Raises:
        CorpusError: A column of a row group unpacks to more than the limit.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            packed, size = column.total_compressed_size, column.total_uncompressed_size
            most = max(MOST_UNPACKED_PER_BYTE * packed, LEAST_UNPACKED)
            if column.path_in_schema in columns and size > most:
                raise CorpusError(
                    f"{path}: {readable_size(packed)} of field {column.path_in_schema!r} unpack to "
                    f"{readable_size(size)}, and at most {readable_size(most)} are read from a row "
                    "group; write smaller row groups, or .jsonl.zst"
                )


def _rows(batch: "pyarrow.Table | pyarrow.RecordBatch", first: int) -> Iterator[Row]:
    for offset in range(batch.num_rows):
        fields: dict[str, object] | BadRow = {}
        for name in batch.schema.names:
            try:
                fields[name] = _decoded(batch.column(name)[offset].as_py())
            except UnicodeDecodeError as error:
                fields = BadRow(f"{_not_utf8(error, name)}", DamagedError)
                break
        yield first + offset, fields


def _decoded(value: object) -> object:
    """Return a value with the bytes in it as text."""
    if isinstance(value, dict):
        return {name: _decoded(one) for name, one in value.items()}
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _not_utf8(error: UnicodeDecodeError, field: str = "") -> str:
    byte, inside = error.object[error.start], f" in field {field!r}" if field else ""
    return f"is not UTF-8{inside} (byte 0x{byte:02x} at offset {error.start}); convert it to UTF-8"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
