"""Tuning: training that begins with the weights of another run, on examples.

Supervised fine-tuning (`sft`) trains on the responses of instructions, and direct preference
optimisation (`dpo`) on preferences. A tuned run is a run like any other: order, ledger, replay,
removal of documents and verification work as they do for the first one. Its manifest names its
*base*: the run, step and weights that it began with. Runs that are each the base of the next are a
*lineage*, such as pretraining, SFT, DPO.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.data import TokenStore
from train.errors import DamagedError, RecipeError, StoreError, nearest
from train.numerics import Numerics
from train.progress import Progress
from train.recipes import Recipe
from train.runs import Base, MonitorTask, Run
from train.trainer import loop, verification


__all__ = ["OBJECTIVES", "tune", "tuning_recipe"]

OBJECTIVES = ("sft", "dpo")
# Passes over the examples, and the learning rate as a share of the base's: those of S4, a published
# trainer (3e-4 in pretraining, then 1e-5 and 5e-6), for either objective.
EPOCHS = {"sft": 3, "dpo": 1}
LR_SHARE = {"sft": 1 / 30, "dpo": 1 / 60}
# Learning rate of the first stage of imported weights, of which only the weights are known.
IMPORTED_LR = 3e-4
BATCH_SIZE = 16


def tuning_recipe(
    base: Run,
    store: TokenStore,
    objective: str,
    *,
    batch_size: int = BATCH_SIZE,
    steps: int | None = None,
) -> Recipe:
    """Return the default recipe with which a run is tuned on a store.

    Args:
        batch_size: Examples per step.
        steps: Default: as many as three passes over instructions take, or one over preferences.

    Raises:
        RecipeError: There is no such objective, or fewer than one step.

    Examples:
        >>> recipe = trainer.tuning_recipe(run, store, "sft")
        >>> recipe.name, recipe.objective, recipe.batch_size
        ('planted-sft', 'sft', 16)
    """
    if objective not in OBJECTIVES:
        raise RecipeError(f"there is no objective {objective!r}{nearest(objective, OBJECTIVES)}")
    imported = base.knowledge != "full"
    name, lr = ("imported", IMPORTED_LR) if imported else (base.recipe.name, _first_lr(base))
    n_examples = int(store.manifest["counts"]["train_documents"])
    if steps is None:
        steps = max(EPOCHS[objective] * n_examples // max(batch_size, 1), 1)
    if steps < 1:
        raise RecipeError(f"{steps} steps tune nothing; take 1 or more")
    return Recipe(
        name=f"{name}-{objective}",
        model=base.config,
        batch_size=batch_size,
        steps=steps,
        lr=lr * LR_SHARE[objective],
        min_lr=lr * LR_SHARE[objective] / 10,
        warmup_steps=steps // 10,
        weight_decay=0.0,
        checkpoint_every=max(steps // 4, 1),
        optimizer_every=max(steps // 4, 1),
        objective=objective,  # type: ignore[arg-type]
    )


def _first_lr(base: Run) -> float:
    """Return the learning rate of the first run of a lineage."""
    first = base.lineage()[0]
    return IMPORTED_LR if first.knowledge != "full" else first.recipe.lr


def tune(
    base: Run,
    store: TokenStore,
    objective: str,
    *,
    out: str | Path,
    step: int | None = None,
    numerics: Numerics | None = None,
    data_workers: int = 0,
    watch: Sequence[MonitorTask] = (),
    progress: Progress | None = None,
    **changes: Any,
) -> Run:
    """Train a run further on examples, as a new run.

    Args:
        base: The run to begin with. Its files, and those of its own bases, are checked first.
        store: A tuning store (`train.data.tuning`), built with the tokenizer of `base`.
        objective: `sft` or `dpo`.
        out: Folder of the new run; must not contain a run yet.
        step: Step of the checkpoint to begin with; default: the last.
        numerics: Precision, threads, device and world size; default: those of `base`.
        data_workers: As in `trainer.train`.
        watch: As in `trainer.train`.
        progress: As in `trainer.train`.
        changes: Fields of the recipe (`steps=200`, `lr=1e-4`) that replace those of
            `tuning_recipe`.

    Raises:
        RecipeError: There is no such objective, a field is unknown or impossible, or `out` exists.
        StoreError: The store holds other examples, or has another tokenizer or context.
        TrainError: The base has no such checkpoint, or a run of its lineage is missing.
        DamagedError: The base, or a run of its lineage, fails verification.
        DivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    sizes = {key: changes[key] for key in ("batch_size", "steps") if changes.get(key) is not None}
    recipe = tuning_recipe(base, store, objective, **sizes)
    if base.tokenizer is None or base.tokenizer.sha256 != store.tokenizer.sha256:
        kind = base.tokenizer.kind if base.tokenizer else "no"
        raise StoreError(
            f"the store {store.path} was built with a {store.tokenizer.kind} tokenizer other than "
            f"the {kind} tokenizer of {base.path}; build it for this run with `openbook tune data`"
        )
    for stage in base.lineage():
        problems, _ = verification.check_files(stage)
        if problems:
            raise DamagedError(
                f"the run {stage.path} fails verification and is not tuned: {problems[0]}"
            )
    saved = base.saved_at(step)
    start = Base(
        path=base.path,
        store_path=None if base.knowledge != "full" else base.store.path,
        run_id=base.id,
        step=saved.step,
        weights_sha256=saved.files["model.safetensors"],
    )
    if numerics is None and base.knowledge == "full":
        numerics = base.numerics
    if "lr" in changes and changes.get("min_lr") is None and changes["lr"] is not None:
        changes["min_lr"] = changes["lr"] / 10
    return loop.train(
        recipe,
        store,
        out=out,
        numerics=numerics,
        data_workers=data_workers,
        watch=watch,
        progress=progress,
        base=start,
        **changes,
    )
