"""Corpora: documents with stable ids, read from files, from the hub, or generated.

`open_corpus` takes a name or a path and returns a corpus that can be read any number of times: the
generated `planted` corpus, `stdlib` (the sources of Python's standard library), `openwebtext`, or
files on disk: `.jsonl[.gz|.zst|.xz|.bz2]`, `.parquet`, text, a folder of these (`data_folder` says
which of its files are read), or a folder saved by `datasets`. `-` is standard input: lines of JSON
if its first character that is no white space is "{", otherwise one document of plain text.

OpenWebText's parquet files hold neither name nor address of a page, and its shuffled token files
lose the row numbers. A document's id is therefore made of source, revision of the content, shard
and row. The revision of local files is the sha256 of their bytes, followed by the name of the text
field if that is not `text` (`sha#body`). The same id thus means the same text on every machine.
"""

import atexit
import codecs
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from train import storage
from train.data import readers
from train.data.data_folder import FolderFiles
from train.data.data_folder import data_files as files_of
from train.data.documents import Corpus, Document
from train.data.readers import BadRow, Shard, SkippedRow
from train.data.stdlib import stdlib_corpus
from train.errors import CorpusError, DamagedError, nearest


__all__ = ["MAX_DOCUMENT_BYTES", "open_corpus"]

MAX_DOCUMENT_BYTES = 64 << 20
NAMES = ("openwebtext", "planted", "stdlib")
# The dataset on the hub. Its loading script no longer runs (nanoGPT#633), so the parquet files on
# its main branch are named one by one.
OPENWEBTEXT = "Skylion007/openwebtext"


STANDARD_INPUT = "-"
_Item = TypeVar("_Item", bound=Document | SkippedRow)


@dataclass(frozen=True)
class _Reading:
    """Arguments of `open_corpus` by which the rows of a corpus become documents."""

    source: str
    revision: str
    text_field: str
    max_document_bytes: int

    def id(self, shard: Shard, row: int) -> str:
        """Return the id of a document."""
        mark = _field_mark(self.text_field)
        return f"{self.source}@{self.revision[:12]}{mark}/{shard.name}/{row}"


def open_corpus(
    source: str | Path,
    *,
    data_files: str | Path | Sequence[str | Path] | None = None,
    limit: int | None = None,
    revision: str | None = None,
    text_field: str = "text",
    seed: int = 0,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    skip_bad: bool = False,
) -> Corpus:
    """Open a corpus by name or path.

    Args:
        source: `planted`, `stdlib`, `openwebtext`, a path, or `-` for standard input.
        data_files: For `openwebtext` only: local parquet files of its layout, or a pattern such as
            `owt/train-*.parquet`, to read instead of the hub.
        limit: Number of documents to read from the beginning; None reads all.
        revision: Version of the content, for document ids; for the hub, the commit to read; for
            `stdlib`, the revision or version of Python that is needed. Without it local files are
            hashed once.
        text_field: Field that holds the text of a document; `meta.text` is `text` inside `meta`.
        seed: Content seed of the planted corpus; other corpora ignore it.
        max_document_bytes: Largest accepted document, in bytes of UTF-8.
        skip_bad: Leave out rows that are no documents (no text, no JSON, no UTF-8, or too large);
            `Corpus.rows` yields them, and `build_store` writes them down. By default the first one
            is an error.

    Raises:
        CorpusError: There is no corpus of that name, it holds nothing readable, it has another
            revision, or the arguments do not fit it.
        DamagedError: A file is cut off or changed.

    Examples:
        >>> storage.write_text(folder / "mine.jsonl", '{"text": "a b a"}')
        >>> corpus = data.open_corpus(folder / "mine.jsonl")
        >>> [document.text for document in corpus.read()]
        ['a b a']
    """
    if limit is not None and limit < 1:
        raise CorpusError(f"a limit of {limit} documents was asked for; it must be at least 1")
    if data_files is not None and str(source) != "openwebtext":
        raise CorpusError(f"data_files belong to the source openwebtext, not to {str(source)!r}")
    if skip_bad and str(source) in ("planted", "stdlib"):
        raise CorpusError(f"skip_bad was given for {source}, which has no bad rows")
    if str(source) == "planted":
        corpus = _planted(seed, limit)
    elif str(source) == "stdlib":
        corpus = stdlib_corpus(revision)
    elif str(source) == "openwebtext":
        corpus = _openwebtext(data_files, revision, text_field, max_document_bytes)
    elif str(source) == STANDARD_INPUT:
        corpus = _standard_input(revision, text_field, max_document_bytes)
    else:
        if not skip_bad:
            _refuse_large(Path(source), max_document_bytes)
        corpus = _local(Path(source), revision, text_field, max_document_bytes)
    if not skip_bad:
        corpus = replace(corpus, rows=None)
    elif corpus.rows is not None:
        corpus = replace(corpus, read=partial(_documents_of, corpus.rows), n_documents=None)
    return corpus if limit is None else _first(corpus, limit)


