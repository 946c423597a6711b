"""Locks, with which one process at a time writes a file or builds a folder.

A lock ends with its block or with its process, so a killed process never leaves one behind. The
locks are advisory (`flock`): they exclude processes that ask for the same lock, and nobody else.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


__all__ = ["hold_build_lock", "hold_lock", "lock_descriptor", "scratch_folder"]


def lock_descriptor(descriptor: int, refusal: Exception | None) -> None:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: Number of the open file.
        refusal: Error to raise if another process has the lock; None: wait for it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
    except (BlockingIOError, PermissionError):  # network file systems answer EACCES
        if refusal is None:
            raise
        raise refusal from None


@contextmanager
def hold_lock(path: Path, refusal: Exception | None) -> Iterator[int]:
    """Hold the lock of a folder, or of a file, which is created if it is missing and then stays.

    Args:
        path: The folder or file.
        refusal: Error to raise if another process has the lock; None: wait for it.

    Yields:
        The descriptor of the open folder or file.

    Examples:
        >>> with storage.hold_lock(folder / "lock", RuntimeError("in use; wait for it")):
        ...     with storage.hold_lock(folder / "lock", RuntimeError("in use; wait for it")):
        ...         pass
        ...
        Traceback (most recent call last):
        RuntimeError: in use; wait for it
    """
    access = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, access, 0o666)
    try:
        lock_descriptor(descriptor, refusal)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def hold_build_lock(path: Path, refusal: Exception) -> Iterator[None]:
    """Hold the lock for building a file or folder: the file `.NAME.lock` beside it.

    The lock file is removed at the end. The parent folder is created if it is missing.

    Args:
        path: The file or folder that is built.
        refusal: Error to raise if another process builds it.

    Examples:
        >>> with storage.hold_build_lock(folder / "out", RuntimeError("is being built")):
        ...     [path.name for path in folder.iterdir()]
        ...
        ['.out.lock']
        >>> list(folder.iterdir())
        []
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = path.with_name(f".{path.name}.lock")
    while True:
        with hold_lock(lock_file, refusal) as descriptor:
            # If the last owner removed the lock file after it was opened here, this lock is on a
            # removed file, and the next process would lock a new one. Then open it again.
            if os.fstat(descriptor).st_nlink:
                try:
                    yield
                finally:
                    # One that a failing disk keeps excludes nobody, and the next owner removes it.
                    with suppress(OSError):
                        lock_file.unlink()
                return


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, which is removed when the block ends.

    Folders that killed processes have left there, which nobody locks any more, are removed first.

    Examples:
        >>> with storage.scratch_folder(folder / "out") as scratch:
        ...     scratch.name.startswith(".out.scratch-")
        True
        >>> list(folder.iterdir())
        []
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.scratch-"
    with ExitStack() as stack:
        # Under the lock of the parent no folder is seen between its creation and its own lock.
        with hold_lock(path.parent, None):
            for left in path.parent.glob(f"{glob.escape(prefix)}*"):
                with suppress(OSError), hold_lock(left, BlockingIOError()):
                    shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
            stack.enter_context(hold_lock(folder, None))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
