"""Opens bad files with every reader, in processes with limits, and counts how it ends.

    python benchmarks/hostile_files.py [--per-reader 12] [--seed 0] [--only NAME] [--library]

Each file is a good one of which something was changed by a seeded draw (tests/worlds/
hostile_files.py): cut off, flipped, a value of another type, 10^12 elements, 100,000 brackets,
pipes, links to themselves, bombs, pickles that would run code. Sealed files are sealed again, so
that the seal refuses nothing. A case may take 2 GB of memory and compute for 25 seconds. It must
open, or end in an error of openbook whose message is one line. Exit code 1: a case ended in a
traceback, hang, abort or lack of memory, or code was run.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import machine

from tests.worlds.hostile_readers import GOOD, READERS, Case, cases, prepare, run_case
from tests.worlds.limited_process import BAD, Outcome


COLUMNS = ("opens", "refused", *BAD)


def main() -> int:
    """Print the counts of every reader; return 1 if a case ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-reader", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Part of the names of readers.")
    parser.add_argument("--library", action="store_true", help="Leave out the commands.")
    parser.add_argument("--kind", default="", help="Part of the names of kinds.")
    parser.add_argument("--good", action="store_true", help="Also open every good file.")
    given = parser.parse_args()
    print(machine.described("torch", "numpy"))
    begin = time.perf_counter()
    readers = [
        one
        for one in READERS
        if given.only in one.name and not (given.library and one.name.startswith("openbook "))
    ]
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        good = prepare(Path(place) / "good")
        (Path(place) / "bombs").mkdir()
        good_ones = [Case(one, GOOD, 0) for one in readers if given.good]
        for case in [*good_ones, *cases(given.seed, given.per_reader, readers)]:
            if given.kind not in case.kind:
                continue
            outcome = run_case(case, good, Path(place) / "bombs")
            if case.kind == GOOD and outcome.kind != "opens":
                outcome = Outcome("traceback", f"a good file is refused: {outcome.said}")
            counts.setdefault(case.reader.name, Counter())[outcome.kind] += 1
            if outcome.kind in BAD:
                print(f"{case}: {outcome.kind}: {outcome.said}", flush=True)
    return report(counts, time.perf_counter() - begin)


def report(counts: dict[str, Counter[str]], seconds: float) -> int:
    """Print a row per reader and their sum; return 1 if one ended badly."""
    total = sum(counts.values(), Counter())
    width = max(map(len, counts))
    print(f"{'reader':<{width}}  " + "  ".join(COLUMNS))
    for name, row in (*counts.items(), ("all", total)):
        numbers = "  ".join(f"{row[one]:>{len(one)}}" for one in COLUMNS)
        print(f"{name:<{width}}  {numbers}")
    bad = sum(total[one] for one in BAD)
    print(f"{total.total()} files, {bad} ended badly; {seconds:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
