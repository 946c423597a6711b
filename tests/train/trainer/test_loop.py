"""Training can be stopped, resumed and replayed without changing one bit."""

import errno
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.stops import check_resumed
from train import recipes, runs, storage, trainer
from train.data import Corpus, Document, DocumentRemoval, build_store
from train.errors import DamagedError, DivergedError, RecipeError, StoreError, TrainError
from train.runs import checkpoints, manifest


pytestmark = pytest.mark.integration


def weights(run, step=None) -> str:
    return run.saved_at(step).files["model.safetensors"]


def test_the_loss_falls(tiny_run):
    losses = [row.loss for row in tiny_run.ledger]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3


def test_two_runs_of_one_recipe_are_the_same_run(tiny_run, tiny_store, tmp_path):
    again = trainer.train(
        tiny_run.recipe, tiny_store, out=tmp_path / "again", numerics=tiny_run.numerics
    )
    assert weights(again) == weights(tiny_run)
    assert again.id == tiny_run.id


@pytest.mark.parametrize("change", [{"init_seed": 1}, {"order_seed": 1}])
def test_another_seed_is_another_run(tiny_run, tiny_store, tmp_path, change):
    other = trainer.train(
        tiny_run.recipe, tiny_store, out=tmp_path / "r", numerics=tiny_run.numerics, **change
    )
    assert weights(other) != weights(tiny_run)
    same_order = [a.digest for a in other.ledger] == [b.digest for b in tiny_run.ledger]
    assert same_order == ("init_seed" in change)


@pytest.mark.parametrize(
    "change", [{"eval_every": 3}, {"micro_batch_size": 1}, {"steps": 30}], ids=str
)
def test_evaluation_micro_batches_and_length_change_not_one_bit_of_the_order(
    tiny_run, tiny_store, tmp_path, change
):
    other = trainer.train(
        tiny_run.recipe, tiny_store, out=tmp_path / "r", numerics=tiny_run.numerics,
        data_workers=2, **change,
    )  # fmt: skip
    digests = [row.digest for row in other.ledger]
    assert digests[:24] == [row.digest for row in tiny_run.ledger]
    if "eval_every" in change:
        assert weights(other) == weights(tiny_run)
        assert [row.step for row in other.ledger if row.held_out] == list(range(0, 24, 3))


@pytest.mark.parametrize("stop", [0, 1, 5, 8, 13, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(tiny_run, tmp_path, stop):
    check_resumed(tiny_run, tmp_path / "r", stop)


def test_the_manifest_says_from_which_step_on_which_code_ran_where(
    tiny_run, tiny_store, tmp_path, monkeypatch
):
    def stop_after(step):
        def progress(what, done, total):
            if done == step:
                raise Killed

        return progress

    out, how = tmp_path / "r", tiny_run.numerics
    with pytest.raises(Killed):
        trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=how, progress=stop_after(3))
    begun = runs.open(out)
    monkeypatch.setattr(manifest, "environment", lambda: {"torch": "another"})
    for stop in (20, 18):  # the second resumption does again what the first had not saved
        with pytest.raises(Killed):
            trainer.resume(out, progress=stop_after(stop))
    run = trainer.resume(out)
    first, *others = run.predicate["segments"]
    assert first == {
        "first_step": 0,
        "code": run.predicate["code"],
        "environment": run.predicate["environment"],
    }
    assert [one["first_step"] for one in others] == [2, 16]
    assert [one["environment"] for one in others] == [{"torch": "another"}] * 2
    assert run.id == begun.id == tiny_run.id
    assert trainer.resume(out).manifest == run.manifest
    assert trainer.verify(run).level == "bit-exact"


class Killed(BaseException):
    """As if the process had ended: nothing of ours catches it."""


@pytest.fixture
def killed_in_first_index(monkeypatch):
    """Ends whatever writes the index of checkpoints, before a byte of it is written."""

    def kill(*_arguments):
        monkeypatch.undo()
        raise Killed

    monkeypatch.setattr(checkpoints, "write_checkpoint_index", kill)


@pytest.mark.usefixtures("killed_in_first_index")
def test_a_run_killed_inside_its_first_checkpoint_begins_again_at_step_0(
    tiny_run, tiny_store, tmp_path
):
    out = tmp_path / "r"
    with pytest.raises(Killed):
        trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics)
    assert (out / "checkpoints/step-00000000").is_dir()
    again = trainer.resume(out)
    assert again.steps == tiny_run.steps
    assert weights(again, 0) == weights(tiny_run, 0)
    assert trainer.verify(again).level == "bit-exact"


