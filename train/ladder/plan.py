"""A ladder on disk: its rungs, their recipes and seeds, and what it will cost.

    ladder/ ladder.json              what is trained, on which store, with which numerics (sealed)
            runs/MEMBER-seed-0/      one run for each member and seed
            measured/MEMBER-seed-0.json   what was measured on it (sealed)
            table.json               the table (sealed)

A member is an architecture; rungs with the same factors share it. The numerics are chosen by the
process that begins the ladder and hold for all others, because other numerics give other bits.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from train import storage
from train.data import TokenStore
from train.errors import RecipeError, StoreError
from train.ladder.factors import Factor, Rung, factors_between, part_way, rungs_between
from train.ladder.sizes import Equal, equal_size
from train.model import GPTConfig
from train.numerics import Numerics, applied, choose
from train.progress import count, duration, readable_size
from train.recipes import Recipe, resolve, to_dict
from train.runs import order_of
from train.short_repr import short_repr
from train.trainer import TrainingMethods, initial_state, next_token, training_steps


__all__ = ["Cost", "Ladder", "Member", "Trial", "begin", "cost"]

LADDER, RUNS, MEASURED, LOCKS = "ladder.json", "runs", "measured", ".locks"
SCHEMA = "openbook.ladder/1"
START = "start"
PROBE_STEPS = 4
UNDECIDED = Numerics("cpu", "fp32", threads=1)  # until the process that begins has chosen


class Trial(NamedTuple):
    """One training of a ladder: a member and the number of its seed."""

    member: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its run and of the file with its measurement."""
        return f"{self.member}-seed-{self.seed}"


@dataclass(frozen=True)
class Member:
    """An architecture of a ladder, adapted to the size of the others.

    Attributes:
        factors: Names of the factors that are as in the second architecture.
    """

    name: str
    factors: tuple[str, ...]
    model: GPTConfig

    __repr__ = short_repr


@dataclass(frozen=True)
class Ladder:
    """All members between two architectures, with their seeds.

    Attributes:
        start: Recipe of the first architecture, fitted to the store; its seeds are the first ones.
        end: The second architecture.
        names: Names of the two.
        equal: What members have in common: `parameters` or `compute`.
        seeds: Number of seeds. A seed sets the initial weights and the data order, and is the same
            for all members.
    """

    path: Path
    store: TokenStore
    start: Recipe
    end: GPTConfig
    names: tuple[str, str]
    equal: Equal
    seeds: int
    numerics: Numerics

    __repr__ = short_repr

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The factors in which the two architectures differ."""
        return factors_between(self.start.model, self.end)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs in the order of the table."""
        return rungs_between(self.start.model, self.factors)

    @cached_property
    def members(self) -> dict[tuple[str, ...], Member]:
        """The members by the names of their factors.

        Raises:
            RecipeError: A member is impossible to train, or cannot have the size of the start.
        """
        sets = [one for rung in self.rungs for one in (rung.base, rung.factors)]
        return {names: self._member(names) for names in dict.fromkeys(sets)}

    def _member(self, names: tuple[str, ...]) -> Member:
        label = "+".join(names).replace(" ", "-") or START
        changed = [factor for factor in self.factors if factor.name in names]
        model = part_way(self.start.model, changed)
        try:
            model = equal_size(model, self.start.model, self.equal)
            replace(self.start, model=model)
        except RecipeError as error:
            raise RecipeError(
                f"member {label} of the ladder from {self.names[0]} to {self.names[1]}: {error}; "
                "give both architectures the same part with --set, such as --set model.d_model=128"
            ) from None
        return Member(label, names, model)

    @property
    def trials(self) -> list[Trial]:
        """All trainings; those with the first seed come first."""
        members = self.members.values()
        return [Trial(one.name, seed) for seed in range(self.seeds) for one in members]

    @property
    def missing(self) -> list[Trial]:
        """The trainings without a measurement."""
        return [one for one in self.trials if not self.measured_path(one).exists()]

    def recipe(self, trial: Trial) -> Recipe:
        """Return the recipe of a training."""
        models = {one.name: one.model for one in self.members.values()}
        return replace(
            self.start,
            name=trial.member,
            model=models[trial.member],
            init_seed=self.start.init_seed + trial.seed,
            order_seed=self.start.order_seed + trial.seed,
        )

    def run_path(self, trial: Trial) -> Path:
        """Return the folder of a training's run."""
        return self.path / RUNS / trial.name

    def measured_path(self, trial: Trial) -> Path:
        """Return the file with what was measured on a training."""
        return self.path / MEASURED / f"{trial.name}.json"

    def lock_path(self, name: str) -> Path:
        """Return the file whose lock a process holds while it works on something."""
        return self.path / LOCKS / name

    @property
    def adaptation(self) -> str:
        """A sentence that says how the members are made equal."""
        size = "as many parameters" if self.equal == "parameters" else "as many FLOPs a token"
        return (
            f"the width of the MLP is adapted so that every member has {size} as {self.names[0]}; "
            "all read the same tokens in the same order"
        )

    def content(self) -> dict[str, Any]:
        """Return what decides the result of the ladder, as it is written into its file."""
        return {
            "schema": SCHEMA,
            "names": list(self.names),
            "equal": self.equal,
            "seeds": self.seeds,
            "recipe": to_dict(self.start),
            "end": self.end.to_dict(),
            "store": self.store.fingerprint,
            "numerics": self.numerics.to_dict(),
        }


