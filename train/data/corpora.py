"""Corpora: documents with stable ids, read from files, from the hub, or generated.

`open_corpus` takes a name or a path and returns a corpus that can be read any number of times: the
generated `planted` corpus, `stdlib` (the sources of Python's standard library), `openwebtext`, or
files on disk: `.jsonl[.gz|.zst|.xz]`, `.parquet`, text, a folder of these, or a folder saved by
`datasets`.

OpenWebText's parquet files hold neither name nor address of a page, and its shuffled token files
lose the row numbers. A document's id is therefore made of source, revision of the content, shard
and row. The revision of local files is the sha256 of their bytes, followed by the name of the text
field if that is not `text` (`sha#body`). The same id thus means the same text on every machine.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from train import storage
from train.data import readers
from train.data.documents import Corpus, Document
from train.data.stdlib import stdlib_corpus
from train.errors import CorpusError, DamagedError, nearest


__all__ = ["MAX_DOCUMENT_BYTES", "open_corpus"]

MAX_DOCUMENT_BYTES = 64 << 20
NAMES = ("openwebtext", "planted", "stdlib")
# The dataset on the hub. Its loading script no longer runs (nanoGPT#633), so the parquet files on
# its main branch are named one by one.
OPENWEBTEXT = "Skylion007/openwebtext"


@dataclass(frozen=True)
class _Shard:
    name: str
    path: Path
    kind: str


def open_corpus(
    source: str | Path,
    *,
    data_files: str | Path | Sequence[str | Path] | None = None,
    limit: int | None = None,
    revision: str | None = None,
    text_field: str = "text",
    seed: int = 0,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Corpus:
    """Open a corpus by name or path.

    Args:
        source: `planted`, `stdlib`, `openwebtext`, or a path.
        data_files: For `openwebtext` only: local parquet files of its layout, or a pattern such as
            `owt/train-*.parquet`, to read instead of the hub.
        limit: Number of documents to read from the beginning; None reads all.
        revision: Version of the content, for document ids; for the hub, the commit to read; for
            `stdlib`, the revision or version of Python that is needed. Without it local files are
            hashed once.
        text_field: Field that holds the text of a document.
        seed: Content seed of the planted corpus; other corpora ignore it.
        max_document_bytes: Largest accepted document, in bytes of UTF-8.

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
    if str(source) == "planted":
        corpus = _planted(seed, limit)
    elif str(source) == "stdlib":
        corpus = stdlib_corpus(revision)
    elif str(source) == "openwebtext":
        corpus = _openwebtext(data_files, revision, text_field, max_document_bytes)
    else:
        corpus = _local(Path(source), revision, text_field, max_document_bytes)
    return corpus if limit is None else _first(corpus, limit)


def _first(corpus: Corpus, limit: int) -> Corpus:
    known = corpus.n_documents
    return replace(
        corpus,
        read=lambda: islice(corpus.read(), min(limit, sys.maxsize)),
        n_documents=None if known is None else min(limit, known),
        n_bytes=None,
    )


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
    shards = _shards(path)
    for shard in shards:
        if shard.kind == "text":  # before the whole file is hashed
            readers.refuse_large(shard.path, max_document_bytes)
    revision = revision or _revision(path, shards)
    counted = [_n_rows(shard) for shard in shards]
    files = [file for shard in shards for file in _files(shard)]

    def read() -> Iterator[Document]:
        for shard in shards:
            rows = readers.read(shard.path, shard.kind, text_field, max_document_bytes)
            yield from _documents(rows, shard, path.name, revision, text_field, max_document_bytes)

    return Corpus(
        name=path.name.split(".")[0] or path.name,
        source=path.name,
        revision=revision + _field_mark(text_field),
        read=read,
        n_documents=None if None in counted else sum(n for n in counted if n is not None),
        n_bytes=sum(file.stat().st_size for file in files),
    )


def _shards(path: Path) -> list[_Shard]:
    if path.is_file():
        return [_Shard("0", path, readers.kind_of(path))]
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        readers.open_dataset(path)
        return [_Shard("0", path, "saved")]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )
    if not found:
        raise CorpusError(f"the folder {path} holds no files, so there are no documents in it")
    return [_Shard(one.relative_to(path).as_posix(), one, readers.kind_of(one)) for one in found]


def _files(shard: _Shard) -> list[Path]:
    if shard.kind != "saved":
        return [shard.path]
    return sorted(file for file in shard.path.rglob("*") if file.is_file())


def _revision(path: Path, shards: Sequence[_Shard]) -> str:
    """Return the sha256 of a file, or of the names and sha256s of all files of a folder."""
    if path.is_file():
        return storage.sha256_file(path)
    return _digest(path, [file for shard in shards for file in _files(shard)])


def _digest(folder: Path, files: Iterable[Path]) -> str:
    lines = [f"{file.relative_to(folder).as_posix()} {storage.sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _n_rows(shard: _Shard) -> int | None:
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
    content = revision

    def read() -> Iterator[Document]:
        for address in addresses:
            shard = _Shard(address.rsplit("/", 1)[-1], Path(address), "parquet")
            rows = readers.stream_parquet(address, text_field)
            yield from _documents(
                rows, shard, "openwebtext", content, text_field, max_document_bytes
            )

    marked = revision + _field_mark(text_field)
    return Corpus("openwebtext", "openwebtext", marked, read, n_documents)


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


def _documents(
    rows: Iterable[readers.Row],
    shard: _Shard,
    source: str,
    revision: str,
    text_field: str,
    max_document_bytes: int,
) -> Iterator[Document]:
    prefix = f"{source}@{revision[:12]}{_field_mark(text_field)}/{shard.name}/"
    for row, fields in rows:
        text = _text(fields, shard, row, text_field, max_document_bytes)
        title, url = (_string(fields.get(name)) for name in readers.OPTIONAL_FIELDS)
        yield Document(f"{prefix}{row}", text, source, shard.name, row, title, url)


def _field_mark(text_field: str) -> str:
    return "" if text_field == "text" else f"#{text_field}"


def _text(
    fields: dict[str, object], shard: _Shard, row: int, text_field: str, max_document_bytes: int
) -> str:
    text = fields.get(text_field)
    if not isinstance(text, str):
        where = readers.place(shard.path, shard.kind, row)
        found = ", ".join(sorted(fields)) or "none"
        kind = "no" if text_field not in fields else f"a {type(text).__name__} as"
        raise CorpusError(
            f"{where} has {kind} field {text_field!r}; its fields are {found}: choose one that "
            "holds text with --text-field"
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        where = readers.place(shard.path, shard.kind, row)
        raise DamagedError(
            f"{where} is not UTF-8: half a surrogate pair at letter {error.start}"
        ) from None
    if size > max_document_bytes:
        raise CorpusError(
            f"{readers.place(shard.path, shard.kind, row)}: the document has {size / 2**20:.1f} "
            f"MiB, more than {max_document_bytes / 2**20:g}; raise --max-document-mb or cut it"
        )
    return text


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
