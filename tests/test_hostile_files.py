"""Bad files of every kind open or end in one line: a short form of benchmarks/hostile_files.py.

The cases run in processes of their own, copies of a fresh one: a process in which other tests have
worked has threads, and cannot be copied safely.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.worlds import limited_process
from tests.worlds.hostile_files import CONTENTS, PLACES, VALUES
from tests.worlds.scripts import FOLDER, benchmark
from train.errors import DamagedError


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
TABLE_END = re.compile(r"^(\d+) files, (\d+) ended badly", re.MULTILINE)


def counted(*options: str) -> tuple[int, int]:
    """Run the benchmark; return how many files were opened and how many ended badly."""
    script = [sys.executable, str(FOLDER / "hostile_files.py"), *options]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    found = TABLE_END.search(ended.stdout)
    assert found, ended.stderr[-2000:]
    assert not int(found[2]), ended.stdout[:4000]
    return int(found[1]), int(found[2])


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_two_hundred_bad_files_open_or_end_in_one_line():
    n, bad = counted("--per-reader", "2", "--library")
    assert n >= 200
    assert bad == 0


def test_the_kinds_of_bad_files_are_many():
    assert len(CONTENTS) >= 15
    assert len({kind for kinds in CONTENTS.values() for kind in kinds}) > 250
    assert {"nested 100,000", "5,000 digits", "1e400", "NaN", "half a pair"} < VALUES.keys()
    assert {"pipe", "folder", "link to itself", "link to zeros"} < PLACES.keys()


class UncutError(ValueError):
    """A refusal whose message nobody cuts and joins, as openbook's own errors do with theirs."""

    exit_code = 2


def refuse(message: str, kind: type[Exception] = DamagedError):
    raise kind(message)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda: None, "opens"),
        (lambda: refuse("a.json: wrong"), "refused"),
        (lambda: refuse("two\nlines"), "refused"),
        (lambda: refuse("two\nlines", UncutError), "traceback"),
        (lambda: refuse("a" * 2000), "refused"),
        (lambda: refuse("a" * 2000, UncutError), "long message"),
        (lambda: {}["key"], "traceback"),
        (lambda: bytearray(1 << 34), "memory"),
        (os.abort, "abort"),
        (lambda: os._exit(0), "abort"),
    ],
)
def test_a_limited_process_says_how_a_call_ended(function, kind):
    # Without this process' threads, none of which runs what is called here.
    assert limited_process.call(function).kind == kind


def test_a_call_without_an_end_is_a_hang():
    assert limited_process.call(lambda: time.sleep(60), patience=1).kind == "hang"


def test_a_benchmark_with_a_bad_end_fails(capsys):
    report = benchmark("hostile_files").report
    assert report({"a": Counter(opens=2, refused=3)}, 1.0) == 0
    assert report({"a": Counter(opens=2, hang=1)}, 1.0) == 1
    assert "3 files, 1 ended badly" in capsys.readouterr().out
