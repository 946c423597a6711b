"""The command `openbook emergence`: computes an analysis at every checkpoint of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import PROMPTS, PlotOutput, Prompts, Seed
from train.cli.options import RunOptions, option_groups
from train.progress import count


if TYPE_CHECKING:
    from interp.training_dynamics import Trajectory, TrajectoryPoint

SHOWN = 5


@option_groups
def emergence_command(
    source: RunOptions,
    output: PlotOutput,
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS",
            help="Analysis: induction, previous-token, copying, detectors (these three), "
            "in-context, score:BEHAVIOUR, heads:BEHAVIOUR, or watched (what was logged during "
            "training).",
        ),
    ],
    steps: Annotated[
        str,
        typer.Option(
            help="Checkpoints to analyse: all, log:40 (at most 40, spaced logarithmically), or "
            "steps such as 0,100,200."
        ),
    ] = "all",
    documents: Annotated[
        list[int] | None,
        typer.Option(
            "--document", help="Index of a document: mark the steps that read it; may be repeated."
        ),
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the computed rows; default: emergence inside RUN."),
    ] = None,
) -> None:
    """Compute ANALYSIS at checkpoints of RUN. Rows that were computed before are read from disk."""
    from interp import behaviours, training_dynamics
    from train import progress

    if analysis != "watched":
        training_dynamics.refuse_unknown_analysis(analysis)
    behaviour = analysis.partition(":")[2]
    if behaviour:
        behaviours.refuse_unknown_name(behaviour, source.path, source.store)
    run = source.open()
    if analysis == "watched":
        found = training_dynamics.logged(run)
    else:
        asked = training_dynamics.analysis(analysis, run, n_prompts=prompts, seed=seed)
        with progress.bar(analysis) as advance:
            found = training_dynamics.over_training(
                run, asked, steps=steps, out=keep, progress=advance
            )
    if documents:
        found = found.reading(run, documents)
    output.draw(found)
    output.emit(found, said(found))


def said(found: "Trajectory") -> str:
    """Return the values that change most, by step, when each rose, and what failed."""
    names = found.changing(SHOWN)
    curves = {name: {one.step: one for one in found.curve(name)} for name in names}
    rows = [["step", *names]]
    for step in found.steps:
        cells = [_cell(curves[name][step]) if step in curves[name] else "" for name in names]
        rows.append([str(step), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    hidden = len(found.names) - len(names)
    lines += [f"and {hidden} more that change less (--json prints all)"] if hidden else []
    for name in names:
        curve = found.curve(name)
        if curve[0].value != curve[-1].value:
            onset = found.onset(name)
            lines.append(
                f"{name}: half way from {curve[0].value:.3g} to {curve[-1].value:.3g} between "
                f"step {onset.before} and {onset.step} (n={curve[-1].n}){_detour(curve)}"
            )
    for label, steps in found.readings.items():
        between = f", steps {steps[0]} to {steps[-1]}" if steps else ""
        lines.append(f"{label}: {count(len(steps), 'reading')}{between}")
    if found.refused:
        asked = [step for step, _ in found.refused]
        lines.append(
            f"no value at {count(len(asked), 'step')} ({asked[0]} to {asked[-1]}); the first "
            "reason:"
        )
        lines.append(f"  {found.refused[0][1]}")
    lines.append(f"run {found.run_id}, {found.knowledge}; intervals are 95 % over prompts")
    return "\n".join(lines)


def _detour(curve: "Sequence[TrajectoryPoint]") -> str:
    """Name the furthest value if it lies outside the range of the ends by over half that range."""
    low, high = sorted((curve[0].value, curve[-1].value))
    outside = [max(low - one.value, one.value - high) for one in curve]
    furthest = max(range(len(curve)), key=outside.__getitem__)
    if outside[furthest] <= (high - low) / 2:
        return ""
    return f", by way of {curve[furthest].value:.3g} at step {curve[furthest].step}"


def _cell(one: "TrajectoryPoint") -> str:
    if one.low is None or one.high is None:
        return f"{one.value:.3g}"
    return f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"
