"""Commands that write, on a disk that fails, killed at any moment, and started twice.

    python benchmarks/failing_writes.py

Every command that writes (`tests/writing_commands.py`) is repeated with tiny inputs, and each time
something else happens at its n-th change of a file (`tests/failing_operations.py`):

* The change fails (EIO once or for ever, a disk that is full or over its quota). The command must
  end with one line and exit code 4, every file and folder must be the old one or the new one as a
  whole, and the same command, or `run resume`, must end with the same bytes as an undisturbed one.
* The process is killed. The same must hold.
* The process waits, and the same command is started a second time. One of the two must do the work
  as if it were alone, and the other must be refused or end with the same result.

Four processes that write one file at the same time are read a thousand times. A change for which
one of this does not hold is printed with its number; then the exit code is 1. Needs Linux and `cc`.
"""

import argparse
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import failing_operations, writing_commands  # noqa: E402
from tests.failing_operations import Disturbance, Ended, Process  # noqa: E402
from tests.writing_commands import CASES, Case, command  # noqa: E402


FAILURES = {
    "EIO": Disturbance("fail", error=errno.EIO),
    "ENOSPC for ever": Disturbance("fail", error=errno.ENOSPC, stays=True),
    "EIO for ever": Disturbance("fail", error=errno.EIO, stays=True),
    "EDQUOT": Disturbance("fail", error=errno.EDQUOT),
}
# Times, digests of files that hold some, and the commit of the code.
VOLATILE = {
    "seconds", "milliseconds", "tokens_per_second", "share", "chain", "digest", "segments", "code",
}  # fmt: skip
# How often a command is started twice. These are those of which a second one could do most harm.
STARTED_TWICE = {
    "train": 30, "run resume": 20, "tune sft": 10, "chain": 10, "counterfactual": 10,
    "cache documents": 20, "index build": 20, "index build, again": 10, "index bm25": 15,
    "run import": 15, "run export": 10, "corpus build": 15, "tune data": 10,
    "gradients build": 15, "emergence": 10, "evaluate": 5, "lens fit": 5, "ladder": 4,
}  # fmt: skip
OTHERS_TWICE = 2
PATIENCE = 60.0  # seconds for a second command, then the first one goes on beside it
LETTERS = b"abcd"


