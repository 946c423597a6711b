"""A demo opens only what it would make itself, and says which of its claims do not hold."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data_attribution import demo
from data_attribution.counterfactuals import Forgetting
from data_attribution.counterfactuals.fact_removal import Group
from data_attribution.demo import planted_demo, stages
from data_attribution.errors import DemoError
from data_attribution.report import demo_page
from interp.behaviours import Check
from interp.heads import Copying
from interp.training_dynamics import Level, Recall, Share
from train import recipes, trainer
from train.data import build_store
from train.statistics import wilson
from train.trainer import Verification


pytestmark = pytest.mark.integration


def forgetting_of(gone=0.0, kept=1.0, control=1.0, change=-5.0) -> Forgetting:
    """Nine facts: recall without their documents, of others, and without those of nine others."""

    def group(setting, name, recall, change):
        share = Share(9, recall, *wilson(recall, 9), -1.0)
        return Group(setting, name, share, change, change - 0.5, change + 0.5)

    groups = (
        group("documents removed", "removed", gone, change),
        group("documents removed", "kept", kept, 0.0),
        group("documents removed", "control", 1.0, 0.0),
        group("documents removed", "never stated", 0.04, 0.0),
        group("control removed", "removed", control, 0.0),
    )
    return Forgetting("run", ("a",), (1,), ("b",), (2,), 0, ("x", "y"), groups)


PLANTED = SimpleNamespace(recipe=recipes.PLANTED)


def demo_of(**changes) -> demo.Demo:
    """A demo of which only the numbers of its claims are there, and every one of them holds."""
    share = Share(9, 1.0, 0.7, 1.0, 0.0)
    levels = (Level(1, 9, replace(share, recall=0.1), share, 0.0), Level(16, 9, share, share, 0.0))
    heads = torch.tensor([[0.1, 0.9], [0.2, 0.3]])
    values = {
        "run": PLANTED,
        "verification": Verification("run", "bit-exact", (), ((0, 9),), 0.0, 5),
        "recall": Recall(levels),
        "circuit": demo.Circuit(Copying(9.0, 2.0, 1.0, 10), heads, heads),
        "check": Check(1.0, 1.0, 5.0, 300, (0.98, 1.0)),
        "forgetting": forgetting_of(),
    }
    return fake(demo.Demo, **{**values, **changes})


def fake(cls, **values):
    """An instance with some of its attributes."""
    made = object.__new__(cls)
    vars(made).update(values)
    return made


@pytest.fixture(scope="module")
def planted(planted_corpus):
    return planted_corpus


@pytest.fixture(scope="module")
def store(planted, tmp_path_factory):
    return build_store(planted, out=tmp_path_factory.mktemp("data") / "planted")


@pytest.fixture(autouse=True)
def _today(planted, monkeypatch):
    """The corpus is drawn once for the whole file."""
    monkeypatch.setattr(planted_demo, "open_corpus", lambda _, seed: planted)


@pytest.fixture(scope="module")
def recipe(store):
    return recipes.resolve(recipes.PLANTED, store, steps=2)


@pytest.fixture(scope="module")
def run(store, recipe, one_thread_numerics, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "planted"
    return trainer.train(recipe, store, out=out, numerics=one_thread_numerics)


def test_the_store_and_the_run_of_today_are_opened(store, recipe, run, tmp_path):
    demo.refuse_other(store, run.path, recipe)
    demo.refuse_other(store, tmp_path / "not there yet", recipe)


def test_a_run_by_another_recipe_is_refused_with_what_differs(store, recipe, run):
    wider = replace(recipe, lr=1e-3, model=replace(recipe.model, d_model=64))
    said = rf"model.d_model {recipe.model.d_model}, not 64.*; remove .*{run.path.name}$"
    with pytest.raises(DemoError, match=said) as refused:
        demo.refuse_other(store, run.path, wider)
    assert f"lr {recipe.lr}, not 0.001" in str(refused.value)
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


def test_a_store_of_other_texts_or_another_truth_is_refused(
    store, planted, recipe, tmp_path, monkeypatch
):
    texts, truth = list(planted.read()), planted.truth()
    texts[7] = replace(texts[7], text="another")
    n, run_path = len(texts), tmp_path / "run"
    for said, changes in (
        (f"{n - 1:,} of them among the {n:,} of today's", {"read": lambda: iter(texts)}),
        ("with another truth table", {"truth": lambda: {**truth, "seed": -1}}),
    ):
        monkeypatch.setattr(
            planted_demo,
            "open_corpus",
            lambda _, seed, changes=changes: replace(planted, **changes),
        )
        with pytest.raises(DemoError, match=f"{said}.*; remove {store.path} and {run_path}$"):
            demo.refuse_other(store, run_path, recipe)


def test_a_store_packed_by_another_seed_is_refused(store, recipe, tmp_path):
    with pytest.raises(DemoError, match="was packed by seed 0, not 1"):
        demo.refuse_other(store, tmp_path, replace(recipe, order_seed=1))


def test_a_run_on_another_store_is_refused(store, recipe, run):
    moved = replace(store, manifest={**store.manifest, "fingerprint": "0" * 64})
    with pytest.raises(DemoError, match="trained on another store"):
        demo.refuse_other(moved, run.path, recipe)


def test_what_is_there_is_opened_and_nothing_is_trained(store, run, monkeypatch):
    monkeypatch.setattr(recipes, "PLANTED", replace(recipes.PLANTED, steps=2))
    again = demo.trained(store.path, run.path, lambda _: nullcontext(lambda *_: None))
    assert again.id == run.id


# --- what it will take --------------------------------------------------------------------------


def test_it_says_what_it_will_do_and_how_long_that_takes_here(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "step_seconds", lambda recipe, how: 0.1)
    plan = demo.plan(out=tmp_path)
    recipe = recipes.PLANTED
    assert (plan.steps, plan.retrained) == (recipe.steps, 2 * (recipe.steps - recipe.late_begin))
    assert plan.seconds == pytest.approx((2100 + 1300 + planted_demo.LOOKING) * 0.1)
    assert "train 2,100 steps" in str(plan)
    assert f"a step takes 100 ms ({plan.how.precision}, {plan.how.threads} threads)" in str(plan)
    assert str(plan).endswith("about 6 min")


def test_what_is_done_already_is_not_announced_again(run, store, recipe, monkeypatch):
    monkeypatch.setattr(stages, "step_seconds", lambda recipe, how: 0.1)
    monkeypatch.setattr(recipes, "PLANTED", recipe)
    plan = demo.plan(out=run.path.parent)
    assert (plan.how, plan.steps) == (run.numerics, 0)


def test_a_step_is_timed_as_it_is_trained(recipe, one_thread_numerics):
    assert 0 < stages.step_seconds(recipe, one_thread_numerics) < 10


# --- claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fell", "stayed"),
    [
        ({}, True, True),
        ({"gone": 0.8}, False, True),
        ({"change": -0.2}, False, True),  # no more than under the control
        ({"kept": 0.5}, True, False),
        ({"control": 0.5}, True, False),
    ],
)
def test_the_claim_holds_when_the_removed_facts_fall_and_nothing_else_does(changes, fell, stayed):
    found = forgetting_of(**changes)
    assert (found.fell, found.stayed, found.holds) == (fell, stayed, fell and stayed)


def test_a_single_fact_proves_nothing():
    found = forgetting_of()
    gone = replace(found.groups[0], change_low=None, change_high=None)
    assert not replace(found, groups=(gone, *found.groups[1:])).holds


def test_a_demo_of_which_every_claim_holds_has_no_failures():
    assert demo_of().failures == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verification": Verification("run", "order only", (), ((0, 9),), 1.0, 5)}, "order only"),
        ({"check": Check(0.5, 0.5, 1.0, 300, (0.4, 0.6))}, "IOI accuracy is 0.50"),
        ({"recall": Recall(())}, "recall of facts in 16 or more documents is 0.00"),
        ({"forgetting": forgetting_of(gone=0.9)}, "do not fall to those never stated"),
        ({"forgetting": forgetting_of(control=0.1)}, "falls below 0.9"),
    ],
)
def test_a_claim_that_does_not_hold_is_named_with_its_number(changes, said):
    (failure,) = demo_of(**changes).failures
    assert said in failure


def test_a_run_without_circuits_fails_three_claims():
    flat = torch.full((2, 2), 0.1)
    circuit = demo.Circuit(Copying(9.0, 8.0, 0.1, 10), flat, flat)
    assert len(demo_of(circuit=circuit).failures) == 3


def test_the_proof_is_worded_by_its_outcome():
    held, failed = (
        demo_page.proof_section(demo_of(forgetting=forgetting_of(gone=gone, control=1 - gone))).body
        for gone in (0.0, 0.8)
    )
    assert "facts falls to 0.00" in held
    assert "equally often, it stays at 1.00" in held
    assert "facts does not fall to the level of facts never stated" in failed
    assert "equally often, it does not stay: it is 0.20" in failed


@pytest.mark.parametrize(
    ("ok", "failures", "code"),
    [(True, (), 0), (True, ("x is 1",), 1), (False, (), 3), (False, ("x is 1",), 3)],
)
def test_the_command_ends_as_the_demo_did(openbook, monkeypatch, tmp_path, ok, failures, code):
    verification = SimpleNamespace(ok=ok, level="damaged")
    played = SimpleNamespace(verification=verification, failures=failures)
    monkeypatch.setattr(demo, "play", lambda **_: played)
    monkeypatch.setattr(demo_page, "write_demo_page", lambda _, path: path)
    monkeypatch.setattr(demo_page, "demo_summary", lambda _: "six lines")
    ended = openbook("demo", "--out", tmp_path / "page.html")
    assert ended.code == code
    assert "six lines" in ended.out
    assert ("does not hold: x is 1" in ended.err) == bool(failures)
    assert ("verification: damaged" in ended.err) != ok
