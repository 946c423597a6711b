"""Work in a process of its own that is killed at its n-th call of a function.

Tests put this text in front of code that they run in another process. A kill after some time would
fall on another place on every machine, and on a fast one behind the end.
"""

import os
import signal
import sys
from collections.abc import Callable


def calls_of(work: Callable[[], object]) -> int:
    """How many functions, Python's and C's, a process calls that does the work undisturbed."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        counted = _profiled(work, 0)
        os.write(writer, str(counted).encode())
        os._exit(0)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == 0, status
    return int(os.read(reader, 32))


def killed_at(work: Callable[[], object], number: int) -> bool:
    """Whether SIGKILL came at that call (0: at none); False when the work was done before."""
    if os.fork() == 0:
        _profiled(work, number) if number > 0 else work()
        os._exit(0)
    _, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def _profiled(work: Callable[[], object], number: int) -> int:
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")
        if counted == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted
