"""Worker processes that sort shards, several at once, so that any number of cores is used.

The processes are started afresh, because libdivsufsort's OpenMP hangs in a child forked from a
process that used it. Each gets its task as a line of JSON, sorts one shard and ends, so that its
memory is freed. It ends when its parent does, for whatever reason. Ctrl-C does not reach it; its
parent handles it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

from data_attribution.errors import IndexSpaceError, SorterError
from data_attribution.token_index import shard_files
from data_attribution.token_index.shard_files import Shard, Task
from train.errors import DiskError


__all__ = ["answer", "sort_all"]

# A fresh process imports this package from where its parent found it.
START = (
    "import json, sys; task = json.loads(sys.stdin.readline()); sys.path[:] = task.pop('path'); "
    "from data_attribution.token_index import sort_workers; sort_workers.answer(task)"
)
REFUSED = {one.__name__: one for one in (DiskError, SorterError, MemoryError, OSError)}
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class _Worker:
    task: Task
    process: subprocess.Popen[str]


def sort_all(tasks: Sequence[Task], workers: int) -> Iterator[Shard]:
    """Sort shards, at most `workers` at once, and yield each when it is on disk.

    A single worker sorts in this process. If there are more workers than shards, the remaining
    cores help libdivsufsort where it supports that.

    Raises:
        DiskError: The disk is full.
        IndexSpaceError: A worker was killed, as systems do when memory runs out.
        SorterError: A shard has too many tokens, or another signal ended its process.
        OSError: A worker met this error.
    """
    if workers == 1:
        for task in tasks:
            shard_files.sort(task)
            yield task.shard
        return
    threads = max(workers // max(len(tasks), 1), 1)
    waiting = [replace(task, threads=threads) for task in reversed(tasks)]
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(start_worker(waiting.pop()))
            for worker in [one for one in running if one.process.poll() is not None]:
                running.remove(worker)
                _raise_what_failed(worker)
                yield worker.task.shard
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for worker in running:
            worker.process.kill()
            _ended(worker.process)


def answer(task: dict) -> None:
    """Sort a shard in the process that was started for it; report a refusal as a line of JSON."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        shard_files.sort(Task(**{**task, "shard": Shard(**task["shard"])}))
    except (DiskError, SorterError, MemoryError) as error:
        _refuse(error=type(error).__name__, says=[str(error)])
    except OSError as error:
        place = None if error.filename is None else str(error.filename)
        _refuse(error="OSError", says=[error.errno, error.strerror, place])


def _refuse(**said: object) -> NoReturn:
    sys.stdout.write(json.dumps(said))
    sys.exit(1)


def start_worker(task: Task) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    # Left open: when it closes, the worker knows that this process has ended.
    process.stdin.write(json.dumps({**asdict(task), "path": sys.path}) + "\n")
    process.stdin.flush()
    return _Worker(task, process)


def _raise_what_failed(worker: _Worker) -> None:
    said, complaint = _ended(worker.process)
    code, name = worker.process.returncode, worker.task.shard.name
    if code == 0:
        return
    if code == -signal.SIGKILL:
        raise IndexSpaceError(
            f"the process that sorted {name} was ended by SIGKILL, as systems do when memory runs "
            "out; ask for more shards or fewer workers, what is sorted is kept"
        )
    if code < 0:
        raise SorterError(
            f"the process that sorted {name} was ended by {signal.Signals(-code).name}; what is "
            "sorted is kept: run the same command again"
        )
    if not said.startswith("{"):
        raise RuntimeError(f"the process that sorted {name} failed: {complaint}")
    refusal = json.loads(said)
    raise REFUSED[refusal["error"]](*refusal["says"])


def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process wrote to stdout and stderr, and close its pipes."""
    return process.communicate()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
