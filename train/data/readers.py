"""Readers of corpus files: lines of JSON, parquet, plain text, and saved `datasets` folders.

Each reader yields `(row, fields)` and keeps at most a few hundred rows in memory, whatever the size
of the file. Damage that other readers skip silently is an error here: a compressed file that ends
early (the reader of `zstandard` just stops there), bytes that are not UTF-8, and lines that are not
JSON.
"""

import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import storage
from train.errors import CorpusError, DamagedError


if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "Row",
    "kind_of",
    "n_rows",
    "open_dataset",
    "place",
    "read",
    "refuse_large",
    "stream_parquet",
]

Row = tuple[int, dict[str, object]]

COMPRESSIONS = (".gz", ".zst", ".xz")
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
# Rows decoded at once from columnar files: 256 rows of OpenWebText are about 1.3 MB.
ROWS_AT_ONCE = 256
OPTIONAL_FIELDS = ("title", "url")
# A JSON escape takes at most six bytes for one byte of text (`\\u0000`); the spare bytes are for
# other fields.
LINE_BYTES_PER_TEXT_BYTE = 6
LINE_SPARE_BYTES = 1 << 20


def kind_of(path: Path) -> str:
    """Return `jsonl`, `parquet` or `text`, according to the file's name.

    Raises:
        CorpusError: The name has no known ending.
    """
    ending = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if ending in COMPRESSIONS else ending
    kind = KINDS.get(inner)
    if kind is None or (kind == "parquet" and ending in COMPRESSIONS):
        known = ", ".join(KINDS)
        raise CorpusError(
            f"{path}: unknown file type {''.join(path.suffixes[-2:]) or '(no ending)'!r}; known "
            f"are {known}, all but parquet also with {', '.join(COMPRESSIONS)}, folders of these, "
            "and folders saved by `datasets`"
        )
    return kind


def place(path: Path, kind: str, row: int) -> str:
    """Describe the place of a row for an error message; lines of JSON are counted from 1."""
    if kind == "jsonl":
        return f"{path}: line {row + 1}"
    return f"{path}" if kind == "text" else f"{path}: row {row}"


def read(path: Path, kind: str, text_field: str, max_document_bytes: int) -> Iterator[Row]:
    """Read the rows of a file in order, with at least the text field.

    Raises:
        CorpusError: A line is not a JSON object, a columnar file lacks the text field, a text file
            is larger than `max_document_bytes`, or a line is so long that its document may be.
        DamagedError: The file ends early, or holds bytes that are not UTF-8.
    """
    if kind == "jsonl":
        return _json_lines(path, max_document_bytes)
    if kind == "parquet":
        return _parquet(path, text_field)
    if kind == "saved":
        return _saved(path, text_field)
    return _text(path, text_field, max_document_bytes)


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
            yield from _rows(path, table, row)
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
    with storage.reading(path, kind="as a saved dataset"):
        try:
            return datasets.load_from_disk(str(path))
        except OSError as error:  # pyarrow's, without a number
            raise ValueError(error) from None


def _json_lines(path: Path, max_document_bytes: int) -> Iterator[Row]:
    longest = LINE_BYTES_PER_TEXT_BYTE * max_document_bytes + LINE_SPARE_BYTES
    with _opened(path) as file:
        row = -1
        while line := file.readline(longest):
            row += 1
            if len(line) == longest and not line.endswith(b"\n"):
                raise CorpusError(
                    f"{place(path, 'jsonl', row)} is longer than {longest / 2**20:.0f} MiB, so its "
                    "document may be larger than allowed; raise --max-document-mb or cut it"
                )
            if row == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line or line.isspace():
                continue
            yield row, _json_object(path, row, line)


def _json_object(path: Path, row: int, line: bytes) -> dict[str, object]:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedError(_not_utf8(place(path, "jsonl", row), error)) from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deeply"
        if not isinstance(error, RecursionError | json.JSONDecodeError):
            reason = "a number has too many digits"
        raise CorpusError(
            f"{place(path, 'jsonl', row)} is not JSON ({reason}); expected one object a line"
        ) from None
    if not isinstance(content, dict):
        raise CorpusError(
            f"{place(path, 'jsonl', row)} holds a {type(content).__name__}; expected one object a "
            "line"
        )
    return content


def refuse_large(path: Path, max_document_bytes: int) -> None:
    """Raise a CorpusError if a text file, packed or not, is larger than a document may be."""
    if path.stat().st_size > max_document_bytes:
        raise _too_large(path, max_document_bytes)


def _too_large(path: Path, max_document_bytes: int) -> CorpusError:
    return CorpusError(
        f"{path}: the document is larger than {max_document_bytes / 2**20:g} MiB; raise "
        "--max-document-mb or cut it into several"
    )


