"""The command `openbook patch`: which activations, or paths between heads, carry a behaviour."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import Named, Prompts, Seed, Source, Step, provenance_line
from interp.errors import InterpError
from interp.plots import drawable
from train.cli.options import Json, Out, StorePath
from train.cli.output import answer


if TYPE_CHECKING:
    from interp.patching import Effects

PROMPTS = 64
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
MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Metric: logit-difference, log-probability or probability; may be repeated.",
    ),
]
Memory = Annotated[
    int, typer.Option(min=1, help="Memory limit in MB, not counting the model's weights.")
]
Plot = Annotated[
    Path | None, typer.Option(callback=drawable, help="Write a figure to this .html or .png file.")
]


def patch_command(
    source: Source,
    behaviour: Named,
    over: Annotated[Over, typer.Option(help="Components to patch, one at a time.")] = "heads",
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="Patch paths instead: from every head to this receiver, e.g. L1H0.q or logits; "
            "may be repeated."
        ),
    ] = None,
    through_mlps: Annotated[
        bool,
        typer.Option(
            "--through-mlps",
            help="With --to: recompute MLPs between sender and receiver (default: freeze them).",
        ),
    ] = False,
    step: Step = None,
    direction: Annotated[
        Literal["denoising", "noising"],
        typer.Option(
            help="denoising: clean values into corrupt prompts. noising: corrupt values into clean "
            "prompts."
        ),
    ] = "denoising",
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
    memory: Memory = 2048,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Annotated[
        int, typer.Option(min=1, help="Number of effects to print (--json prints all).")
    ] = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find the activations of RUN that carry BEHAVIOUR, by patching one at a time."""
    if window > 1 and over not in WINDOWED:
        raise InterpError(f"--window belongs to {' and '.join(WINDOWED)}, not to {over}")
    if through_mlps and not to:
        raise InterpError("--through-mlps belongs to --to: only path patching freezes MLPs")
    if to and control:
        raise InterpError(
            "--control works for patches only, not for paths: leave out --control or --to"
        )
    if to and (positions or window > 1 or over != "heads"):
        raise InterpError("--to follows whole heads: leave out --over, --positions and --window")
    from interp import behaviours, metrics, models, patching, plots
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    how: dict[str, Any] = {
        "direction": direction,
        "metric": [metrics.named(name, prompted) for name in metric] if metric else None,
        "memory": memory << 20,
    }
    if positions:
        how["positions"] = _positions(positions)
    with progress.bar(over) as advance:
        how["progress"] = advance
        effects = (
            _paths(model, prompted, to, through_mlps, how)
            if to
            else _sweep(model, prompted, over, window, how)
        )
    if control and not effects.unfinished:
        effects = patching.untrained_control(
            model, prompted, effects, memory=memory << 20, seed=seed
        )
    if plot:
        plots.write(effects.plot(), plot)
    if out:
        effects.save(out)
    lines = [effects_text(one, top) for one in (effects, *effects.also)]
    answer(effects.to_dict(), "\n".join(lines), as_json=as_json, out=None)
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


def _paths(
    model: Any, behaviour: Any, to: list[str], through_mlps: bool, how: dict[str, Any]
) -> "Effects":
    from interp import patching

    readers = "logits" if to == ["logits"] else to
    mlps = "recomputed" if through_mlps else "frozen"
    return patching.senders(model, behaviour, readers, mlps=mlps, **how)


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
        f"({effects.metric}, {effects.n_prompts} prompts)",
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
    lines += [f"and {left} places with smaller effects"] if left > 0 else []
    return "\n".join([*lines, *effects.notes, provenance_line(about)])
