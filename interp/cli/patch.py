"""`openbook patch`: which places of a model carry a behaviour, or which paths between its heads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.app import Named, Prompts, Seed, Source, Step, provenance_line
from interp.errors import InterpError
from interp.plots import drawable
from train.cli.app import Json, Out, StorePath, answer


if TYPE_CHECKING:
    from interp.patching import Effects

PROMPTS = 64
# Sweeps by the name of --over, the site of a residual one behind it.
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
    typer.Option("--metric", help="logit-difference, log-probability or probability; repeatable."),
]
Memory = Annotated[int, typer.Option(min=1, help="Megabytes to stay under, above the weights.")]
Plot = Annotated[
    Path | None, typer.Option(callback=drawable, help="Write the figure: .html or .png.")
]


def patch_command(
    source: Source,
    behaviour: Named,
    over: Annotated[Over, typer.Option(help="What to patch.")] = "heads",
    to: Annotated[
        list[str] | None,
        typer.Option(help="Follow paths from every head to this reader: L1H0.q, or logits."),
    ] = None,
    through_mlps: Annotated[
        bool, typer.Option("--through-mlps", help="With --to: MLPs on the way react.")
    ] = False,
    step: Step = None,
    direction: Annotated[
        Literal["denoising", "noising"],
        typer.Option(help="Clean values into corrupt prompts, or the other way round."),
    ] = "denoising",
    positions: Annotated[
        str | None, typer.Option(help="'each', 'together', or some: 3,5,-1.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Layers together; mlps and attention.")] = 1,
    metric: MetricNames = None,
    control: Annotated[
        bool, typer.Option("--control", help="The same patches in an untrained model, too.")
    ] = False,
    memory: Memory = 2048,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Annotated[int, typer.Option(min=1, help="Places to print; --json prints all.")] = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find which places of RUN carry BEHAVIOUR, by exchanging one activation at a time."""
    if window > 1 and over not in WINDOWED:
        raise InterpError(f"--window belongs to {' and '.join(WINDOWED)}, not to {over}")
    if through_mlps and not to:
        raise InterpError("--through-mlps belongs to --to: only paths leave MLPs out")
    if to and control:
        raise InterpError("--control is of patches; paths of an untrained model are not followed")
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
    """Words as they are, numbers as a list."""
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
    """The highest effects with their intervals, baselines and provenance."""
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
        lines.append(f"untrained model: no place moves more than {largest:.3f} of this difference")
    left = len(effects.names) - top - effects.unfinished
    lines += [f"and {left} places with smaller effects"] if left > 0 else []
    return "\n".join([*lines, *effects.notes, provenance_line(about)])