def _text(path: Path, text_field: str, max_document_bytes: int) -> Iterator[Row]:
    with _opened(path) as file:
        # One byte more than allowed is enough to see that the document is too large.
        content = file.read(max_document_bytes + 1)
    if len(content) > max_document_bytes:
        raise _too_large(path, max_document_bytes)
    try:
        yield 0, {text_field: content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        raise DamagedError(_not_utf8(str(path), error)) from None


def _parquet(path: Path, text_field: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, text_field)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from _rows(path, batch, row)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _cut_off(path, row, error) from None


def _cut_off(path: Path, row: int, error: BaseException) -> DamagedError:
    return DamagedError(
        f"{path}: not readable as parquet from row {row} ({_one_line(error)}); it was cut off or "
        "changed"
    )


def _saved(path: Path, text_field: str) -> Iterator[Row]:
    dataset = open_dataset(path)
    columns = _columns(path, dataset.column_names, text_field)
    arrow = dataset.select_columns(columns).with_format("arrow")
    row = 0
    for table in arrow.iter(ROWS_AT_ONCE):
        yield from _rows(path, table, row)
        row += table.num_rows


def _columns(path: Path, found: Sequence[str], text_field: str) -> list[str]:
    if text_field not in found:
        raise CorpusError(
            f"{path} has no field {text_field!r}; its fields are {', '.join(sorted(found))}: "
            "choose one with --text-field"
        )
    return [text_field, *(one for one in OPTIONAL_FIELDS if one in found and one != text_field)]


def _rows(path: Path, batch: "pyarrow.Table | pyarrow.RecordBatch", first: int) -> Iterator[Row]:
    for offset in range(batch.num_rows):
        fields = {}
        for name in batch.schema.names:
            try:
                value = batch.column(name)[offset].as_py()
                fields[name] = value.decode("utf-8") if isinstance(value, bytes) else value
            except UnicodeDecodeError as error:
                where = f"{path}: row {first + offset}, field {name!r}"
                raise DamagedError(_not_utf8(where, error)) from None
        yield first + offset, fields


# --- bytes ---------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading its uncompressed bytes.

    Raises:
        DamagedError: The compressed data ends early or is damaged.
    """
    file = _decompressed(path)
    try:
        yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DamagedError(
            f"{path}: the compressed file is cut off or changed ({_one_line(error)})"
        ) from None
    finally:
        file.close()


def _decompressed(path: Path) -> io.BufferedReader:
    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), 1 << 20)  # type: ignore[arg-type]
    if ending == ".xz":
        return io.BufferedReader(lzma.open(path, "rb"), 1 << 20)  # type: ignore[arg-type]
    if ending == ".zst":
        return io.BufferedReader(_Zstandard(path), 1 << 20)
    return io.BufferedReader(path.open("rb", buffering=0), 1 << 20)


class _Zstandard(io.RawIOBase):
    """A zstd file of one or more frames; it raises EOFError if the last one is incomplete.

    It is decompressed into the caller's buffer, so that a small file of many zeros takes no more
    memory than another one.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("rb")
        self._failure = zstandard.ZstdError
        # `stream_reader` stops silently in an incomplete frame, so frames are counted here.
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            self._file, read_size=1 << 16, read_across_frames=True, closefd=False
        )
        self._whole = _ends_with_a_frame(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            size = self._reader.readinto(buffer)
        except self._failure as error:
            raise EOFError(str(error)) from None
        if not size and not self._whole:
            raise EOFError("the last frame is not whole")
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _ends_with_a_frame(path: Path) -> bool:
    """Return whether a zstd file holds whole frames (RFC 8878, section 3.1), by their sizes."""
    import zstandard

    size = path.stat().st_size
    with path.open("rb") as file:
        while (begin := file.tell()) < size:
            head = file.read(18)  # the longest header of a frame
            if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # skippable
                file.seek(begin + 8 + int.from_bytes(head[4:8], "little"))
                continue
            try:
                file.seek(begin + zstandard.frame_header_size(head))
                checksum = 4 * zstandard.get_frame_parameters(head).has_checksum
            except zstandard.ZstdError:
                return False
            last = False
            while not last:
                block = file.read(3)
                if len(block) < 3:
                    return False
                number = int.from_bytes(block, "little")
                last, kind = bool(number & 1), number >> 1 & 3
                file.seek(1 if kind == 1 else number >> 3, 1)  # kind 1: one byte, repeated
            file.seek(checksum, 1)
        return file.tell() == size


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"{where} is not UTF-8 (byte 0x{byte:02x} at offset {error.start}); convert it to UTF-8"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