def main() -> int:
    """Make the trials, print their numbers, and return 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of cases; default: all")
    parser.add_argument("--failures", type=int, default=40, help="most failures of each case")
    parser.add_argument("--kills", type=int, default=10, help="most kills of each case")
    parser.add_argument("--starters", type=float, default=1.0, help="share of the double starts")
    parser.add_argument("--reads", type=int, default=1000, help="reads of one file of four writers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="failing-writes-") as folder:
        if failing_operations.LIBRARY in os.environ:
            return made(Trials(Path(folder), options))
        print(machine.described("torch"), flush=True)
        again = [sys.executable, __file__, *sys.argv[1:]]
        variables = failing_operations.environment(Path(folder))
        return subprocess.run(again, env=variables, check=False).returncode


def made(trials: "Trials") -> int:
    """Make the trials and print their numbers, case by case; 1 if something did not hold."""
    options = trials.options
    failing_operations.adopt_orphans()
    trials.build_world()
    print(f"{'command':26} changes  failures  kills  double starts")
    total: Counter[str] = Counter()
    for case in trials.cases():
        counts = trials.all_of(case)
        total += counts
        numbers = "".join(f"{counts[key]:>9}" for key in ("changes", "failures", "kills", "pairs"))
        print(f"{case.name:26}{numbers}", flush=True)
    total["torn"] = torn_reads(trials.root, options.reads)
    total["reads"], total["problems"] = options.reads, len(trials.problems)
    return report(total)


def report(total: Mapping[str, int]) -> int:
    """Print the numbers of all trials; 1 if something did not hold."""
    print(
        f"{total['failures']:,} failures, {total['kills']:,} kills and {total['pairs']:,} double "
        f"starts of {total['cases']} commands: {total['problems']} do not hold; {total['torn']} of "
        f"{total['reads']:,} reads torn; {total['left']} times something hidden was left behind a "
        "success"
    )
    return int(bool(total["problems"] or total["torn"]))


@dataclass
class Trials:
    """Trials in a folder, and what did not hold in them."""

    root: Path
    options: argparse.Namespace
    problems: list[str] = field(default_factory=list)

    @property
    def trial(self) -> Path:
        """Folder in which a command works."""
        return self.root / "trial"

    def build_world(self) -> None:
        """Import everything and make the inputs, in processes of their own."""
        failing_operations.import_everything()
        self.trial.mkdir()
        world = self.root / "world"
        self._undisturbed(lambda: writing_commands.build_world(world, self.cases()))
        if any(case.planted for case in self.cases()):
            self._undisturbed(lambda: writing_commands.build_planted(world))

    def cases(self) -> list[Case]:
        """Return the chosen cases."""
        only = self.options.only
        return [case for case in CASES if not only or case.name in only]

    def all_of(self, case: Case) -> Counter[str]:
        """Make all trials of a case and return their numbers."""
        options = self.options
        draw = random.Random(f"{options.seed} {case.name}")
        begin, end, n_changes = self.prepared(case)
        counts = Counter(cases=1, changes=n_changes)
        most = min(case.most, options.failures)
        kinds = list(FAILURES)
        for turn, number in enumerate(sample(draw, n_changes, most)):
            kind = kinds[turn % len(kinds)]
            how = Disturbance("fail", number, FAILURES[kind].error, FAILURES[kind].stays)
            counts["failures"] += self.disturbed(case, how, kind, begin, end, counts)
        for number in sample(draw, n_changes, min(case.most, options.kills)):
            how = Disturbance("kill", number)
            counts["kills"] += self.disturbed(case, how, "SIGKILL", begin, end, counts)
        pairs = round(STARTED_TWICE.get(case.name, OTHERS_TWICE) * options.starters)
        if pairs:
            counts["pairs"] += self.started_twice(case, draw, min(case.most, pairs), begin, end)
        return counts

    def prepared(self, case: Case) -> tuple[Path, Path, int]:
        """Return the folders before and after an undisturbed command, and its changes of files."""
        begin, end = self.root / "begin", self.root / "end"
        failing_operations.copy(begin, self.trial, empty=True)
        for name in case.inputs:
            shutil.copytree(self.root / "world" / name, self.trial / name)
        for arguments in case.before:
            self._undisturbed(command(*arguments))
        if case.older:
            self._undisturbed(case.work, case)
            made = {name: (self.trial / name).read_bytes() for name in case.older}
            failing_operations.copy(begin, self.trial, empty=True)
            for name in case.inputs:
                shutil.copytree(self.root / "world" / name, self.trial / name)
            for name, content in made.items():
                (self.trial / name).write_bytes(older(content))
        failing_operations.copy(self.trial, begin)
        undisturbed = self._undisturbed(case.work, case)
        failing_operations.copy(self.trial, end)
        return begin, end, undisturbed.n_changes

    def disturbed(
        self, case: Case, how: Disturbance, kind: str, begin: Path, end: Path, counts: Counter[str]
    ) -> bool:
        """Make one trial; return False if the command ended before it came to the change."""
        failing_operations.copy(begin, self.trial)
        result = failing_operations.ended(case.work, self.trial, how, case.variables)
        if not result.place:
            failing_operations.reap()
            return False
        said = f"{case.name}, {kind} at change {how.number} ({result.place})"
        wanted = (-9,) if how.mode == "kill" else (0, 4)
        problems = [] if result.code in wanted else [f"exit code {result.code}: {result.err}"]
        if how.mode != "kill":
            problems += wrong_words(result)
        problems += self._torn(case, begin, end)
        if case.check and (self.trial / case.check[0]).exists():
            checked = self._run(command(*case.check[1]), case)
            if checked.code:
                problems.append(f"the check ends with {checked.code}: {checked.err}")
        if result.code:
            problems += self._repeated(case, end)
        else:
            left = differences(self.trial, end, hidden=False)
            problems += [f"ended with 0 and left {left}"] if left else []
            counts["left"] += bool(differences(self.trial, end))
        failing_operations.reap()
        self._note(f"{said}: {problem}" for problem in problems)
        return True

    def _torn(self, case: Case, begin: Path, end: Path) -> list[str]:
        """Return what is neither as before the command nor as after it."""
        states = {name: [content_of(state / name) for state in (begin, end)]
                  for name in case.results}  # fmt: skip
        return [
            f"{name} is neither the old nor the new one"
            for name, known in states.items()
            if content_of(self.trial / name) not in known
        ]

    def _note(self, problems: Iterable[str]) -> None:
        for problem in problems:
            print(f"does not hold: {problem.rstrip()}", flush=True)
            self.problems.append(problem)

    def _repeated(self, case: Case, end: Path) -> Iterator[str]:
        """Repeat a command; yield what is not as after an undisturbed one."""
        whole = not differences(self.trial, end, hidden=False)
        goes_on = case.retry and (self.trial / case.retry[0]).exists()
        work = command(*case.retry[1]) if case.retry and goes_on else case.work
        result = self._run(work, case)
        refused = whole and result.code == 2
        if result.code and not refused:
            yield f"repeated, it ends with {result.code}: {result.err}"
        elif left := differences(self.trial, end, hidden=not refused):
            yield f"repeated, it leaves {left}"

    def started_twice(
        self, case: Case, draw: random.Random, most: int, begin: Path, end: Path
    ) -> int:
        """Pause a command at changes and locks, start a second one, and return the trials."""
        failing_operations.copy(begin, self.trial)
        places = Disturbance("pause", 0)
        n_changes = failing_operations.ended(
            case.work, self.trial, places, case.variables
        ).n_changes
        trials = 0
        for number in sample(draw, n_changes, most, again=True):
            failing_operations.copy(begin, self.trial)
            first = Process(case.work, self.trial, Disturbance("pause", number), case.variables)
            paused = first.waits()
            if paused:
                between = self._torn(case, begin, end)
                second = Process(case.work, self.trial, Disturbance(), case.variables)
                if second.waits(PATIENCE):  # for what the first holds
                    first.go_on()
                    ends = [first.wait(), second.wait()]
                else:
                    later = second.wait()
                    first.go_on()
                    ends = [first.wait(), later]
                said = f"{case.name}, started twice at change {number} ({ends[0].place})"
                self._note(f"{said}: {one}" for one in (*between, *self._pair(case, ends, end)))
                trials += 1
            else:
                first.wait()
            failing_operations.reap()
        return trials

    def _pair(self, case: Case, ends: list[Ended], end: Path) -> Iterator[str]:
        codes = [one.code for one in ends]
        allowed = [[0, 2], [2, 0], *([[0, 0]] if case.same_again else [])]
        if codes not in allowed:
            yield f"exit codes {codes}: {[one.err for one in ends]}"
        for one in ends:
            if one.code:
                yield from wrong_words(one)
        if left := differences(self.trial, end):
            yield f"exit codes {codes} leave {left}"

    def _run(self, work: Any, case: Case) -> Ended:
        return failing_operations.count(work, self.trial, case.variables)

    def _undisturbed(self, work: Any, case: Case | None = None) -> Ended:
        result = failing_operations.count(work, self.trial, case.variables if case else None)
        if result.code:
            raise SystemExit(f"{case.name if case else 'the inputs'}: {result.err}")
        return result


def sample(draw: random.Random, n: int, most: int, *, again: bool = False) -> list[int]:
    """Return at most so many numbers from 1 to n, spread evenly: one of each of equal stretches.

    With `again` exactly so many are returned, some of them several times.
    """
    whole, rest = divmod(most, n) if again else (0, min(most, n))
    edges = [n * number // rest for number in range(rest + 1)] if rest else []
    drawn = [draw.randrange(low, high) + 1 for low, high in pairwise(edges)]
    return sorted(list(range(1, n + 1)) * whole + drawn)


def wrong_words(result: Ended) -> list[str]:
    """Return what is wrong with the words of a command that failed: they are one line, the last."""
    lines = result.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in result.err or (result.code and (len(errors) != 1 or lines[-1:] != errors)):
        return [f"exit code {result.code} with the words {result.err!r}"]
    return []


def older(content: bytes) -> bytes:
    """Return another file of the same kind: sealed JSON with one more entry, or one more line."""
    from train import storage

    try:
        values = json.loads(content)
    except ValueError:
        return content + b"\n"
    return storage.canonical_json(storage.seal({**values, "older": True})).encode()


def content_of(path: Path) -> object:
    """Return what a file or a folder holds, without times; None if there is nothing."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if not file.is_dir())
        return {str(file.relative_to(path)): content_of(file) for file in files}
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        if path.suffix == ".jsonl":
            return [untimed(json.loads(line)) for line in data.splitlines()]
        return untimed(json.loads(data)) if path.suffix == ".json" else data
    except ValueError:
        return data


