"""The training loop, used to train, resume, replay and retrain without documents.

`training_steps` is the only implementation of the training step. `train` calls it from the first
step to the last and writes a ledger and checkpoints; `resume` continues from the newest checkpoint
that has its optimizer; `replay` repeats a span and returns its rows beside those of the ledger;
`retrain_without` continues from a checkpoint of another run with some documents removed. Weights,
their average, optimizer and step are the whole state and there is no random state, so a killed and
resumed run equals an uninterrupted one to the last bit (on the same machine, with the same
precision and thread count).

If several processes train together (`train.trainer.ranks`), all of them call `train` or `resume`;
rank 0 writes the files.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from train import runs, storage
from train.data import Batch, DocumentRemoval, Order, RemovalChoice, TokenStore, batches_ahead
from train.errors import DamagedError, DivergedError, RecipeError, TrainError
from train.model import GPT, use_kernels
from train.numerics import Numerics, applied, choose, on_this_machine
from train.progress import Progress
from train.recipes import Recipe, resolve
from train.runs import Base, MonitorTask, Run
from train.short_repr import short_repr
from train.trainer import distillation, evaluation, monitoring, optimizer
from train.trainer.objectives import Objective, next_token, objective_of
from train.trainer.preferences import reference_log_probs
from train.trainer.ranks import Ranks, ranks_of
from train.trainer.state import (
    TrainState,
    check_ranks,
    first_state,
    gathered_optimizer,
    initial_state,
    keep_own_shard,
    load_state,
    save,
)
from train.trainer.weight_average import update_average


__all__ = [
    "Replay",
    "replay",
    "resume",
    "retrain_without",
    "run_steps",
    "train",
    "training_steps",
]

# On a CUDA device the losses of this many steps are read together, so that no step waits for the
# previous one.
CUDA_BLOCK = 16
LOCK = ".lock"
BEFORE_MANIFEST = {LOCK, runs.SCHEDULE, runs.MONITOR_LOG, runs.REFERENCE}
ALONE = Ranks()


@dataclass(frozen=True)
class Replay:
    """The result of replaying a span of steps.

    Attributes:
        rows: Rows of the replayed steps.
        expected: Rows of the same steps in the ledger.
        state: Model and optimizer after the last step.
    """

    rows: tuple[runs.LedgerRow, ...]
    expected: tuple[runs.LedgerRow, ...]
    state: TrainState

    __repr__ = short_repr

    @property
    def exact(self) -> bool:
        """True if digests, losses and gradient norms agree to the last bit."""
        return all(map(runs.LedgerRow.agrees, self.rows, self.expected))

    @property
    def same_order(self) -> bool:
        """True if the same windows were read."""
        return [row.digest for row in self.rows] == [row.digest for row in self.expected]

    @property
    def difference(self) -> float:
        """Largest difference in loss, in nats; infinite if a loss is not finite."""
        pairs = zip(self.rows, self.expected, strict=True)
        return max(evaluation.distance(row.loss, expected.loss) for row, expected in pairs)


def train(
    recipe: Recipe,
    store: TokenStore,
    *,
    out: str | Path,
    teacher: Run | None = None,
    numerics: Numerics | None = None,
    data_workers: int = 0,
    watch: Sequence[MonitorTask] = (),
    shard_optimizer: bool = False,
    progress: Progress | None = None,
    base: Base | None = None,
    **changes: Any,
) -> Run:
    """Train from the first step to the last.

    Args:
        recipe: A recipe; `changes` replace its fields (`steps=200`, `init_seed=1`).
        store: The token store; packed rows must be as long as the recipe's context.
        out: Folder of the run; must not contain a run yet.
        teacher: Run whose last checkpoint is distilled into this one (`train.trainer.distillation`)
            with the recipe's `distill_weight`.
        numerics: Precision, threads, device and world size; default: chosen for this machine by
            `train.numerics.choose`.
        data_workers: Threads that read batches in advance; they do not change the result.
        watch: Tasks to measure during training (`train.trainer.monitoring`); they do not change
            the result.
        shard_optimizer: Whether each of several processes keeps only its share of AdamW's state;
            this saves memory and does not change the result.
        progress: Called with (text, steps done, number of steps) after every step.
        base: Checkpoint to begin with instead of random weights; `train.trainer.tune` makes it.

    Raises:
        RecipeError: The recipe does not exist or contradicts itself, or `out` exists already, or
            there are fewer windows per step than processes, or the state of Muon was to be divided,
            or the teacher cannot teach it.
        StoreError: The store does not fit the recipe, or the teacher has another tokenizer.
        DamagedError: The store's tokens or its document table were changed.
        LostRankError: Another process of this training has ended.
        UnequalRanksError: The processes hold different weights at a checkpoint, which is not
            written.
        DivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    recipe, out = resolve(recipe, store, **changes), Path(out)
    numerics = numerics or choose()
    if recipe.batch_size < numerics.world_size:
        raise RecipeError(
            f"recipe {recipe.name!r} has {recipe.batch_size} windows per step for "
            f"{numerics.world_size} processes, and each needs one; choose a batch size of "
            f"{numerics.world_size} or more, or fewer processes"
        )
    if base is None and recipe.objective != "next-token":
        raise RecipeError(
            f"recipe {recipe.name!r} has objective={recipe.objective!r}, which tunes a trained "
            "run; use `openbook tune`"
        )
    if base:
        _refuse_other_model(recipe, runs.open(base.path, store=base.store_path))
    ranks = _joined_ranks(recipe, numerics, shard_optimizer)
    # What can be refused is refused before the first file is written.
    _refuse_existing(out)
    store.check_files()
    taught = distillation.teacher_entry(recipe, store, teacher)
    with applied(numerics):
        state = initial_state(recipe, numerics)
    if recipe.sampler == "tiles":
        runs.order_of(recipe, store)
    with ExitStack() as stack:

        def begin() -> None:
            is_new = not out.exists()
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(out))
            _refuse_existing(out)  # Another process may have trained it in the meantime.
            try:
                if recipe.sampler == "nanogpt":
                    runs.record_schedule(out, recipe, store)
                runs.begin_monitor_log(out, watch, recipe)
                begun = base
                if base and recipe.objective == "dpo":
                    begun = _with_reference(base, recipe, store, numerics, out)
                runs.begin_manifest(
                    out, recipe, store, numerics, base=begun,
                    teacher=taught, teacher_path=teacher.path if teacher else None,
                )  # fmt: skip
            except Exception:
                if is_new:
                    shutil.rmtree(out)
                raise

        ranks.run_on_rank_0(begin)
        # Each rank has measured for itself which numerics to choose; those of rank 0 hold.
        run = runs.open(out, store=store.path)
        state = first_state(run) if base else state
        return _train(run, state, data_workers, progress, ranks=ranks)