def _first(corpus: Corpus, limit: int) -> Corpus:
    known, rows = corpus.n_documents, corpus.rows
    return replace(
        corpus,
        read=lambda: _until(corpus.read(), limit),
        rows=None if rows is None else lambda: _until(rows(), limit),
        n_documents=None if known is None else min(limit, known),
        n_bytes=None,
    )


def _until(items: Iterable[_Item], limit: int) -> Iterator[_Item]:
    """Yield items up to the last of `limit` documents."""
    for item in items:
        yield item
        limit -= isinstance(item, Document)
        if not limit:
            return


def _documents_of(rows: Callable[[], Iterator[Document | SkippedRow]]) -> Iterator[Document]:
    return (one for one in rows() if isinstance(one, Document))


def _planted(seed: int, limit: int | None) -> Corpus:
    if limit is not None:
        raise CorpusError("the planted corpus has no limit: its truth table speaks of all of it")
    from train.data.planted import planted_corpus

    return planted_corpus(seed)


# --- local files ---------------------------------------------------------------------------------


def _local(path: Path, revision: str | None, text_field: str, max_document_bytes: int) -> Corpus:
    if not path.exists():
        near = nearest(str(path), NAMES)
        raise CorpusError(
            f"there is nothing at {path}; a corpus is a file, a folder, or a name{near}"
        )
    # The name that was given decides, also if it is a link to a file of another name.
    path = Path(os.path.abspath(path))
    shards, folder_files = _shards(path)
    counted = [_n_rows(shard) for shard in shards]
    for file in (file for shard in shards for file in _files(shard)):
        readers.refuse_unwritten(file)
    reading = _Reading(
        path.name, revision or _revision(path, shards), text_field, max_document_bytes
    )
    return Corpus(
        name=path.name.split(".")[0] or path.name,
        source=path.name,
        revision=reading.revision + _field_mark(text_field),
        read=partial(_read, shards, reading),
        rows=partial(_rows, shards, reading),
        n_documents=None if None in counted else sum(n for n in counted if n is not None),
        n_bytes=sum(file.stat().st_size for shard in shards for file in _files(shard)),
        files=folder_files,
    )


def _refuse_large(path: Path, max_document_bytes: int) -> None:
    """Refuse a text file that is larger than a document may be before the whole file is hashed."""
    if path.is_file() and readers.known_kind(path.name) == "text":
        readers.refuse_large(path, max_document_bytes)


def _shards(path: Path) -> tuple[list[Shard], FolderFiles | None]:
    """Return the shards of a file or folder, and for a folder of files which of them they are."""
    if path.is_file():
        return [Shard("0", path, readers.kind_of(path))], None
    if (path / "dataset_dict.json").exists() or _is_saved(path):
        readers.open_dataset(path)
        return [Shard("0", path, "saved")], None
    files = files_of(path)
    return [Shard(name, path / name, readers.kind_of(path / name)) for name in files.taken], files


