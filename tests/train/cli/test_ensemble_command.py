"""`openbook ensemble` prints what the library measures, and refuses runs that do not fit."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.worlds.commands import refused
from train import ensembles, trainer
from train.ensembles import EnsembleEvaluation


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def other_run(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    recipe = replace(tiny_recipe, init_seed=1, steps=8)
    out = tmp_path_factory.mktemp("runs") / "other"
    return trainer.train(recipe, tiny_store, out=out, numerics=one_thread_numerics)


def test_runs_and_checkpoints_are_averaged(openbook, tiny_run, other_run, tmp_path):
    expected = ensembles.evaluate(ensembles.ensemble_of([(tiny_run, 16), other_run]), learn=True)
    named = (f"{tiny_run.path}@16", other_run.path, "--learn-weights")
    ended = openbook("ensemble", *named, "--out", tmp_path / "kept.json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{expected.lines()}\n{expected.meaning}\n"
    assert EnsembleEvaluation.load(tmp_path / "kept.json") == expected
    shown = json.loads(openbook("ensemble", *named, "--json").out)
    assert shown["rows"][-1]["loss"]["value"] == expected.ensemble.loss.value
    assert [one["step"] for one in shown["provenance"]["members"]] == [16, 8]


def test_the_table_says_what_each_loss_is(openbook, tiny_run, other_run):
    ended = openbook(
        "ensemble", tiny_run.path, "--baseline", other_run.path, "--baseline", tiny_run.path
    )
    lines = ended.out.splitlines()
    assert lines[0].split() == [
        "weight",
        "loss",
        "in",
        "nats",
        "a",
        "token",
        "ensemble",
        "minus",
        "this",
    ]
    assert lines[1].startswith(f"{tiny_run.path}@24  ")
    assert lines[1].endswith("0.000 [no interval]         not")
    assert lines[2].startswith("mean of probabilities")
    assert "held-out documents; 95 % intervals over documents" in lines[3]
    assert "the baseline needs 1.000 [" in lines[4]


def test_a_folder_may_have_an_at_in_its_name(openbook, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run@8")
    store = ("--store", tiny_run.store.path)
    assert f"{tmp_path}/run@8@24" in openbook("ensemble", tmp_path / "run@8", *store).out
    assert f"{tmp_path}/run@8@16" in openbook("ensemble", f"{tmp_path}/run@8@16", *store).out


def test_runs_that_do_not_fit_are_refused(openbook, tiny_run, lookup_run, tmp_path):
    tiny = tiny_run.path
    for runs, words in (
        ((tiny, lookup_run.path), "was trained on the store"),
        ((tiny, tiny), "is a member twice"),
        ((tiny, f"{tiny}@24"), "is a member twice"),
        ((lookup_run.path,), "holds out 0 different documents"),
        ((f"{tiny}@7",), "no checkpoint at step 7"),
        ((tmp_path / "nothing",), "no run at"),
        ((tiny, "--baseline", tiny), "1 numbers of tokens and 1 losses is no curve"),
        ((tiny, "--baseline", lookup_run.path), "runs that are compared need the same"),
    ):
        refused(openbook("ensemble", *runs, "--out", tmp_path / "kept.json"), 2, words)
    assert not (tmp_path / "kept.json").exists()


def test_a_damaged_member_exits_3(openbook, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    weights = tmp_path / "run" / tiny_run.saved_at(None).folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ended = openbook("ensemble", tmp_path / "run", "--store", tiny_run.store.path)
    refused(ended, 3, "model.safetensors", "nothing was loaded")
