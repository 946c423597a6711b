"""Folders that are computed from a token store and kept inside it: the index, the inverted index.

Each folder holds a sealed index.json that records its token store and the size and sha256 of every
other file. One process builds a folder at a time. The folder is built under a temporary name and
renamed into place when complete. If the process dies, the previous version is still there, or the
next build restores it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_attribution.errors import AttributionError, IndexMismatch, IndexMissing
from train import storage
from train.data import TokenStore
from train.errors import DamagedError


__all__ = [
    "ARTIFACT_MANIFEST",
    "Artifact",
    "artifact_listing",
    "artifact_of",
    "check_tokens",
    "install_artifact",
    "locked_artifact",
    "verify_artifact",
]

ARTIFACT_MANIFEST, TOKENS = "index.json", "tokens.bin"
# Files up to this size are hashed whenever a folder is opened, at about 1 GB per second.
HASHED = 1 << 23

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class Artifact:
    """A kind of folder: its path in a store, its schema version, its name and its build command."""

    folder: str
    schema: int
    name: str
    command: str

    def path(self, store: TokenStore) -> Path:
        """Return the folder's path in a store."""
        return store.path / self.folder

    def again(self, store: TokenStore) -> str:
        """Return the command that builds it."""
        return f"`openbook {self.command} {store.path}`"


def artifact_of(store: TokenStore) -> dict[str, str]:
    """Return the manifest entries that identify a store: fingerprint and digest of tokens.bin."""
    return {"store": store.fingerprint, "tokens": store.manifest["files"][TOKENS]}


def check_tokens(store: TokenStore) -> None:
    """Check the digest of tokens.bin before something is computed from it.

    Raises:
        DamagedError: The digest differs from the store's manifest.
    """
    path = store.path / TOKENS
    if storage.sha256_file(path) != store.manifest["files"][TOKENS]:
        raise DamagedError(f"{path}: its sha256 is not the one in store.json; it was changed")


def artifact_listing(annex: Artifact, store: TokenStore) -> dict[str, Any]:
    """Return the manifest of a folder after checking that it fits the store.

    Sizes are checked for all files, and the sha256 for files of up to 8 MiB. `verify_artifact` also
    hashes the larger ones.

    Raises:
        IndexMissing: The folder has not been built yet.
        IndexMismatch: It belongs to another store, to an earlier store at this path, or has another
            version.
        DamagedError: A file is truncated or changed, or the manifest does not match its seal.
    """
    path, again = annex.path(store), annex.again(store)
    if not path.is_dir():
        raise IndexMissing(f"the store {store.path} has no {annex.name} yet; build it with {again}")
    manifest = storage.read_sealed(path / ARTIFACT_MANIFEST)
    if manifest.get("schema") != annex.schema:
        raise IndexMismatch(
            f"the {annex.name} {path} is of version {manifest.get('schema')}, this reads "
            f"{annex.schema}; build it again with {again}"
        )
    if {name: manifest[name] for name in artifact_of(store)} != artifact_of(store):
        raise IndexMismatch(
            f"the {annex.name} {path} is of token store {manifest['store'][:12]}..., the store is "
            f"{store.fingerprint[:12]}...; rebuild it with {again}"
        )
    for name, file in manifest["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else 0
        if size != file["bytes"]:
            raise DamagedError(
                f"{path / name}: {size:,} bytes where {file['bytes']:,} were written; "
                f"rebuild it with {again}"
            )
        if size <= HASHED:
            _check_digest(annex, store, name, file)
    return manifest


def verify_artifact(annex: Artifact, store: TokenStore, progress: Progress = None) -> None:
    """Check every byte of a folder against its manifest.

    Raises:
        DamagedError: A file was changed; the message names it. Other errors as in
            `artifact_listing`.
    """
    files = artifact_listing(annex, store)["files"]
    for done, (name, file) in enumerate(files.items()):
        if progress:
            progress(f"verifying the {annex.name}", done, len(files))
        if file["bytes"] > HASHED:
            _check_digest(annex, store, name, file)


@contextmanager
def locked_artifact(annex: Artifact, store: TokenStore) -> Iterator[None]:
    """Hold the lock for building this folder; the lock ends with its process.

    If a killed build had moved an older folder aside, that folder is restored first.

    Raises:
        AttributionError: Another process is building it.
    """
    path = annex.path(store)
    refusal = AttributionError(
        f"the {annex.name} of {store.path} is being built by another process; wait for it"
    )
    with storage.hold_build_lock(path, refusal):
        if not path.exists():
            with suppress(FileNotFoundError):
                os.replace(_aside(path), path)
        yield


def install_artifact(ready: Path, path: Path) -> None:
    """Rename a finished folder into place, and delete the older one afterwards."""
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)
    storage.sync_folder(ready)
    with suppress(FileNotFoundError):
        os.replace(path, aside)
    os.replace(ready, path)
    storage.sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _check_digest(annex: Artifact, store: TokenStore, name: str, file: dict[str, Any]) -> None:
    path = annex.path(store) / name
    if storage.sha256_file(path) != file["sha256"]:
        raise DamagedError(
            f"{path}: its sha256 is not the one in {ARTIFACT_MANIFEST}; rebuild it "
            f"with {annex.again(store)}"
        )
