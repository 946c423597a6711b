"""Verification of a run: first all digests, then the weights and the training steps.

The files are checked first, without loading weights: seal and keys of the manifest, the chains of
ledger and monitor log, every checkpoint, and every file of the token store. Weights are loaded only
if all files are intact: the checkpoint of step 0 must equal init(seed), every checkpoint must give
the loss recorded with it, and no two steps may have the same weights. If all of this holds, random
spans are replayed and compared with the ledger. For a tuned run the files of every run of its
lineage are checked too, and the step 0 must have the weights of its base.

The result is one of three levels: `bit-exact` (same machine, precision and threads), `within
tolerance` (another machine), or `order only` (the same windows were read, but the losses differ by
more). An imported run has no steps to replay; its level is `weights only`.

A run that is being trained, or that was stopped at any moment, is not damaged: what it has is
checked, and its level is that of the steps done, or `not begun`. If its checkpoints change while it
is verified, it is verified again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch

from train import numerics, runs, storage
from train.data import STORE_MANIFEST, OrderClaim, verify_store
from train.errors import DamagedError, TrainError
from train.html_panel import html_repr
from train.model import init_gpt
from train.progress import Progress
from train.runs import Checkpoint, Run
from train.short_repr import short_repr
from train.trainer import distillation, evaluation, loop, preferences


__all__ = ["LEVELS", "Verification", "check_files", "verify"]

# Largest accepted difference in loss (nats) between machines: fp32 sums differ in their order, and
# bf16 rounds in addition.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
SPAN_STEPS = 10
# Folder of a run in which runs retrained from it are kept.
RETRAINED = "counterfactuals"
# Pairs of a DPO run whose reference is computed again.
REFERENCE_PAIRS = 32
# Levels of an undamaged run, weakest first. An imported run is always `weights only`.
# One of which the published order is known is `data known`.
LEVELS = (
    "not begun", "weights only", "data known", "order only", "within tolerance", "bit-exact"
)  # fmt: skip
# Times that a run is verified again because its training went on meanwhile.
TRIES = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Verification:
    """The result of verifying a run.

    Attributes:
        level: `bit-exact`, `within tolerance`, `order only`, `data known`, `weights only`,
            `not begun` for a run that was stopped before its first step, or `damaged`.
        problems: One line per problem, which names the file; empty unless damaged.
        spans: First and last step of each replayed span.
        difference: Largest difference in loss over replayed steps and checkpoints, in nats.
        files: Number of files whose digest was checked.
        claims: For a run of knowledge level `data-known`, which claims of its order hold.
    """

    meaning: ClassVar[str] = (
        "A verification shows that files are as recorded and that the replayed steps give the same "
        "numbers; it does not show the same of steps that were not replayed."
    )

    run_id: str
    level: str
    problems: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    difference: float
    files: int
    claims: tuple[OrderClaim, ...] = ()

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def ok(self) -> bool:
        """True if nothing is damaged."""
        return not self.problems

    def reaches(self, level: str) -> bool:
        """Return whether at least `level` holds, which is written with spaces or hyphens."""
        ranks = {one.replace(" ", "-"): rank for rank, one in enumerate(LEVELS)}
        return self.ok and ranks[self.level.replace(" ", "-")] >= ranks[level.replace(" ", "-")]


def verify(
    run: Run, *, spans: int = 3, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Check every file, then replay `spans` random spans of 10 steps drawn with `seed`.

    Examples:
        >>> verification = trainer.verify(run, spans=0)
        >>> verification.ok, verification.problems
        (True, ())
    """
    return _settled(
        run,
        lambda now: _verified(now, spans, seed, progress),
        lambda found: not found.problems,
    )


def _settled(run: Run, check: Callable[[Run], T], is_sound: Callable[[T], bool]) -> T:
    """Return what `check` finds of a run, checked again if training changed the run meanwhile.

    Training deletes the optimizer of an earlier checkpoint and writes checkpoints anew, so a file
    may be gone that was listed a moment before.

    Raises:
        TrainError: It changed every time.
    """
    for _ in range(TRIES):
        before = _written(run)
        try:
            found = check(run)
        except DamagedError:
            if _written(run) == before:
                raise
        else:
            if is_sound(found) or _written(run) == before:
                return found
        run = runs.open(run.path, store=run.store_path)
    raise TrainError(
        f"the run {run.path} is being trained and changed {TRIES} times while it was verified; "
        "verify it when it has finished"
    )