def _with_reference(
    base: Base, recipe: Recipe, store: TokenStore, numerics: Numerics, out: Path
) -> Base:
    """Write the reference log-probabilities of a DPO run, and return the base with their digest."""
    reference = runs.open(base.path, store=base.store_path).load(base.step)
    content = runs.reference_bytes(reference_log_probs(reference, store, recipe, numerics))
    storage.write_bytes(out / runs.REFERENCE, content)
    return replace(base, reference_sha256=sha256(content).hexdigest())


def _refuse_other_model(recipe: Recipe, base: Run) -> None:
    if recipe.model != base.config:
        raise RecipeError(
            f"recipe {recipe.name!r} has another model than {base.path}, whose weights it begins "
            "with; leave the model as it is"
        )


def _refuse_existing(out: Path) -> None:
    # What a process leaves if it is killed before it writes the manifest is no run yet.
    found = [path for path in out.iterdir() if not storage.is_partial(path)] if out.exists() else []
    if {path.name for path in found} - BEFORE_MANIFEST:
        raise RecipeError(
            f"{out} exists already; resume it with `openbook run resume` or choose another folder"
        )


def resume(
    path: str | Path,
    *,
    store: str | Path | None = None,
    last: int | None = None,
    data_workers: int = 0,
    shard_optimizer: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Continue a run from its newest checkpoint to the checkpoint `last`, by default the end.

    Measurements continue as at the start of the run. A finished run is returned unchanged.

    Args:
        shard_optimizer: As in `train`; a run may be continued without it.

    Raises:
        TrainError: `last` is not the step of a checkpoint still to come.
        RecipeError: The state of Muon was to be divided.
        DamagedError: A file of the run or of its store was changed.

    Examples:
        >>> trainer.resume(run.path).id == run.id
        True
    """
    opened = runs.open(path, store=store)
    if opened.finished:
        return opened
    ahead = [one for one in opened.recipe.checkpoint_steps() if one >= max(opened.steps, default=0)]
    if last is not None and last not in ahead:
        raise TrainError(f"{opened.path} cannot go on to step {last}; its checkpoints are {ahead}")
    ranks = _joined_ranks(opened.recipe, opened.numerics, shard_optimizer)
    opened.store.check_files()
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(_lock(opened.path))
            if _index(opened).exists():
                runs.drop_unlisted(opened.path)

        ranks.run_on_rank_0(begin)
        # Read again under the lock: another process may have continued the run meanwhile.
        opened = runs.open(path, store=store)
        if opened.finished:
            return opened
        state = _where_it_stopped(opened)
        keep_own_shard(state, ranks)
        ranks.run_on_rank_0(lambda: runs.resumed_manifest(opened.path, opened.manifest, state.step))
        opened = runs.open(opened.path, store=store)
        return _train(opened, state, data_workers, progress, last, ranks)


def _joined_ranks(recipe: Recipe, numerics: Numerics, shard_optimizer: bool) -> Ranks:
    if shard_optimizer and recipe.optimizer != "adamw":
        raise RecipeError(
            f"recipe {recipe.name!r} has optimizer={recipe.optimizer!r}, which updates matrices of "
            "all layers together; only the state of 'adamw' can be divided among processes"
        )
    return replace(ranks_of(numerics), shards_optimizer=shard_optimizer)


def _where_it_stopped(run: Run) -> TrainState:
    if _index(run).exists():
        return load_state(run, len(run.ledger), run.numerics)
    if run.predicate["parent"]:
        raise DamagedError(
            f"{_index(run)}: the file is missing, and with it where the run left its parent; train "
            "it again from there"
        )
    # A run killed before its first checkpoint has no index yet and starts again from step 0.
    return first_state(run)


def replay(
    run: Run,
    first: int,
    last: int,
    *,
    removal: DocumentRemoval | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Repeat the steps `first` to `last` (inclusive), from the nearest earlier checkpoint.

    A run that was trained on a GPU is replayed on the CPU if this machine has no GPU.

    Args:
        removal: Documents to remove in addition to those already removed from the run; the result
            is the exact counterfactual of this span.

    Raises:
        TrainError: The ledger does not have these steps, or no earlier checkpoint has its
            optimizer.
        DamagedError: A file of the run or of its store was changed.
    """
    rows = run.ledger
    if not 0 <= first <= last < len(rows):
        raise TrainError(
            f"steps {first} to {last} cannot be replayed: the ledger holds 0 to {len(rows) - 1}"
        )
    run.store.check_files()
    if removal:
        _refuse_taught(run, removal)
    removed = removal.joined(run.removal) if removal else run.removal
    # Without the GPU it was trained on, a span agrees only within a tolerance, not bit by bit.
    numerics = on_this_machine(run.numerics)
    state, done = load_state(run, first, numerics), []
    with applied(numerics):
        for row in run_steps(run, state, last + 1, numerics=numerics, removal=removed):
            done.append(row)
            if progress:
                progress("replaying", len(done), last + 1 - state.step + len(done))
    return Replay(tuple(done[first - last - 1 :]), tuple(rows[first : last + 1]), state)


def retrain_without(
    parent: Run,
    out: str | Path,
    removal: DocumentRemoval,
    *,
    choice: RemovalChoice | None = None,
    data_workers: int = 0,
    progress: Progress | None = None,
) -> Run:
    """Retrain a run without some documents; everything else is as in the parent, to the last bit.

    The new run starts at the last checkpoint that keeps the parent's optimizer before one of the
    documents was first read, because earlier steps are the same in both; without such a checkpoint
    in between that is step 0. It ends at the parent's last checkpoint. Documents already removed
    from the parent stay removed.

    Args:
        choice: How the documents were chosen, for the manifest; None: this is not recorded.

    Raises:
        TrainError: There are no documents to remove, or the parent never read any of them.
        RecipeError: `out` is a run already.
        StoreError: The parent has a removal with another mode.
        DamagedError: A file of the parent or of its store was changed.
    """
    out = Path(out)
    if not removal.documents:
        raise TrainError("no documents to leave out were given; the retrained run would be the run")
    _refuse_taught(parent, removal)
    removed = removal.joined(parent.removal)
    if (out / runs.MANIFEST).exists():
        raise RecipeError(f"{out} is a run already; resume it or choose another folder")
    parent.store.check_files()
    begin = load_state(parent, first_step_reading(parent, removal.documents), parent.numerics)
    lineage = {"run_id": parent.id, "step": begin.step}
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        if (out / runs.MANIFEST).exists():  # written by another process meanwhile
            raise RecipeError(f"{out} is a run already; resume it or choose another folder")
        _start_from(parent, begin, out)
        runs.begin_manifest(
            out, parent.recipe, parent.store, parent.numerics, parent=lineage, removal=removed,
            choice=choice, base=parent.base, teacher=parent.predicate.get("teacher"),
            teacher_path=parent.teacher.path if parent.teacher else None,
        )  # fmt: skip
        child = runs.open(out, store=parent.store.path)
        return _train(child, begin, data_workers, progress, parent.steps[-1])


def _refuse_taught(run: Run, removal: DocumentRemoval) -> None:
    """Raise a TrainError if the run's teacher has read a document that is to be removed."""
    teacher = run.teacher
    if teacher is None or teacher.knowledge != "full":
        return
    if teacher.predicate["data"]["fingerprint"] != run.predicate["data"]["fingerprint"]:
        return
    taught = [one for one in removal.documents if len(teacher.steps_learned(one))]
    if taught:
        raise TrainError(
            f"the run {run.path} was taught by {teacher.path}, which has read {len(taught)} of the "
            f"{len(removal.documents)} documents to remove and would still teach them; retrain "
            "the teacher without them first"
        )


def _start_from(parent: Run, begin: TrainState, out: Path) -> None:
    """Copy what a retrained run shares with its parent.

    This is done before the manifest is written, so a retrained run always has its first checkpoint.
    If the process is killed before that, the run is started again at the same step.
    """
    shutil.rmtree(out / runs.CHECKPOINTS, ignore_errors=True)
    if parent.recipe.sampler == "nanogpt":
        storage.write_bytes(out / runs.SCHEDULE, (parent.path / runs.SCHEDULE).read_bytes())
    if parent.base and parent.base.reference_sha256:
        storage.write_bytes(out / runs.REFERENCE, (parent.path / runs.REFERENCE).read_bytes())
    runs.write_ledger(out / runs.LEDGER, parent.ledger[: begin.step])
    with applied(parent.numerics):
        save(replace(parent, path=out, store_path=parent.store.path), begin)


def first_step_reading(run: Run, documents: tuple[int, ...]) -> int:
    """Return the first step at which one of the documents is read.

    Raises:
        TrainError: None of them was read before the last checkpoint.

    Examples:
        >>> trainer.first_step_reading(run, (28867,))
        1513
    """
    firsts = [int(steps[0]) for one in documents if len(steps := run.steps_reading(one))]
    if min(firsts, default=math.inf) >= (end := run.saved_at(None).step):
        raise TrainError(
            f"none of the {len(documents)} documents was ever read in the {end} steps before the "
            f"last checkpoint of {run.path}; leaving them out changes nothing"
        )
    return min(firsts)


def training_steps(
    state: TrainState,
    recipe: Recipe,
    store: TokenStore,
    order: Order,
    numerics: Numerics,
    stop: int,
    removal: DocumentRemoval | None = None,
    data_workers: int = 0,
    ranks: Ranks = ALONE,
    objective: Objective = next_token,
) -> Iterator[runs.LedgerRow]:
    """Train `state` up to step `stop` and yield one ledger row per step.

    Call it inside `train.numerics.applied`. On a CUDA device rows are yielded in blocks of 16. A
    process that is not one of several `ranks` computes the shares of all of them in turn.

    Raises:
        DivergedError: A loss or gradient norm is not finite.
    """
    forward = torch.compile(state.model) if numerics.compile else state.model
    parameters = list(state.model.parameters())
    state.model.train()
    waiting: list[tuple[runs.LedgerRow, torch.Tensor, torch.Tensor]] = []
    for batch in batches_ahead(store, order, range(state.step, stop), removal, data_workers):
        begin, held_out = time.perf_counter(), None
        if recipe.eval_every and batch.step % recipe.eval_every == 0 and ranks.rank == 0:
            held_out = evaluation.held_out_loss(state.model, store, recipe, numerics)
        lr = optimizer.lr_at(recipe, batch.step)
        optimizer.set_lr(state.optimizer, lr)
        optimizer.set_weight_decay(state.optimizer, optimizer.weight_decay_at(recipe, batch.step))
        loss = ranks.sum_gradients(
            parameters,
            batch,
            numerics.world_size,
            lambda share: _backward(forward, share, recipe, numerics, objective),
        )
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
        if numerics.device == "cpu" and not math.isfinite(loss.item() + norm.item()):
            raise _diverged(state.model, batch, numerics, batch.step)
        ranks.update(state.optimizer, parameters)
        state.step += 1
        if state.average is not None:
            update_average(state.average, state.model, recipe.ema_decay, state.step)
        state.tokens += batch.divisor
        row = runs.LedgerRow(
            step=batch.step, lr=lr, loss=0.0, grad_norm=0.0, tokens=state.tokens,
            digest=batch.digest, seconds=time.perf_counter() - begin, held_out=held_out,
        )  # fmt: skip
        waiting.append((row, loss, norm))
        if len(waiting) == (1 if numerics.device == "cpu" else CUDA_BLOCK) or state.step == stop:
            yield from completed_rows(waiting, state.model, batch, numerics)
            waiting.clear()


def run_steps(
    run: Run,
    state: TrainState,
    stop: int,
    *,
    numerics: Numerics | None = None,
    removal: DocumentRemoval | None = None,
    eval_every: int | None = None,
    data_workers: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[runs.LedgerRow]:
    """Train `state` up to step `stop` as the run did, and yield one ledger row per step.

    Call it inside `train.numerics.applied`.

    Args:
        numerics: Default: those of the run.
        removal: All documents to remove, those removed from the run included.
        eval_every: Steps between measurements of the held-out loss, which do not change the
            training; default: as in the recipe.

    Raises:
        DivergedError: A loss or gradient norm is not finite.
    """
    recipe = run.recipe if eval_every is None else replace(run.recipe, eval_every=eval_every)
    return training_steps(
        state, recipe, run.store, run.order, numerics or run.numerics, stop, removal,
        data_workers, ranks, objective_of(run),
    )  # fmt: skip


def _train(
    run: Run,
    state: TrainState,
    data_workers: int,
    progress: Progress | None,
    last: int | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Train from `state` to the checkpoint `last` and write ledger, checkpoints and monitor log."""
    last = run.recipe.steps if last is None else last
    if ranks.rank > 0:
        return _train_on_other_rank(run, state, data_workers, last, ranks)
    recipe, saves = run.recipe, set(run.recipe.checkpoint_steps())
    watcher = monitoring.Monitor(run.path, state.step, run.numerics.device)
    writer = runs.ledger_writer(run.path / runs.LEDGER, state.step)
    begin, seen = time.perf_counter(), state.tokens
    try:
        with applied(run.numerics):
            check_ranks(state, ranks)
            watcher.look(state.model, state.step, state.tokens)
            # The index is written last, so without one the first checkpoint is missing or partial.
            if not _index(run).exists():
                save(run, state)
            while state.step < last:
                stop = min(step for step in saves | watcher.due if step > state.step)
                for row in run_steps(
                    run, state, stop, removal=run.removal, data_workers=data_workers, ranks=ranks
                ):
                    writer.append(asdict(row), sync=False)
                    if progress:
                        speed = (row.tokens - seen) / (time.perf_counter() - begin)
                        what = f"loss {row.loss:.3f}  {speed / 1000:.1f}k tokens/s"
                        progress(what, row.step + 1, last)
                watcher.look(state.model, state.step, state.tokens)
                if state.step in saves:
                    check_ranks(state, ranks)
                    writer.sync()
                    save(run, state, gathered_optimizer(state, ranks))
    finally:
        writer.close()
        watcher.close()
    if state.step == recipe.steps:
        runs.finish_manifest(run.path, run.manifest, _digests(run))
    ranks.wait()
    return runs.open(run.path, store=run.store_path)


def _train_on_other_rank(
    run: Run, state: TrainState, data_workers: int, last: int, ranks: Ranks
) -> Run:
    """Train on a rank above 0, and wait until rank 0 has written the last file."""
    saves = [step for step in run.recipe.checkpoint_steps() if state.step < step <= last]
    with applied(run.numerics):
        check_ranks(state, ranks)
        for stop in saves:
            for _ in run_steps(
                run, state, stop, removal=run.removal, data_workers=data_workers, ranks=ranks
            ):
                pass
            check_ranks(state, ranks)
            gathered_optimizer(state, ranks)
    ranks.wait()
    return runs.open(run.path, store=run.store_path)


def _backward(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batch: Batch,
    recipe: Recipe,
    numerics: Numerics,
    objective: Objective,
) -> torch.Tensor:
    """Accumulate the gradients of a batch, micro-batch by micro-batch, and return its loss."""
    total = torch.zeros((), device=numerics.device, dtype=torch.float32)
    for part in batch.parts(recipe.micro_batch_size):
        with numerics.autocast(), use_kernels(numerics.kernels):
            loss = objective(forward, part.to(numerics.device))
        loss.backward()
        total += loss.detach()
    return total


def completed_rows(
    waiting: list[tuple[runs.LedgerRow, torch.Tensor, torch.Tensor]],
    model: GPT,
    batch: Batch,
    numerics: Numerics,
) -> Iterator[runs.LedgerRow]:
    """Yield the waiting rows, completed with loss and gradient norm read from the device."""
    for row, loss, norm in waiting:
        if not math.isfinite(loss.item() + norm.item()):
            raise _diverged(model, batch, numerics, row.step)
        yield replace(row, loss=loss.item(), grad_norm=norm.item())


def _diverged(model: GPT, batch: Batch, numerics: Numerics, step: int) -> DivergedError:
    """Return an error that names the first tensor that is not finite with the current weights.

    On a CPU these are the weights that `step` used; on a GPU later updates are included.
    """
    bad = evaluation.first_bad_tensor(model, batch, numerics)
    when = f" (looked for after {batch.step - step + 1} more updates, read in blocks on a GPU)"
    return DivergedError(
        f"the loss of step {step} is not a number; the first bad tensor"
        f"{'' if numerics.device == 'cpu' else when} is {bad}; the last good checkpoint was kept: "
        f"lower the learning rate or look at the batch with `openbook run documents RUN {step}`"
    )


def _digests(run: Run) -> dict[str, str]:
    """Return the sha256 of every file of a finished run except its manifest."""
    listed = {f"{one.folder}/{name}": sha for one in run.saved for name, sha in one.files.items()}
    names = [runs.LEDGER, f"{runs.CHECKPOINTS}/{runs.CHECKPOINT_INDEX}"]
    others = (runs.SCHEDULE, runs.MONITOR_LOG, runs.REFERENCE)
    names += [one for one in others if (run.path / one).exists()]
    return listed | {name: storage.sha256_file(run.path / name) for name in names}


def _index(run: Run) -> Path:
    return run.path / runs.CHECKPOINTS / runs.CHECKPOINT_INDEX


def _lock(path: Path) -> AbstractContextManager[object]:
    """Return the lock with which one process at a time trains a run."""
    refusal = TrainError(f"another process is training {path}; wait for it or end it")
    return storage.hold_lock(path / LOCK, refusal)
