"""Replay of a span of training, yielding its states from last to first in bounded memory and disk.

Reverse-mode differentiation needs every optimizer state in reverse order. The trainer replays the
span from the checkpoints that kept their optimizer, and its states are stored in files. If the
states of a stretch between two checkpoints do not all fit into the allowed room, every k-th is
stored and those between are computed again (gradient checkpointing, Griewank 1992;
https://doi.org/10.1080/10556789208805505). One state is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path

from data_attribution.metagradients import optimizer_vectors
from data_attribution.metagradients.optimizer_vectors import Vectors
from train import storage, trainer
from train.numerics import Numerics
from train.progress import Progress
from train.runs import LedgerRow, Run
from train.short_repr import short_repr
from train.trainer import TrainState


__all__ = ["ReplayTrail", "backwards", "room_for", "stretches"]

LEAST = 4  # fewest stored states when the others are computed again


@dataclass(eq=False)
class ReplayTrail:
    """A span that is being replayed.

    Attributes:
        folder: Folder for the states; its creator removes it.
        room: Number of states that may be stored at a time.
        replayed: Number of steps trained again so far.
        differing: Those of them whose digest, loss or norm differs from the ledger's.
    """

    run: Run
    numerics: Numerics
    folder: Path
    room: int
    progress: Progress | None = None
    replayed: int = 0
    differing: set[int] = field(default_factory=set)

    __repr__ = short_repr

    @cached_property
    def ledger(self) -> list[LedgerRow]:
        """Return the run's ledger, one row per step."""
        return self.run.ledger

    def start(self, step: int) -> TrainState:
        """Return the state before `step`, trained from the nearest checkpoint at or below it."""
        state = trainer.load_state(self.run, step, self.numerics)
        for _ in self.advance(state, step):
            pass
        return state

    def advance(self, state: TrainState, stop: int) -> Iterator[LedgerRow]:
        """Train up to `stop` as the run did, and compare every step with the ledger."""
        rows = trainer.run_steps(
            self.run, state, stop, numerics=self.numerics, removal=self.run.removal, eval_every=0
        )
        for row in rows:
            self.replayed += 1
            if not _same(row, self.ledger[row.step]):
                self.differing.add(row.step)
            if self.progress:
                self.progress("steps replayed", self.replayed, None)
            yield row

    def path(self, step: int) -> Path:
        """Return the file of the state before `step`."""
        return self.folder / f"{step:08d}.f32"

    def keep(self, state: TrainState) -> None:
        """Write a state to its file."""
        path = self.path(state.step)
        with storage.disk_guard(path):
            optimizer_vectors.write(path, optimizer_vectors.of_state(state))

    def take(self, step: int) -> Vectors:
        """Return the stored state before `step` and delete its file."""
        kept = optimizer_vectors.read(self.path(step), self.numerics.device)
        self.path(step).unlink()
        return kept


def backwards(trail: ReplayTrail, first: int, last: int) -> Iterator[tuple[int, Vectors]]:
    """Yield (step, state before it) from `last` + 1 down to `first`."""
    for begin, stop in stretches(trail.run, first, last):
        yield from _between(trail, trail.start(begin), stop, trail.room)


def stretches(run: Run, first: int, last: int) -> list[tuple[int, int]]:
    """Return the first and last state of each stretch, from `last` + 1 down to `first`.

    A stretch is replayed at once. Each but that of `first` begins at a checkpoint that kept its
    optimizer.
    """
    saved = [one.step for one in run.saved if one.resumable and first < one.step <= last]
    begins = [first, *saved]
    stops = [*(step - 1 for step in saved), last + 1]
    return list(zip(begins, stops, strict=True))[::-1]


def room_for(n_states: int, room: int) -> bool:
    """Return whether a stretch of `n_states` states can be reversed with `room` of them on disk.

    It follows the recursion of `_in_pieces`: half of the room holds the starts of pieces, the other
    half has to suffice for the states of one piece. With n states and room R,

        fits(n, R)  =  n <= R  or  (R >= 4 and fits(ceil(n / floor(R / 2)), R - floor(R / 2))).

    Each level of the recursion trains every step once more.
    """
    if n_states <= room:
        return True
    return room >= LEAST and room_for(ceil(n_states / (room // 2)), room - room // 2)


def _between(
    trail: ReplayTrail, state: TrainState, stop: int, room: int
) -> Iterator[tuple[int, Vectors]]:
    """Yield the states from `stop` down to where `state` stands, both included.

    `state` is consumed.
    """
    begin = state.step
    n_states = stop - begin + 1
    if n_states > room:
        yield from _in_pieces(trail, state, stop, room)
        return
    trail.keep(state)
    for _ in trail.advance(state, stop):
        trail.keep(state)
    for step in range(stop, begin - 1, -1):
        yield step, trail.take(step)


def _in_pieces(
    trail: ReplayTrail, state: TrainState, stop: int, room: int
) -> Iterator[tuple[int, Vectors]]:
    """Yield the same states as `_between`, with few stored and the steps between trained again."""
    begin, n_states = state.step, stop - state.step + 1
    # Cut the n states into `few` pieces and store their first states. One piece of ceil(n / few)
    # states is stored in full at a time, so one level is enough if few + ceil(n / few) <= room.
    # Otherwise use half of the room for the starts, and the rest recursively.
    half = room // 2
    fitting = (few for few in range(2, half) if few + ceil(n_states / few) <= room)
    n_pieces = next(fitting, half)
    every = ceil(n_states / n_pieces)
    starts = range(begin, stop + 1, every)
    for start in starts:
        for _ in trail.advance(state, start):
            pass
        trail.keep(state)
    for start in reversed(starts):
        # At most n_pieces - 1 starts are on disk here; the piece may use `room - n_pieces` more.
        optimizer_vectors.put_back(state, trail.take(start), start)
        last = min(start + every - 1, stop)
        yield from _between(trail, state, last, room - n_pieces)


def _same(row: LedgerRow, other: LedgerRow) -> bool:
    return all(getattr(row, key) == getattr(other, key) for key in ("digest", "loss", "grad_norm"))