def test_a_branch_killed_inside_its_first_checkpoint_begins_again_where_it_left_its_parent(
    tiny_run, retrained, tmp_path, request
):
    request.getfixturevalue("killed_in_first_index")
    out = tmp_path / "child"
    with pytest.raises(Killed):
        trainer.retrain_without(tiny_run, out, retrained.removal)
    # No run yet, so nothing can take it for one that begins at step 0.
    with pytest.raises(TrainError, match="no run at"):
        trainer.resume(out)
    again = trainer.retrain_without(tiny_run, out, retrained.removal)
    assert again.steps == retrained.steps
    assert again.steps[0] == again.predicate["parent"]["step"] == 16
    assert weights(again) == weights(retrained)
    assert trainer.verify(again).level == "bit-exact"
    with pytest.raises(RecipeError, match="is a run already"):
        trainer.retrain_without(tiny_run, out, retrained.removal)


def test_a_branch_stopped_after_its_first_checkpoint_resumes_to_the_same_bits(
    tiny_run, retrained, tmp_path
):
    def progress(what, done, total):
        raise Killed

    with pytest.raises(Killed):
        trainer.retrain_without(tiny_run, tmp_path / "child", retrained.removal, progress=progress)
    again = trainer.resume(tmp_path / "child", store=tiny_run.store.path)
    assert weights(again) == weights(retrained)
    assert trainer.verify(again).level == "bit-exact"


# Behind `killed.py`. Imports once, then forks trainings and kills them before random changes of a
# file. Forked before any backward pass: autograd refuses to go on in a fork.
KILLER = """
import random
from dataclasses import replace
from pathlib import Path
import torch
import torch._dynamo  # by the first optimizer: once, instead of in every fork
from train import trainer
from train import runs
from train.data import open_store
from train.numerics import Numerics

torch.set_num_threads(1)
store, source, folder, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
recipe = replace(runs.open(source).recipe, steps=40, checkpoint_every=5, optimizer_every=15)

def training(out):
    def train():
        if (out / "manifest.json").exists():
            trainer.resume(out, store=store)
        else:
            trainer.train(recipe, open_store(store), out=out, numerics=Numerics("cpu", "fp32", 1))

    return train

n_changes = changes_of(training(folder / "unbroken"))
draw, killed, trial = random.Random(0), 0, 0
while killed < kills:
    work = training(folder / f"killed-{trial}")
    trial += 1
    killed += sum(killed_at(work, draw.randint(1, int(0.4 * n_changes))) for _ in range(4))
    assert not killed_at(work, 0)
print(killed)
"""


@pytest.mark.slow
def test_kill_9_at_20_random_moments_leaves_the_same_weights(tiny_run, tmp_path, killed):
    """Killed wherever it is, in the middle of a write too, the run resumes to the same bits."""
    store = tiny_run.store.path
    command = [sys.executable, "-c", killed + KILLER, store, tiny_run.path, tmp_path, 20]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 20
    unbroken = runs.open(tmp_path / "unbroken", store=store)
    gone_on = [runs.open(path, store=store) for path in sorted(tmp_path.glob("killed-*"))]
    assert len(gone_on) >= 5
    for finished in gone_on:
        assert weights(finished) == weights(unbroken)
        assert finished.steps == unbroken.steps
        assert all(a.agrees(b) for a, b in zip(finished.ledger, unbroken.ledger, strict=True))
        assert not trainer.verify(finished, spans=1).problems


@pytest.mark.parametrize(("first", "last"), [(0, 3), (7, 8), (10, 20), (23, 23)])
def test_replay_of_any_span_reproduces_the_ledger_exactly(tiny_run, first, last):
    replayed = trainer.replay(tiny_run, first, last)
    assert replayed.exact
    assert [row.step for row in replayed.rows] == list(range(first, last + 1))


