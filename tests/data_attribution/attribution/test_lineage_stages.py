"""Which stages a lineage has, and which of them may be said to have taught something."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_attribution import attribution, queries
from data_attribution.attribution import LineageSources, StageChange
from data_attribution.cli import formatting
from data_attribution.errors import EvidenceError
from interp.behaviours import Behaviour
from tests.worlds.tuning import tiny_tuning_store
from train import convert, trainer


pytestmark = pytest.mark.integration

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "checkpoint_every": 3, "optimizer_every": 3}


@pytest.fixture(scope="module")
def imported(tiny_run, tmp_path_factory):
    """The weights of the tiny run, as if they came from elsewhere."""
    folder = tmp_path_factory.mktemp("imported")
    convert.export_run(tiny_run, out=folder / "hub")
    return convert.import_run(folder / "hub", out=folder / "run")


@pytest.fixture(scope="module")
def tuned(imported, tmp_path_factory):
    """The imported run, tuned on instructions."""
    folder = tmp_path_factory.mktemp("tuned")
    store = tiny_tuning_store("instructions", imported.tokenizer, folder / "store")
    return trainer.tune(imported, store, "sft", out=folder / "run", **SHORT)


@pytest.fixture(scope="module")
def query(tiny_run):
    return queries.query_of_text("w1 w2 w3", tiny_run.tokenizer, n_ctx=16)


def test_an_imported_stage_has_no_documents_and_no_known_change(tuned, query):
    (found,) = attribution.across_stages(tuned, [query], documents=[None, np.arange(5)])
    first, last = found.stages
    assert (first.recipe, first.change, first.documents) == ("imported", None, 0)
    assert (last.objective, last.documents, found.taught_by) == ("sft", 5, last)
    assert found.stage_of.tolist() == [1] * 5
    assert "stage 0  imported  unknown  0 documents" in formatting.stages_lines(found)
    with pytest.raises(EvidenceError, match="2 documents of stage 0 were given, which was import"):
        attribution.across_stages(tuned, [query], documents=[np.arange(2), None])


def test_a_run_that_was_only_imported_was_taught_by_no_known_stage(imported, query):
    with pytest.raises(EvidenceError, match="was imported and tuned by no stage here"):
        attribution.across_stages(imported, [query])


@pytest.mark.parametrize(
    ("change", "low", "taught"),
    [(2.0, 1.0, True), (2.0, None, True), (2.0, -0.1, False), (-0.5, None, False)],
)
def test_a_stage_taught_a_behaviour_only_if_its_interval_lies_above_nothing(change, low, taught):
    high = None if low is None else 3.0
    stage = StageChange(0, "run", "made", "sft", change, low, high, 0)
    empty = np.empty(0, np.int64)
    found = LineageSources(
        "made", "nats", (replace(stage, change=change - 1), stage), (), empty, empty,
        empty.astype(np.float64),
    )  # fmt: skip
    assert found.taught_by is stage
    assert ("taught it" in formatting.stages_lines(found).splitlines()[2]) == taught
    assert "taught it" not in formatting.stages_lines(found).splitlines()[1]


def test_the_command_takes_a_behaviour_of_a_file_for_a_lineage_that_was_imported(
    tuned, tmp_path, openbook
):
    words = [int(tuned.tokenizer.encode(f"w{k}")[0]) for k in range(4)]
    clean = torch.tensor([[tuned.store.eot, words[0]], [tuned.store.eot, words[1]]])
    Behaviour(
        name="made", clean=clean, corrupt=clean.flip(0), answer=torch.tensor(words[2:]),
        foil=torch.tensor(words[3:1:-1]), candidates=tuple(words[2:]),
    ).save(tmp_path / "made.json")  # fmt: skip
    ended = openbook("trace", "stages", tuned.path, tmp_path / "made.json", "--rank", 4)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[1].startswith("stage 0  imported  unknown")
