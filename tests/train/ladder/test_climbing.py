"""A ladder has one table, whoever trains it: one process, two at once, or many that are killed."""

import json
import subprocess
import sys
from dataclasses import replace
from math import log
from pathlib import Path

import pytest

from train import ladder, recipes, runs, storage, trainer
from train.errors import DivergedError, RecipeError, StoreError
from train.ladder import Ladder, LadderTable
from train.numerics import Numerics
from train.recipes import Recipe
from train.trainer import stochastic_depth


pytestmark = pytest.mark.integration
HOW = Numerics("cpu", "fp32", 1)


@pytest.fixture(scope="module")
def ends(tiny_recipe) -> tuple[Recipe, Recipe]:
    """Two recipes that differ in MLP and norm."""
    start = replace(tiny_recipe, name="first", steps=6, checkpoint_every=3, optimizer_every=3)
    model = replace(start.model, mlp="swiglu", norm="rmsnorm", d_mlp=0)
    return start, replace(start, name="last", model=model)


@pytest.fixture(scope="module")
def climbed(ends, tiny_store, tmp_path_factory) -> Ladder:
    """A ladder with two seeds, trained by this process."""
    out: Path = tmp_path_factory.mktemp("ladders") / "one"
    begun = ladder.begin(ends[0], ends[1], tiny_store, out=out, seeds=2, numerics=HOW)
    assert ladder.climb(begun) == len(begun.trials) == 8
    return begun


@pytest.fixture(scope="module")
def table(climbed) -> LadderTable:
    return ladder.save_table(climbed)


def test_the_table_holds_what_its_runs_say(climbed, table, tiny_store):
    assert [(row.kind, row.factor) for row in table.rows] == [
        ("start", "first"), ("alone", "norm"), ("alone", "MLP"),
        ("cumulative", "norm"), ("cumulative", "MLP"),
    ]  # fmt: skip
    losses = {}
    for trial in climbed.trials:
        run = runs.open(climbed.run_path(trial), store=tiny_store.path)
        windows = replace(run.recipe, eval_windows=10_000)
        losses[trial] = trainer.held_out_loss(run.load(), tiny_store, windows, HOW)
        assert (run.recipe.init_seed, run.recipe.order_seed) == (trial.seed, trial.seed)
    both = [losses["norm+MLP", seed] - losses["start", seed] for seed in (0, 1)]
    last = table.rows[-1]
    assert last.loss == (losses["norm+MLP", 0] + losses["norm+MLP", 1]) / 2
    assert last.change == ladder.paired_change(both, [0.0, 0.0])
    step = [losses["norm+MLP", seed] - losses["norm", seed] for seed in (0, 1)]
    assert last.step == ladder.paired_change(step, [0.0, 0.0])
    assert (last.parameters, last.d_mlp) == (climbed.members[("norm", "MLP")].model.n_params, 44)


def test_members_read_the_same_windows(climbed, tiny_store):
    for seed in (0, 1):
        read = {
            tuple(row.digest for row in runs.open(climbed.run_path(one)).ledger)
            for one in climbed.trials
            if one.seed == seed
        }
        assert len(read) == 1


def test_bits_per_byte_are_those_of_the_held_out_text(climbed, table, tiny_store):
    first = tiny_store.train_tokens
    n_windows = (tiny_store.n_tokens - first) // 16
    kept = tiny_store.tokens[first : first + 16 * n_windows].tolist()
    documents, words = [], []
    for token in kept:
        if token == tiny_store.eot:
            documents.append(words)
            words = []
        else:
            words.append(token)
    n_bytes = sum(len(tiny_store.tokenizer.decode(one)) for one in [*documents, words])
    start = table.rows[0]
    assert start.bits_per_byte == pytest.approx(start.loss * len(kept) / log(2) / n_bytes)


def test_the_text_has_a_line_for_every_rung_and_says_how_it_was_measured(climbed, table):
    text = str(table)
    assert text.count("\n| ") == 8
    assert "paired by seed" in text
    assert "(1 degree of freedom)" in text
    assert "as many parameters as first" in text
    assert "missing" not in text
    assert storage.read_sealed(climbed.path / "table.json")["rows"][0]["factor"] == "first"