def untimed(value: Any) -> Any:
    """Return JSON values without times, and without digests of what holds some."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [untimed(one) for one in value]
    return value


def differences(folder: Path, other: Path, *, hidden: bool = True) -> list[str]:
    """Return the names of files and empty folders in which two folders differ."""
    trees = [dict(_entries(one)) for one in (folder, other)]
    names = sorted(trees[0].keys() | trees[1].keys())
    if not hidden:
        names = [name for name in names if not any(p.startswith(".") for p in Path(name).parts)]
    return [name for name in names if trees[0].get(name) != trees[1].get(name)]


def _entries(folder: Path) -> Iterable[tuple[str, object]]:
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)), "folder" if path.is_dir() else content_of(path)


def torn_reads(folder: Path, n_reads: int, size: int = 1 << 18) -> int:
    """Read a file so often while four processes write it; return the reads of half a file."""
    from train import storage

    path, (started, start) = folder / "shared.bin", os.pipe()
    writers = []
    for letter in LETTERS:
        writers.append(os.fork())
        if writers[-1] == 0:
            storage.write_bytes(path, bytes([letter]) * size)
            os.write(start, b"s")
            while True:
                storage.write_bytes(path, bytes([letter]) * size)
    for _ in LETTERS:
        os.read(started, 1)
    torn = 0
    for _ in range(n_reads):
        content = path.read_bytes()
        torn += len(content) != size or len(set(content)) != 1
    for writer in writers:
        os.kill(writer, 9)
        os.waitpid(writer, 0)
    return torn


if __name__ == "__main__":
    sys.exit(main())