def _written(run: Run) -> list[bytes]:
    """Return what says which files a run has; [] for a finished run, which does not change."""
    listing = run.path / runs.CHECKPOINTS / runs.CHECKPOINT_INDEX
    both = [] if run.finished else [run.path / runs.MANIFEST, listing]
    return [path.read_bytes() for path in both if path.exists()]


def _verified(run: Run, spans: int, seed: int, progress: Progress | None) -> Verification:
    problems, count = check_files(run, progress)
    if not problems and run.base:
        problems += _lineage_problems(run)
    if run.knowledge == "data-known" and not problems:
        claims, problems = _order_claims(run, progress)
        level = "damaged" if problems else "data known"
        return Verification(run.id, level, tuple(problems), (), 0.0, count + 1, claims)
    if problems or run.knowledge != "full":
        level = "damaged" if problems else "weights only"
        return Verification(run.id, level, tuple(problems), (), 0.0, count)
    unlike, difference = _unlike_their_loss(run)
    problems += _missing_begin(run) + _duplicates(run) + _wrong_init(run) + unlike
    if problems:
        # Damaged weights are not replayed.
        return Verification(run.id, "damaged", tuple(problems), (), difference, count)
    drawn = _draw_spans(run, spans, seed)
    replays = []
    for number, (first, last) in enumerate(drawn):
        replays.append(loop.replay(run, first, last))
        if progress:
            progress("replaying spans", number + 1, len(drawn))
    difference = max([difference, *(one.difference for one in replays)])
    if not all(one.same_order for one in replays):
        problems.append(f"{run.path / runs.LEDGER}: a replayed span read other windows")
    # A CPU does not compute the sums of a GPU in the same way, even if the results happen to agree.
    moved = numerics.on_this_machine(run.numerics) != run.numerics
    exact = not moved and difference == 0.0 and all(one.exact for one in replays)
    within = difference <= TOLERANCE[run.numerics.precision]
    level = "bit-exact" if exact else "within tolerance" if within else "order only"
    level = level if run.steps_done else "not begun"
    level = "damaged" if problems else level
    return Verification(run.id, level, tuple(problems), tuple(drawn), difference, count)


def _order_claims(run: Run, progress: Progress | None) -> tuple[tuple[OrderClaim, ...], list[str]]:
    """Return which claims of a published order hold, or the problems of its files."""
    try:
        order = run.published_order
        problem = _changed(order.path, run.predicate["order"]["index_sha256"])
        if problem:
            return (), [problem]
        sizes = {"d_vocab": run.config.d_vocab, "n_ctx": run.config.n_ctx}
        return order.check(**sizes, progress=progress), []
    except DamagedError as error:
        return (), [str(error)]


def check_files(run: Run, progress: Progress | None = None) -> tuple[list[str], int]:
    """Check the files of a run, of its store and of the retrained runs inside it.

    Retrained runs are checked only if the run and its store have no problems.

    Returns:
        One line per problem, and the number of files of the run whose digest was checked.

    Examples:
        >>> problems, n_files = trainer.check_files(run)
        >>> problems
        []
    """
    problems, count = _settled_problems(run, progress)
    if run.knowledge != "full":
        return problems, count
    problems += _store_problems(run) + _teacher_problems(run)
    return problems or _retrained_problems(run), count


def _lineage_problems(run: Run) -> list[str]:
    """Check the files of every run of a lineage below `run`, and its reference."""
    try:
        base = run.open_base()
        problems = check_files(base)[0]
        if not problems and base.base:
            problems = _lineage_problems(base)
        return problems or _wrong_reference(run, base)
    except TrainError as error:
        return [str(error)]