# What climbs is imported once, and not by every fork: the optimizer's torch._dynamo takes seconds.
BEGIN = """
import json
import os
import sys
from pathlib import Path
import torch
import torch._dynamo
import train.ladder.training
from train import ladder, recipes
from train.data import open_store
from train.numerics import Numerics

torch.set_num_threads(1)
store, folder = open_store(sys.argv[1]), Path(sys.argv[2])
ends = [recipes.from_dict(one, "here") for one in json.loads(sys.argv[3])]

def climb(name):
    how = Numerics("cpu", "fp32", 1)
    return ladder.climb(ladder.begin(*ends, store, out=folder / name, seeds=2, numerics=how))
"""
TWO = """
def report(name):
    if os.fork() == 0:
        print(climb(name), flush=True)
        os._exit(0)

report("two")
report("two")
assert [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)] == [0, 0]
"""
KILLED = """
kills = 0
while killed_at(lambda: climb("killed"), 120):
    kills += 1
print(kills)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [("two", TWO), ("killed", KILLED)], ids=["two", "killed"]
)
def test_two_processes_and_killed_ones_give_the_same_table(
    name, code, ends, table, tiny_store, tmp_path, killed
):
    both = json.dumps([recipes.to_dict(one) for one in ends])
    command = [sys.executable, "-c", killed + BEGIN + code, tiny_store.path, tmp_path, both]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    counts = [int(line) for line in ended.stdout.split()]
    if name == "two":
        assert sum(counts) == 8
        assert min(counts) >= 1
    else:
        assert counts[0] >= 3
    joined = ladder.begin(ends[0], ends[1], tiny_store, out=tmp_path / name, seeds=2)
    assert ladder.cost(joined).done == 8
    assert ladder.tabulate(joined).same_everywhere() == table.same_everywhere()


def test_the_estimate_times_the_step_of_the_training_with_its_methods(
    ends, tiny_store, tmp_path, monkeypatch
):
    """Steps without them take another time: layers are left out, or an extra block is trained."""
    left_out = []
    real = stochastic_depth.layers_left_out

    def noted(model, recipe, step):
        left_out.append((recipe.stochastic_depth, step))
        return real(model, recipe, step)

    monkeypatch.setattr(stochastic_depth, "layers_left_out", noted)
    deep = [
        replace(end, model=replace(end.model, n_layers=2), stochastic_depth=0.5) for end in ends
    ]
    start, end = deep
    begun = ladder.begin(start, end, tiny_store, out=tmp_path / "ladder", seeds=1, numerics=HOW)
    ladder.cost(begun)
    assert left_out == [(0.5, step) for step in range(5)] * 2


def test_the_cost_counts_what_is_left(climbed, ends, tiny_store, tmp_path):
    new = ladder.begin(ends[0], ends[1], tiny_store, out=tmp_path / "new", seeds=3, numerics=HOW)
    cost = ladder.cost(new)
    assert (cost.members, cost.trials, cost.done) == (4, 12, 0)
    assert cost.tokens == 12 * 6 * 4 * 16
    assert cost.seconds > 0
    assert str(cost).startswith("4 members, 12 trainings: 4,608 tokens, about ")
    assert str(ladder.cost(climbed)) == "8 trainings, 8 are there already: nothing to train"
    assert str(ladder.tabulate(new)).endswith("12 trainings are still missing.")


def test_the_disk_that_is_promised_is_used(climbed):
    left = ladder.cost(replace(climbed, path=climbed.path / "nowhere"))
    written = [path.stat().st_size for path in climbed.path.rglob("*.safetensors")]
    assert left.disk == pytest.approx(sum(written), rel=0.3)


def test_a_training_that_diverges_has_a_row_that_says_so(ends, tiny_store, tmp_path, monkeypatch):
    from train.ladder import training

    def train(recipe, store, *, out, **options):
        run = trainer.train(recipe, store, out=out, **options)
        if recipe.name == "MLP" and recipe.init_seed == 1:
            raise DivergedError("the loss of step 3 is not a number")
        return run

    monkeypatch.setattr(training, "train", train)
    begun = ladder.begin(ends[0], ends[1], tiny_store, out=tmp_path / "one", seeds=2, numerics=HOW)
    ladder.climb(begun)
    row = ladder.tabulate(begun).rows[2]
    assert (row.factor, row.diverged) == ("MLP", 1)
    assert str(row.change).endswith("[one seed]")
    assert "MLP (alone): 1 of 2 trainings diverged" in str(ladder.tabulate(begun))


def test_a_ladder_that_is_another_one_or_none_is_refused(climbed, ends, tiny_store, tmp_path):
    start, end = ends

    def begin(first=start, last=end, out=climbed.path, **options):
        ladder.begin(first, last, tiny_store, out=out, **{"seeds": 2, **options})

    with pytest.raises(RecipeError, match="holds another ladder: seeds is 2 there and 3 here"):
        begin(seeds=3)
    with pytest.raises(RecipeError, match="equal is parameters there and compute here"):
        begin(equal="compute")
    with pytest.raises(RecipeError, match=r"recipe\.lr is 0\.01 there and 0\.02 here"):
        begin(replace(start, lr=0.02), replace(end, lr=0.02))
    with pytest.raises(RecipeError, match=r"was begun with .*threads=1.* leave numerics out"):
        begin(numerics=replace(HOW, threads=2))
    with pytest.raises(RecipeError, match="differ in more than the architecture"):
        begin(last=replace(end, lr=0.02))
    with pytest.raises(RecipeError, match="have the same parts"):
        begin(last=replace(start, name="last"))
    with pytest.raises(RecipeError, match="a ladder with 0 seeds"):
        begin(seeds=0)
    longer = replace(end, model=replace(end.model, n_ctx=32))
    with pytest.raises(RecipeError, match="reads windows of 16 tokens and last of 32"):
        begin(last=longer)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="exists already and holds no ladder"):
        begin(out=tmp_path)
    deep = replace(end, model=replace(end.model, n_layers=9))
    with pytest.raises(RecipeError, match="member depth of the ladder from first to last: equal"):
        begin(last=deep, out=tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_store_that_holds_nothing_out_is_refused(ends, make_store, tmp_path):
    store = make_store(["w1 w2 w3 w4 " * 40])
    with pytest.raises(StoreError, match="holds out 0 tokens, less than one window of 16"):
        ladder.begin(ends[0], ends[1], store, out=tmp_path / "new")


def test_a_run_of_another_recipe_in_the_folder_is_refused(ends, tiny_store, tmp_path):
    begun = ladder.begin(ends[0], ends[1], tiny_store, out=tmp_path / "one", seeds=1, numerics=HOW)
    trainer.train(ends[0], tiny_store, out=begun.run_path(begun.trials[0]), numerics=HOW, lr=0.5)
    with pytest.raises(RecipeError, match="start-seed-0 holds a run of another recipe"):
        ladder.climb(begun)
