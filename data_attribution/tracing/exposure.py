"""Exposure: how often, and when, a run read a text or documents during its training.

Nothing is stored: the token index gives the positions of a text, and the data order, which can be
inverted (`train.data.data_order`), gives the steps at which those tokens were targets.

An occurrence is *read* when its tokens are targets. A window may cut it, so a reading carries the
share of the occurrence's tokens that were targets at that step, and the shares add up to whole
readings: exactly one per epoch. Text in the held-out region, and in documents that were removed
from the run, is never read.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float64, Int64, Integer

from data_attribution import token_index
from data_attribution.errors import EvidenceError
from data_attribution.token_index import TokenIndex, TokenQuery
from interp import plots
from train import html_panel
from train.data import InvertibleOrder, Order
from train.progress import count
from train.runs import ReadableRun
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["Exposure", "exposure_of_documents", "exposure_of_text"]

# Number of occurrences whose readings are computed at a time.
BLOCK = 1 << 17
# Largest number of occurrences that are followed; of more, this many are drawn, in a quarter of a
# second. A curve is then off by less than a thousandth of its end.
MOST = 1 << 20
# For data orders that are a table: their windows by start, kept as long as the order is in use.
SORTED_TABLES: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}


@dataclass(frozen=True, eq=False)
class Exposure:
    """All readings of some stretches of text before a checkpoint, by step.

    Attributes:
        target: Name of the text or documents.
        positions, lengths: Position and length of each stretch in the train region, in tokens of
            tokens.bin.
        documents: Document of each stretch.
        held_out: Number of further occurrences in the held-out region, which no run reads.
        steps: Step of each reading, ascending; step t leads from checkpoint t to t + 1.
        stretches: Which stretch was read, per reading.
        shares: Share of the stretch that was read, above 0; over 1 if a step read it more than
            once.
        before: Checkpoint that had seen all of these readings, and nothing later.
        epoch: Number of steps in which the train region is read once.
        weight: Number of occurrences that each stretch stands for. It exceeds 1 if there were too
            many to follow and some were drawn, evenly over what follows the text.
    """

    meaning: ClassVar[str] = (
        "An exposure shows when the run read a text; it does not show that the model learned "
        "it then."
    )

    target: str
    positions: Int64[np.ndarray, " stretch"]
    lengths: Int64[np.ndarray, " stretch"]
    documents: Int64[np.ndarray, " stretch"]
    held_out: int
    steps: Int64[np.ndarray, " reading"]
    stretches: Int64[np.ndarray, " reading"]
    shares: Float64[np.ndarray, " reading"]
    before: int
    epoch: float
    weight: float = 1.0

    __repr__ = short_repr

    def __str__(self) -> str:
        places = count(self.places, "place")
        read = f"read {count(self.readings, 'time')} before checkpoint {self.before:,}"
        return f"{self.target!r}, {places} {read}, {self.held_out:,} held out"

    @property
    def places(self) -> int:
        """Return the number of occurrences in the train region."""
        return round(len(self.positions) * self.weight)

    @property
    def sampled(self) -> bool:
        """Return whether numbers are estimates from `len(positions)` drawn occurrences."""
        return self.weight > 1

    @property
    def readings(self) -> float:
        """Return how often a stretch was read in all, in whole readings."""
        return self.at(self.before)

    def at(self, step: int) -> float:
        """Return the number of readings before checkpoint `step`.

        Raises:
            EvidenceError: The step is not in 0 to `before`, so that nothing is known about it.
        """
        if not 0 <= step <= self.before:
            raise EvidenceError(
                f"readings before checkpoint {step} were asked of an exposure that ends at "
                f"checkpoint {self.before}; give 0 to {self.before}, or compute it further"
            )
        return float(self._total[np.searchsorted(self.steps, step)])

    def curve(self, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return checkpoints, from 0 to `before`, and the readings made before each.

        Args:
            n: Number of checkpoints, equally far apart; default: all at which the number changes.

        Raises:
            EvidenceError: Fewer than two checkpoints make no curve.
        """
        if n is not None and n < 2:
            raise EvidenceError(f"a curve of {n} checkpoints was asked for; give 2 or more")
        changed = np.unique([0, *np.unique(self.steps + 1).tolist(), self.before])
        steps = changed if n is None else np.unique(np.linspace(0, self.before, n).round())
        steps = steps.astype(np.int64)
        return steps, self._total[np.searchsorted(self.steps, steps)]

    def even(self, step: int) -> float:
        """Return the number of readings before `step` if they were spread evenly over training."""
        return self.places * step / self.epoch

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per reading: step, document, position, length, share, readings so far."""
        import pandas

        return pandas.DataFrame(
            {
                "step": self.steps,
                "document": self.documents[self.stretches],
                "position": self.positions[self.stretches],
                "length": self.lengths[self.stretches],
                "share": self.shares,
                "readings": self._total[1:],
            }
        )

    def _repr_html_(self) -> str:
        import pandas

        steps, readings = self.curve(max(2, min(self.before + 1, html_panel.ROWS + 1)))
        even = [self.even(step) for step in steps.tolist()]
        columns = {"checkpoint": steps, "readings": readings, "if spread evenly": even}
        facts = (
            ("occurrences", self.places),
            ("held out", self.held_out),
            ("readings", self.readings),
            ("counted", "a sample of them" if self.sampled else "all of them"),
        )
        frame = pandas.DataFrame(columns)
        return html_panel.panel_of(self, len(frame), frame=frame, facts=facts).html()

    def plot(self) -> "plots.Figure":
        """Plot the readings over training, with an even spread for comparison."""
        steps, readings = self.curve(max(2, min(self.before + 1, 201)))
        even = np.array([self.even(int(step)) for step in steps])
        return plots.lines(
            steps.tolist(),
            {"read": readings.tolist(), "spread evenly": even.tolist()},
            title=f"{count(self.places, 'place')} of {self.target!r}",
            across="checkpoint",
            unit="readings",
        )

    @cached_property
    def _total(self) -> np.ndarray:
        # Shares are fractions with small denominators; a sum of thirds should still be a whole
        # number.
        return np.concatenate([[0.0], np.cumsum(self.shares)]).round(9) * self.weight


def exposure_of_text(
    run: ReadableRun,
    target: TokenQuery,
    *,
    before: int | None = None,
    index: TokenIndex | None = None,
    limit: int = MOST,
) -> Exposure:
    """Return all readings of a text or of token ids, wherever they occur, with and without a space.

    Costs a look-up in the index, and about a microsecond and 24 bytes per occurrence and epoch. If
    there are more than `limit` occurrences, that many are followed and stand for all.

    Args:
        before: A checkpoint; default: the last one.
        index: Index of the run's store, if it is already open.
        limit: Largest number of occurrences that are followed.

    Raises:
        QueryError: The target is empty, or no document can hold it.
        EvidenceError: The run has no such checkpoint.

    Examples:
        >>> exposure = tracing.exposure_of_text(run, "of runethi")
        >>> exposure.readings, exposure.at(600), exposure.documents.tolist()
        (43.0, 2.0, [8865, 28417, 28438, 28710, 28827, 28932])
    """
    index = index or token_index.open(run.store)
    hits = index.find(target, limit=limit, every=True)
    mine, found = ~hits.held_out, hits.found
    exposure = _read(
        run, found.query, hits.positions[mine], hits.lengths[mine], found.held_out, before
    )
    return replace(exposure, weight=found.count / max(int(mine.sum()), 1) if found.count else 1.0)


def exposure_of_documents(
    run: ReadableRun,
    documents: Sequence[int] | Integer[np.ndarray, " document"],
    *,
    before: int | None = None,
) -> Exposure:
    """Return all readings of whole documents; the end-of-text behind them is not counted.

    Raises:
        EvidenceError: The store has no such document, or the run no such checkpoint.

    Examples:
        >>> exposure = tracing.exposure_of_documents(run, [28867])
        >>> exposure.steps.tolist(), exposure.readings
        ([1513, 1625, 1670, 1795, 1838, 1929, 2025], 7.0)
    """
    store, asked = run.store, np.unique(np.asarray(documents, np.int64))
    if not len(asked) or not 0 <= asked[0] <= asked[-1] < store.n_documents:
        named = f"{asked[0]} to {asked[-1]}" if len(asked) else "none"
        raise EvidenceError(
            f"documents {named} were asked of a store with {store.n_documents} documents"
        )
    name = f"document {asked[0]}" if len(asked) == 1 else f"{len(asked)} documents"
    starts, lengths = store.starts[asked], store.lengths[asked]
    there = starts < store.train_tokens
    return _read(run, name, starts[there], lengths[there], int((~there).sum()), before)


def _read(
    run: ReadableRun,
    target: str,
    positions: Int64[np.ndarray, " stretch"],
    lengths: Int64[np.ndarray, " stretch"],
    held_out: int,
    before: int | None,
) -> Exposure:
    done = run.steps_done
    last = done if before is None else before
    if not 0 <= last <= done:
        raise EvidenceError(
            f"checkpoint {last} was asked of a run that has done {done} steps; give 0 to {done}"
        )
    order = np.argsort(positions, kind="stable")
    positions, lengths = positions[order], lengths[order]
    documents = run.store.document_at(positions)
    stays = np.flatnonzero(~np.isin(documents, run.removal.documents if run.removal else ()))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for first in range(0, len(stays), BLOCK):
        block = stays[first : first + BLOCK]
        steps, which, tokens = _targets(run.order, positions[block], lengths[block], last, done)
        found.append((steps, block[which], tokens / lengths[block[which]]))
    steps, stretches, shares = map(np.concatenate, zip(*found, strict=True))
    by_step = np.argsort(steps, kind="stable")
    return Exposure(
        target=target,
        positions=positions,
        lengths=lengths,
        documents=documents,
        held_out=held_out,
        steps=steps[by_step],
        stretches=stretches[by_step],
        shares=shares[by_step],
        before=last,
        epoch=_targets_per_epoch(run) / (run.order.batch * run.order.context),
    )


def _targets_per_epoch(run: ReadableRun) -> int:
    """Return the number of targets of an epoch: fewer than the store's if the run has a budget."""
    order, targets = run.order, run.store.train_tokens - 1
    covered = order.n_windows * order.context if isinstance(order, InvertibleOrder) else targets
    # Less than one window at the end of the store is never read; that is no budget.
    return targets if targets - covered < order.context else covered


