"""Trainings that are stopped in the middle, done again, and done without a document."""

from pathlib import Path

import pytest

from train import trainer
from train.data import DocumentRemoval
from train.runs import Run


class Stop(Exception):
    """What ends a training."""


def check_resumed(run: Run, out: Path, stop: int) -> None:
    """Train a run again, stop it after step `stop`, resume it, and compare all that is saved."""

    def progress(what: str, done: int, total: int | None) -> None:
        if done > stop:
            raise Stop

    with pytest.raises(Stop):
        trainer.train(
            run.recipe, run.store, out=out, teacher=run.teacher, numerics=run.numerics,
            progress=progress,
        )  # fmt: skip
    resumed = trainer.resume(out)
    assert [one.files for one in resumed.saved] == [one.files for one in run.saved]
    assert all(a.agrees(b) for a, b in zip(resumed.ledger, run.ledger, strict=True))


def check_done_again(run: Run, out: Path) -> None:
    """Verify a run of 24 steps, replay its last ones, and verify one without a document of it."""
    assert trainer.verify(run).level == "bit-exact"
    assert trainer.replay(run, 17, 23).exact
    document = int(run.documents_read(20)[0])
    child = trainer.retrain_without(run, out, DocumentRemoval((document,)))
    assert trainer.verify(child).level == "bit-exact"
