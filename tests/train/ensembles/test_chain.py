"""A chain: every member is taught by the one before it, and none of it is trained twice."""

from dataclasses import replace

import pytest
import torch

from tests.worlds.commands import refused
from train import ensembles, runs, storage, trainer
from train.errors import RecipeError, TrainError


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return replace(tiny_recipe, steps=8, distill_weight=0.5, distill_temperature=1.2)


@pytest.fixture(scope="module")
def chain(recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    """Three members, the first two of them without teacher."""
    out = tmp_path_factory.mktemp("chain") / "chain"
    return ensembles.train_chain(
        recipe, tiny_store, out=out, members=3, untaught=2, numerics=one_thread_numerics
    )


def teacher_of(run):
    return (run.predicate.get("teacher") or {}).get("run_id")


def weights(run):
    return run.load().state_dict()


def equal(run, other):
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(run).items())


def test_a_member_is_taught_by_the_one_before_it_alone(chain):
    assert [teacher_of(run) for run in chain] == [None, None, chain[1].id]
    assert [run.recipe.distill_weight for run in chain] == [0, 0, 0.5]
    assert [run.path.name for run in chain] == ["member-00", "member-01", "member-02"]
    seeds = [(run.recipe.init_seed, run.recipe.order_seed) for run in chain]
    assert seeds == [(0, 0), (1, 1), (2, 2)]
    assert all(run.finished for run in chain)


def test_each_member_is_the_run_that_its_recipe_and_teacher_make(
    chain, recipe, tiny_store, one_thread_numerics, tmp_path
):
    """By hand: the same two trainings without the driver."""
    plain = replace(recipe, distill_weight=0.0, distill_temperature=1.0, init_seed=1, order_seed=1)
    second = trainer.train(plain, tiny_store, out=tmp_path / "b", numerics=one_thread_numerics)
    third = trainer.train(
        replace(recipe, init_seed=2, order_seed=2), tiny_store, out=tmp_path / "c", teacher=second,
        numerics=one_thread_numerics,
    )  # fmt: skip
    assert equal(chain[1], second)
    assert equal(chain[2], third)
    assert not equal(chain[2], chain[1])


def test_members_that_are_there_are_not_trained_again(chain, recipe, tiny_store, monkeypatch):
    """A longer chain begins with them, and a stopped member goes on."""

    def fail(*_, **__):
        raise AssertionError("a member was trained again")

    monkeypatch.setattr(trainer, "train", fail)
    again = ensembles.train_chain(
        recipe, tiny_store, out=chain[0].path.parent, members=2, untaught=2
    )
    assert [run.id for run in again] == [run.id for run in chain[:2]]


def test_a_chain_that_was_stopped_goes_on_to_the_same_bits(
    chain, recipe, tiny_store, one_thread_numerics, tmp_path
):
    def stop(what, done, total):
        if what.startswith("member 2") and done == 4:
            raise KeyboardInterrupt

    kept = {"out": tmp_path / "chain", "members": 3, "untaught": 2, "numerics": one_thread_numerics}
    with pytest.raises(KeyboardInterrupt):
        ensembles.train_chain(recipe, tiny_store, progress=stop, **kept)
    assert not runs.open(tmp_path / "chain" / "member-02").finished
    resumed = ensembles.train_chain(recipe, tiny_store, **kept)
    assert [run.id for run in resumed] == [run.id for run in chain]
    assert all(map(equal, resumed, chain))


def test_weight_0_makes_a_plain_ensemble(tiny_recipe, tiny_run, tiny_store, tmp_path):
    members = ensembles.train_chain(
        tiny_recipe, tiny_store, out=tmp_path / "c", members=2, numerics=tiny_run.numerics
    )
    assert [teacher_of(run) for run in members] == [None, None]
    assert equal(members[0], tiny_run)
    assert members[0].id == tiny_run.id


def test_a_chain_with_other_settings_is_refused(chain, recipe, tiny_store, lookup_store):
    kept = {"out": chain[0].path.parent, "members": 3}
    with pytest.raises(RecipeError, match="member-00 was trained with another recipe"):
        ensembles.train_chain(recipe, tiny_store, untaught=2, lr=2e-2, **kept)
    with pytest.raises(RecipeError, match="member-01 was trained with another recipe"):
        ensembles.train_chain(recipe, tiny_store, untaught=1, **kept)
    for members, untaught in ((0, 1), (2, 3), (2, 0)):
        with pytest.raises(TrainError, match=f"a chain of {members} members was asked for"):
            ensembles.train_chain(recipe, tiny_store, out="x", members=members, untaught=untaught)


def test_a_member_with_another_teacher_is_refused(chain, recipe, tiny_store, tmp_path, monkeypatch):
    """The second of a chain is the same run, but the third was taught by another second one."""
    folder = chain[0].path.parent
    path = folder / "member-02" / runs.MANIFEST
    before = path.read_bytes()
    content = storage.read_sealed(path)
    content["predicate"]["teacher"]["run_id"] = "0" * 12
    del content["digest"]
    storage.write_json(path, storage.seal(content))
    try:
        with pytest.raises(RecipeError, match="member-02 was trained with another teacher"):
            ensembles.train_chain(recipe, tiny_store, out=folder, members=3, untaught=2)
    finally:
        path.write_bytes(before)


def test_the_command_trains_a_chain_and_the_ensemble_averages_it(openbook, tiny_store, tmp_path):
    out = tmp_path / "chain"
    sizes = ("--steps", 3, "--batch-size", 2, "--set", "model.n_ctx=16", "--set", "warmup_steps=1")
    options = (*sizes, "--members", 2, "--threads", 1, "--precision", "fp32")
    ended = openbook("chain", "text-small", tiny_store.path, "--out", out, *options)
    assert (ended.code, ended.err) == (0, "")
    first, second = (runs.open(out / f"member-0{number}") for number in range(2))
    assert f"{first.path}  {first.id}  loss {first.ledger[-1].loss:.3f}  no teacher\n" in ended.out
    assert ended.out.endswith(f"taught by {first.id}\n")
    assert second.recipe.distill_weight == 0.5
    averaged = openbook("ensemble", first.path, second.path)
    assert averaged.code == 0
    again = openbook(
        "chain", "text-small", tiny_store.path, "--out", out, *options, "--distill-weight", 0.1
    )
    refused(again, 2, "member-01 was trained with another recipe")
    refused(
        openbook("chain", "text-small", tiny_store.path, "--out", out, "--untaught", 9), 2,
        "a chain of 3 members was asked for, the first 9 of them without teacher",
    )  # fmt: skip
