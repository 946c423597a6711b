"""A function in a process of its own, with limits of memory and time, and how it ended."""

import faulthandler
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


__all__ = ["BAD", "MEMORY", "SECONDS", "Outcome", "call"]

MEMORY, SECONDS = 2 << 30, 25
PATIENCE = 150  # seconds of the clock: a busy machine may give a process a sixth of a processor
BAD = ("traceback", "hang", "abort", "memory", "code run", "long message")
LONGEST = 1500  # characters of an error message


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        kind: `opens`, `refused`, or one of `BAD`.
        said: The error's class and message, or the last frames of its traceback.
    """

    kind: str
    said: str = ""


def call(
    function: Callable[[], object],
    *,
    memory: int = MEMORY,
    seconds: int = SECONDS,
    patience: int = PATIENCE,
) -> Outcome:
    """Call a function in a copy of this process that may take `memory` bytes more than this one.

    It may compute for `seconds`, and has `patience` seconds of the clock, because what waits for
    ever computes nothing.

    An error with an exit code (those of the three packages) and a message of one line is a refusal,
    every other one a traceback.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(function, (memory, seconds, patience), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kinds = {signal.SIGALRM: "hang", signal.SIGXCPU: "hang", signal.SIGKILL: "memory"}
        kind = next((kind for one, kind in kinds.items() if one == number), "abort")
        return Outcome(kind, signal.Signals(number).name)
    kind, _, rest = said.partition("\n")
    return Outcome(kind or "abort", rest if kind else f"exit {os.WEXITSTATUS(status)}")


def _child(function: Callable[[], object], limits: tuple[int, int, int], writing: int) -> None:
    """Call the function, write how it ended, and end this process without cleaning up."""
    faulthandler.disable()  # pytest's writes of an abort, which is what is tested here
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    memory, seconds, patience = limits
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    limit = _mapped() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(patience)
    try:
        function()
        said = "opens\n"
    except MemoryError as error:
        said = f"memory\n{error!r}\n{_frames(error)}"
    except BaseException as error:
        said = _judged(error)
    signal.alarm(0)
    os.write(writing, said.encode("utf-8", "backslashreplace")[:60_000])
    os._exit(0)


def _judged(error: BaseException) -> str:
    message = str(error)
    about = f"{type(error).__name__}: {message}"
    if not hasattr(error, "exit_code") or not message or len(message.splitlines()) != 1:
        return f"traceback\n{about[:500]}\n{_frames(error)}"
    if len(message) > LONGEST:
        return f"long message\n{len(message)} characters: {about[:300]}"
    return f"refused\n{about}"


def _frames(error: BaseException) -> str:
    shown = traceback.extract_tb(error.__traceback__)
    return "\n".join(f"  {Path(one.filename).name}:{one.lineno} {one.line}" for one in shown[-7:])


def _mapped() -> int:
    """Bytes of address space that this process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    size = next(line for line in lines if line.startswith("VmSize"))
    return int(size.split()[1]) << 10
