"""How fast two processes of one thread train, beside one process of two threads.

    python benchmarks/distributed.py --data data/planted

Trains PLANTED in a temporary folder in fp32, each way for 10 and for 80 steps: about two minutes on
two free cores. Prints tokens per second (the median of all steps after the tenth) and the CPU time
of all processes per step, both also as a multiple of one process, whether every step read the same
windows, and the largest difference in loss. CPU time is that of the long training minus that of the
short one, so the start of the processes cancels out; other load changes it less than wall time.
Exit 1 when a digest differs or a loss by more than `trainer.verify` accepts. Time has no bound.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import machine

from train import recipes, runs
from train.data import build_store, open_corpus
from train.runs import Run


MOST = 1e-3  # nats
FIRST = 10  # steps in which caches fill
SHAPES = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}


@dataclass(frozen=True)
class Training:
    """A training by the command.

    Attributes:
        cpu_seconds: CPU time of all its processes, with their start.
    """

    run: Run
    cpu_seconds: float


def main() -> int:
    """Train with both shapes and compare; 1 when the runs differ by more than rounding."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, help="a planted store; default: a new one")
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    if arguments.steps <= FIRST:
        parser.error(f"--steps is {arguments.steps}; it must be more than {FIRST}")
    print(machine.described("torch"))
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or Path(folder) / "store"
        if not (data / "store.json").exists():
            build_store(open_corpus("planted"), out=data)
        measured = []
        for processes, threads in SHAPES.values():
            short, long = (
                train(data, Path(folder) / f"run-{processes}-{steps}", steps, processes, threads)
                for steps in (FIRST, arguments.steps)
            )
            cpu = (long.cpu_seconds - short.cpu_seconds) / (arguments.steps - FIRST)
            measured.append((long.run, tokens_per_second(long.run), cpu))
        _, speed, least = measured[0]
        for name, (_, tokens, cpu) in zip(SHAPES, measured, strict=True):
            print(
                f"{name:<24} {tokens:>8,.0f} tokens/s ({tokens / speed:.2f} x), "
                f"{1000 * cpu:>6,.0f} ms of CPU time per step ({cpu / least:.2f} x)"
            )
        rows = zip(*(run.ledger for run, _, _ in measured), strict=True)
        pairs = [(one.digest == other.digest, abs(one.loss - other.loss)) for one, other in rows]
    return report(all(equal for equal, _ in pairs), max(difference for _, difference in pairs))


def train(data: Path, out: Path, steps: int, processes: int, threads: int) -> Training:
    """Train by the command, which starts the processes."""
    command = [
        Path(sys.executable).with_name("openbook"), "train", recipes.PLANTED.name, data, "--out",
        out, "--steps", steps, "--devices", processes, "--threads", threads, "--device", "cpu",
        "--precision", "fp32", "--no-watch", "--json",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Training(runs.open(json.loads(ended.stdout)["run"]), cpu_seconds)


def tokens_per_second(run: Run) -> float:
    """Targets per second in the median step."""
    rows = run.ledger[FIRST:]
    return rows[-1].tokens / len(run.ledger) / median(row.seconds for row in rows)


def report(equal: bool, difference: float) -> int:
    """Print how far the runs agree; 1 when that is not as far as rounding allows."""
    print(f"every step read the same windows: {equal}")
    print(f"largest difference in loss: {difference:.2g} nats (at most {MOST:g})")
    return 0 if equal and difference <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