def _targets(
    order: Order,
    positions: Int64[np.ndarray, " stretch"],
    lengths: Int64[np.ndarray, " stretch"],
    before: int,
    done: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps below `before`, the stretches read at them, and how many of their tokens.

    Args:
        done: Number of steps of the run.
    """
    # A window with offset o reads the targets o + 1 .. o + context. It overlaps [position, stop) if
    # position - context <= o < stop - 1.
    stops = positions + lengths
    if isinstance(order, InvertibleOrder):
        which, windows = _spread((positions - 1) // order.context, (stops - 2) // order.context)
        there = windows < order.n_windows
        which, windows = which[there], windows[there]
        read, steps = order.reads(windows, before)
        which, offsets = which[read], windows[read] * order.context
    else:
        sorted_starts, read_at = _by_start(order, done)
        low = np.searchsorted(sorted_starts, positions - order.context, side="left")
        high = np.searchsorted(sorted_starts, stops - 1, side="left")
        which, ranks = _spread(low, high - 1)
        offsets, steps = sorted_starts[ranks], read_at[ranks]
    first, last = offsets + 1, offsets + 1 + order.context
    tokens = np.minimum(last, stops[which]) - np.maximum(first, positions[which])
    return _summed(steps, which, tokens, (steps < before) & (tokens > 0))


def _by_start(order: Order, done: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the window starts of `done` steps, ascending, and the step of each; cached per order.

    Takes 16 bytes per window: 430 MB for the 27.5 billion tokens of gpt2-124m.
    """
    name = id(order), done
    if name not in SORTED_TABLES:
        table = np.array([order.starts(step) for step in range(done)], np.int64).ravel()
        by_start = np.argsort(table, kind="stable")
        SORTED_TABLES[name] = table[by_start], by_start // order.batch
        # An order that holds an array has no hash, so it is identified by its address while it
        # lives.
        weakref.finalize(order, SORTED_TABLES.pop, name, None)
    return SORTED_TABLES[name]


def _spread(
    first: Int64[np.ndarray, " row"], last: Int64[np.ndarray, " row"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return all numbers of [first, last] of each row, and the row that each belongs to."""
    counts = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(first)), counts)
    return which, np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)


def _summed(
    steps: np.ndarray, which: np.ndarray, tokens: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one entry per step and stretch, with the tokens of all windows of that step."""
    steps, which, tokens = steps[kept], which[kept], tokens[kept]
    by_pair = np.lexsort((which, steps))
    steps, which, tokens = steps[by_pair], which[by_pair], tokens[by_pair]
    new = np.flatnonzero(
        np.diff(steps, prepend=-1).astype(bool) | np.diff(which, prepend=-1).astype(bool)
    )
    return steps[new], which[new], np.add.reduceat(tokens, new) if len(new) else tokens[:0]
