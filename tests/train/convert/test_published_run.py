"""Weights with their published order are a run of knowledge level data-known."""

from dataclasses import replace

import numpy as np
import pytest

from interp import models
from tests.worlds.models import shaken
from tests.worlds.published import write_sequences
from train import convert, runs, trainer
from train.errors import DamagedError, TrainError
from train.model import GPTConfig


CFG = GPTConfig(
    n_layers=1, n_heads=2, d_model=16, n_ctx=8, d_vocab=37, position="rope", rotary_channels=4,
    mlp="gelu", tie=False, parallel_residual=True,
)  # fmt: skip
ROWS = np.random.default_rng(0).integers(1, 37, (12, 9))


@pytest.fixture
def imported(tmp_path) -> runs.Run:
    folders = {
        step: convert.export_huggingface(shaken(CFG, 0.1 + step), None, tmp_path / f"step{step}")
        for step in (3, 0)
    }
    index = write_sequences(tmp_path / "pile", ROWS)
    return convert.import_run(folders, out=tmp_path / "run", order=index, batch=4)


def test_a_run_of_published_order_knows_what_each_step_read(imported, tmp_path):
    run = runs.open(imported.path)
    assert (run.knowledge, run.steps, run.published_order.n_steps) == ("data-known", [0, 3], 3)
    assert (run.published_order.tokens_read(2) == ROWS[8:]).all()
    assert models.load(run, step=3).origin.knowledge == "data-known"
    for step in (0, 3):
        weights, wanted = run.load(step).state_dict(), shaken(CFG, 0.1 + step).state_dict()
        assert all((weights[name] == value).all() for name, value in wanted.items())
    for ask in (lambda: run.documents_read(0), lambda: run.store, lambda: run.recipe):
        with pytest.raises(TrainError, match="knowledge is data-known"):
            ask()


def test_verify_says_which_claims_hold(imported, openbook):
    found = trainer.verify(imported)
    assert (found.ok, found.level) == (True, "data known")
    assert {one.verdict for one in found.claims} == {"holds", "fails", "cannot be checked"}
    told = openbook("run", "verify", imported.path)
    assert (told.code, told.err) == (0, "")
    assert "\nholds              every sequence is one token longer than the context: " in told.out
    assert "\nfails              documents are separated" in told.out
    assert "\ncannot be checked  the checkpoints were trained on these tokens" in told.out
    assert openbook("run", "verify", imported.path, "--require", "order-only").code == 1


def test_a_changed_or_missing_index_is_found(imported, tmp_path):
    index = tmp_path / "pile" / "document.idx"
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(bytes(content))
    found = trainer.verify(imported)
    assert (found.level, len(found.problems)) == ("damaged", 1)
    assert "document.idx: sha256" in found.problems[0]
    write_sequences(tmp_path / "pile", ROWS[:8])
    with pytest.raises(DamagedError, match=r"8 sequences, and .* was imported with 12"):
        _ = runs.open(imported.path).published_order
    index.unlink()
    with pytest.raises(TrainError, match="the index of the run"):
        trainer.verify(runs.open(imported.path))


def test_the_command_imports_an_order_and_a_run_without_one_says_so(imported, openbook, tmp_path):
    out = tmp_path / "one"
    command = ("run", "import", tmp_path / "step3", "--out", out, "--step", 3)
    told = openbook(*command, "--order", tmp_path / "pile" / "document.idx", "--batch", 4)
    assert (told.code, told.err) == (0, "")
    assert "knowledge    data-known" in told.out
    with pytest.raises(TrainError, match="has no published order: it is weights-only"):
        _ = convert.import_run(tmp_path / "step3", out=tmp_path / "two").published_order


def test_steps_outside_the_order_and_other_architectures_are_refused(imported, tmp_path):
    index, folder = tmp_path / "pile" / "document.idx", tmp_path / "step3"
    for sources in ({4: folder}, {-1: folder}, {}):
        with pytest.raises(TrainError, match=r"checkpoints of steps .* steps from 0 to 3"):
            convert.import_run(sources, out=tmp_path / "no", order=index, batch=4)
    other = convert.export_huggingface(
        shaken(replace(CFG, rotary_channels=2)), None, tmp_path / "other"
    )
    with pytest.raises(TrainError, match="other: not the architecture of the checkpoints before"):
        convert.import_run({0: folder, 1: other}, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
