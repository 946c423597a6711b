"""A run finds its token store behind links and after a move, or says that it is not there."""

import shutil

import pytest

from train import runs, trainer
from train.data import open_store
from train.errors import StoreError
from train.runs.manifest import located


@pytest.fixture
def project(tmp_path, tiny_run):
    """A project folder with data/store, and a scratch folder for runs elsewhere."""
    (tmp_path / "me" / "data").mkdir(parents=True)
    (tmp_path / "scratch" / "deep" / "runs").mkdir(parents=True)
    shutil.copytree(tiny_run.store.path, tmp_path / "me" / "data" / "store")
    return tmp_path / "me"


def test_runs_in_a_linked_folder_find_their_store(project, tiny_run):
    (project / "runs").symlink_to(project.parent / "scratch" / "deep" / "runs")
    run = trainer.train(tiny_run.recipe, open_store(project / "data" / "store"),
                        out=project / "runs" / "x", numerics=tiny_run.numerics)  # fmt: skip
    for name in (project / "runs" / "x", project.parent / "scratch" / "deep" / "runs" / "x"):
        assert runs.open(name).store.path.samefile(project / "data" / "store")
    assert trainer.verify(runs.open(run.path)).level == "bit-exact"


def test_a_manifest_with_a_path_through_the_link_still_leads_to_the_store(project, tiny_run):
    target = project.parent / "scratch" / "deep" / "runs"
    shutil.copytree(tiny_run.path, target / "x")
    (project / "runs").symlink_to(target)
    relative = "../../data/store"  # as the name of the run suggests, not where it really is
    found = located(project / "runs" / "x", relative)
    assert found.samefile(project / "data" / "store")


def test_a_run_without_its_store_says_where_it_was_and_what_to_give(tmp_path, tiny_run, openbook):
    alone = tmp_path / "far" / "away" / "from" / "alone"
    shutil.copytree(tiny_run.path, alone)
    with pytest.raises(StoreError, match=r"store of the run .*alone is not at .*--store"):
        _ = runs.open(alone).store
    ended = openbook("run", "verify", alone, "--spans", 0)
    assert ended.code == 2
    assert "--store" in ended.err
    assert "damaged" not in ended.err
    given = openbook("run", "verify", alone, "--spans", 0, "--store", tiny_run.store.path)
    assert given.code == 0
