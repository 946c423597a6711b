"""Distillation: a run learns from the probabilities of another run as well as from the text.

With teacher probabilities p and student probabilities q at temperature T, the loss of a target is

    (1 - a) cross-entropy of the target + a T^2 KL(p || q),    a = `distill_weight`

(Hinton et al. 2015, https://arxiv.org/abs/1503.02531). The factor T^2 keeps the gradient of the
second term about equal at every temperature. The teacher's logits are computed at every step with
its last checkpoint, in evaluation mode, and are not stored. The manifest records the teacher's run
id, step and weights digest, so a step is replayed with the same teacher or not at all.
"""

from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import runs
from train.data import IGNORED, TokenStore
from train.errors import DamagedError, RecipeError, StoreError, TrainError
from train.model import GPT
from train.recipes import Recipe
from train.runs import Run
from train.storage import JsonObject


__all__ = ["distillation_loss", "teacher_entry", "teacher_model"]

WEIGHTS = "model.safetensors"


def distillation_loss(
    logits: Float[Tensor, "batch pos vocab"],
    teacher: Float[Tensor, "batch pos vocab"],
    targets: Int64[Tensor, "batch pos"],
    divisor: int,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return T^2 KL(teacher || student), summed over the counted targets, divided by `divisor`.

    Examples:
        >>> logits, targets = torch.randn(1, 3, 8), torch.tensor([[1, 2, data.IGNORED]])
        >>> trainer.distillation_loss(logits, logits, targets, divisor=2).item()
        0.0
    """
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    taught = torch.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = (taught.exp() * (taught - student)).sum(dim=-1)
    return divergence.masked_fill(targets == IGNORED, 0.0).sum() * (temperature**2 / divisor)


def teacher_entry(recipe: Recipe, store: TokenStore, teacher: Run | None) -> JsonObject | None:
    """Return the entry of a manifest that names the teacher, after checking that it can teach.

    Raises:
        RecipeError: The recipe distils and there is no teacher, or the teacher has a shorter
            context or reads ahead.
        StoreError: The teacher has another vocabulary or tokenizer.
        TrainError: The teacher has no checkpoint yet.
    """
    if teacher is None:
        if recipe.distill_weight:
            raise RecipeError(
                f"recipe {recipe.name!r} has distill_weight={recipe.distill_weight} and no "
                "teacher; name the run that teaches with --teacher, or set it to 0"
            )
        return None
    config, tokenizer = teacher.config, teacher.tokenizer
    if config.d_vocab != store.vocab_size or (
        tokenizer is not None and tokenizer.sha256 != store.tokenizer.sha256
    ):
        raise StoreError(
            f"the teacher {teacher.path} has a vocabulary of {config.d_vocab}, the store "
            f"{store.path} one of {store.vocab_size}, or their tokenizers differ; choose a "
            "teacher with the same tokenizer"
        )
    if config.n_ctx < recipe.model.n_ctx or config.reads_ahead:
        raise RecipeError(
            f"the teacher {teacher.path} reads {config.n_ctx} positions, recipe {recipe.name!r} "
            f"{recipe.model.n_ctx}; a teacher needs as many, and none that sees later ones"
        )
    saved = teacher.saved_at(None)
    return {
        "run_id": teacher.id,
        "step": saved.step,
        "weights_sha256": saved.files[WEIGHTS],
    }


def teacher_model(run: Run) -> GPT | None:
    """Return the model that teaches a run, on the CPU; None if it has no teacher.

    Raises:
        TrainError: The teacher is not where it was, or another run is there.
        DamagedError: Its weights are not those that taught the run.
    """
    teacher = run.teacher
    if teacher is None:
        return None
    expected = run.predicate["teacher"]
    if expected["run_id"] != teacher.id:
        raise TrainError(
            f"the run {run.path} was taught by run {expected['run_id']}, and {teacher.path} is "
            f"{teacher.id}; put the teacher back there"
        )
    saved = teacher.saved_at(expected["step"])
    if saved.files[WEIGHTS] != expected["weights_sha256"]:
        raise DamagedError(
            f"{teacher.path / saved.folder / WEIGHTS}: sha256 {saved.files[WEIGHTS][:12]}..., the "
            f"run {run.path} was taught by {expected['weights_sha256'][:12]}..."
        )
    return _loaded(teacher.path, teacher.store_path, saved.step, saved.files[WEIGHTS])


@lru_cache(maxsize=2)
def _loaded(path: Path, store: Path | None, step: int, sha256: str) -> GPT:
    """Load a teacher once for all stretches between two checkpoints of its student."""
    return runs.open(path, store=store).load(step).requires_grad_(False)