def _is_saved(path: Path) -> bool:
    """Return whether `datasets` saved a folder; folders of other files may have the first file."""
    return (path / "dataset_info.json").exists() and (
        (path / "state.json").exists() or any(path.glob("*.arrow"))
    )


def _standard_input(revision: str | None, text_field: str, max_document_bytes: int) -> Corpus:
    """Open what standard input holds; it is copied to a temporary file, which is read repeatedly.

    Raises:
        CorpusError: It is empty.
    """
    # Standard input can be read once, so the copy is kept until the process ends.
    folder = tempfile.mkdtemp(prefix="openbook-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "standard-input"
    with storage.disk_guard(path), path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    if not path.stat().st_size:
        raise CorpusError("standard input is empty; pipe lines of JSON or a text into it")
    shard = Shard("0", path, _kind_of_content(path), "standard input")
    revision = revision or storage.sha256_file(path)
    reading = _Reading("stdin", revision, text_field, max_document_bytes)

    return Corpus(
        name="stdin",
        source="stdin",
        revision=revision + _field_mark(text_field),
        read=partial(_read, [shard], reading),
        rows=partial(_rows, [shard], reading),
        n_documents=1 if shard.kind == "text" else None,
        n_bytes=path.stat().st_size,
    )


def _kind_of_content(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while begin.isspace() or not begin:
            if not (begin := file.read(1 << 16)):
                return "text"
    return "jsonl" if begin.lstrip().startswith(b"{") else "text"


def _files(shard: Shard) -> list[Path]:
    if shard.kind != "saved":
        return [shard.path]
    return sorted(file for file in shard.path.rglob("*") if file.is_file())


def _revision(path: Path, shards: Sequence[Shard]) -> str:
    """Return the sha256 of a file, or of the names and sha256s of all files of a folder."""
    if path.is_file():
        return storage.sha256_file(path)
    return _digest(path, [file for shard in shards for file in _files(shard)])


def _digest(folder: Path, files: Iterable[Path]) -> str:
    lines = [f"{file.relative_to(folder).as_posix()} {storage.sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _n_rows(shard: Shard) -> int | None:
    """Return the number of documents of a shard, or None if that needs reading all of it."""
    if shard.kind == "saved":
        return len(readers.open_dataset(shard.path))
    if shard.kind == "parquet":
        return readers.n_rows(shard.path)
    return 1 if shard.kind == "text" else None


# --- OpenWebText ---------------------------------------------------------------------------------


def _openwebtext(
    data_files: str | Path | Sequence[str | Path] | None,
    revision: str | None,
    text_field: str,
    max_document_bytes: int,
) -> Corpus:
    if data_files is None:
        addresses, revision = _hub_files(revision)
        n_documents = None
    else:
        paths = _matching([data_files] if isinstance(data_files, str | Path) else data_files)
        n_documents = sum(readers.n_rows(path) for path in paths)
        if revision is None:
            lines = [f"{path.name} {storage.sha256_file(path)}" for path in paths]
            revision = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        addresses = [str(path) for path in paths]
    shards = [Shard(one.rsplit("/", 1)[-1], Path(one), "parquet", one) for one in addresses]
    reading = _Reading("openwebtext", revision, text_field, max_document_bytes)
    read_rows = _rows_on_the_hub if data_files is None else _rows_of
    return Corpus(
        "openwebtext",
        "openwebtext",
        revision + _field_mark(text_field),
        partial(_read, shards, reading, read_rows),
        n_documents,
        rows=partial(_rows, shards, reading, read_rows),
    )


def _matching(given: Sequence[str | Path]) -> list[Path]:
    """Return the files that paths and patterns match.

    They are sorted by file name, so that the order does not depend on the machine.
    """
    found: set[Path] = set()
    for one in given:
        path = Path(one)
        folder = path.parent
        matches = [path] if path.is_file() else list(folder.glob(path.name)) if path.name else []
        if not matches:
            raise CorpusError(f"data_files: nothing matches {str(one)!r}")
        found.update(match.resolve() for match in matches)
    return sorted(found, key=lambda path: (path.name, str(path)))


def _hub_files(revision: str | None) -> tuple[list[str], str]:
    """Return the addresses of the parquet files on the hub at one commit, and the commit."""
    from huggingface_hub import HfApi

    # This name covers the errors of whichever HTTP library the installed version uses.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        info = HfApi().dataset_info(OPENWEBTEXT, revision=revision)
    except (OSError, HTTPError) as error:
        raise CorpusError(
            f"{OPENWEBTEXT} cannot be reached ({' '.join(str(error).split())[:120]}); give local "
            "copies of its parquet files with --data-files"
        ) from None
    names = sorted(one.rfilename for one in info.siblings or ())
    names = [name for name in names if name.startswith("data/") and name.endswith(".parquet")]
    if not names or not info.sha:
        raise CorpusError(f"{OPENWEBTEXT} holds no data/*.parquet at revision {revision or 'main'}")
    return [f"hf://datasets/{OPENWEBTEXT}@{info.sha}/{name}" for name in names], info.sha


# --- rows to documents ---------------------------------------------------------------------------


def _rows_of(shard: Shard, reading: _Reading) -> Iterator[readers.Row]:
    return readers.read(shard, reading.text_field, reading.max_document_bytes)


def _rows_on_the_hub(shard: Shard, reading: _Reading) -> Iterator[readers.Row]:
    return readers.stream_parquet(shard.shown, reading.text_field)


_RowReader = Callable[[Shard, _Reading], Iterator[readers.Row]]


def _read(
    shards: Sequence[Shard], reading: _Reading, read_rows: _RowReader = _rows_of
) -> Iterator[Document]:
    """Yield the documents of shards.

    Raises:
        CorpusError: A row is no document.
        DamagedError: A row is not UTF-8, or a file is cut off.
    """
    for shard in shards:
        for row, fields in read_rows(shard, reading):
            document = _document(fields, shard, row, reading)
            if isinstance(document, BadRow):
                raise document.at(shard.place(row))
            yield document


def _rows(
    shards: Sequence[Shard], reading: _Reading, read_rows: _RowReader = _rows_of
) -> Iterator[Document | SkippedRow]:
    """Yield the documents of shards, and in their places the rows that are none."""
    for shard in shards:
        file = reading.source if shard.name == "0" else shard.name
        for row, fields in read_rows(shard, reading):
            document = _document(fields, shard, row, reading)
            if isinstance(document, BadRow):
                yield SkippedRow.of(file, shard.kind, row, document.reason)
            else:
                yield document


def _document(
    fields: dict[str, object] | BadRow, shard: Shard, row: int, reading: _Reading
) -> Document | BadRow:
    if isinstance(fields, BadRow):
        return fields
    present, text = readers.field_of(fields, reading.text_field)
    if not isinstance(text, str):
        kind = f"a {type(text).__name__} as" if present else "no"
        return BadRow(
            f"has {kind} field {reading.text_field!r}; its fields are "
            f"{readers.fields_shown(fields)}: choose one that holds text with --text-field"
        )
    title, url = (_string(fields.get(name)) for name in readers.OPTIONAL_FIELDS)
    try:
        size = len(text.encode())
        (title + url).encode()
    except UnicodeEncodeError as error:
        where = "" if error.object == text else " in its title or url"
        return BadRow(
            f"is not UTF-8: half a surrogate pair at letter {error.start}{where}", DamagedError
        )
    if size > reading.max_document_bytes:
        return BadRow(
            f"has {size / 2**20:.1f} MiB of text, more than "
            f"{reading.max_document_bytes / 2**20:g}; raise --max-document-mb or cut it"
        )
    id_ = reading.id(shard, row)
    return Document(id_, text, reading.source, shard.name, row, title, url)


def _field_mark(text_field: str) -> str:
    return "" if text_field == "text" else f"#{text_field}"


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
