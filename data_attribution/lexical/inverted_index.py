"""The inverted index behind BM25: the documents that hold each token, and how often they do.

    STORE/bm25/ documents.u16   for every token, the documents that hold it, ascending
                counts.u8       how often each of them does; 255: the count is in times.u32
                offsets.u32     one row per segment: where each token's documents begin
                places.u64      which entries have a count of 255 or more,
                times.u32       and their counts
                index.json      its store, its segments and the files' sha256; sealed

A *segment* is up to 65,536 consecutive documents, with as many tokens as memory allows. So a
document number takes two bytes, segments are written one after another in a single pass over the
tokens, and nothing has to be merged. No token is left out, however common: `frequency` says in how
many documents each occurs. Only the train region is counted. An entry takes 3 bytes; a token of
text makes 0.2 entries where documents are pages, and close to 1 where they are sentences.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, Integer, UInt, UInt8, UInt16, UInt32

from data_attribution.errors import AttributionError, IndexMismatch, IndexMissing
from train import storage
from train.data import TokenStore
from train.errors import DamagedError
from train.progress import Progress
from train.short_repr import short_repr


__all__ = [
    "Held",
    "InvertedIndex",
    "build_inverted_index",
    "find_inverted_index",
    "open_inverted_index",
    "verify_inverted_index",
]

SCHEMA = 1
INVERTED_FOLDER = "bm25"
DOCUMENTS, COUNTS, OFFSETS = "documents.u16", "counts.u8", "offsets.u32"
PLACES, TIMES = "places.u64", "times.u32"
FILES = {DOCUMENTS: "<u2", COUNTS: "u1", OFFSETS: "<u4", PLACES: "<u8", TIMES: "<u4"}

MOST_DOCUMENTS, FREQUENT = 1 << 16, 255
# Memory of a build in bytes, and how many of them one token of a segment takes if no two are equal.
MEMORY, BYTES_A_TOKEN = 1 << 29, 32
PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Held:
    """The documents among [first, stop) that hold some tokens.

    The documents that hold token k are `documents[edges[k] : edges[k + 1]]`, counted from `first`.
    """

    first: int
    stop: int
    edges: Int64[np.ndarray, " edge"]
    documents: Integer[np.ndarray, " entry"]
    counts: Int64[np.ndarray, " entry"]

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Segment:
    """Entries of the documents [first, stop).

    `start` is the index of the first entry in the files.
    """

    first: int
    stop: int
    start: int
    offsets: UInt32[np.ndarray, " edge"]
    documents: UInt16[np.ndarray, " entry"]
    counts: UInt8[np.ndarray, " entry"]

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class InvertedIndex:
    """The inverted index of a token store. Open one with `open_inverted_index(store)`.

    Examples:
        >>> inverted = lexical.build_inverted_index(store)
        >>> (token,) = store.tokenizer.encode("runethi").tolist()
        >>> inverted.frequency([token]).tolist()
        [46]
    """

    store: TokenStore
    segments: tuple[Segment, ...]
    places: UInt[np.ndarray, " frequent"]
    times: UInt[np.ndarray, " frequent"]

    __repr__ = short_repr

    @property
    def n_entries(self) -> int:
        """Return the number of pairs of a token and a document that holds it."""
        return sum(len(one.documents) for one in self.segments)

    def frequency(self, tokens: Sequence[int]) -> Int64[np.ndarray, " token"]:
        """Return in how many documents of the train region each token occurs."""
        rows = np.asarray(tokens, np.int64)
        found = np.zeros(len(rows), np.int64)
        for one in self.segments:
            found += one.offsets[rows + 1].astype(np.int64) - one.offsets[rows]
        return found

    def held(self, tokens: Sequence[int]) -> Iterator[Held]:
        """Yield the documents that hold some tokens, one segment at a time."""
        for one in self.segments:
            places = [slice(int(one.offsets[k]), int(one.offsets[k + 1])) for k in tokens]
            edges = np.cumsum([0, *(place.stop - place.start for place in places)])
            documents = np.concatenate([one.documents[:0], *(one.documents[k] for k in places)])
            counts = np.concatenate([one.counts[:0], *(one.counts[k] for k in places)])
            counts, frequent = counts.astype(np.int64), np.flatnonzero(counts == FREQUENT)
            if len(frequent):
                # Counts of 255 and more are stored apart, by the entry's index in the files.
                token = np.searchsorted(edges, frequent, side="right") - 1
                begins = np.array([place.start for place in places])
                entries = frequent - edges[token] + begins[token] + one.start
                counts[frequent] = self.times[np.searchsorted(self.places, entries)]
            yield Held(one.first, one.stop, edges, documents, counts)


def build_inverted_index(
    store: TokenStore, *, memory: int = MEMORY, progress: Progress | None = None
) -> InvertedIndex:
    """Count every document's tokens and keep the result in the store; an older index is replaced.

    One pass over the tokens. The result is whole or absent: an interrupted build starts over.

    Args:
        memory: Approximate number of bytes that may be used; a single document is never cut.

    Raises:
        DamagedError: tokens.bin or documents.parquet does not match the store's manifest.
        DiskError: The disk is full.
        AttributionError: Another process is building it.

    Examples:
        >>> inverted = lexical.build_inverted_index(store)
        >>> inverted.n_entries
        378906
    """
    artifact = artifact_of(store)
    with storage.lock_artifact(artifact):
        store.check_files(anew=True)
        with storage.new_folder(artifact.path, replace=True, locked=True) as folder:
            segments = _write(store, folder, max(memory // BYTES_A_TOKEN, 1), progress)
            files = {name: storage.file_entry(folder / name) for name in FILES}
            manifest = {"schema": SCHEMA, **artifact.source, "segments": segments, "files": files}
            storage.write_json(folder / storage.ARTIFACT_MANIFEST, storage.seal(manifest))
    return open_inverted_index(store)


def find_inverted_index(store: TokenStore) -> InvertedIndex | None:
    """Return the inverted index of a store, or None if it has not been built.

    Examples:
        >>> inverted = lexical.build_inverted_index(store)
        >>> lexical.find_inverted_index(store).n_entries == inverted.n_entries
        True
    """
    return open_inverted_index(store) if (store.path / INVERTED_FOLDER).is_dir() else None


def open_inverted_index(store: TokenStore) -> InvertedIndex:
    """Open the inverted index of a store; the arrays stay on disk until they are read.

    Raises:
        IndexMissing: It has not been built yet.
        IndexMismatch: It belongs to another store, to an earlier store at this path, or has another
            version.
        DamagedError: A file is truncated or changed, or the manifest does not match its seal, or is
            not that of a BM25 index (`storage.artifact_manifest`).

    Examples:
        >>> _ = lexical.build_inverted_index(store)
        >>> lexical.open_inverted_index(store).n_entries
        378906
    """
    artifact = artifact_of(store)
    manifest, path = storage.artifact_manifest(artifact), artifact.path
    with storage.reading(path):
        return _opened(store, path, manifest["segments"])


def _opened(store: TokenStore, path: Path, bounds: list[list[int]]) -> InvertedIndex:
    arrays = {name: _mapped(path / name, dtype) for name, dtype in FILES.items()}
    rows = arrays[OFFSETS].reshape(-1, store.vocab_size + 1)
    n, ends = len(arrays[DOCUMENTS]), [0]
    for (_, _, start), row in zip(bounds, rows, strict=True):
        if start != ends[-1] or row[0] != 0 or (np.diff(row.astype(np.int64)) < 0).any():
            raise DamagedError(f"{path / OFFSETS}: the entries of a token begin before the last")
        ends.append(start + int(row[-1]))
    if ends[-1] != n or n != len(arrays[COUNTS]):
        raise DamagedError(f"{path / OFFSETS}: {ends[-1]} entries, and {n} are there")
    segments = tuple(
        Segment(
            first,
            stop,
            start,
            row,
            arrays[DOCUMENTS][start : start + int(row[-1])],
            arrays[COUNTS][start : start + int(row[-1])],
        )
        for (first, stop, start), row in zip(bounds, rows, strict=True)
    )
    return InvertedIndex(store, segments, arrays[PLACES], arrays[TIMES])


def verify_inverted_index(store: TokenStore, progress: Progress | None = None) -> None:
    """Check every byte of a store's inverted index against its manifest.

    Raises:
        DamagedError: A file was changed; the message names it.

    Examples:
        >>> _ = lexical.build_inverted_index(store)
        >>> lexical.verify_inverted_index(store)
    """
    storage.verify_artifact(artifact_of(store), progress)


def artifact_of(store: TokenStore) -> storage.Artifact:
    """Return the description of the folder of a store's inverted index."""
    return storage.Artifact(
        path=store.path / INVERTED_FOLDER,
        schema=SCHEMA,
        source=store.identity,
        name="BM25 index",
        command=f"openbook index bm25 {store.path}",
        missing=IndexMissing,
        mismatch=IndexMismatch,
        busy=AttributionError,
        entries=("segments",),
    )


