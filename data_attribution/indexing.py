"""Build, open and check the token index of a store.

    STORE/index/ suffixes.u32   positions in tokens.bin, sorted by the suffix that starts there
                 buckets.i64    where each first token's suffixes begin; also the unigram counts
                 index.json     which store it is of, its parts and the files' sha256, sealed

The index is over the very file the trainer reads; there is no second copy of the text. What can be
asked of it is in `token_index`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_attribution import sorting
from data_attribution.errors import IndexMismatch, IndexMissing
from data_attribution.token_index import Part, TokenIndex
from train import durable
from train.errors import DamagedError
from train.token_store import TokenStore


__all__ = ["build", "open", "verify"]

SCHEMA = 1
TOKENS = "tokens.bin"
FOLDER, MANIFEST, SUFFIXES, BUCKETS = "index", "index.json", "suffixes.u32", "buckets.i64"

Progress = Callable[[str, int, int | None], None] | None


def build(store: TokenStore, *, progress: Progress = None) -> TokenIndex:
    """Sort the store's text and keep the result beside it; an older index is replaced.

    Takes about 20 bytes of memory a token, and 4 of disk.

    Raises:
        DamagedError: tokens.bin is not what the store's manifest says.
    """
    sha256 = store.manifest["files"][TOKENS]
    if durable.sha256_file(store.path / TOKENS) != sha256:
        raise DamagedError(
            f"{store.path / TOKENS}: its sha256 is not the one in store.json; it was changed"
        )
    path, bounds = store.path / FOLDER, _bounds(store)
    with durable.folder(path) as folder:
        with (folder / SUFFIXES).open("wb") as suffixes, (folder / BUCKETS).open("wb") as buckets:
            for start, stop in bounds:
                _report(progress, start, store)
                tokens = store.tokens[start:stop]
                sorting.build(tokens).astype("<u4", copy=False).tofile(suffixes)
                sorting.buckets(tokens, store.vocab_size).astype("<i8").tofile(buckets)
        _report(progress, store.n_tokens, store)
        durable.write_json(folder / MANIFEST, durable.seal(_manifest(store, folder, sha256)))
        shutil.rmtree(path, ignore_errors=True)
    return open(store)


def open(store: TokenStore) -> TokenIndex:
    """Open the index of a store; the arrays stay on disk until they are read.

    Raises:
        IndexMissing: None was built yet.
        IndexMismatch: It is the index of another store, or of an earlier one at this place.
        DamagedError: A file is truncated or the manifest is not what its seal says.
    """
    path, again = store.path / FOLDER, f"`openbook index build {store.path}`"
    if not path.is_dir():
        raise IndexMissing(f"the store {store.path} has no index yet; build it with {again}")
    manifest = durable.read_sealed(path / MANIFEST)
    found = store.fingerprint, store.manifest["files"][TOKENS]
    if (manifest["store"], manifest["tokens"]) != found:
        raise IndexMismatch(
            f"the index {path} is of token store {manifest['store'][:12]}..., the store is "
            f"{store.fingerprint[:12]}...; rebuild it with {again}"
        )
    for name, file in manifest["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else 0
        if size != file["bytes"]:
            raise DamagedError(
                f"{path / name}: {size:,} bytes where {file['bytes']:,} were written; "
                f"rebuild it with {again}"
            )
    suffixes = np.memmap(path / SUFFIXES, "<u4", "r").view(np.ndarray)
    buckets = np.fromfile(path / BUCKETS, "<i8").reshape(-1, store.vocab_size + 1)
    tokens = store.tokens.view(np.ndarray)
    parts = (
        Part(start, start >= store.train_tokens, tokens[start:stop], suffixes[start:stop], table)
        for (start, stop), table in zip(_bounds(store), buckets, strict=True)
    )
    return TokenIndex(store, manifest["backend"], tuple(parts))


def verify(store: TokenStore) -> None:
    """Check every byte of a store's index against its manifest.

    Raises:
        DamagedError: Names the file that was changed.
    """
    open(store)
    path = store.path / FOLDER
    for name, file in durable.read_sealed(path / MANIFEST)["files"].items():
        if durable.sha256_file(path / name) != file["sha256"]:
            raise DamagedError(
                f"{path / name}: its sha256 is not the one in {MANIFEST}; "
                f"rebuild it with `openbook index build {store.path}`"
            )


def _bounds(store: TokenStore) -> list[tuple[int, int]]:
    """Where the parts begin and end: the train region, then the held-out one when there is one."""
    bounds = [(0, store.train_tokens), (store.train_tokens, store.n_tokens)]
    return [(start, stop) for start, stop in bounds if stop > start]


def _manifest(store: TokenStore, folder: Path, sha256: str) -> dict[str, Any]:
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": durable.sha256_file(folder / name),
        }
        for name in (SUFFIXES, BUCKETS)
    }
    return {
        "schema": SCHEMA,
        "store": store.fingerprint,
        "tokens": sha256,
        "backend": sorting.backend(),
        "counts": {"tokens": store.n_tokens, "train_tokens": store.train_tokens},
        "parts": [list(one) for one in _bounds(store)],
        "files": files,
    }


def _report(progress: Progress, done: int, store: TokenStore) -> None:
    if progress:
        progress("sorting suffixes", done, store.n_tokens)
