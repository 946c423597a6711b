"""A run learns from the probabilities of a teacher, and is repeated with that teacher only."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.worlds.stops import check_resumed
from train import recipes, runs, trainer
from train.data import IGNORED, DocumentRemoval, read_batch
from train.errors import DamagedError, RecipeError, StoreError, TrainError
from train.model import GPTConfig


pytestmark = pytest.mark.integration

LARGER = GPTConfig(n_layers=2, n_heads=2, d_model=24, n_ctx=24, d_vocab=1)


def weights(run, step=None) -> str:
    return run.saved_at(step).files["model.safetensors"]


@pytest.fixture(scope="module")
def teacher(tiny_recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    """A model of another shape, trained on the same store."""
    return trainer.train(
        replace(tiny_recipe, name="teacher", model=LARGER), tiny_store,
        out=tmp_path_factory.mktemp("teacher") / "t", numerics=one_thread_numerics,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(tiny_recipe, tiny_store, one_thread_numerics, teacher, tmp_path_factory):
    recipe = replace(tiny_recipe, distill_weight=0.6, distill_temperature=1.5)
    return trainer.train(
        recipe, tiny_store, out=tmp_path_factory.mktemp("student") / "s", teacher=teacher,
        numerics=one_thread_numerics,
    )  # fmt: skip


def test_the_loss_is_the_divergence_of_the_formula_and_counts_no_padding():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([[1, 2, IGNORED], [IGNORED, 0, 6]])
    found = trainer.distillation_loss(student, teacher, targets, 4, 1.5)
    p, q = (torch.softmax(one / 1.5, -1) for one in (teacher, student))
    by_hand = (p * (p / q).log()).sum(-1)[targets != IGNORED].sum() * 1.5**2 / 4
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-6)
    same = trainer.distillation_loss(teacher, teacher, targets, 4, 1.5)
    assert same.item() == 0.0


def test_weight_0_is_the_plain_run_to_the_bit(tiny_run, tiny_store, teacher, tmp_path):
    """The teacher is asked all the same: weight 0 takes no other way through the code."""
    run = trainer.train(
        tiny_run.recipe, tiny_store, out=tmp_path / "r", teacher=teacher, numerics=tiny_run.numerics
    )
    assert isinstance(trainer.objective_of(run), trainer.TrainingMethods)
    assert all(a.agrees(b) for a, b in zip(run.ledger, tiny_run.ledger, strict=True))
    for step in tiny_run.steps:
        assert run.saved_at(step).files == tiny_run.saved_at(step).files
    assert run.id != tiny_run.id


def test_a_student_has_the_weights_of_a_loop_written_out(student, teacher):
    """Eight steps of torch's AdamW on the two cross-entropies of Hinton et al. 2015."""
    recipe, temperature = student.recipe, student.recipe.distill_temperature
    model, taught = student.load(0).train(), teacher.load()
    matrices = [one for one in model.parameters() if one.ndim > 1]
    vectors = [one for one in model.parameters() if one.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
    )
    for step in range(8):
        batch = read_batch(student.store, student.order, step)
        counted, logits = batch.targets != IGNORED, model(batch.inputs)
        with torch.no_grad():
            soft = (taught(batch.inputs) / temperature).softmax(-1)
        hard = functional.cross_entropy(logits[counted], batch.targets[counted])
        pulled = functional.cross_entropy(logits[counted] / temperature, soft[counted])
        weight = recipe.distill_weight
        # The teacher's entropy, by which the second term exceeds the divergence, is a constant.
        loss = (1 - weight) * hard + weight * temperature**2 * pulled
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = trainer.lr_at(recipe, step)
        optimizer.step()
    for name, expected in student.load(8).named_parameters():
        found = model.get_parameter(name)
        if name.endswith("qkv.bias"):
            # A key's bias changes no attention, so its gradient is rounding, which AdamW scales up.
            (q, _, v), (found_q, _, found_v) = expected.chunk(3), found.chunk(3)
            expected, found = torch.cat([q, v]), torch.cat([found_q, found_v])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_student_comes_nearer_to_its_teacher_than_without(student, teacher, tiny_run):
    read = read_batch(student.store, student.order, 0)
    taught = teacher.load()(read.inputs)
    near, far = (
        trainer.distillation_loss(run.load()(read.inputs), taught, read.targets, read.divisor)
        for run in (student, tiny_run)
    )
    assert near < 0.9 * far
    assert weights(student) != weights(tiny_run)
    assert student.load().state_dict().keys() == tiny_run.load().state_dict().keys()


def test_the_manifest_names_the_teacher_and_the_id_follows_it(student, teacher, tiny_run):
    expected = {"run_id": teacher.id, "step": 24, "weights_sha256": weights(teacher)}
    assert student.predicate["teacher"] == expected
    assert student.teacher.id == teacher.id
    assert "teacher" not in tiny_run.predicate
    assert tiny_run.teacher is None


