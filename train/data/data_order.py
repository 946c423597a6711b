"""The data order: which tokens the model reads at which step, and at which steps it reads a token.

The order is computed, not stored. Windows of `context` targets tile the token stream, so that each
token is a target in exactly one window per epoch. The window at position k of the run is given by a
keyed Feistel permutation of the windows, with the epoch as tweak. It is a pure function of (seed,
k), costs the same for every position, and is as fast to invert as to compute, so the steps that
read a document are found without an index. The batch split, the number of workers, the length of
the run and evaluations do not change it (in nanoGPT, gpt-neox#984 and OLMo#268 they change the
data).

A window *reads* a document if at least one of the document's own tokens is a target in it; the
end-of-text is a separator, not a token of the document. The first input of a window is the last
target of the previous window; this is context and does not count as reading. Step t, counted from
0, leads from checkpoint t to checkpoint t + 1.

Permutation: a generalised Feistel network over Z_a x Z_b with a * b just above the number of
windows (Black & Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9), with cycle walking: a
result outside the range is permuted again. The round function is the finaliser of SplitMix64
(Steele, Lea & Flood 2014).
"""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt64

from train.errors import OrderError
from train.short_repr import short_repr


__all__ = [
    "DataOrder",
    "DocumentTable",
    "InvertibleOrder",
    "LateOrder",
    "Order",
    "RecordedOrder",
    "documents_read",
    "first_steps_reading",
    "record_nanogpt_order",
]

# Spans whose windows are looked up together: their reads in all epochs take some megabytes.
AT_ONCE = 4096
# Spacing of the coarse index of `DocumentTable`, a power of two. With eight million documents it is
# slightly the fastest of 8 to 256.
EVERY = 64


