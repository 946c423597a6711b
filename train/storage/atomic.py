"""Atomic writes of files and folders, and sealed JSON files.

They are written under a temporary name in the same folder, synced, and renamed into place: a
process killed at any moment leaves the old file or the new one, never a partial one. A *sealed*
JSON file contains the sha256 of its own canonical text without the seal, so that reading it detects
a change of any bit, even in white space.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from train.errors import DamagedError, DiskError, TrainError
from train.progress import Progress, readable_size
from train.storage.foreign_files import parse_json, read_foreign_bytes
from train.storage.lock import hold_build_lock
from train.storage.regular_files import open_foreign, reading


__all__ = [
    "JsonObject",
    "canonical_json",
    "check_room",
    "disk_guard",
    "is_partial",
    "new_folder",
    "partial_path",
    "read_sealed",
    "replace_folder",
    "restore_folder",
    "seal",
    "sha256_file",
    "sync_folder",
    "writable",
    "write_bytes",
    "write_json",
    "write_text",
]

PARTIAL = ".partial"
PIECE = 1 << 24  # bytes of a file that are hashed at a time if progress is told
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
# A JSON object as it was read. The reader of each format knows the types of its values: they are
# those that were written, because a seal or a chain is checked.
JsonObject = dict[str, Any]


def writable(path: Path | None) -> Path | None:
    """Raise a TrainError, before anything is computed, if no file can be written at `path`.

    Examples:
        >>> storage.writable(folder / "a.json").name
        'a.json'
    """
    if path is None:
        return None
    if path.is_dir():
        raise TrainError(f"the result cannot be written to {path}: a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise TrainError(f"the result cannot be written to {path}: no folder {path.parent}")
    return path


def canonical_json(content: object) -> str:
    """Return the canonical JSON text of a value: sorted keys, indent 1, a newline at the end.

    Examples:
        >>> print(storage.canonical_json({"b": 1, "a": 2}), end="")
        {
         "a": 2,
         "b": 1
        }
    """
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def seal(content: Mapping[str, object]) -> JsonObject:
    """Return `content` with the key `digest`: the sha256 of its canonical text without that key.

    Examples:
        >>> sealed = storage.seal({"a": 1})
        >>> sorted(sealed), len(sealed["digest"])
        (['a', 'digest'], 64)
    """
    bare = {key: value for key, value in content.items() if key != "digest"}
    return {**bare, "digest": hashlib.sha256(canonical_json(bare).encode()).hexdigest()}


def read_sealed(path: Path) -> JsonObject:
    """Read a sealed JSON file.

    Raises:
        DamagedError: The file is missing, is not JSON, or differs from its seal.

    Examples:
        >>> storage.write_json(folder / "a.json", storage.seal({"a": 1}))
        >>> storage.read_sealed(folder / "a.json")["a"]
        1
    """
    try:
        text = read_foreign_bytes(path).decode("utf-8")  # a byte order mark is a change, too
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: not UTF-8 ({error.reason}); it was changed") from None
    content = parse_json(text, path)
    with reading(path):  # a value can be nested too deeply to be written again
        whole = isinstance(content, dict) and canonical_json(seal(content)) == text
    if not whole:
        raise DamagedError(f"{path}: the content does not match its own digest; it was changed")
    return content


def held_kind(content: JsonObject) -> str:
    """Return what a result says that it is, for an error message about a file of another kind.

    Examples:
        >>> storage.held_kind({"schema": "openbook.effects/1"})
        "'openbook.effects/1'"
        >>> storage.held_kind({"facts": []})
        'a result that names no kind'
    """
    schema, kind = content.get("schema"), content.get("kind")
    if isinstance(schema, str):
        return f"{schema!r:.40}"
    return (
        f"{kind!r:.40}, version {schema}"
        if isinstance(kind, str)
        else "a result that names no kind"
    )


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Return the hex sha256 of a file, which is read piece by piece.

    Args:
        progress: Called with the MB read so far; default: nothing is told.

    Raises:
        DamagedError: There is no regular file.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> storage.sha256_file(folder / "a.txt")[:12]
        'ba7816bf8f01'
    """
    with open_foreign(path) as file:
        if progress is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, done, total = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
        piece = bytearray(min(PIECE, total) or 1)
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
            done += n
            progress("MB", done // 1_000_000, total // 1_000_000)
        return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Several processes may write one file: the last one wins, and readers see one of them whole. The
    permissions of an older file are kept, a symbolic link is followed, and what is no regular file
    (a device, a pipe) is written through.

    Examples:
        >>> storage.write_bytes(folder / "a.bin", bytes([1, 2]))
        >>> (folder / "a.bin").stat().st_size
        2
    """
    older = path.stat().st_mode if path.exists() else None
    if older is not None and not stat.S_ISREG(older):
        with path.open("wb") as file:
            file.write(content)
        return
    path = path.resolve() if path.is_symlink() else path
    with disk_guard(path):
        temporary, descriptor = create_partial(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if older is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(older))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create_partial(path: Path) -> tuple[Path, int]:
    """Create a temporary file for this process alone; return its path and its open descriptor.

    It is locked until it is closed. Files of killed processes, which nobody locks, are removed.
    """
    _remove_left_partials(path)
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PARTIAL}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        # Another process may hold it for a moment, to see whether it was left by a killed one.
        with suppress(OSError):  # a file system without locks never removes what was left
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # another process took it for the rest of a killed one


def _remove_left_partials(path: Path) -> None:
    begin = f".{path.name}."
    with os.scandir(path.parent) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.startswith(begin) and entry.name.endswith(PARTIAL)
        ]
    for name in names:
        left = path.with_name(name)
        with suppress(OSError):  # it is being written, or was removed meanwhile
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    left.unlink()
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, completely or not at all.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> (folder / "a.txt").read_text()
        'abc'
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write the canonical JSON of a value, completely or not at all.

    Examples:
        >>> storage.write_json(folder / "a.json", {"b": 1, "a": 2})
        >>> print((folder / "a.json").read_text(), end="")
        {
         "a": 2,
         "b": 1
        }
    """
    write_text(path, canonical_json(content))


def partial_path(path: Path) -> Path:
    """Return the temporary name under which a folder is built, by one process at a time.

    Examples:
        >>> storage.partial_path(folder / "index").name
        '.index.partial'
    """
    return path.with_name(f".{path.name}{PARTIAL}")


def is_partial(path: Path) -> bool:
    """Return whether this is the name of an unfinished file or folder.

    Examples:
        >>> storage.is_partial(folder / ".a.json.0123abcd.partial")
        True
    """
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


@contextmanager
def new_folder(path: Path, *, replace: bool = False, locked: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block ends.

    If the block raises, the folder is removed. Remains of an earlier attempt by a killed process
    are removed first.

    Args:
        path: The folder.
        replace: True replaces an older folder of that name (`replace_folder`).
        locked: True if the caller has a lock that excludes other writers of `path`.

    Raises:
        TrainError: Another process is writing the folder, or has written it meanwhile.

    Examples:
        >>> with storage.new_folder(folder / "out") as unfinished:
        ...     storage.write_text(unfinished / "a.txt", "abc")
        ...
        >>> [path.name for path in (folder / "out").iterdir()]
        ['a.txt']
    """
    refusal = TrainError(f"{path} is being written by another process; wait for it")
    with ExitStack() as stack:
        if not locked:
            stack.enter_context(hold_build_lock(path, refusal))
        # Looked at again under the lock: another process may have finished meanwhile.
        if not replace and path.exists() and not (path.is_dir() and not os.listdir(path)):
            raise TrainError(f"{path} exists already; choose another place or remove it")
        temporary = partial_path(path)
        shutil.rmtree(temporary, ignore_errors=True)
        stack.enter_context(disk_guard(path))
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            if replace:
                replace_folder(temporary, path)
            else:
                os.replace(temporary, path)
                sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def replace_folder(ready: Path, path: Path) -> None:
    """Give a finished folder the name `path`, and delete the older one of that name afterwards.

    Where the system can exchange two names at once (Linux), every reader finds one of the two.
    Elsewhere there is a moment in which neither is there; a process that is killed in it leaves the
    new one under another name, and `restore_folder` undoes that.

    Examples:
        >>> (folder / "ready").mkdir()
        >>> storage.replace_folder(folder / "ready", folder / "out")
        >>> [path.name for path in folder.iterdir()]
        ['out']
    """
    aside, older = _aside(path), path.with_name(f".{path.name}.older")
    for left in (aside, older):
        shutil.rmtree(left, ignore_errors=True)
    sync_folder(ready)
    if not path.exists():
        os.replace(ready, path)
    else:
        # First under a name from which no build is continued.
        os.replace(ready, aside)
        if not exchange(aside, path):
            os.replace(path, older)
            try:
                os.replace(aside, path)
            except BaseException:  # also Ctrl-C between the two renames
                restore_folder(path)
                raise
    sync_folder(path.parent)
    for left in (aside, older):
        shutil.rmtree(left, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Restore the folder that a process killed in `replace_folder` had under another name."""
    if not path.exists():
        with suppress(FileNotFoundError):
            os.replace(_aside(path), path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; return False if the system cannot."""
    import ctypes  # every command imports this module, and few exchange folders

    try:
        call = ctypes.CDLL(None).renameat2  # of Linux
    except (OSError, AttributeError):
        return False
    # It also fails on file systems that cannot exchange names, such as NFS, and changes nothing.
    return not call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)


def check_room(path: Path, needed: int, *, remedy: str) -> None:
    """Raise a DiskError, before anything is written, if `needed` more bytes do not fit.

    Args:
        path: File or folder to be written, whose disk is looked at.
        needed: Number of bytes that are still to be written.
        remedy: End of the message, which says what to do.

    Examples:
        >>> storage.check_room(folder / "out", 1000, remedy="choose another disk")
    """
    free = _free_bytes(path)
    if needed > free:
        raise DiskError(
            f"{path} takes {readable_size(needed)} more and {readable_size(free)} are free on its "
            f"disk; {remedy}"
        )


@contextmanager
def disk_guard(path: Path) -> Iterator[None]:
    """Turn the error of a full or failing disk into a DiskError that says where it happened."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EIO, errno.EROFS):
            raise DiskError(
                f"the disk failed while writing {path} ({error.strerror}); nothing half-written "
                "was kept, look at the disk and run the same command again"
            ) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskError(
            f"the disk is full while writing {path}: {_free_bytes(path) / 2**20:.1f} MiB left; "
            "nothing half-written was kept, free some space and run the same command again"
        ) from None


def _free_bytes(path: Path) -> int:
    place = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    return shutil.disk_usage(place).free


def sync_folder(path: Path) -> None:
    """Sync a folder, so that the names of its files survive a crash."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
