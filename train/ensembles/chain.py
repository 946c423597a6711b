"""Chains: members of an ensemble that are trained one after another, each taught by the one before.

Every member starts from other weights and reads the text in another order: member i adds i to the
recipe's `init_seed` and `order_seed`. With `distill_weight` above 0 it also learns from the
probabilities of the last checkpoint of the member before it, and of no earlier one (NanoGPT
Slowrun). With `distill_weight` 0 nobody is taught, and the members are those of a plain ensemble.

    out/ member-00/  a run without teacher
         member-01/  a run whose teacher is member-00

A chain has no file of its own: the manifest of each member names its teacher.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from train import runs, trainer
from train.data import TokenStore
from train.errors import RecipeError, TrainError
from train.numerics import Numerics, choose
from train.progress import Progress
from train.recipes import LATER, Recipe, resolve
from train.runs import Run


__all__ = ["train_chain"]


def train_chain(
    recipe: Recipe,
    store: TokenStore,
    *,
    out: str | Path,
    members: int,
    untaught: int = 1,
    numerics: Numerics | None = None,
    data_workers: int = 0,
    progress: Progress | None = None,
    **changes: Any,
) -> list[Run]:
    """Train the members of a chain that are not there yet, and return all of them.

    A chain that was stopped continues when the same call is made again, and a longer one begins
    with the members that are there.

    Args:
        recipe: Recipe of every member; `changes` replace its fields.
        out: Folder of the chain, which gets one folder for each member.
        members: Number of members.
        untaught: How many of the first members have no teacher, at least 1.
        numerics: Numerics of the members that begin now; default: chosen for this machine.
        progress: Called with (text, steps done, number of steps) after every step of a member.

    Raises:
        TrainError: The numbers of members are impossible.
        RecipeError: A member was trained by another recipe, on another store, or by another
            teacher.
    """
    if members < 1 or not 1 <= untaught <= members:
        raise TrainError(
            f"a chain of {members} members was asked for, the first {untaught} of them without "
            "teacher; both are at least 1, and the second is at most the first"
        )
    recipe, out, chain = resolve(recipe, store, **changes), Path(out), list[Run]()
    for number in range(members):
        teacher = chain[-1] if recipe.distill_weight and number >= untaught else None
        own = _recipe_of(recipe, number, taught=teacher is not None)
        path, told = out / f"member-{number:02d}", _named(progress, f"member {number}")
        if (path / runs.MANIFEST).exists():
            _refuse_another(runs.open(path, store=store.path), own, store, teacher)
            run = trainer.resume(path, store=store.path, data_workers=data_workers, progress=told)
        else:
            numerics = numerics or choose()
            run = trainer.train(
                own, store, out=path, teacher=teacher, numerics=numerics,
                data_workers=data_workers, progress=told,
            )  # fmt: skip
        chain.append(run)
    return chain


def _recipe_of(recipe: Recipe, number: int, *, taught: bool) -> Recipe:
    """Return the recipe of a member: with seeds of its own, and no distillation if untaught."""
    own = replace(
        recipe, init_seed=recipe.init_seed + number, order_seed=recipe.order_seed + number
    )
    if taught:
        return own
    plain = {key: LATER[key] for key in ("distill_weight", "distill_temperature")}
    return replace(own, **plain)


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Return the progress callable with a name in front of its texts."""
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _refuse_another(run: Run, recipe: Recipe, store: TokenStore, teacher: Run | None) -> None:
    """Raise a RecipeError if a member that is there is not the one that would be trained."""
    for what, found, expected in (
        ("recipe", run.recipe, recipe),
        ("store", run.predicate["data"]["fingerprint"], store.fingerprint),
        (
            "teacher",
            run.predicate.get("teacher"),
            trainer.teacher_entry(recipe, store, teacher) if teacher else None,
        ),
    ):
        if found != expected:
            raise RecipeError(
                f"{run.path} was trained with another {what} than this chain would use; choose "
                "another folder, or the settings that it began with"
            )