def begin(
    start: Recipe,
    end: Recipe,
    store: TokenStore,
    *,
    out: str | Path,
    equal: Equal = "parameters",
    seeds: int = 3,
    numerics: Numerics | None = None,
) -> Ladder:
    """Begin a ladder in a folder, or join the same one there. Nothing is trained.

    Args:
        start: Recipe with the first architecture. Its other fields hold for all members.
        end: The same recipe with the second architecture.
        equal: `parameters`: all members have as many as the first; `compute`: as many FLOPs.
        seeds: Number of trainings of each member; intervals need 2 or more.
        numerics: Default: those of the ladder in the folder, or chosen for this machine.

    Raises:
        RecipeError: The recipes differ in more than the architecture, or not even in that; the
            folder holds another ladder; a member is impossible.
        StoreError: The store does not fit the recipe, or holds out less than one window.
    """
    start, end = resolve(start, store), resolve(end, store)
    if start.model.n_ctx != end.model.n_ctx:
        raise RecipeError(
            f"{start.name} reads windows of {start.model.n_ctx} tokens and {end.name} of "
            f"{end.model.n_ctx}; give both the same, such as --set model.n_ctx=128"
        )
    if replace(end, name=start.name, model=start.model) != start:
        raise RecipeError(
            f"the recipes of {start.name} and {end.name} differ in more than the architecture; a "
            "ladder changes nothing else"
        )
    if seeds < 1:
        raise RecipeError(f"a ladder with {seeds} seeds has no members; give at least 1")
    held_out = store.n_tokens - store.train_tokens
    if held_out < start.model.n_ctx:
        raise StoreError(
            f"{store.path} holds out {held_out} tokens, less than one window of "
            f"{start.model.n_ctx}; build it again with --held-out 0.1"
        )
    draft = Ladder(
        path=Path(out),
        store=store,
        start=start,
        end=end.model,
        names=(start.name, end.name),
        equal=equal,
        seeds=seeds,
        numerics=numerics or UNDECIDED,
    )
    if not draft.factors:
        raise RecipeError(
            f"{start.name} and {end.name} have the same parts; choose two that differ"
        )
    _ = draft.members  # refuses what cannot be trained, before the folder is made
    return _joined(draft, numerics)


