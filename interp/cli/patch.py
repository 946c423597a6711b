"""The commands `openbook patch` and `openbook paths`: what carries a behaviour, and where to."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import (
    MEMORY,
    BehaviourOptions,
    Direction,
    Memory,
    MetricNames,
    PlotOutput,
    Rows,
    provenance_line,
)
from interp.errors import InterpError
from train.cli.options import choice, number, option_groups
from train.progress import count


if TYPE_CHECKING:
    from interp.behaviours import Behaviour
    from interp.components import HookedModel
    from interp.patching import Effects


@option_groups
def patch_command(
    source: BehaviourOptions,
    output: PlotOutput,
    over: Annotated[
        str,
        choice(
            "heads",
            "residual",
            "resid_pre",
            "resid_mid",
            "resid_post",
            "mlps",
            "mlps:N",
            "attention",
            "attention:N",
            "queries",
            "keys",
            "values",
            "patterns",
            "neurons",
            help="Components to patch, one at a time; mlps:N and attention:N patch N neighbouring "
            "layers together.",
        ),
    ] = "heads",
    direction: Direction = "denoising",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions to patch: each (one at a time), together (all at once), or a list such "
            "as 3,5,-1; default: each for the residual stream, otherwise together."
        ),
    ] = None,
    metric: MetricNames = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Also make the same patches in an untrained model, as a control."
        ),
    ] = False,
    memory: Memory = MEMORY,
    top: Rows = 10,
) -> None:
    """Find the activations of RUN that carry BEHAVIOUR, by patching one at a time."""
    from interp import patching
    from train import progress

    model, prompted = source.load()
    options = _sweep_options(direction, metric, memory)
    if positions:
        options["positions"] = _positions(positions)
    with progress.bar(over) as advance:
        options["progress"] = advance
        effects = _sweep(model, prompted, over, options)
    if control and not effects.unfinished:
        effects = patching.untrained_control(
            model, prompted, effects, memory=memory << 20, seed=source.seed
        )
    _emit(effects, top, output)


@option_groups
def paths_command(
    source: BehaviourOptions,
    output: PlotOutput,
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
    direction: Direction = "denoising",
    metric: MetricNames = None,
    memory: Memory = MEMORY,
    top: Rows = 10,
) -> None:
    """Find the heads of RUN that act on BEHAVIOUR through given receivers, by path patching.

    Patches the path from every head to the receivers, taken together, and no other path.
    """
    from interp import patching
    from train import progress

    model, prompted = source.load()
    receivers = to if to and to != ["logits"] else "logits"
    options = _sweep_options(direction, metric, memory)
    with progress.bar("paths") as advance:
        options["progress"] = advance
        effects = patching.senders(model, prompted, receivers, mlps=mlps, **options)
    _emit(effects, top, output)


def _sweep_options(direction: str, metric: list[str] | None, memory: int) -> dict[str, Any]:
    """Return the options of a sweep of `interp.patching`; `memory` is in MB."""
    return {"direction": direction, "metric": metric or None, "memory": memory << 20}


def _emit(effects: "Effects", top: int, output: PlotOutput) -> None:
    """Draw, print and write effects; exit with code 130 if the sweep was interrupted."""
    output.draw(effects)
    output.emit(effects, "\n".join(effects_text(one, top) for one in (effects, *effects.also)))
    if effects.unfinished:
        raise typer.Exit(130)


def _sweep(
    model: "HookedModel", behaviour: "Behaviour", over: str, how: dict[str, Any]
) -> "Effects":
    """Run the sweep of a word of --over: a function of `interp.patching`, or a residual site."""
    from interp import patching

    if over in ("residual", "resid_pre", "resid_mid", "resid_post"):
        site = "resid_pre" if over == "residual" else over
        return patching.residual(model, behaviour, site=site, **how)
    name = over.partition(":")[0]
    if name in ("mlps", "attention"):
        how["window"] = number(over, 1)
    return getattr(patching, name)(model, behaviour, **how)


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


def _unit(metric: str) -> str:
    """Return the unit behind "in"; "" for a metric of the user, or one whose name has the unit."""
    from interp.metrics import UNITS

    unit = UNITS.get(metric)
    return "" if unit is None or unit in metric.split() else f" in {unit}"


def _bounds(interval: tuple[float, float] | None) -> str:
    return " [{:.3f}, {:.3f}]".format(*interval) if interval else ""


def _no_interval(effects: "Effects", name: str) -> str:
    if effects.n_prompts < 2:
        return "one prompt, no interval"
    if effects.low is not None:
        change = None if effects.part is None else effects.part.flatten(0, -2)
        if change is not None and change[effects.names.index(name)].count_nonzero() == 1:
            return f"shown by one of {effects.n_prompts} prompts, no interval"
        return f"the same on all {effects.n_prompts} prompts"
    return "too few prompts for an interval"


def _chosen(effects: "Effects") -> list[str]:
    """Return the largest effect as measured on prompts that did not choose it."""
    from interp.results import ABSOLUTE

    if effects.part is None or effects.n_prompts < 4 or len(effects.names) < 2:
        return []
    if ABSOLUTE in effects.notes:
        return ["the largest are the largest of many, and no half of the prompts can judge them"]
    half = effects.n_prompts - effects.n_prompts // 2
    return [
        f"chosen on one half of the prompts, measured on the other {half}: {name} {estimate}"
        for name, estimate in effects.held_out(1, seed=effects.provenance.seed).items()
    ]


def effects_text(effects: "Effects", top: int) -> str:
    """Return the text output: the largest effects, their intervals, baselines and provenance."""
    about = effects.provenance
    window = f", windows of {effects.window} layers" if effects.window > 1 else ""
    window += f", paths: {effects.through}" if effects.through else ""
    intervals = "; all intervals are 95 % over prompts" if effects.n_prompts > 1 else ""
    lines = [
        f"{about.behaviour}: {effects.site}{window}, {effects.direction}, {effects.unit}",
        f"baselines: clean {effects.clean:.3f}{_bounds(effects.clean_interval)}, corrupt "
        f"{effects.corrupt:.3f}{_bounds(effects.corrupt_interval)} "
        f"({effects.metric}{_unit(effects.metric)}, "
        f"{count(effects.n_prompts, 'prompt')}{intervals})",
    ]
    for name in effects.top(top):
        bounds = effects.interval(name)
        shown = "[{:.3f}, {:.3f}]".format(*bounds) if bounds else _no_interval(effects, name)
        lines.append(f"{name:<16}  {effects[name]:7.3f}  {shown}")
    if effects.control is not None:
        largest = float(effects.control[~effects.control.isnan()].abs().max())
        lines.append(
            f"control: no patch of an untrained model moves over {largest:.3f} of this difference"
        )
    lines += _chosen(effects)
    left = len(effects.names) - top - effects.unfinished
    lines += [f"and {count(left, 'place')} with smaller effects"] if left > 0 else []
    return "\n".join([*lines, *effects.notes, provenance_line(about)])
