"""One process at a time holds a lock, and a killed process leaves none."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from train import storage
from train.errors import TrainError


BUSY = TrainError("busy; wait")
HOLDER = """
import sys, time
from pathlib import Path
from train import storage

with getattr(storage, sys.argv[1])(Path(sys.argv[2]), RuntimeError()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_refused_with_the_given_error_until_it_is_free(tmp_path, kind):
    path = tmp_path / "one"
    if kind == "folder":
        path.mkdir()
    with (
        storage.hold_lock(path, BUSY),
        pytest.raises(TrainError, match="busy; wait"),
        storage.hold_lock(path, BUSY),
    ):
        pass
    with storage.hold_lock(path, BUSY):
        pass
    assert path.exists()


@pytest.mark.parametrize("hold", ["hold_lock", "hold_build_lock"])
def test_a_lock_ends_with_its_process(tmp_path, hold):
    path = tmp_path / "one"
    command = [sys.executable, "-c", HOLDER, hold, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TrainError, match="busy"), getattr(storage, hold)(path, BUSY):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with getattr(storage, hold)(path, BUSY):
        pass


def test_without_an_error_a_lock_is_waited_for(tmp_path):
    order = []

    def wait() -> None:
        with storage.hold_lock(tmp_path, None):
            order.append("second")

    with storage.hold_lock(tmp_path, BUSY):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_the_lock_of_a_build_is_a_file_beside_it_that_goes_with_the_build(tmp_path):
    path = tmp_path / "new" / "built"
    with storage.hold_build_lock(path, BUSY):
        assert os.listdir(path.parent) == [".built.lock"]
    assert os.listdir(path.parent) == []
    with pytest.raises(ZeroDivisionError), storage.hold_build_lock(path, BUSY):
        _ = 1 / 0
    assert os.listdir(path.parent) == []


def test_a_lock_file_that_a_failing_disk_keeps_fails_nothing_and_excludes_nobody(
    tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, storage.hold_build_lock(tmp_path / "built", BUSY):
        patch.setattr(os, "unlink", fail)
    assert os.listdir(tmp_path) == [".built.lock"]
    with storage.hold_build_lock(tmp_path / "built", BUSY):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Else two processes would hold one each: this one the removed file, the next another."""
    path, lock, taken = tmp_path / "built", fcntl.flock, []

    def late(file, how):
        if not taken:
            (tmp_path / ".built.lock").unlink()  # by its last owner, after we had opened it
        taken.append(file)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with storage.hold_build_lock(path, BUSY):
        assert len(taken) == 2
        assert (tmp_path / ".built.lock").exists()
        with pytest.raises(TrainError, match="busy"), storage.hold_build_lock(path, BUSY):
            pass
