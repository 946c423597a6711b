"""Every command that writes: on a failing disk, killed, and started twice (a seeded sample).

The trials are those of `benchmarks/failing_writes.py`, which makes many more.
"""

import subprocess
import sys

import pytest
import typer

from data_attribution.cli.app import app
from tests.failing_operations import environment
from tests.worlds.scripts import FOLDER
from tests.writing_commands import CASES


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and memfd are of Linux"),
]


def leaves(command, name=()):
    inner = getattr(command, "commands", None)
    if inner is None:
        return [" ".join(name)]
    return [leaf for key, one in inner.items() for leaf in leaves(one, (*name, key))]


def test_every_command_has_a_case():
    """Every command writes: each has `--out`. A new one needs a case in `writing_commands.py`."""
    named = {case.command for case in CASES if case.call is None}
    assert named == set(leaves(typer.main.get_command(app)))
    assert len({case.name for case in CASES}) == len(CASES)


# All kinds of writing: a run, shards, an exchanged folder, a new folder, two files, one file.
SAMPLE = (
    "train", "cache documents", "index build, again", "gradients build", "run import",
    "corpus build", "lens fit", "trace text", "recipes list", "python, Behaviour",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_what_fails_is_killed_or_started_twice_loses_nothing():
    script = str(FOLDER / "failing_writes.py")
    numbers = {"failures": 1, "kills": 1, "starters": 0.1, "reads": 50}
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    command = [sys.executable, script, *options, "--only", *SAMPLE]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    last = made.stdout.splitlines()[-1]
    n = len(SAMPLE)
    assert last.startswith(
        f"{n} failures, {n} kills and 12 double starts of {n} commands: 0 do not"
    )
    assert "; 0 of 50 reads torn;" in last


FAULTS = """
import os, sys, time
from pathlib import Path
from tests.failing_operations import Disturbance, Process, ended

folder = Path(sys.argv[1]) / "trial"
folder.mkdir()


def careless():
    with open("a.txt", "w") as file:
        file.write("abc")


def waits():
    os.mkdir("b")


def looks():
    while not os.path.exists("b"):
        time.sleep(0.01)


print([ended(careless, folder, Disturbance("fail", n, 5)).place.split()[:1] for n in (1, 2, 3)])
print(ended(careless, folder, Disturbance("kill", 2)).code, (folder / "a.txt").read_text() == "")
paused = Process(waits, folder, Disturbance("pause", 1))
looking = Process(looks, folder, Disturbance())
print(paused.waits(), looking.waits(0.1))
paused.go_on()
print(paused.wait().code, looking.wait().code)
"""


def test_the_trials_see_what_a_careless_writer_does(tmp_path):
    made = subprocess.run(
        [sys.executable, "-c", FAULTS, str(tmp_path)], env=environment(tmp_path),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, third, fourth = made.stdout.splitlines()
    assert first == "[['open64'], ['write'], []]"
    assert second == "-9 True"
    assert (third, fourth) == ("True True", "0 0")