@pytest.mark.parametrize("stop", [1, 9, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(student, tmp_path, stop):
    check_resumed(student, tmp_path / "r", stop)


def test_replay_and_verification_are_exact(student):
    assert trainer.verify(student).level == "bit-exact"
    assert trainer.replay(student, 17, 23).exact


def test_micro_batches_and_shares_ask_the_teacher_about_their_own_windows(student):
    batch = read_batch(student.store, student.order, 3)
    objective, model = trainer.objective_of(student), student.load()
    whole = objective(model, batch)
    parts = sum(objective(model, part) for part in batch.parts(1))
    torch.testing.assert_close(parts, whole)


def test_documents_are_removed_from_a_run_only_after_its_teacher(student, teacher, tmp_path):
    removal = DocumentRemoval((int(student.documents_read(9)[0]),), "blank")
    with pytest.raises(TrainError, match="has read 1 of the 1 documents to remove"):
        trainer.retrain_without(student, tmp_path / "c", removal)
    with pytest.raises(TrainError, match="retrain the teacher without them first"):
        trainer.replay(student, 9, 9, removal=removal)
    unread = trainer.retrain_without(teacher, tmp_path / "t", removal)
    taught = trainer.train(
        student.recipe, student.store, out=tmp_path / "s", teacher=unread,
        numerics=student.numerics,
    )  # fmt: skip
    child = trainer.retrain_without(taught, tmp_path / "c", removal)
    assert child.predicate["teacher"] == taught.predicate["teacher"]
    assert child.teacher.id == unread.id
    assert trainer.replay(child, 20, 23).exact


def test_a_chain_is_taught_by_the_member_before(student, tmp_path):
    third = trainer.train(
        student.recipe, student.store, out=tmp_path / "third", teacher=student,
        numerics=student.numerics, steps=4,
    )  # fmt: skip
    assert third.teacher.id == student.id
    assert third.teacher.teacher.id == student.predicate["teacher"]["run_id"]


# --- what is refused -----------------------------------------------------------------------------


def test_a_recipe_that_distils_needs_a_teacher(tiny_recipe, tiny_store, tmp_path):
    with pytest.raises(RecipeError, match=r"distill_weight=0\.5 and no teacher"):
        trainer.train(replace(tiny_recipe, distill_weight=0.5), tiny_store, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_teacher_of_another_vocabulary_or_a_shorter_context_is_refused(
    tiny_run, lookup_run, tiny_store, tmp_path
):
    with pytest.raises(StoreError, match=r"the teacher .* has a vocabulary of"):
        trainer.train(tiny_run.recipe, tiny_store, out=tmp_path / "r", teacher=lookup_run)
    longer = replace(tiny_run.recipe, model=replace(tiny_run.recipe.model, n_ctx=32))
    with pytest.raises(RecipeError, match="reads 16 positions, recipe 'tiny' 32"):
        trainer.train(longer, tiny_store, out=tmp_path / "r", teacher=tiny_run)


def test_a_temperature_without_a_weight_is_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"distill_temperature=2\.0 and distill_weight=0\.0"):
        replace(tiny_recipe, distill_temperature=2.0)


def test_a_teacher_that_is_gone_or_another_one_is_named(
    tiny_run, tiny_store, teacher, tiny_recipe, tmp_path
):
    copied = shutil.copytree(teacher.path, tmp_path / "teacher")
    here = runs.open(copied, store=tiny_store.path)
    run = trainer.train(
        replace(tiny_recipe, distill_weight=0.5), tiny_store, out=tmp_path / "r", teacher=here,
        numerics=tiny_run.numerics, steps=4,
    )  # fmt: skip
    shutil.rmtree(copied)
    with pytest.raises(TrainError, match=f"taught by run {teacher.id}, which is no longer at"):
        trainer.replay(run, 0, 3)
    assert "no longer at" in trainer.verify(run).problems[0]
    shutil.copytree(tiny_run.path, copied)
    with pytest.raises(TrainError, match=f"and .* is {tiny_run.id}; put the teacher back"):
        trainer.replay(run, 0, 3)


def test_a_teacher_with_other_weights_is_damage(tiny_run, tiny_store, teacher, tmp_path):
    run = trainer.train(
        tiny_run.recipe, tiny_store, out=tmp_path / "r", teacher=teacher, steps=2,
        numerics=tiny_run.numerics,
    )  # fmt: skip
    run.predicate["teacher"]["weights_sha256"] = "0" * 64
    with pytest.raises(DamagedError, match="was taught by 000000000000"):
        trainer.replay(run, 0, 1)


def test_recipes_of_before_keep_their_text(tiny_recipe):
    assert not {"distill_weight", "distill_temperature"} & set(recipes.to_dict(tiny_recipe))


def test_the_command_takes_a_teacher(openbook, student, teacher, tmp_path):
    file = tmp_path / "student.toml"
    file.write_text(recipes.to_toml(student.recipe))
    ended = openbook(
        "train", file, student.store.path, "--out", tmp_path / "r", "--teacher", teacher.path,
        "--device", "cpu", "--precision", "fp32", "--threads", "1", "--no-watch",
    )  # fmt: skip
    assert ended.code == 0, ended
    assert runs.open(tmp_path / "r").teacher.id == teacher.id