def test_replay_to_a_checkpoint_reproduces_its_weights(tiny_run):
    replayed = trainer.replay(tiny_run, 0, 23).state.model.state_dict()
    for name, tensor in tiny_run.load().state_dict().items():
        assert torch.equal(tensor, replayed[name])


def test_replay_without_a_document_is_exact_until_it_is_read_and_differs_from_there(tiny_run):
    document = int(tiny_run.documents_read(9)[0])
    first = int(tiny_run.steps_reading(document)[0])
    replayed = trainer.replay(tiny_run, 0, 23, removal=DocumentRemoval((document,)))
    agree = [a.agrees(b) for a, b in zip(replayed.rows, replayed.expected, strict=True)]
    assert all(agree[:first])
    assert not any(agree[first:])
    # The order never changes, only what is seen of it.
    assert replayed.same_order


def test_a_branch_is_the_parent_until_the_removed_document_and_knows_its_lineage(
    tiny_run, tmp_path
):
    document = int(tiny_run.documents_read(20)[0])
    first = int(tiny_run.steps_reading(document)[0])
    child = trainer.retrain_without(tiny_run, tmp_path / "child", DocumentRemoval((document,)))
    assert child.predicate["parent"]["run_id"] == tiny_run.id
    agree = [a.agrees(b) for a, b in zip(child.ledger, tiny_run.ledger, strict=True)]
    assert agree == [step < first for step in range(24)]
    assert trainer.verify(child).level == "bit-exact"
    whole = trainer.replay(tiny_run, 0, 23, removal=DocumentRemoval((document,)))
    for name, tensor in child.load().state_dict().items():
        assert torch.equal(tensor, whole.state.model.state_dict()[name])


@pytest.fixture(scope="module")
def retrained(tiny_run, tmp_path_factory):
    """A run that lacks a document first read behind the checkpoint of step 16."""
    read = [int(one) for one in tiny_run.documents_read(20)]
    document = next(one for one in read if tiny_run.steps_reading(one)[0] > 16)
    return trainer.retrain_without(
        tiny_run, tmp_path_factory.mktemp("c") / "child", DocumentRemoval((document,))
    )


def test_a_replay_of_a_retrained_run_leaves_out_what_the_run_lacks(tiny_run, retrained):
    assert trainer.replay(retrained, retrained.steps[0], 23).exact
    more = int(tiny_run.documents_read(22)[-1])
    both = DocumentRemoval(tuple(sorted({*retrained.removal.documents, more})))
    twice = trainer.replay(retrained, 17, 23, removal=DocumentRemoval((more,)))
    once = trainer.replay(tiny_run, 0, 23, removal=both)
    assert all(a.agrees(b) for a, b in zip(twice.rows, once.rows[17:], strict=True))


def test_a_grandchild_lacks_what_its_parent_lacked(tiny_run, retrained, tmp_path):
    read = set(tiny_run.documents_read(21).tolist()) - set(retrained.removal.documents)
    more = max(read, key=lambda one: tiny_run.steps_reading(one)[0])
    assert tiny_run.steps_reading(more)[0] > 16
    grandchild = trainer.retrain_without(
        retrained, tmp_path / "grandchild", DocumentRemoval((more,))
    )
    both = tuple(sorted({*retrained.removal.documents, more}))
    assert grandchild.removal == DocumentRemoval(both)
    assert trainer.verify(grandchild).level == "bit-exact"
    at_once = trainer.retrain_without(tiny_run, tmp_path / "at_once", DocumentRemoval(both))
    assert weights(grandchild) == weights(at_once)
    early = int(tiny_run.documents_read(2)[0])
    with pytest.raises(TrainError, match=f"it left run {tiny_run.id} at step 16, ask that"):
        trainer.retrain_without(retrained, tmp_path / "early", DocumentRemoval((early,)))


