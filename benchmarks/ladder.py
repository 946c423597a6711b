"""What each part between retro-nano and modern-nano is worth on Python's own sources, 3 seeds.

    python benchmarks/ladder.py --out runs/ladder [--processes 2] [--equal compute]

The corpus is `stdlib` with byte pairs of 512; a tenth of its files is held out. Every one of the 42
trainings (14 members, 3 seeds) reads 1.02 million tokens in windows of 128, which takes about an
hour on two AVX2 cores with one process of one thread on each. The command prints its own estimate
first. A stopped ladder continues when the script is called again, and other machines that share the
folder may run it at the same time. Prints the table of docs/how-to/compare-architectures.md.
Nothing is asked of the numbers.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import machine

from train import progress
from train.data import build_store, open_corpus


COMMAND = [sys.executable, "-c", "from data_attribution.cli.app import main; main()"]
# One learning rate for all members; warm-up and rate are those of the small recipes.
SETTINGS = {
    "model.n_ctx": 128,
    "batch_size": 16,
    "checkpoint_every": 250,
    "optimizer_every": 250,
    "late_batch": 0,
    "late_begin": 0,
}


def main() -> int:
    """Build the store if it is missing, let processes climb the ladder, and print its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the store and ladder")
    parser.add_argument("--start", default="retro-nano")
    parser.add_argument("--end", default="modern-nano")
    parser.add_argument("--equal", default="parameters", choices=("parameters", "compute"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(machine.described("torch"))
    store = arguments.out / "store"
    if not store.exists():
        with progress.bar("store") as advance:
            build_store(open_corpus("stdlib"), out=store, progress=advance)
    words = command(arguments, store)
    print(f"openbook {' '.join(words)}", flush=True)
    # The first process begins the ladder, and all of them print the same table.
    processes = [
        subprocess.Popen(
            [*COMMAND, *words],
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=None if number == 0 else subprocess.DEVNULL,
        )
        for number in range(arguments.processes)
    ]
    return max(process.wait() for process in processes)


def command(arguments: argparse.Namespace, store: Path) -> list[str]:
    """Return the words of the `openbook` command that every process runs."""
    out = arguments.out / f"{arguments.start}-{arguments.end}-{arguments.equal}"
    words = ["ladder", arguments.start, arguments.end, str(store), "--out", str(out)]
    words += ["--equal", arguments.equal, "--seeds", str(arguments.seeds)]
    words += ["--steps", str(arguments.steps), "--threads", "1", "--precision", "fp32"]
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    return words


if __name__ == "__main__":
    sys.exit(main())
