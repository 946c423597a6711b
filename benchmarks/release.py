"""Make the planted run that comes with openbook, or compare the one that is there with a new one.

    python benchmarks/release.py --out runs/release            # about eight minutes
    python benchmarks/release.py --out runs/release --install  # puts it into train/released/planted

Trains the planted recipe in fp32 on one thread, retrains it without the documents of nine late
facts and of nine others, and packs it: the last weights in fp32, three earlier ones in half
precision, the ledger, and what the retrained runs showed. What is packed is opened again and
verified. Without --install the two listings are compared, file by file: on the machine that made
the shipped run they are equal to the bit.
"""

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import machine

from data_attribution import counterfactuals, demo
from train import numerics, progress, released, storage, trainer


NAME = "planted"
# Where copying, IOI and the facts form: what the curves over training need.
HALVES = (600, 800, 1000)


def main() -> int:
    """Train, retrain, pack, verify; 1 when something does not hold."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for store and runs")
    parser.add_argument("--install", action="store_true", help="replace the shipped run")
    arguments = parser.parse_args()
    how = numerics.choose(threads=1, precision="fp32")
    print(f"{machine.described('torch')}, {how}")
    run = demo.trained(arguments.out / "store", arguments.out / "run", progress.bar, how=how)
    with progress.bar("retraining") as advance:
        forgot = counterfactuals.forget_facts(
            run, counterfactuals.removable_facts(run), controls=1, progress=advance
        )
    print(forgot.to_frame().to_string(index=False))
    # Where the retrained runs lay says nothing to others.
    told = {**asdict(forgot), "runs": [Path(one).name for one in forgot.runs]}
    packed = arguments.out / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    released.write(run, packed, halves=HALVES, corpus_seed=0, results={"forgetting": told})
    files = sorted(packed.iterdir())
    for file in files:
        print(f"{file.stat().st_size:>10,}  {storage.sha256_file(file)[:16]}  {file.name}")
    print(f"{sum(file.stat().st_size for file in files):>10,}  bytes in all")
    shipped = released.RELEASED_RUNS / NAME
    if arguments.install:
        shutil.rmtree(shipped, ignore_errors=True)
        shutil.copytree(packed, shipped)
    differ = [file.name for file in files if not _same(file, shipped / file.name)]
    print(f"differ from {shipped}: {', '.join(differ) or 'none'}")
    opened = released.open(NAME, folder=arguments.out / "unpacked")
    verified = trainer.verify(opened)
    print(f"run {opened.id}: {verified.level}, spans {verified.spans}, {verified.difference:.3g}")
    return int(not (forgot.holds and verified.ok and not differ))


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
