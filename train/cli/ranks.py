"""Processes ("ranks") that train one run together: how a command starts, joins and watches them.

`--devices N` runs the same command again in N processes, as torchrun does, and waits for them. A
rank finds its place in the environment variables of torchrun. All ranks end when one of them ends,
and when the process that started them ends, for whatever reason.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

import typer

import train
from train.errors import LostRankError, RecipeError


if TYPE_CHECKING:
    from train.numerics import Numerics
    from train.progress import Progress

# Environment variable with the file through which the ranks find each other, if they were started
# here and not by torchrun.
RENDEZVOUS = "OPENBOOK_RENDEZVOUS"
# Environment variables from which a rank learns its number, as torchrun sets them.
RANK_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
LOST_RANK_CODE = LostRankError.exit_code
INTERRUPTED_CODE = 130
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
POLL_SECONDS = 0.05
# Time for the other ranks to end by themselves after the first has failed.
GRACE_SECONDS = 20.0


def start_ranks(count: int | None, run: Path, *, device: str | None = None) -> int:
    """Start the ranks if that is necessary, and return how many train the run together.

    This returns in each rank, and in a process that trains alone. The process that starts the ranks
    waits for them and exits with their exit code.

    Args:
        count: Number of processes; None: those that torchrun has started, or 1.
        run: Folder of the run.
        device: Device of a new training, which is refused if this machine has not a GPU, or on
            the CPU a core, for each process; None: a run that began with so many goes on.

    Raises:
        RecipeError: torchrun has started another number of processes, or the machine is too small.
        LostRankError: A rank was killed or failed.
    """
    size = int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= RANK_VARIABLES else 1
    if size == 1:
        if count is None or count == 1:
            return 1
        if device:
            from train import numerics

            numerics.refuse_too_few(device, count)
        _run_ranks(count, run)
    if count not in (None, size):
        raise RecipeError(
            f"{size} processes were started to train {run}, which is for {count}; start {count}, "
            "because sums of another number differ in their last bits"
        )
    if RENDEZVOUS in os.environ:
        # Until it trains, a rank that Ctrl-C ends prints nothing: the process that started it does.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if int(os.environ["RANK"]) > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # rank 0 prints the result
    return size


@contextmanager
def connect_ranks(numerics: "Numerics | None", title: str) -> "Iterator[Progress | None]":
    """Connect the ranks inside the block, and yield the progress bar of rank 0.

    Args:
        numerics: The numerics of the run; None: nothing is left to train.
    """
    from train import progress

    if numerics is None or numerics.world_size == 1:
        with progress.bar(title) as advance:
            yield advance
        return
    from train import trainer

    rank = int(os.environ["RANK"])
    connection = trainer.join_ranks(
        numerics.device,
        rank=rank,
        size=numerics.world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        rendezvous=os.environ.get(RENDEZVOUS, "env://"),
    )
    bar = progress.bar(title) if rank == 0 else nullcontext()
    try:
        if RENDEZVOUS in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with connection, bar as advance:
            yield advance
    except (KeyboardInterrupt, LostRankError) as error:
        if RENDEZVOUS not in os.environ:
            raise
        if rank > 0:  # read by the process that started it, if no rank has another reason
            typer.echo(f"error: {error}", err=True)
        # This ends the process at once: at the usual end, threads of a broken connection abort it.
        os._exit(LOST_RANK_CODE)


@dataclass(frozen=True)
class _Rank:
    process: subprocess.Popen[bytes]
    errors: Path


def _run_ranks(count: int, run: Path) -> NoReturn:
    """Run this command in `count` processes, and exit with their exit code."""
    with TemporaryDirectory(prefix="openbook-") as folder:
        ranks = [_start_rank(rank, count, Path(folder)) for rank in range(count)]
        try:
            codes, interrupted = _wait([rank.process for rank in ranks])
            if interrupted and any(codes):
                raise typer.Exit(INTERRUPTED_CODE)
            _raise_failure(ranks, codes, run)
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.communicate()
    raise typer.Exit(0)


def _start_rank(rank: int, count: int, folder: Path) -> _Rank:
    # The rank imports the package of this process; -P: not one in the current folder.
    paths = [str(Path(train.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    environment = {
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
        **os.environ,
        **{name: str(number) for name, number in variables.items()},
        RENDEZVOUS: f"file://{folder / 'rendezvous'}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    errors = folder / f"errors-{rank}"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "train", *sys.argv[1:]],
            env=environment,
            stdin=subprocess.PIPE,  # left open: when it closes, the rank ends
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else file,
            start_new_session=True,  # Ctrl-C reaches this process only
        )
    return _Rank(process, errors)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[list[int | None], bool]:
    """Wait until all ranks have ended, or for some seconds after one has failed.

    Returns:
        The exit codes (None: still running), and whether Ctrl-C was pressed.
    """
    end, interrupted = float("inf"), False
    while time.monotonic() < end:
        try:
            codes = [process.poll() for process in processes]
            if None not in codes:
                break
            if end == float("inf") and any(codes):
                end = time.monotonic() + GRACE_SECONDS
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            interrupted = True
            processes[0].send_signal(signal.SIGINT)  # the others lose their connection with it
    return [process.poll() for process in processes], interrupted


def _raise_failure(ranks: Sequence[_Rank], codes: Sequence[int | None], run: Path) -> None:
    """Raise an error that names a rank that failed, if one did.

    A rank that only lost its connection to the others is named if no rank failed otherwise.
    """
    failed = [rank for rank, code in enumerate(codes) if code not in (0, None, LOST_RANK_CODE)]
    failed += [rank for rank, code in reversed([*enumerate(codes)]) if code == LOST_RANK_CODE]
    if not failed:
        return
    rank, code = failed[0], codes[failed[0]] or 0
    if rank == 0 and code > 0 and code != LOST_RANK_CODE:
        raise typer.Exit(code)  # rank 0 has printed the reason
    output = ranks[rank].errors.read_text(encoding="utf-8", errors="replace").strip()
    last = output.splitlines()[-1] if output else ""
    name = f"rank {rank} of {len(ranks)}"
    if last.startswith("error: "):
        refusal = LostRankError(f"{name}: {last.removeprefix('error: ')}")
    else:
        typer.echo(output, err=True, nl=bool(output))
        end = (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        refusal = LostRankError(
            f"{name} {end}; the run is kept up to its last checkpoint: go on with `openbook run "
            f"resume {run}`"
        )
    refusal.exit_code = 128 - code if code < 0 else code
    raise refusal


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(LOST_RANK_CODE)
