"""Artifacts: folders that are computed from a token store and kept inside it, such as an index.

Each folder holds a sealed index.json that records its token store and the size and sha256 of every
other file. One process builds a folder at a time. The folder is built under a temporary name and
renamed into place when complete. If the process dies, the previous version is still there, or the
next build restores it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from train.errors import DamagedError
from train.progress import Progress
from train.short_repr import short_repr
from train.storage import atomic, lock
from train.storage.digest_memory import check_digest, check_once
from train.storage.shapes import check_shape


__all__ = [
    "ARTIFACT_MANIFEST",
    "ARTIFACT_PLAN",
    "Artifact",
    "FileEntry",
    "artifact_manifest",
    "check_size",
    "file_entry",
    "listed_file",
    "lock_artifact",
    "verify_artifact",
]

ARTIFACT_MANIFEST = "index.json"
ARTIFACT_PLAN = "plan.json"  # how a folder is being built; it may outlive a killed build
SHAPE = {"store": str, "files": {str: {"bytes": int, "sha256": str}}}


class FileEntry(TypedDict):
    """Entry of a file in a manifest.

    Attributes:
        bytes: Size of the file.
        sha256: Digest of its content.
        block_bytes: Size of the blocks of `xxh3`, which only files that are read in parts have.
        xxh3: Digests of the blocks, 16 hex digits each (`train.storage.block_digests`).
    """

    bytes: int
    sha256: str
    block_bytes: NotRequired[int]
    xxh3: NotRequired[str]


@dataclass(frozen=True)
class Artifact:
    """A folder that is computed from a token store, and the words and errors of its messages.

    Attributes:
        path: The folder; it lies in the folder of the store.
        schema: Version of its files.
        source: Entries of its manifest that identify the store; `store` is the fingerprint.
        name: Name in messages, such as "BM25 index".
        command: Command that builds it.
        missing: Error if it has not been built.
        mismatch: Error if it belongs to another store or has another version.
        busy: Error if another process is building it.
        entries: Names of further entries that its manifest must have.
    """

    path: Path
    schema: int
    source: Mapping[str, str]
    name: str
    command: str
    missing: type[Exception]
    mismatch: type[Exception]
    busy: type[Exception]
    entries: tuple[str, ...] = ()

    __repr__ = short_repr


def artifact_manifest(artifact: Artifact) -> atomic.JsonObject:
    """Return the manifest of a folder after checking that it fits the store, and every file.

    Files above 8 MiB are hashed once and the result is remembered (`train.storage.digest_memory`);
    `verify_artifact` hashes every byte anew.

    Raises:
        artifact.missing: The folder has not been built yet.
        artifact.mismatch: It belongs to another store, to an earlier store at this path, or has
            another version.
        DamagedError: A file is truncated or changed, or the manifest does not match its seal, or is
            that of something else.
    """
    manifest = _fitting_manifest(artifact)
    for name, entry in manifest["files"].items():
        check_once(artifact.path / name, entry["sha256"], ARTIFACT_MANIFEST, _remedy(artifact))
    return manifest


def verify_artifact(artifact: Artifact, progress: Progress | None = None) -> None:
    """Check every byte of a folder against its manifest.

    Raises:
        DamagedError: A file was changed; the message names it. Other errors as in
            `artifact_manifest`.
    """
    files = _fitting_manifest(artifact)["files"]
    for done, (name, entry) in enumerate(files.items()):
        if progress:
            progress(f"verifying the {artifact.name}", done, len(files))
        check_digest(artifact.path / name, entry["sha256"], ARTIFACT_MANIFEST, _remedy(artifact))


def _fitting_manifest(artifact: Artifact) -> atomic.JsonObject:
    """Return the manifest of a folder after checking the store, the version and all sizes."""
    path, again = artifact.path, f"`{artifact.command}`"
    if not path.is_dir():
        raise artifact.missing(
            f"the store {path.parent} has no {artifact.name} yet; build it with {again}"
        )
    manifest = atomic.read_sealed(path / ARTIFACT_MANIFEST)
    if manifest.get("schema") != artifact.schema:
        raise artifact.mismatch(
            f"the {artifact.name} {path} is of version {manifest.get('schema')!r:.40}, this reads "
            f"{artifact.schema}; build it again with {again}"
        )
    entries = dict.fromkeys((*artifact.source, *artifact.entries), object)
    check_shape(manifest, {**entries, **SHAPE}, path / ARTIFACT_MANIFEST, _remedy(artifact))
    if {key: manifest[key] for key in artifact.source} != artifact.source:
        raise artifact.mismatch(
            f"the {artifact.name} {path} is of token store {manifest['store'][:12]}..., the store "
            f"is {artifact.source['store'][:12]}...; {_remedy(artifact)}"
        )
    for name, entry in manifest["files"].items():
        check_size(listed_file(path / ARTIFACT_MANIFEST, name), entry["bytes"], _remedy(artifact))
    return manifest


def _remedy(artifact: Artifact) -> str:
    return f"rebuild it with `{artifact.command}`"


@contextmanager
def lock_artifact(artifact: Artifact) -> Iterator[None]:
    """Hold the lock for building a folder; the lock ends with its process.

    If a killed build had moved an older folder aside, that folder is restored first.

    Raises:
        artifact.busy: Another process is building it.
    """
    refusal = artifact.busy(
        f"the {artifact.name} of {artifact.path.parent} is being built by another process; "
        "wait for it"
    )
    with lock.hold_build_lock(artifact.path, refusal):
        atomic.restore_folder(artifact.path)
        yield


def file_entry(path: Path) -> FileEntry:
    """Return the entry of a file in a manifest: its size in bytes and its sha256.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> storage.file_entry(folder / "a.txt")["bytes"]
        3
    """
    return {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)}


def listed_file(listing: Path, name: str) -> Path:
    """Return the path of a file that a listing names, which lies beside the listing.

    Raises:
        DamagedError: The name leads to another folder.

    Examples:
        >>> storage.listed_file(folder / "index.json", "a.bin").name
        'a.bin'
    """
    if not name or Path(name).name != name:
        raise DamagedError(f"{listing}: names {name!r}, which is no file of its folder")
    return listing.with_name(name)


def check_size(path: Path, size: int, remedy: str) -> None:
    """Raise a DamagedError if a file is missing or has another size in bytes than was recorded.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> storage.check_size(folder / "a.txt", 3, remedy="write it again")
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DamagedError(f"{path}: the file {state}, {size} bytes were written; {remedy}")
