"""The table of a ladder: what each rung changes in held-out loss, with an interval over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from train import storage
from train.html_panel import html_repr
from train.ladder.factors import Rung
from train.ladder.plan import SCHEMA, Ladder, Trial
from train.ladder.published import published_claims
from train.ladder.sizes import flops_per_token
from train.ladder.training import Measurement, measurements
from train.progress import count
from train.short_repr import short_repr


__all__ = ["Change", "LadderTable", "TableRow", "paired_change", "save_table", "tabulate"]

TABLE = "table.json"
# Columns that depend on the machine and its load.
MEASURED_TIMES = ("tokens_per_second", "milliseconds")
HEAD = ("factor", "loss", "change", "step", "bits/byte", "tokens/s", "MFLOP/token", "ms/pass",
        "parameters", "d_mlp", "what a source claimed")  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A mean change over seeds with its 95 % interval; without one if there is a single seed."""

    value: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.3f} [one seed]"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_change(after: Sequence[float], before: Sequence[float]) -> Change:
    """Return the mean of the differences of pairs, with Student's interval.

    The interval is right if the differences of seeds are normal, which a few seeds cannot show.

    Examples:
        >>> str(ladder.paired_change([2.0, 2.1, 2.5], [2.2, 2.2, 2.8]))
        '-0.200 [-0.448, +0.048]'
    """
    differences = [late - early for late, early in zip(after, before, strict=True)]
    n, mean = len(differences), statistics.mean(differences)
    if n < 2:
        return Change(mean, None, None, n)
    from scipy.special import stdtrit  # takes a third of a second

    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n)
    return Change(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class TableRow:
    """A rung of a ladder in numbers, which are means over seeds.

    Attributes:
        kind: `start`, `alone` or `cumulative`.
        factor: What the rung changes.
        compared_with: The rung with which `change` compares.
        loss: Held-out loss in nats per target; None if no training of it ended.
        change: Change in loss: of an `alone` rung against the start, or against the start with what
            it needs; of a `cumulative` rung against the start.
        step: Change in loss of a `cumulative` rung against the rung before.
        tokens_per_second: Speed of training, the median over seeds.
        milliseconds: Time of a forward pass over one window, the median over seeds.
        claimed: What sources claim of this change.
        reason: Why a factor could not be changed by itself, or in its turn.
        diverged: Number of seeds whose training diverged.
    """

    kind: str
    factor: str
    compared_with: str
    loss: float | None
    bits_per_byte: float | None
    change: Change | None
    step: Change | None
    tokens_per_second: float | None
    milliseconds: float | None
    flops_per_token: int
    parameters: int
    d_mlp: int
    claimed: str
    reason: str
    diverged: int

    __repr__ = short_repr


@dataclass(frozen=True)
class LadderTable:
    """All rungs of a ladder in numbers, and how they were measured."""

    meaning: ClassVar[str] = (
        "A ladder shows what each change of architecture did to the loss at this size; it does not "
        "show that it does the same at another size, or in another order."
    )

    names: tuple[str, str]
    equal: str
    adaptation: str
    seeds: int
    steps: int
    tokens: int
    targets: int
    missing: int
    processors: tuple[str, ...]
    store: str
    rows: tuple[TableRow, ...]

    __repr__ = short_repr
    _repr_html_ = html_repr

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"schema": f"{SCHEMA.partition('/')[0]}-table/1", **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the table as sealed JSON."""
        storage.write_json(path, storage.seal(self.to_dict()))

    def same_everywhere(self) -> list[dict[str, Any]]:
        """Return the rows without what depends on the machine and its load."""
        return [
            {key: value for key, value in asdict(row).items() if key not in MEASURED_TIMES}
            for row in self.rows
        ]

    def __str__(self) -> str:
        """Return the table as text, which is Markdown as well."""
        parts = []
        titles = {
            "start": "Start",
            "alone": f"One factor at a time, from {self.names[0]}",
            "cumulative": f"One after another, to {self.names[1]}",
        }
        lines = [list(HEAD), ["---"] * len(HEAD)]
        for kind, title in titles.items():
            rows = [row for row in self.rows if row.kind == kind]
            if kind != "start":
                lines.append([f"**{title}**", *[""] * (len(HEAD) - 1)])
            lines += [_cells(row) for row in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
        for line in lines:
            fill = "-" if line[0] == "---" else " "
            cells = [cell.ljust(width, fill) for cell, width in zip(line, widths, strict=True)]
            parts.append(f"| {' | '.join(cells)} |")
        return "\n".join([*parts, "", *self._notes()])

    def _notes(self) -> list[str]:
        interval = "one seed, so there is no interval"
        if self.seeds > 1:
            interval = (
                f"mean over {self.seeds} seeds with the 95 % interval of Student's t "
                f"({count(self.seeds - 1, 'degree')} of freedom), paired by seed"
            )
        notes = [
            f"Loss in nats per target on {self.targets:,} held-out targets, after {self.steps:,} "
            f"steps ({self.tokens:,} tokens). change: against {self.names[0]}; step: against the "
            f"rung before; {interval}.",
            f"{self.adaptation[0].upper()}{self.adaptation[1:]}.",
            "MFLOP/token: products of matrices in training. tokens/s: training, median step. "
            "ms/pass: forward pass over one window. Both depend on what else the machine did; "
            f"measured on {' and '.join(self.processors) or 'nothing yet'}.",
        ]
        if any(row.claimed for row in self.rows):
            notes.append(
                "What a source claimed is of its own model, data and size, mostly with one seed, "
                "and was not measured here."
            )
        notes += [
            f"{row.factor} ({row.kind}): {_compared(row)}{row.reason}."
            for row in self.rows
            if row.reason
        ]
        notes += [
            f"{row.factor} ({row.kind}): {row.diverged} of {self.seeds} trainings diverged; "
            "its numbers are of the others."
            for row in self.rows
            if row.diverged
        ]
        if self.missing:
            notes.append(f"{self.missing} trainings are still missing.")
        return notes


def _compared(row: TableRow) -> str:
    return f"compared with {row.compared_with}: " if row.kind == "alone" else ""


def _cells(row: TableRow) -> list[str]:
    return [
        row.factor,
        "" if row.loss is None else f"{row.loss:.3f}",
        str(row.change or ""),
        str(row.step or ""),
        "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        f"{row.flops_per_token / 1e6:.2f}",
        "" if row.milliseconds is None else f"{row.milliseconds:.2f}",
        f"{row.parameters:,}",
        str(row.d_mlp),
        row.claimed,
    ]


def tabulate(ladder: Ladder) -> LadderTable:
    """Return the table of a ladder, of those members that are measured so far."""
    by_trial = measurements(ladder)
    rows = []
    for rung in ladder.rungs:
        member = ladder.members[rung.factors]
        seeds = _of_member(by_trial, rung.factors, ladder)
        ended = [one for one in seeds.values() if one.loss is not None]
        start = _of_member(by_trial, (), ladder)
        base = _of_member(by_trial, rung.base, ladder)
        step = _change(seeds, base) if rung.kind == "cumulative" else None
        against = base if rung.kind == "alone" else start
        changed = [factor for factor in ladder.factors if factor.name in rung.changed]
        rows.append(
            TableRow(
                kind=rung.kind,
                factor=" and ".join(rung.changed) or ladder.names[0],
                compared_with=_compared_with(rung, ladder),
                loss=_mean([one.loss for one in ended]),
                bits_per_byte=_mean([one.bits_per_byte for one in ended]),
                change=None if rung.kind == "start" else _change(seeds, against),
                step=step,
                tokens_per_second=_median([one.tokens_per_second for one in ended]),
                milliseconds=_median([one.milliseconds for one in ended]),
                flops_per_token=flops_per_token(member.model),
                parameters=member.model.n_params,
                d_mlp=member.model.d_mlp,
                claimed=published_claims(changed),
                reason=rung.reason,
                diverged=sum(bool(one.failure) for one in seeds.values()),
            )
        )
    return LadderTable(
        names=ladder.names,
        equal=ladder.equal,
        adaptation=ladder.adaptation,
        seeds=ladder.seeds,
        steps=ladder.start.steps,
        tokens=ladder.start.steps * ladder.start.tokens_per_step,
        targets=max((one.targets for one in by_trial.values()), default=0),
        missing=len(ladder.trials) - len(by_trial),
        processors=tuple(sorted({one.processor for one in by_trial.values()} - {""})),
        store=ladder.store.fingerprint,
        rows=tuple(rows),
    )


def save_table(ladder: Ladder) -> LadderTable:
    """Write the table into the folder of the ladder, and return it."""
    result = tabulate(ladder)
    with storage.hold_lock(ladder.lock_path(TABLE), None):
        result.save(ladder.path / TABLE)
    return result


def _of_member(
    by_trial: dict[Trial, Measurement], factors: tuple[str, ...], ladder: Ladder
) -> dict[int, Measurement]:
    """Return what was measured on a member, by seed."""
    name = ladder.members[factors].name
    return {trial.seed: one for trial, one in by_trial.items() if trial.member == name}


def _change(after: dict[int, Measurement], before: dict[int, Measurement]) -> Change | None:
    """Return the change over the seeds of which both trainings ended."""
    pairs = [(after[seed].loss, before[seed].loss) for seed in sorted(after.keys() & before.keys())]
    ended = [(late, early) for late, early in pairs if late is not None and early is not None]
    return paired_change(*zip(*ended, strict=True)) if ended else None


def _compared_with(rung: Rung, ladder: Ladder) -> str:
    if rung.kind == "start":
        return ""
    if rung.kind == "cumulative" or not rung.base:
        return ladder.names[0]
    return f"{ladder.names[0]} with {', '.join(rung.base)}"


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.mean(there) if there else None


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
