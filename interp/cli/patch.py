"""The commands `openbook patch` and `openbook paths`: what carries a behaviour, and where to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import (
    MEMORY,
    PROMPTS,
    Direction,
    Memory,
    MetricNames,
    Named,
    Plot,
    Prompts,
    Rows,
    Seed,
    Source,
    Step,
    provenance_line,
)
from interp.errors import InterpError
from train.cli.options import Json, Out, StorePath
from train.cli.output import emit
from train.progress import count


if TYPE_CHECKING:
    from interp.patching import Effects

# Values of --over: names of sweeps, or sites of the residual stream.
OVER = (
    "heads", "residual", "resid_mid", "resid_post", "mlps", "attention", "queries", "keys",
    "values", "patterns", "neurons",
)  # fmt: skip
WINDOWED = ("mlps", "attention")
Over = Literal[
    "heads", "residual", "resid_mid", "resid_post", "mlps", "attention", "queries", "keys",
    "values", "patterns", "neurons",
]  # fmt: skip


def patch_command(
    source: Source,
    behaviour: Named,
    over: Annotated[Over, typer.Option(help="Components to patch, one at a time.")] = "heads",
    step: Step = None,
    direction: Direction = "denoising",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions to patch: each (one at a time), together (all at once), or a list such "
            "as 3,5,-1; default: each for the residual stream, otherwise together."
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            min=1, help="With --over mlps or attention: number of layers patched together."
        ),
    ] = 1,
    metric: MetricNames = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Also make the same patches in an untrained model, as a control."
        ),
    ] = False,
    memory: Memory = MEMORY,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Rows = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find the activations of RUN that carry BEHAVIOUR, by patching one at a time."""
    if window > 1 and over not in WINDOWED:
        raise InterpError(f"--window belongs to {' and '.join(WINDOWED)}, not to {over}")
    from interp import behaviours, models, patching
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    options = _sweep_options(direction, metric, memory)
    if positions:
        options["positions"] = _positions(positions)
    with progress.bar(over) as advance:
        options["progress"] = advance
        effects = _sweep(model, prompted, over, window, options)
    if control and not effects.unfinished:
        effects = patching.untrained_control(
            model, prompted, effects, memory=memory << 20, seed=seed
        )
    _emit(effects, top, plot, as_json, out)


def paths_command(
    source: Source,
    behaviour: Named,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="Receiver: the queries, keys or values of a head, e.g. L1H0.q, or logits "
            "(default); may be repeated."
        ),
    ] = None,
    mlps: Annotated[
        Literal["frozen", "recomputed"],
        typer.Option(help="Treatment of the MLPs between sender and receiver."),
    ] = "frozen",
    step: Step = None,
    direction: Direction = "denoising",
    metric: MetricNames = None,
    memory: Memory = MEMORY,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Rows = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find the heads of RUN that act on BEHAVIOUR through given receivers, by path patching.

    Patches the path from every head to the receivers, taken together, and no other path.
    """
    from interp import behaviours, models, patching
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    receivers = to if to and to != ["logits"] else "logits"
    options = _sweep_options(direction, metric, memory)
    with progress.bar("paths") as advance:
        options["progress"] = advance
        effects = patching.senders(model, prompted, receivers, mlps=mlps, **options)
    _emit(effects, top, plot, as_json, out)


def _sweep_options(direction: str, metric: list[str] | None, memory: int) -> dict[str, Any]:
    """Return the options of a sweep of `interp.patching`; `memory` is in MB."""
    return {"direction": direction, "metric": metric or None, "memory": memory << 20}


def _emit(effects: "Effects", top: int, plot: Path | None, as_json: bool, out: Path | None) -> None:
    """Draw, print and write effects; exit with code 130 if the sweep was interrupted."""
    from interp import plots

    if plot:
        plots.write(effects.plot(), plot)
    text = "\n".join(effects_text(one, top) for one in (effects, *effects.also))
    emit(effects, text, as_json=as_json, out=out)
    if effects.unfinished:
        raise typer.Exit(130)


def _sweep(model: Any, behaviour: Any, over: str, window: int, how: dict[str, Any]) -> "Effects":
    from interp import patching

    if over in ("residual", "resid_mid", "resid_post"):
        site = "resid_pre" if over == "residual" else over
        return patching.residual(model, behaviour, site=site, **how)
    if over in WINDOWED:
        how["window"] = window
    return getattr(patching, over)(model, behaviour, **how)


def _positions(given: str) -> str | list[int]:
    """Return the words "each" and "together" unchanged, and numbers as a list."""
    if given in ("each", "together"):
        return given
    try:
        return [int(one) for one in given.split(",")]
    except ValueError:
        raise InterpError(
            f"--positions is 'each', 'together' or numbers such as 3,5,-1, not {given!r}"
        ) from None


def _bounds(interval: tuple[float, float] | None) -> str:
    return " [{:.3f}, {:.3f}]".format(*interval) if interval else ""


def _no_interval(effects: "Effects") -> str:
    return "one prompt, no interval" if effects.n_prompts < 2 else "too few prompts for an interval"


def effects_text(effects: "Effects", top: int) -> str:
    """Return the text output: the largest effects, their intervals, baselines and provenance."""
    about = effects.provenance
    window = f", windows of {effects.window} layers" if effects.window > 1 else ""
    window += f", paths: {effects.through}" if effects.through else ""
    lines = [
        f"{about.behaviour}: {effects.site}{window}, {effects.direction}, {effects.unit}",
        f"baselines: clean {effects.clean:.3f}{_bounds(effects.clean_interval)}, corrupt "
        f"{effects.corrupt:.3f}{_bounds(effects.corrupt_interval)} "
        f"({effects.metric}, {count(effects.n_prompts, 'prompt')})",
    ]
    for name in effects.top(top):
        bounds = effects.interval(name)
        shown = "[{:.3f}, {:.3f}]".format(*bounds) if bounds else _no_interval(effects)
        lines.append(f"{name:<16}  {effects[name]:7.3f}  {shown}")
    if effects.control is not None:
        largest = float(effects.control[~effects.control.isnan()].abs().max())
        lines.append(
            f"control: no patch of an untrained model moves over {largest:.3f} of this difference"
        )
    left = len(effects.names) - top - effects.unfinished
    lines += [f"and {count(left, 'place')} with smaller effects"] if left > 0 else []
    return "\n".join([*lines, *effects.notes, provenance_line(about)])
