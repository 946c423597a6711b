"""The run that comes with openbook is the one that was trained, or it is refused in one line."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from train import recipes, runs, trainer
from train.errors import DamagedError, StoreError, TrainError
from train.released import released_run as released
from train.trainer import verification


pytestmark = pytest.mark.integration
SHIPPED = released.RELEASED_RUNS / "planted"
FILES = sorted(path.name for path in SHIPPED.iterdir())


def test_it_is_small_and_says_what_was_rounded_and_left_out(released_run):
    assert sum((SHIPPED / name).stat().st_size for name in FILES) <= 6_000_000
    told = released_run.predicate["released"]
    assert told["half_precision"] == [600, 800, 1000]
    assert "optimizers" in told["left_out"]
    assert released_run.steps == [0, 600, 800, 1000, released_run.recipe.steps]


def test_it_was_trained_by_todays_recipe_on_todays_corpus(released_run):
    recipe = recipes.resolve(recipes.PLANTED, released_run.store)
    assert recipes.to_dict(released_run.recipe) == recipes.to_dict(recipe)
    assert released_run.store.truth["facts"]


def test_what_is_unpacked_is_what_was_shipped(released_run):
    for saved in released_run.saved[1:]:
        shipped = load_file(SHIPPED / f"step-{saved.step:08d}.safetensors")
        halved = saved.step != released_run.recipe.steps
        for name, value in released_run.load(saved.step).state_dict().items():
            assert shipped[name].dtype == (torch.float16 if halved else torch.float32)
            assert torch.equal(value, shipped[name].float())
    rows = gzip.decompress((SHIPPED / "ledger.jsonl.gz").read_bytes())
    assert rows == (released_run.path / runs.LEDGER).read_bytes()


def test_the_first_steps_are_trained_again_as_the_ledger_says(released_run):
    """From the seed alone: on another machine or torch the sums round differently."""
    again = trainer.replay(released_run, 0, 9)
    assert again.same_order
    assert again.difference <= verification.TOLERANCE["fp32"]
    assert len({row.loss for row in again.rows}) == 10


@pytest.mark.slow
def test_three_spans_are_replayed_when_it_is_verified(released_run):
    found = trainer.verify(released_run)
    assert found.reaches("within tolerance")
    assert len(found.spans) == 3
    assert min(last - first for first, last in found.spans) == 9


def test_a_result_that_comes_with_it_is_read(released_run):
    found = released.measured("planted", "forgetting")
    assert found["parent"] == released_run.id
    with pytest.raises(TrainError, match="no result 'forgotten' comes with"):
        released.measured("planted", "forgotten")


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A copy of what is shipped, opened in place of it."""
    shutil.copytree(SHIPPED, tmp_path / "released_runs" / "planted")
    monkeypatch.setattr(released, "RELEASED_RUNS", tmp_path / "released_runs")
    return tmp_path / "released_runs" / "planted"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_shipped_file_is_refused(name, shipped, tmp_path):
    path = shipped / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=name) as refused:
        released.open("planted", folder=tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize("name", ["ledger.jsonl.gz", "manifest.json", "step-00000800.safetensors"])
def test_a_shipped_file_that_is_missing_is_refused(name, shipped, tmp_path):
    (shipped / name).unlink()
    with pytest.raises(DamagedError, match=f"{name}: the file is missing; install openbook again"):
        released.open("planted", folder=tmp_path / "out")


@pytest.fixture
def copied(released_run, tmp_path) -> Path:
    """A copy of what was unpacked."""
    shutil.copytree(released_run.path.parent, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize("name", ["ledger.jsonl", "checkpoints/step-00000800/model.safetensors"])
@pytest.mark.parametrize("change", ["flipped", "missing"])
def test_an_unpacked_file_that_changed_is_refused(name, change, copied):
    path = copied / "run" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    if change == "flipped":
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{path.name}.*; remove {copied}, and it is unpacked"):
        released.open("planted", folder=copied)


def test_another_store_is_refused(copied, tiny_store):
    shutil.rmtree(copied / "store")
    shutil.copytree(tiny_store.path, copied / "store")
    with pytest.raises((StoreError, DamagedError)) as refused:
        released.open("planted", folder=copied)
    assert "\n" not in str(refused.value)


def test_another_run_in_its_place_is_refused(copied, tiny_run):
    shutil.rmtree(copied / "run")
    shutil.copytree(tiny_run.path, copied / "run")
    with pytest.raises(TrainError, match=f"holds run {tiny_run.id}, not the released run"):
        released.open("planted", folder=copied)


def test_a_run_that_does_not_come_with_openbook_is_refused_with_the_nearest():
    with pytest.raises(TrainError, match=r"no run 'plantet' comes with openbook.*planted"):
        released.open("plantet")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OPENBOOK_CACHE": "{tmp}/mine"}, "{tmp}/mine"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "{tmp}/xdg/openbook"),
        ({"HOME": "{tmp}/home"}, "{tmp}/home/.cache/openbook"),
        ({"HOME": "/dev/null/none"}, "{temporary}/openbook-"),
    ],
)
def test_the_cache_folder_is_one_that_can_be_written(environment, expected, tmp_path, monkeypatch):
    import tempfile

    for name in ("OPENBOOK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    said = expected.format(tmp=tmp_path, temporary=tempfile.gettempdir())
    assert str(released.cache_folder()).startswith(said)


OPEN = """
import sys
from train import released
print(released.open("planted", folder=sys.argv[1]).id)
"""


@pytest.mark.slow
def test_two_processes_that_unpack_it_at_once_both_get_it(released_run, tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [one.communicate()[0].strip() for one in both] == [released_run.id] * 2
    assert [one.returncode for one in both] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run", "store"]


def test_packing_a_run_twice_gives_the_same_bytes_and_names_its_losses(tiny_run, tmp_path):
    one, two = (
        released.write(tiny_run, tmp_path / name, halves=(8,), corpus_seed=0, results={})
        for name in ("one", "two")
    )
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    told = json.loads((one / "states.json").read_text())
    losses = {int(step): json.loads(state)["fixed_loss"] for step, state in told.items()}
    assert sorted(losses) == [0, 8, 24]
    written = {step: _fixed_loss(tiny_run, step) for step in losses}
    # Rounded weights have a loss of their own; the others have that of the run.
    assert losses[0] == written[0]
    assert losses[24] == written[24]
    assert losses[8] != written[8]
    assert np.isclose(losses[8], written[8], atol=1e-2)


def _fixed_loss(run, step) -> float:
    path = run.path / run.saved_at(step).folder / "state.json"
    return json.loads(path.read_text())["fixed_loss"]


def test_what_it_recalls_is_printed_with_a_row_of_late_facts(released_run, openbook):
    found = openbook("recall", released_run.path)
    assert found.code == 0
    rows = [line.split() for line in found.out.splitlines()[1:-2]]
    assert [row[0] for row in rows[:-1]] == ["0", "1", "2", "4", "8", "16", "32", "64", "128"]
    assert rows[-1][:3] == ["late", "16", "36"]
    assert float(rows[-1][3]) > 0.9


def test_numerics_are_those_that_every_machine_has(released_run):
    """A processor without bf16 must be able to replay it."""
    assert released_run.numerics.precision == "fp32"
    assert released_run.numerics.threads == 1


def test_its_store_is_found_beside_it(released_run):
    assert runs.open(released_run.path).store.path == released_run.store.path.resolve()