def _wrong_reference(run: Run, base: Run) -> list[str]:
    """Check that the base gives some of the reference log-probabilities of a DPO run again."""
    if run.recipe.objective != "dpo" or run.base is None:
        return []
    stored = runs.read_reference(run.path, run.base)
    how = numerics.on_this_machine(run.numerics)
    found = preferences.reference_log_probs(
        base.load(run.base.step), run.store, run.recipe, how, limit=REFERENCE_PAIRS
    )
    # A log-probability sums over the tokens of a response.
    largest = float(np.abs(found - stored[: len(found)]).max())
    if largest <= TOLERANCE[how.precision] * (run.store.example_length or 1):
        return []
    return [
        f"{run.path / runs.REFERENCE}: differs by {largest:.3g} nats from what {base.path} gives"
    ]


def _settled_problems(run: Run, progress: Progress | None) -> tuple[list[str], int]:
    return _settled(run, lambda now: _run_problems(now, progress), lambda found: not found[0])


def _run_problems(run: Run, progress: Progress | None) -> tuple[list[str], int]:
    problems: list[str] = []
    subjects = {one["name"]: one["digest"]["sha256"] for one in run.manifest["subject"]}
    count = 1 + len(subjects)
    hashed: dict[str, str] = {}
    try:
        saved = run.saved
        problems += runs.check_checkpoints(run.path, saved)
        hashed = {f"{one.folder}/{name}": sha for one in saved for name, sha in one.files.items()}
        for one in saved:
            if not problems:
                runs.read_counters(run.path, one)
    except DamagedError as error:
        problems.append(str(error))
    named = {problem.split(":")[0] for problem in problems}
    for number, (name, expected) in enumerate(sorted(subjects.items())):
        if progress:
            progress("hashing the run", number + 1, len(subjects))
        if str(run.path / name) in named or hashed.get(name) == expected:
            continue
        if problem := runs.outside(run.path, name) or _changed(run.path / name, expected):
            problems.append(problem)
    if run.knowledge != "full":
        return problems, count
    try:
        rows, _ = run.ledger, run.watched
        for row in rows:
            if not math.isfinite(row.loss + row.grad_norm):
                raise DamagedError(
                    f"{run.path / runs.LEDGER}: the loss of step {row.step} is no number"
                )
        if run.finished and len(rows) != run.recipe.steps:
            raise DamagedError(
                f"{run.path / runs.LEDGER}: {len(rows)} rows for {run.recipe.steps} steps"
            )
    except DamagedError as error:
        problems.append(str(error))
    return problems, count


def _store_problems(run: Run) -> list[str]:
    if not run.store_place.exists():
        _ = run.store  # says that it is not there, which is no damage
    problem = _changed(run.store_place / STORE_MANIFEST, run.predicate["data"]["store_sha256"])
    if problem:
        return [problem]
    try:
        verify_store(run.store, texts=False)
    except TrainError as error:
        return [str(error)]
    return []


def _teacher_problems(run: Run) -> list[str]:
    """Check that the run that was distilled into this one is there with the same weights."""
    try:
        distillation.teacher_model(run)
    except TrainError as error:
        return [str(error)]
    return []


def _retrained_problems(run: Run) -> list[str]:
    """Check the files of runs that were retrained from this one and are kept in its folder."""
    problems = []
    folders = {path.parent for path in run.path.glob(f"*/*/{runs.MANIFEST}")}
    # A retrained run that lost its manifest is damaged, not absent. One that was stopped while it
    # began has a single checkpoint and no manifest yet.
    kept = (run.path / RETRAINED).glob("*")
    folders |= {path for path in kept if len([*(path / runs.CHECKPOINTS).glob("step-*")]) > 1}
    for folder in sorted(folders):
        try:
            child = runs.open(folder, store=run.store.path)
            problems += _settled_problems(child, None)[0]
        except TrainError as error:
            problems.append(str(error))
    return problems


def _changed(path: Path, expected: str) -> str | None:
    if not path.is_file():
        return f"{path}: the file is missing"
    if problem := runs.misfit(path):
        return problem
    found = storage.sha256_file(path)
    if found != expected:
        return f"{path}: sha256 {found[:12]}..., the manifest says {expected[:12]}..."
    return None