def test_two_ways_of_removing_do_not_mix(tiny_run, retrained, tmp_path):
    other = DocumentRemoval((int(tiny_run.documents_read(22)[-1]),), "loss")
    with pytest.raises(StoreError, match="already lacks 1 documents, removed by 'blank'"):
        trainer.retrain_without(retrained, tmp_path / "grandchild", other)
    with pytest.raises(StoreError, match="already lacks 1 documents"):
        trainer.replay(retrained, 17, 23, removal=other)
    assert not (tmp_path / "grandchild").exists()


def test_a_document_that_is_never_read_cannot_be_taken_out(tiny_run, tmp_path):
    held_out = tiny_run.store.n_documents - 1
    with pytest.raises(TrainError, match="was ever read in the 24 steps"):
        trainer.retrain_without(tiny_run, tmp_path / "child", DocumentRemoval((held_out,)))


@pytest.fixture(scope="module")
def late_run(tiny_recipe, one_thread_numerics, tmp_path_factory):
    """Forty documents, every fifth of which is read from step 16 of 24 on."""
    documents = [
        Document(f"late@0/{row}", " ".join(f"w{row}x{k % 7}" for k in range(9)), "late", "0", row,
                 late=row % 5 == 0)
        for row in range(40)
    ]  # fmt: skip
    corpus = Corpus("late", "late", "0", lambda: iter(documents), tokenizer="word")
    folder = tmp_path_factory.mktemp("late")
    store = build_store(corpus, out=folder / "store")
    return trainer.train(
        tiny_recipe,
        store,
        out=folder / "run",
        numerics=one_thread_numerics,
        late_batch=1,
        late_begin=16,
    )


def test_late_documents_are_read_from_their_step_on_and_the_others_throughout(late_run):
    context, store = late_run.recipe.model.n_ctx, late_run.store
    # The window in which the first late document begins is late as a whole.
    first_late = (store.early_tokens - 1) // context * context + 1
    for document in range(store.n_documents):
        steps = late_run.steps_reading(document)
        if store.starts[document] >= first_late:
            assert (steps >= 16).all()
        elif store.starts[document] + store.lengths[document] <= first_late:
            assert (steps < 16).any()
    assert trainer.verify(late_run).level == "bit-exact"


def test_what_removes_late_documents_begins_at_the_checkpoint_before_them(late_run, tmp_path):
    document = next(one for one in range(40) if late_run.store.rows[one] % 5 == 0 and
                    len(late_run.steps_reading(one)))  # fmt: skip
    branch = trainer.retrain_without(late_run, tmp_path / "branch", DocumentRemoval((document,)))
    assert branch.predicate["parent"]["step"] == 16
    assert branch.steps == [16, 24]


def test_a_store_without_late_documents_is_read_by_a_recipe_that_wants_some(
    tiny_store, tiny_recipe
):
    resolved = recipes.resolve(tiny_recipe, tiny_store, late_batch=1, late_begin=16)
    assert (resolved.late_batch, resolved.late_begin) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"late_batch": 4}, "late_batch=4 from step 0 on in batches of 4"),
        ({"late_batch": -1}, "late_batch=-1"),
        ({"late_batch": 1, "late_begin": -1}, "from step -1"),
        ({"late_batch": 1, "sampler": "nanogpt"}, "only 'tiles' tells late documents"),
    ],
)
def test_late_documents_that_fit_no_batch_are_refused(tiny_recipe, changes, said):
    with pytest.raises(RecipeError, match=said):
        replace(tiny_recipe, **changes)


@pytest.mark.parametrize("lr", [1e20, 1e30, 1e38])
def test_a_model_that_is_not_a_number_is_named_and_never_becomes_a_checkpoint(
    tiny_run, tiny_store, tmp_path, lr
):
    out = tmp_path / "r"
    with pytest.raises(DivergedError, match=r"is not a number.*first bad tensor is the \w+ "):
        trainer.train(
            tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics,
            lr=lr, min_lr=lr, weight_decay=0.0,
        )  # fmt: skip
    kept = runs.open(out)
    assert not kept.finished
    newest = kept.saved_at(None)
    assert all(tensor.isfinite().all() for tensor in kept.load().state_dict().values())
    assert np.isfinite(checkpoints.read_counters(out, newest)["fixed_loss"])