def _mapped(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r").view(np.ndarray)


def segment_bounds(
    lengths: Int64[np.ndarray, " document"], most_tokens: int
) -> list[tuple[int, int]]:
    """Return the bounds of segments, in documents; each has at least one document."""
    ends, bounds, first = np.cumsum(lengths), [], 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, before + most_tokens, side="right"))
        stop = min(max(stop, first + 1), first + MOST_DOCUMENTS)
        bounds.append((first, stop))
        first = stop
    return bounds


def _write(
    store: TokenStore, folder: Path, most_tokens: int, progress: Progress | None
) -> list[list[int]]:
    """Write the files one segment at a time; return each segment's bounds and first entry."""
    n = int(np.searchsorted(store.starts, store.train_tokens))
    segments, start = [], 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in FILES}
        for first, stop in segment_bounds(store.lengths[:n], most_tokens):
            if progress:
                progress("counting tokens of documents", first, n)
            segments.append([first, stop, start])
            start += _append(files, start, *_inverted(store, first, stop))
    if progress:
        progress("counting tokens of documents", n, n)
    return segments


def _append(
    files: Mapping[str, BinaryIO],
    start: int,
    offsets: np.ndarray,
    documents: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Write one segment and return its number of entries."""
    frequent = np.flatnonzero(counts >= FREQUENT)
    arrays = {
        DOCUMENTS: documents,
        COUNTS: np.minimum(counts, FREQUENT),
        OFFSETS: offsets,
        PLACES: frequent + start,
        TIMES: counts[frequent],
    }
    for name, array in arrays.items():
        # Not `tofile`: the error it raises on a full disk does not say so.
        files[name].write(array.astype(FILES[name], copy=False).data)
    return len(documents)


def _inverted(store: TokenStore, first: int, stop: int) -> tuple[np.ndarray, ...]:
    """Return offsets by token, documents and counts of the documents [first, stop).

    Documents are counted from `first`. Token and document are packed into one number, and the
    numbers are sorted: equal numbers are the occurrences of one token in one document (numpy sorts
    10^8 32-bit numbers per second).
    """
    vocab, width = store.vocab_size, stop - first
    keys = _keys(store, first, stop)
    keys.sort()
    new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    heads = np.flatnonzero(new)
    counts = np.diff(heads, append=len(keys))
    keys = keys[heads]
    edges = (np.arange(vocab, dtype=np.uint64) * np.uint64(width)).astype(keys.dtype)
    offsets = np.append(np.searchsorted(keys, edges), len(keys))
    documents = keys - np.repeat(edges, np.diff(offsets))
    return offsets, documents, counts


def _keys(store: TokenStore, first: int, stop: int) -> np.ndarray:
    """Return token * (stop - first) + document for every token of the documents [first, stop)."""
    starts, lengths = store.starts[first:stop], store.lengths[first:stop]
    width, ends = stop - first, np.cumsum(lengths)
    kind = np.uint32 if store.vocab_size * width <= 1 << 32 else np.uint64
    keys = np.empty(int(ends[-1]), kind)
    for one, other in segment_bounds(lengths, PIECE):
        begin = int(ends[one] - lengths[one])
        end = int(ends[other - 1])
        # From the index among the documents' own tokens to the index in tokens.bin, which also
        # holds end-of-text tokens between documents.
        moved = np.repeat(
            starts[one:other] - (ends[one:other] - lengths[one:other]), lengths[one:other]
        )
        tokens = store.tokens[moved + np.arange(begin, end)].astype(kind)
        owners = np.repeat(np.arange(one, other, dtype=kind), lengths[one:other])
        keys[begin:end] = tokens * kind(width) + owners
    return keys