def _missing_begin(run: Run) -> list[str]:
    """Check that the first checkpoint exists: step 0, or the step at which a parent was left."""
    parent = run.predicate.get("parent")
    begin = parent["step"] if parent else 0
    if not run.saved or begin in run.steps:
        return []
    listing = run.path / runs.CHECKPOINTS / runs.CHECKPOINT_INDEX
    return [f"{listing}: lists no checkpoint of step {begin}, with which the run begins"]


def _duplicates(run: Run) -> list[str]:
    owners: dict[str, Checkpoint] = {}
    problems = []
    for saved in run.saved:
        digest = saved.files["model.safetensors"]
        if digest in owners:
            problems.append(
                f"{run.path / saved.folder}: holds the weights of step {owners[digest].step}"
            )
        owners.setdefault(digest, saved)
    return problems


def _wrong_init(run: Run) -> list[str]:
    """Check that the weights of step 0 equal init(seed), or those of the base.

    This is skipped if torch has another version, which may draw other numbers.
    """
    if run.base:
        first = run.saved_at(0) if 0 in run.steps else None
        if first is None or first.files["model.safetensors"] == run.base.weights_sha256:
            return []
        # The base's file may hold more: the block that predicts the token after the next.
        expected = run.open_base().load(run.base.step).state_dict()
        found = runs.read_tensors(run.path, first, "model.safetensors")
        if {*found} == {*expected} and all(torch.equal(found[one], expected[one]) for one in found):
            return []
        place = run.path / first.folder / "model.safetensors"
        return [f"{place}: not the weights of run {run.base.run_id} at step {run.base.step}"]
    if 0 not in run.steps or run.predicate["environment"]["torch"] != torch.__version__:
        return []
    expected = init_gpt(run.recipe.model, run.recipe.init_seed).state_dict()
    found = runs.read_tensors(run.path, run.saved_at(0), "model.safetensors")
    wrong = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    place = run.path / run.saved_at(0).folder / "model.safetensors"
    return [f"{place}: {wrong[0]} is not init(seed {run.recipe.init_seed})"] if wrong else []


def _unlike_their_loss(run: Run) -> tuple[list[str], float]:
    """Check that each checkpoint gives its recorded loss; also return the largest difference."""
    problems, largest = [], 0.0
    checks = [(saved, "model.safetensors", "fixed_loss") for saved in run.saved]
    checks += [(saved, runs.EMA, "ema_loss") for saved in run.saved if runs.EMA in saved.files]
    for saved, name, key in checks:
        found, written = _fixed_loss(run, saved, name), runs.read_counters(run.path, saved)[key]
        difference = evaluation.distance(found, float(written))
        # An infinite difference is only reported as a problem, because JSON has no infinity.
        largest = max(largest, difference if math.isfinite(difference) else 0.0)
        if difference > TOLERANCE[run.numerics.precision]:
            problems.append(
                f"{run.path / saved.folder / name}: its loss on the fixed batch is {found:.6g}, "
                f"state.json beside it says {written:.6g}"
            )
    return problems, largest


def _fixed_loss(run: Run, saved: Checkpoint, name: str) -> float:
    how = numerics.on_this_machine(run.numerics)
    weights = "ema" if name == runs.EMA else "trained"
    model = run.load(saved.step, weights=weights).to(how.device)
    return evaluation.fixed_loss(model, run.store, run.order, how)


def _draw_spans(run: Run, spans: int, seed: int) -> list[tuple[int, int]]:
    """Draw random spans of steps that begin at a checkpoint with its optimizer."""
    rows = len(run.ledger)
    begins = [one.step for one in run.saved if one.resumable and one.step < rows]
    if run.predicate.get("released"):
        # A released run has the optimizer of step 0 only, so every replay begins there.
        firsts = range(0, SPAN_STEPS * spans, SPAN_STEPS)
        return [(first, first + SPAN_STEPS - 1) for first in firsts]
    draw = np.random.default_rng(seed)
    chosen = draw.choice(begins, size=min(spans, len(begins)), replace=False) if begins else []
    return [(int(first), min(int(first) + SPAN_STEPS, rows) - 1) for first in sorted(chosen)]