@dataclass(frozen=True, eq=False)
class DocumentTable:
    """First token and number of tokens of each document, in token order.

    `last_begun` searches this table in two stages. A plain binary search in eight million starts
    waits for memory at most of its 23 halvings; here the first halvings use every 64th start, which
    all fit into a core's cache, and the last ones touch only neighbouring entries.
    """

    starts: Int64[np.ndarray, " document"]
    lengths: Int64[np.ndarray, " document"]

    __repr__ = short_repr

    def last_begun(self, offsets: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
        """Return the last document that begins at or before each token; -1 before the first."""
        if not len(self.starts):
            return np.full(len(offsets), -1)
        found = (self._coarse.searchsorted(offsets, side="right") - 1) * EVERY
        half = EVERY // 2
        # Invariant: starts[found] <= offset < starts[found + 2 * half]; a negative `found` means
        # before the first document, and indices beyond the table are clipped.
        while half:
            found += half * (self.starts.take(found + half, mode="clip") <= offsets)
            half //= 2
        return found.clip(-1, len(self.starts) - 1)

    @cached_property
    def _coarse(self) -> Int64[np.ndarray, " some"]:
        return self.starts[::EVERY].copy()


GOLDEN = 0x9E3779B97F4A7C15
# One constant per round, computed in Python because numpy warns when a scalar overflows.
ROUNDS = tuple(np.uint64(number * GOLDEN % 2**64) for number in range(8))


@runtime_checkable
class Order(Protocol):
    """The interface of a data order that training and the ledger need."""

    @property
    def context(self) -> int: ...

    @property
    def batch(self) -> int: ...

    def starts(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the offset of the first *input* token of each window read at `step`."""
        ...

    def steps_reading(self, start: int, stop: int, n_steps: int) -> Int64[np.ndarray, " step"]:
        """Return the steps below `n_steps` with a target in tokens [start, stop), ascending."""
        ...


@runtime_checkable
class InvertibleOrder(Order, Protocol):
    """An order of tiled windows that also computes at which steps a window is read."""

    @property
    def n_windows(self) -> int: ...

    def reads(
        self, windows: Int64[np.ndarray, " window"], n_steps: int
    ) -> tuple[Int64[np.ndarray, " read"], Int64[np.ndarray, " read"]]:
        """Return all reads of `windows` below step `n_steps`: index into `windows`, and step."""
        ...


@dataclass(frozen=True)
class DataOrder:
    """A data order in which all windows are permuted anew in every epoch.

    Equal values read the same tokens at every step.

    Attributes:
        seed: Key of the permutation.
        n_windows: Windows that tile the training region of the store.
        context: Targets per window.
        batch: Windows per step, summed over micro-batches.

    Examples:
        >>> order = data.DataOrder(seed=0, n_windows=1000, context=64, batch=4)
        >>> starts = order.starts(7)
        >>> starts.tolist()
        [45632, 59328, 31488, 60608]
        >>> order.steps_reading(int(starts[0]) + 1, int(starts[0]) + 2, n_steps=250).tolist()
        [7]
    """

    seed: int
    n_windows: int
    context: int
    batch: int

    def __post_init__(self) -> None:
        if min(self.n_windows, self.context, self.batch) < 1:
            raise OrderError(
                f"an order of {self.n_windows} windows of {self.context} tokens, {self.batch} a "
                "step, reads nothing; all three must be at least 1"
            )

    def starts(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the offset of the first *input* token of each window read at `step`."""
        return self.windows(np.arange(step * self.batch, (step + 1) * self.batch)) * self.context

    def windows(self, positions: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """Return the window read at each position of the run, counted in windows from 0."""
        epochs, within = np.divmod(positions, self.n_windows)
        return self._walk(within, epochs, forwards=True)

    def positions(
        self, windows: Int64[np.ndarray, " k"], epochs: Int64[np.ndarray, " k"]
    ) -> Int64[np.ndarray, " k"]:
        """Return the position of the run at which each window is read in its given epoch.

        This is the inverse of `windows`; windows and epochs are paired element by element.
        """
        return epochs * self.n_windows + self._walk(windows, epochs, forwards=False)

    def steps_reading(self, start: int, stop: int, n_steps: int) -> Int64[np.ndarray, " step"]:
        """Return the steps below `n_steps` with a target in tokens [start, stop), ascending."""
        return _steps_reading(self, start, stop, n_steps)

    def reads(
        self, windows: Int64[np.ndarray, " window"], n_steps: int
    ) -> tuple[Int64[np.ndarray, " read"], Int64[np.ndarray, " read"]]:
        """Return all reads of `windows` below step `n_steps`: index into `windows`, and step."""
        which, positions = self.read_at(windows, n_steps * self.batch)
        return which, positions // self.batch

    def read_at(
        self, windows: Int64[np.ndarray, " window"], n_positions: int
    ) -> tuple[Int64[np.ndarray, " read"], Int64[np.ndarray, " read"]]:
        """Return all reads of `windows` below `n_positions`: index into them, and position."""
        n_epochs = -(-n_positions // self.n_windows)
        epochs = np.repeat(np.arange(n_epochs), len(windows))
        which = np.tile(np.arange(len(windows)), n_epochs)
        positions = self.positions(np.asarray(windows)[which], epochs)
        there = positions < n_positions
        return which[there], positions[there]

    def _walk(
        self, values: Int64[np.ndarray, " k"], epochs: Int64[np.ndarray, " k"], *, forwards: bool
    ) -> Int64[np.ndarray, " k"]:
        # Cycle walking: permuting until the value is in range is a permutation of the range.
        values = self._permute(values, epochs, forwards)
        while (outside := values >= self.n_windows).any():
            values[outside] = self._permute(values[outside], epochs[outside], forwards)
        return values

    def _permute(
        self, values: Int64[np.ndarray, " k"], epochs: Int64[np.ndarray, " k"], forwards: bool
    ) -> Int64[np.ndarray, " k"]:
        a = isqrt(self.n_windows - 1) + 1
        b = -(-self.n_windows // a)
        key = _mix(
            epochs.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(self.seed & (2**64 - 1))
        )
        # value = right * a + left. Even rounds add F(right) to left modulo a, odd rounds F(left) to
        # right modulo b; subtracting in reverse order inverts the permutation.
        right, left = np.divmod(values, a)
        rounds = list(enumerate(ROUNDS))
        for number, constant in rounds if forwards else reversed(rounds):
            tweak = key + constant
            if number % 2 == 0:
                shift = (_mix(right.astype(np.uint64) ^ tweak) % np.uint64(a)).astype(np.int64)
                left = (left + (shift if forwards else -shift)) % a
            else:
                shift = (_mix(left.astype(np.uint64) ^ tweak) % np.uint64(b)).astype(np.int64)
                right = (right + (shift if forwards else -shift)) % b
        return right * a + left


@dataclass(frozen=True)
class LateOrder:
    """A data order in which the late windows are read only from step `begin` on.

    Before step `begin` every batch holds early windows only. From then on every batch holds
    `late.batch` late windows, and the early order continues in the remaining
    `early.batch - late.batch`. Late windows follow the early ones in the token stream.

    Attributes:
        early: Order of the windows before the late ones; its `batch` is that of a whole step.
        late: Order of the late windows among themselves, counted from 0.
        begin: First step that reads a late window.

    Examples:
        >>> run.order.begin, run.order.early.batch, run.order.late.batch
        (1450, 32, 1)
        >>> late = run.order.starts(1450)[-1]
        >>> int(late) // 64 >= run.order.early.n_windows
        True
    """

    early: DataOrder
    late: DataOrder
    begin: int

    def __post_init__(self) -> None:
        if self.late.context != self.early.context or not 0 < self.late.batch < self.early.batch:
            raise OrderError(
                f"{self.late.batch} late windows of {self.late.context} tokens do not fit batches "
                f"of {self.early.batch} windows of {self.early.context}; there must be fewer of "
                "them, and equally long"
            )
        if self.begin < 0:
            raise OrderError(f"late windows begin at step {self.begin}; it must be 0 or more")

    @property
    def context(self) -> int:
        """Targets per window."""
        return self.early.context

    @property
    def batch(self) -> int:
        """Windows per step."""
        return self.early.batch

    @property
    def n_windows(self) -> int:
        """Number of early and late windows together."""
        return self.early.n_windows + self.late.n_windows

    def starts(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the first *input* offset of each window read at `step`, early windows first."""
        if step < self.begin:
            return self.early.starts(step)
        first, last = self._early_before(step), self._early_before(step + 1)
        early = self.early.windows(np.arange(first, last)) * self.context
        late = self.late.starts(step - self.begin) + self.early.n_windows * self.context
        return np.concatenate([early, late])

    def steps_reading(self, start: int, stop: int, n_steps: int) -> Int64[np.ndarray, " step"]:
        """Return the steps below `n_steps` with a target in tokens [start, stop), ascending."""
        return _steps_reading(self, start, stop, n_steps)

    def reads(
        self, windows: Int64[np.ndarray, " window"], n_steps: int
    ) -> tuple[Int64[np.ndarray, " read"], Int64[np.ndarray, " read"]]:
        """Return all reads of `windows` below step `n_steps`: index into `windows`, and step."""
        windows = np.asarray(windows)
        is_late = windows >= self.early.n_windows
        early, late = np.flatnonzero(~is_late), np.flatnonzero(is_late)
        which, positions = self.early.read_at(windows[early], self._early_before(n_steps))
        # Early windows read per step from step `begin` on; before, a step reads `batch`.
        kept = self.batch - self.late.batch
        behind = positions - self.begin * self.batch
        steps = np.where(behind < 0, positions // self.batch, self.begin + behind // kept)
        late_which, late_steps = self.late.reads(
            windows[late] - self.early.n_windows, max(n_steps - self.begin, 0)
        )
        return (
            np.concatenate([early[which], late[late_which]]),
            np.concatenate([steps, late_steps + self.begin]),
        )

    def _early_before(self, step: int) -> int:
        """Return the number of early windows read in the steps below `step`."""
        behind = max(step - self.begin, 0)
        return (step - behind) * self.batch + behind * (self.batch - self.late.batch)


@dataclass(frozen=True)
class RecordedOrder:
    """A data order stored as a table of window starts by step.

    nanoGPT draws windows with replacement at any offset, so its order can be recorded but not
    inverted: `steps_reading` scans the table (8 bytes per window; 220 MB for 27.5 billion tokens).

    Examples:
        >>> order = data.RecordedOrder(np.array([[0, 128], [64, 32]]), context=64)
        >>> order.starts(1).tolist(), order.steps_reading(130, 131, n_steps=2).tolist()
        ([64, 32], [0])
    """

    schedule: Int64[np.ndarray, "step batch"]
    context: int

    __repr__ = short_repr

    @property
    def batch(self) -> int:
        """Windows per step."""
        return self.schedule.shape[1]

    def starts(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the offset of the first *input* token of each window read at `step`."""
        return np.array(self.schedule[step], dtype=np.int64)

    def steps_reading(self, start: int, stop: int, n_steps: int) -> Int64[np.ndarray, " step"]:
        """Return the steps below `n_steps` with a target in tokens [start, stop), ascending."""
        table = self.schedule[:n_steps]
        reads = (table + 1 < stop) & (table + 1 + self.context > start)
        return np.flatnonzero(reads.any(axis=1))


def _steps_reading(
    order: InvertibleOrder, start: int, stop: int, n_steps: int
) -> Int64[np.ndarray, " step"]:
    (first,), (last,) = _windows_of(order, np.array([start]), np.array([stop]))
    _, steps = order.reads(np.arange(first, last + 1), n_steps)
    return np.unique(steps)


def record_nanogpt_order(
    *, seed: int, n_tokens: int, context: int, batch: int, steps: int
) -> RecordedOrder:
    """Draw windows as nanoGPT does: `torch.randint(n_tokens - context, (batch,))` at every step.

    A separate generator is used, so that evaluation cannot change the draws as it does in
    nanoGPT's train.py.

    Raises:
        OrderError: The store is shorter than one window.

    Examples:
        >>> order = data.record_nanogpt_order(seed=0, n_tokens=10_000, context=64, batch=2, steps=3)
        >>> order.schedule.shape
        (3, 2)
    """
    import torch

    if n_tokens <= context:
        raise OrderError(
            f"a window of {context} tokens and one target does not fit a store of {n_tokens} "
            f"tokens; choose a context below {n_tokens}"
        )
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(n_tokens - context, (steps, batch), generator=generator)
    return RecordedOrder(draw.numpy(), context)


def documents_read(order: Order, table: DocumentTable, step: int) -> Int64[np.ndarray, " read"]:
    """Return the indices of the documents read at `step`, ascending; O(batch log documents).

    Examples:
        >>> data.documents_read(run.order, store.table, 0)[:3].tolist()
        [2223, 2224, 2225]
    """
    first = np.sort(order.starts(step)) + 1
    low, high = table.last_begun(np.concatenate([first, first + order.context - 1])).reshape(2, -1)
    # If a window begins in the separator after that document, it does not read the document.
    low = low + ((low < 0) | (table.starts[low] + table.lengths[low] <= first))
    # Documents that an earlier window read are not listed again.
    low[1:] = np.maximum(low[1:], np.maximum.accumulate(high)[:-1] + 1)
    # The ranges low[i] .. high[i], one after the other.
    counts = np.maximum(high + 1 - low, 0)
    return np.arange(counts.sum()) + np.repeat(low + counts - np.cumsum(counts), counts)


def first_steps_reading(
    order: Order,
    starts: Int64[np.ndarray, " span"],
    stops: Int64[np.ndarray, " span"],
    n_steps: int,
) -> Int64[np.ndarray, " span"]:
    """Return the first step below `n_steps` with a target in tokens [start, stop), for each span.

    This is the first of `order.steps_reading`, or `n_steps` if there is none, of thousands of spans
    in the time of a few.

    Examples:
        >>> starts = store.starts[[28867, 2456]]
        >>> data.first_steps_reading(run.order, starts, starts + 2, n_steps=2100).tolist()
        [1513, 223]
    """
    found = np.full(len(starts), n_steps)
    for first in range(0, len(starts), AT_ONCE):
        block = slice(first, first + AT_ONCE)
        if isinstance(order, InvertibleOrder):
            _lower_to_first_reads(found[block], order, starts[block], stops[block], n_steps)
            continue
        for span in range(*block.indices(len(starts))):
            steps = order.steps_reading(int(starts[span]), int(stops[span]), n_steps)
            found[span] = min(steps, default=n_steps)
    return found


def _lower_to_first_reads(
    found: Int64[np.ndarray, " span"],
    order: InvertibleOrder,
    starts: Int64[np.ndarray, " span"],
    stops: Int64[np.ndarray, " span"],
    n_steps: int,
) -> None:
    """Write the first step that reads one of the windows of each span, if it is less."""
    first, last = _windows_of(order, starts, stops)
    counts = np.maximum(last + 1 - first, 0)
    spans = np.repeat(np.arange(len(starts)), counts)
    # The windows first[i] .. last[i], one span after the other.
    windows = np.arange(counts.sum()) + np.repeat(first + counts - np.cumsum(counts), counts)
    which, steps = order.reads(windows, n_steps)
    np.minimum.at(found, spans[which], steps)


def _windows_of(
    order: InvertibleOrder,
    starts: Int64[np.ndarray, " span"],
    stops: Int64[np.ndarray, " span"],
) -> tuple[Int64[np.ndarray, " span"], Int64[np.ndarray, " span"]]:
    """Return the first and the last window with a target in tokens [start, stop)."""
    first = np.maximum(starts - 1, 0) // order.context
    return first, np.minimum((stops - 2) // order.context, order.n_windows - 1)


def _mix(values: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Apply SplitMix64's finaliser, a bijection on 64 bits in which every bit affects all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
