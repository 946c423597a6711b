"""Work in a process of its own that is killed before its n-th change of a file.

Tests put this text in front of code that they run in another process. What a kill can break lies
between two calls that write, sync, rename or remove. A kill after some time would fall on another
place on every machine, and on a fast one behind the end; one at any call of a function would
nearly always fall between two writings that have nothing to do with each other.
"""

import io
import os
import signal
import sys
from collections.abc import Callable


CHANGES = {
    "fsync", "flush", "ftruncate", "mkdir", "remove", "rename", "replace", "rmdir", "tofile",
    "truncate", "unlink", "write",
}  # fmt: skip


def changes_of(work: Callable[[], object]) -> int:
    """How often a process changes files that does the work undisturbed."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(counted(work, 0)).encode())
        os._exit(0)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == 0, status
    return int(os.read(reader, 32))


def killed_at(work: Callable[[], object], number: int) -> bool:
    """Whether SIGKILL came before that change (0: at none); False when the work was done before."""
    if os.fork() == 0:
        counted(work, number)
        os._exit(0)
    _, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def counted(work: Callable[[], object], number: int, victim: int = 0) -> int:
    """How often the work changes files; the process `victim` (0: this) is killed before one."""
    n_changes = 0

    def count(_frame: object, event: str, called: object) -> None:
        nonlocal n_changes
        if event != "c_call" or not _changes_a_file(called):
            return
        n_changes += 1
        if n_changes == number:
            os.kill(victim or os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return n_changes


def _changes_a_file(called: object) -> bool:
    """A function of the operating system, a method of an open file, or numpy's `tofile`."""
    name, owner = getattr(called, "__name__", ""), getattr(called, "__self__", None)
    of_a_file = isinstance(owner, io.FileIO | io.BufferedIOBase | io.TextIOWrapper)
    of_the_system = getattr(owner, "__name__", "") == os.name
    return name == "tofile" or (name in CHANGES and (of_a_file or of_the_system))
