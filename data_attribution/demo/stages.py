"""Stages that the demos share: the plan with its expected time, and the check of older results."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from data_attribution import token_index
from data_attribution.errors import IndexMismatch, IndexMissing
from train import numerics, recipes, runs, trainer
from train.data import TokenStore
from train.numerics import Numerics
from train.progress import Progress, duration
from train.recipes import Recipe
from train.runs import Run


__all__ = ["DemoPlan", "Stage", "build_index", "plan_run", "run_differences", "step_seconds"]

Stage = Callable[[str], AbstractContextManager[Progress]]
TIMED_STEPS = 8


@dataclass(frozen=True)
class DemoPlan:
    """The remaining work of a demo and its expected time on this machine.

    Attributes:
        how: Numerics of the training: those of the existing run, or chosen here.
        steps: Training steps that remain.
        retrained: Steps that remain of the retrainings, at most.
        step_seconds: Seconds per step, timed here if any step remains.
        looking: Time of everything except training, in units of training steps.
        corpus: Name of the corpus in a sentence.
        removed: What the retrainings are without, in a sentence.
    """

    how: Numerics
    steps: int
    retrained: int
    step_seconds: float
    looking: int
    corpus: str
    removed: str

    @property
    def seconds(self) -> float:
        """Return an estimate of the seconds that remain."""
        return (self.steps + self.retrained + self.looking) * self.step_seconds

    def __str__(self) -> str:
        if not self.steps and not self.retrained:
            return (
                "the demo will open what an earlier one trained, verify it, look again and write "
                "the page"
            )
        left = f"train {self.steps:,} steps on {self.corpus}, verify, look for heads and "
        left += f"documents, train {self.retrained:,} steps again without {self.removed}, write "
        left += "the page"
        return (
            f"the demo will {left}\nhere a step takes {1000 * self.step_seconds:.0f} ms "
            f"({self.how.precision}, {self.how.threads} threads), so all of it about "
            f"{duration(self.seconds)}"
        )


def plan_run(
    recipe: Recipe,
    run_path: Path,
    *,
    retrainings: int,
    retrained_steps: int,
    looking: int,
    corpus: str,
    removed: str,
) -> DemoPlan:
    """Return what a demo has left to do, after timing a few training steps; takes seconds.

    Args:
        retrainings: Number of retrainings of the demo; finished ones in the folder of the run are
            subtracted.
        retrained_steps: Steps of one retraining, at most.
        looking, corpus, removed: As in `DemoPlan`.
    """
    begun = runs.open(run_path) if (run_path / runs.MANIFEST).exists() else None
    how = begun.numerics if begun else numerics.choose()
    steps = max(recipe.steps - (begun.steps_done if begun else 0), 0)
    manifests = run_path.glob(f"counterfactuals/*/{runs.MANIFEST}")
    finished = sum(runs.open(path.parent).finished for path in manifests)
    retrained = max(retrainings - finished, 0) * max(retrained_steps, 0)
    seconds = step_seconds(recipe, how) if steps + retrained else 0.0
    return DemoPlan(how, steps, retrained, seconds, looking, corpus, removed)


def step_seconds(recipe: Recipe, how: Numerics) -> float:
    """Time a few steps on random tokens, and return the seconds of the fastest."""
    state = trainer.initial_state(recipe, how)
    shape = recipe.batch_size, recipe.model.n_ctx
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(recipe.model.d_vocab, shape, generator=draw).to(how.device)
    taken = []
    with numerics.applied(how), torch.enable_grad():
        for _ in range(TIMED_STEPS):
            begin = time.perf_counter()
            with how.autocast():
                loss = trainer.next_token_loss(state.model(tokens), tokens, tokens.numel())
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            taken.append(time.perf_counter() - begin)
    return min(taken)


def run_differences(store: TokenStore, run_path: Path, recipe: Recipe) -> list[str]:
    """Return how an existing run differs from the recipe on this store; empty if it does not."""
    if not (run_path / runs.MANIFEST).exists():
        return []
    run = runs.open(run_path)
    found = _flat(run.predicate.get("recipe", {"model": {}}))
    asked = _flat(recipes.to_dict(recipe))
    differences = [
        f"{key} {found.get(key, 'missing')}, not {asked.get(key, 'known')}"
        for key in sorted(found.keys() | asked.keys())
        if found.get(key) != asked.get(key)
    ]
    if run.removal:
        differences.append(f"{len(run.removal.documents)} documents left out")
    if run.predicate["data"]["fingerprint"] != store.fingerprint:
        differences.append(f"trained on another store than {store.path}")
    return differences


def _flat(recipe: dict) -> dict:
    model = {f"model.{key}": value for key, value in recipe["model"].items()}
    return {**{key: value for key, value in recipe.items() if key != "model"}, **model}


def build_index(run: Run, progress: Progress) -> None:
    """Build the token index of the run's store if there is none that fits it."""
    try:
        token_index.open(run.store)
    except (IndexMissing, IndexMismatch):  # the index of an earlier version is rebuilt
        token_index.build(run.store, progress=progress)