@pytest.mark.parametrize("name", ["tokens.bin", "documents.parquet"])
def test_nothing_is_computed_from_a_store_with_a_flipped_bit(tiny_run, tmp_path, name):
    computed = shutil.ignore_patterns("index", "bm25", ".*")
    place = shutil.copytree(tiny_run.store.path, tmp_path / "store", ignore=computed)
    stopped = shutil.copytree(tiny_run.path, tmp_path / "stopped")
    manifest.resumed_manifest(stopped, {**tiny_run.manifest, "predicate": {
        **tiny_run.predicate, "finished": False}}, 24)  # fmt: skip
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    recipe, numerics, out = tiny_run.recipe, tiny_run.numerics, tmp_path / "r"
    for compute in (
        lambda run: trainer.train(recipe, run.store, out=out, numerics=numerics),
        lambda run: trainer.retrain_without(run, out, DocumentRemoval((0,))),
        lambda run: trainer.resume(stopped, store=place),
        lambda run: trainer.replay(run, 0, 1),
        lambda run: run.documents_read(0) if name == "documents.parquet" else run.store.text(0),
    ):
        opened = runs.open(tiny_run.path, store=place)
        with pytest.raises(DamagedError, match=r"its sha256 is not the one in store\.json"):
            compute(opened)
        assert not out.exists()


@pytest.mark.slow
def test_gpt2_124m_starts_runs_and_resumes_on_a_cpu(tmp_path):
    """The real recipe's architecture, optimizer and schedule with a small context and batch."""
    from train.data import Corpus, Document, build_store
    from train.numerics import Numerics

    text = "the quick brown fox jumps over the lazy dog and reads an open book . " * 6
    corpus = Corpus(
        name="fox", source="fox", revision="0",
        read=lambda: (Document(f"fox/{row}", f"{row} {text}", "fox", "0", row) for row in range(4)),
    )  # fmt: skip
    store = build_store(corpus, out=tmp_path / "store")
    small = replace(recipes.GPT2_124M.model, n_ctx=32)

    def progress(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            recipes.GPT2_124M, store, out=tmp_path / "run", numerics=Numerics("cpu", "fp32", 1),
            progress=progress, model=small, batch_size=4, micro_batch_size=2, steps=2,
            eval_every=0, checkpoint_every=2,
        )  # fmt: skip
    run = trainer.resume(tmp_path / "run")
    assert run.finished
    assert run.config.n_params == 124_439_808 - (1024 - 32) * 768
    assert run.ledger[-1].loss < run.ledger[0].loss
    assert run.ledger[0].loss == pytest.approx(np.log(50257), abs=0.5)


def test_the_real_recipe_is_what_it_says():
    recipe = recipes.GPT2_124M
    assert recipe.tokens_per_step == 512 * 1024
    assert recipe.steps * recipe.tokens_per_step == pytest.approx(27.5e9, rel=1e-4)
    assert recipe.steps * recipe.tokens_per_step / 9_035_582_198 == pytest.approx(3.04, abs=0.01)
    assert recipe.model.n_params == 124_439_808


def test_a_run_is_not_written_over(tiny_run, tiny_store):
    with pytest.raises(RecipeError, match="exists already; resume it with `openbook run resume`"):
        trainer.train(tiny_run.recipe, tiny_store, out=tiny_run.path)


def test_what_is_refused_while_training_begins_leaves_no_folder(
    tiny_store, tiny_recipe, one_thread_numerics, tmp_path, monkeypatch
):
    tasks = trainer.store_tasks(tiny_store, tiny_recipe.model.n_ctx)
    with pytest.raises(TrainError, match="2 watches write the scores of 'copies'"):
        trainer.train(
            tiny_recipe, tiny_store, out=tmp_path / "r", numerics=one_thread_numerics,
            watch=[tasks[0], *tasks],
        )  # fmt: skip
    on_a_gpu = replace(one_thread_numerics, device="cuda")
    with pytest.raises(RecipeError, match="no CUDA device"):
        trainer.train(tiny_recipe, tiny_store, out=tmp_path / "r", numerics=on_a_gpu)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(RecipeError, match="CUBLAS_WORKSPACE_CONFIG"):
        trainer.train(tiny_recipe, tiny_store, out=tmp_path / "r", numerics=on_a_gpu)
    assert not (tmp_path / "r").exists()


