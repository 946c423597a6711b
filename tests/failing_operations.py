"""Commands whose n-th change of a file fails, kills their process, or waits.

`failing_operations.c` stands between a process and its disk (LD_PRELOAD, Linux), so that it also
counts what libraries in C and Rust and forked processes change. The process that makes the trials
imports everything once and forks one child for each trial; it must have been started in the
`environment` of this module.
"""

import ctypes
import importlib
import os
import pkgutil
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


__all__ = [
    "LIBRARY",
    "Disturbance",
    "Ended",
    "Process",
    "adopt_orphans",
    "copy",
    "count",
    "ended",
    "environment",
    "import_everything",
    "reap",
]

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "OPENBOOK_FAILING_OPERATIONS"
STATE = "OPENBOOK_FAILING_STATE"
PR_SET_CHILD_SUBREAPER = 36  # of Linux
MODES = ("count", "fail", "kill", "pause")
Work = Callable[[], object]


@dataclass(frozen=True)
class Disturbance:
    """What happens at the n-th change of a file.

    Attributes:
        mode: "count" (nothing), "fail", "kill" or "pause".
        number: Number of the change, from 1.
        error: Number of the system's error, for "fail".
        stays: True if all later changes fail, too, as on a disk that stays full.
    """

    mode: str = "count"
    number: int = 0
    error: int = 0
    stays: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Exit code; -9 for a killed process.
        err: What it wrote to stderr.
        place: The change that was disturbed: its name and its path; "" if there was none.
        n_changes: Number of changes of files.
    """

    code: int
    err: str
    place: str
    n_changes: int


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that makes trials; the library is built in `folder`."""
    library = folder / "failing_operations.so"
    command = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return {
        **os.environ,
        LIBRARY: str(library),
        "LD_PRELOAD": str(library),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(SOURCE.parents[1]),
    }


class Process:
    """Work in a forked process that is disturbed at its n-th change of a file.

    The process works in `folder`; changes of files beside it count, too. With "pause" it waits
    before the change until `go_on`, and taking a lock is a change, too.
    """

    def __init__(
        self, work: Work, folder: Path, how: Disturbance, variables: Mapping[str, str] | None = None
    ) -> None:
        self._library = _library()
        # One file for each: its name goes to the programs that the process starts.
        number, state = tempfile.mkstemp(prefix="failing-", dir=Path(os.environ[LIBRARY]).parent)
        os.close(number)
        self._file = Path(state)
        self._reports, report = os.pipe()
        release, self._release = os.pipe()
        self._state = self._library.failing_begin(
            os.fsencode(state), os.fsencode(folder.parent), how.number, MODES.index(how.mode),
            how.error, how.stays, how.mode == "pause", report, release,
        )  # fmt: skip
        self._err = os.memfd_create("stderr")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reports)
            os.close(self._release)
            os.environ.update({**(variables or {}), STATE: state})
            os.chdir(folder)
            _end(work, self._library, self._err)
        os.close(report)
        os.close(release)

    def waits(self, patience: float | None = None) -> bool:
        """Wait until the process waits (paused, or for a lock) or ends; return whether it waits.

        After `patience` seconds a process that has done neither counts as one that waits: it may
        look for the end of another process again and again without a lock.
        """
        said, _, _ = select.select([self._reports], [], [], patience)
        return not said or bool(os.read(self._reports, 1))

    def go_on(self) -> None:
        """Let a paused process continue; it is not paused a second time."""
        with suppress(BrokenPipeError):
            os.write(self._release, b"g")

    def wait(self) -> Ended:
        """Wait for the end."""
        _, status = os.waitpid(self.pid, 0)
        err = os.pread(self._err, 1 << 20, 0).decode(errors="replace")
        place = os.fsdecode(self._library.failing_place(self._state))
        result = Ended(
            os.waitstatus_to_exitcode(status), err, place, self._library.failing_count(self._state)
        )
        self._library.failing_end(self._state)
        self._file.unlink()
        for descriptor in (self._reports, self._release, self._err):
            os.close(descriptor)
        return result


def ended(
    work: Work, folder: Path, how: Disturbance, variables: Mapping[str, str] | None = None
) -> Ended:
    """Do some work in a process of its own and return how it ended."""
    return Process(work, folder, how, variables).wait()


def count(work: Work, folder: Path, variables: Mapping[str, str] | None = None) -> Ended:
    """Do some work undisturbed in a process of its own and return how often it changes files."""
    return ended(work, folder, Disturbance(), variables)


def copy(source: Path, target: Path, *, empty: bool = False) -> None:
    """Copy a folder in place of another one, or empty `target`; no file is shared by the two."""
    shutil.rmtree(target, ignore_errors=True)
    if empty:
        target.mkdir()
    else:
        shutil.copytree(source, target, symlinks=True)


def adopt_orphans() -> None:
    """Become the parent of what a killed process has started, so that `reap` can wait for it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Wait for all processes that a killed one has started."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def import_everything() -> None:
    """Import all modules of the three packages, and what they import at their first use."""
    for package in ("train", "interp", "data_attribution"):
        paths = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(paths, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("torch._dynamo", "plotly.graph_objects", "plotly.io", "pandas"):
        importlib.import_module(name)


def _end(work: Work, library: ctypes.CDLL, err: int) -> None:
    """Do the work as the only thing that this process does, and end it."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(err, 2)
        library.failing_arm()
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ[LIBRARY])
    library.failing_begin.restype = ctypes.c_void_p
    library.failing_begin.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, *[ctypes.c_int] * 6,
    ]  # fmt: skip
    library.failing_count.argtypes = [ctypes.c_void_p]
    library.failing_count.restype = ctypes.c_long
    library.failing_place.argtypes = [ctypes.c_void_p]
    library.failing_place.restype = ctypes.c_char_p
    library.failing_end.argtypes = [ctypes.c_void_p]
    return library
