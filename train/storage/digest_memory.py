"""Digests of files: taken whenever a small file is opened, and once for a large one.

A file of up to 8 MiB is hashed on every check. The sha256 of a larger one is taken once and then
remembered in the user's cache folder (`cache_folder()/checked`, one file of some 300 bytes), so
that a store of 18 GB costs ten seconds on a machine once and not at every command. What is
remembered holds while size, time of modification, time of change, inode and device of the file are
those of that moment, and only if the file had been left alone for two seconds before: a file system
may give a later change the same time. Nothing is written beside the file, whose folder may be
read-only.

This guards against damage and not against an attacker: who can write the user's cache can claim any
digest. A change that the file system does not know of (a bit that decays on the disk, a clock that
is set back) is not seen here either. The commands that verify hash every byte anew and believe
nothing that is remembered.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from train import progress
from train.errors import DamagedError, DiskError
from train.storage import atomic
from train.storage.user_cache import cache_folder


__all__ = ["HASHED", "check_digest", "check_once"]

# Files up to this size are hashed whenever they are opened, at more than 1 GB per second.
HASHED = 1 << 23
SETTLED_NS = 2_000_000_000
MEMORY = "checked"


def check_digest(path: Path, sha256: str, manifest: str, remedy: str) -> None:
    """Raise a DamagedError if a file is missing or has another sha256 than its manifest records.

    A bar is shown in a terminal if this takes more than a second.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> sha256 = storage.sha256_file(folder / "a.txt")
        >>> storage.check_digest(folder / "a.txt", sha256, "index.json", remedy="write it again")
    """
    if not path.is_file():
        raise DamagedError(f"{path}: the file is missing; {remedy}")
    if _sha256(path) != sha256:
        raise DamagedError(f"{path}: its sha256 is not the one in {manifest}; {remedy}")


def check_once(path: Path, sha256: str, manifest: str, remedy: str) -> None:
    """Check the digest of a file as `check_digest` does, but a large and unchanged file only once.

    Raises:
        DamagedError: The file is missing or has another sha256.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> sha256 = storage.sha256_file(folder / "a.txt")
        >>> storage.check_once(folder / "a.txt", sha256, "index.json", remedy="write it again")
    """
    state = _state(path) if path.is_file() else None
    if state is None or state["bytes"] <= HASHED:
        check_digest(path, sha256, manifest, remedy)
        return
    if _remembers(state, sha256):
        return
    hashed_at = time.time_ns()
    check_digest(path, sha256, manifest, remedy)
    if _state(path) == state:
        _remember({**state, "path": str(path), "sha256": sha256, "hashed_at_ns": hashed_at})


def _sha256(path: Path) -> str:
    if path.stat().st_size <= HASHED:
        return atomic.sha256_file(path)
    with progress.shown(f"checking {path.name}", None) as advance:
        return atomic.sha256_file(path, advance)


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _place(state: dict[str, int]) -> Path:
    return cache_folder() / MEMORY / f"{state['device']:x}-{state['inode']:x}.json"


def _remembers(state: dict[str, int], sha256: str) -> bool:
    """Return whether this user took this digest of the file as it is now."""
    try:
        place = _place(state)
        if place.stat().st_uid != os.getuid():
            return False
        held = json.loads(place.read_bytes())
        settled = max(held["mtime_ns"], held["ctime_ns"]) < held["hashed_at_ns"] - SETTLED_NS
        return settled and held["sha256"] == sha256 and state.items() <= held.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _remember(entry: dict[str, object]) -> None:
    # What cannot be remembered is hashed again next time.
    with suppress(OSError, DiskError):
        place = _place({name: int(str(entry[name])) for name in ("device", "inode")})
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(place, entry)
