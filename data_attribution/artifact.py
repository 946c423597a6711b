"""Folders that were computed from a token store and are kept in it: the index, the inverted file.

Each holds a sealed index.json: which store it is of, and the bytes and sha256 of every other file.
One process builds a folder at a time. It is built beside the place where it belongs and takes that
place whole; killed at any moment, the older one is there, or is put back by the next build.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
# Files up to this size are hashed whenever a folder is opened, at about a GB a second.
HASHED = 1 << 23

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class Artifact:
    """A kind of folder: its place in a store, its version, and how people call and build it."""

    folder: str
    schema: int
    name: str
    command: str

    def path(self, store: TokenStore) -> Path:
        """Where it is in a store."""
        return store.path / self.folder

    def again(self, store: TokenStore) -> str:
        """What builds it."""
        return f"`openbook {self.command} {store.path}`"


def artifact_of(store: TokenStore) -> dict[str, str]:
    """What a manifest says of the store it was made of."""
    return {"store": store.fingerprint, "tokens": store.manifest["files"][TOKENS]}


def check_tokens(store: TokenStore) -> None:
    """Read tokens.bin before something is computed from it.

    Raises:
        DamagedError: It is not what the store's manifest says.
    """
    path = store.path / TOKENS
    if storage.sha256_file(path) != store.manifest["files"][TOKENS]:
        raise DamagedError(f"{path}: its sha256 is not the one in store.json; it was changed")


def artifact_listing(annex: Artifact, store: TokenStore) -> dict[str, Any]:
    """The manifest of a folder that fits the store.

    All its files have their sizes, and those of up to 8 MiB their sha256 too. Larger ones are read
    by `verify` only.

    Raises:
        IndexMissing: None was built yet.
        IndexMismatch: It is of another store, of an earlier one at this place, or of another
            version.
        DamagedError: A file is truncated or changed, or the manifest is not what its seal says.
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
        DamagedError: Names the file that was changed; the others as `listing`.
    """
    files = artifact_listing(annex, store)["files"]
    for done, (name, file) in enumerate(files.items()):
        if progress:
            progress(f"verifying the {annex.name}", done, len(files))
        if file["bytes"] > HASHED:
            _check_digest(annex, store, name, file)


@contextmanager
def locked_artifact(annex: Artifact, store: TokenStore) -> Iterator[None]:
    """Be the only process that builds this folder; the lock dies with its process.

    An older folder that a killed build had moved aside is put back first.

    Raises:
        AttributionError: Another process builds it.
    """
    path = store.path / f".{annex.folder}.lock"
    file = _locked(path)
    while file is not None and not os.fstat(file.fileno()).st_nlink:
        # Its last owner removed it after we had opened it: whoever comes next makes another.
        file.close()
        file = _locked(path)
    if file is None:
        raise AttributionError(
            f"the {annex.name} of {store.path} is being built by another process; wait for it"
        )
    with file:
        try:
            if not annex.path(store).exists():
                with suppress(FileNotFoundError):
                    os.replace(_aside(annex.path(store)), annex.path(store))
            yield
        finally:
            path.unlink(missing_ok=True)


def install_artifact(ready: Path, path: Path) -> None:
    """Let a finished folder take the place of an older one, which goes when it has."""
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


def _locked(path: Path) -> IO[str] | None:
    """The file at `path`, locked; None when another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return None
    return file


def _check_digest(annex: Artifact, store: TokenStore, name: str, file: dict[str, Any]) -> None:
    path = annex.path(store) / name
    if storage.sha256_file(path) != file["sha256"]:
        raise DamagedError(
            f"{path}: its sha256 is not the one in {ARTIFACT_MANIFEST}; rebuild it "
            f"with {annex.again(store)}"
        )