def test_a_context_longer_than_the_store_is_refused_with_the_numbers(tiny_store, tiny_recipe):
    long = replace(tiny_recipe.model, n_ctx=100_000)
    with pytest.raises(StoreError, match=r"window of 100000 tokens .* \d+ training tokens"):
        recipes.resolve(tiny_recipe, tiny_store, model=long)


def test_a_vocabulary_that_is_not_the_recipes_is_refused(tiny_store):
    with pytest.raises(StoreError, match="needs a vocabulary of 50257"):
        recipes.resolve(recipes.GPT2_124M, tiny_store)


def test_an_unknown_recipe_or_field_offers_the_nearest(tiny_store):
    with pytest.raises(RecipeError, match="did you mean 'planted'"):
        recipes.by_name("plantd")
    with pytest.raises(RecipeError, match="did you mean 'lr'"):
        recipes.resolve(recipes.PLANTED, tiny_store, lrr=1)


def test_nanogpts_sampler_is_recorded_and_replayed(tiny_store, tiny_recipe, tmp_path):
    from train.numerics import Numerics

    run = trainer.train(
        tiny_recipe, tiny_store, out=tmp_path / "r", numerics=Numerics("cpu", "fp32", 1),
        sampler="nanogpt",
    )  # fmt: skip
    assert trainer.replay(run, 3, 9).exact
    document = int(run.documents_read(5)[0])
    assert 5 in run.steps_reading(document)
    assert trainer.verify(run).level == "bit-exact"
    with (run.path / runs.SCHEDULE).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedError, match=r"schedule\.npy: 1,099,511,627,776 bytes, and at most"):
        _ = runs.open(run.path).order  # without hashing a terabyte


def test_a_stopped_run_does_not_go_on_with_another_schedule(tiny_store, tiny_run, tmp_path):
    def stop(what, done, total):
        if done == 9:
            raise Killed

    out, how = tmp_path / "r", tiny_run.numerics
    with pytest.raises(Killed):
        trainer.train(
            tiny_run.recipe, tiny_store, out=out, numerics=how, sampler="nanogpt", progress=stop
        )
    content = bytearray((out / runs.SCHEDULE).read_bytes())
    content[-1 - 8 * 40] ^= 1  # a window of the second half of the steps
    (out / runs.SCHEDULE).write_bytes(content)
    with pytest.raises(DamagedError, match=r"schedule\.npy: its sha256 is not the one in manifest"):
        trainer.resume(out)


def test_a_run_that_another_process_trains_is_refused(tiny_run, tiny_store, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    with (
        storage.hold_lock(out / ".lock", None),
        pytest.raises(TrainError, match="another process is training"),
    ):
        trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics)
    assert not (out / runs.MANIFEST).exists()


def test_an_optimizer_that_a_failing_disk_kept_goes_when_the_run_is_resumed(
    tiny_run, tiny_store, tmp_path, monkeypatch
):
    unlink, out = Path.unlink, tmp_path / "r"

    def fail(path, **options):
        if path.name == "optimizer.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(OSError, match="Input/output"):
            trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics)
    files = {path.relative_to(out) for path in out.rglob("*.safetensors")}
    listed = {Path(one.folder, name) for one in runs.open(out).saved for name in one.files}
    assert len(files - listed) == 1
    resumed = trainer.resume(out)
    files = {path.relative_to(out) for path in out.rglob("*.safetensors")}
    assert files == {
        path.relative_to(tiny_run.path) for path in tiny_run.path.rglob("*.safetensors")
    }
    assert weights(resumed) == weights(tiny_run)


def test_a_run_killed_before_its_manifest_is_begun_again(tiny_run, tiny_store, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / ".lock").touch()
    again = trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics)
    assert weights(again) == weights(tiny_run)