def _joined(draft: Ladder, numerics: Numerics | None) -> Ladder:
    """Write the file of a new ladder, or join the one that is there if it is the same."""
    path, file = draft.path, draft.path / LADDER
    if path.exists() and not file.exists():
        others = [
            one for one in path.iterdir() if one.name != LOCKS and not storage.is_partial(one)
        ]
        if others and not file.exists():
            raise RecipeError(f"{path} exists already and holds no ladder; choose another folder")
    (path / LOCKS).mkdir(parents=True, exist_ok=True)
    # The first process chooses the numerics, and the others wait for it.
    with storage.hold_lock(draft.lock_path(LADDER), None):
        if not file.exists():
            new = replace(draft, numerics=numerics or choose())
            storage.write_json(file, storage.seal(new.content()))
        (path / MEASURED).mkdir(exist_ok=True)
        there = storage.read_sealed(file)
    with storage.reading(file):
        own = Numerics(**there["numerics"])
    if numerics not in (None, own):
        raise RecipeError(
            f"the ladder in {path} was begun with {own}, and {numerics} was asked for; leave "
            "numerics out to take its own"
        )
    ladder = replace(draft, numerics=own)
    old, ours = (dict(_leaves(content)) for content in (there, ladder.content()))
    for key in sorted((old.keys() | ours.keys()) - {"digest"}):
        if old.get(key) != ours.get(key):
            raise RecipeError(
                f"{path} holds another ladder: {key} is {old.get(key)} there and {ours.get(key)} "
                "here; choose another folder, or the same settings"
            )
    return ladder


def _leaves(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested mappings by their dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        pairs += _leaves(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return pairs


@dataclass(frozen=True)
class Cost:
    """What is left to train of a ladder.

    Attributes:
        members: Number of architectures.
        trials: Number of trainings: members times seeds.
        done: Number of those that are trained and measured already.
        tokens: Tokens that are still to be read.
        seconds: Estimated time of one process that trains alone.
        disk: Estimated bytes of the checkpoints still to be written.
        threads: Threads of the process.
    """

    members: int
    trials: int
    done: int
    tokens: int
    seconds: float
    disk: int
    threads: int

    def __str__(self) -> str:
        left = self.trials - self.done
        done = f", {self.done} are there already" if self.done else ""
        if not left:
            return f"{count(self.trials, 'training')}{done}: nothing to train"
        return (
            f"{count(self.members, 'member')}, {count(self.trials, 'training')}{done}: "
            f"{self.tokens:,} tokens, about {duration(self.seconds)} in one process with "
            f"{count(self.threads, 'thread')} (estimated from {PROBE_STEPS} steps of both ends), "
            f"{readable_size(self.disk)} on disk; start the same command again to share the work"
        )


def cost(ladder: Ladder) -> Cost:
    """Estimate what is left to train, from a few steps of the first and the last member."""
    missing, recipe = ladder.missing, ladder.start
    seconds = 0.0
    if missing:
        ends = [ladder.recipe(one) for one in (ladder.trials[0], ladder.trials[-1])]
        seconds = statistics.mean(seconds_per_step(one, ladder) for one in ends)
    bytes_of_weights = 4 * recipe.model.n_params
    saved = recipe.checkpoint_steps()
    n_copies = len(saved) + 2 * sum(recipe.keeps_optimizer(step) for step in saved)
    return Cost(
        members=len(ladder.members),
        trials=len(ladder.trials),
        done=len(ladder.trials) - len(missing),
        tokens=len(missing) * recipe.steps * recipe.tokens_per_step,
        seconds=len(missing) * recipe.steps * seconds,
        disk=len(missing) * n_copies * bytes_of_weights,
        threads=ladder.numerics.threads,
    )


def seconds_per_step(recipe: Recipe, ladder: Ladder) -> float:
    """Measure the time of a training step, over a few steps after the first, which warms up.

    The steps are those of the training, with its training methods. If the numerics compile the
    model, the first step does, and is not in the result.
    """
    objective = TrainingMethods(recipe) if recipe.methods else next_token
    state = initial_state(recipe, ladder.numerics)
    order = order_of(replace(recipe, sampler="tiles"), ladder.store)
    short = replace(recipe, eval_every=0)
    with applied(ladder.numerics):
        for stop in (1, 1 + PROBE_STEPS):
            begin = time.perf_counter()
            for _ in training_steps(
                state, short, ladder.store, order, ladder.numerics, stop, objective=objective
            ):
                pass
    return (time.perf_counter() - begin) / PROBE_STEPS
