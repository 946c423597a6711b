"""The command `openbook ablate`: what a model loses without some components."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import (
    MEMORY,
    PROMPTS,
    Memory,
    MetricName,
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
from train.cli.options import Json, Out, StorePath, readable
from train.cli.output import emit
from train.progress import count


if TYPE_CHECKING:
    from interp.patching import Ablation


def _effects(path: Path | None) -> Path | None:
    """Raise an error if `path` is not a file; for a component's name, say which option takes it."""
    if path is not None and not path.exists() and "." not in path.name:
        raise InterpError(f"there is no file {path}; to name a component use --component {path}")
    return readable(path)


def ablate_command(
    source: Source,
    behaviour: Named,
    components: Annotated[
        Path | None,
        typer.Option(
            callback=_effects, help="File of `openbook patch --out`: ablate its largest effects."
        ),
    ] = None,
    take: Annotated[
        int | None,
        typer.Option(min=1, help="With --components: number of effects to take; default: 5."),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(help="Component to ablate, e.g. L0H2 or L1.mlp@3; may be repeated."),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Ablate the given components all at once, not one at a time."
        ),
    ] = False,
    standin: Annotated[
        Literal["zero", "mean", "resample", "corrupt"],
        typer.Option(
            help="What replaces a component's output: zeros, its mean over prompts, its value on "
            "other prompts (resample), or its value on the corrupt prompt."
        ),
    ] = "mean",
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="With --standin resample: number of draws; default: 10."),
    ] = None,
    metric: MetricName = "logit-difference",
    memory: Memory = MEMORY,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Rows = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Ablate components of RUN, and measure how much of BEHAVIOUR is lost.

    By default every head and every MLP is ablated, one at a time.
    """
    from interp import behaviours, models, patching, plots
    from interp.patching import Effects
    from train import progress

    if draws and standin != "resample":
        raise InterpError(f"--draws belongs to --standin resample, not to {standin}")
    if take and not components:
        raise InterpError("--take counts effects of --components FILE; give that file")
    named = list(component or [])
    if components:
        named += Effects.load(components).top(take or 5)
    if together and not named:
        raise InterpError("--together needs --component or --components: say what to ablate")
    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    sets = [named] if together else [[name] for name in named] or None
    with progress.bar("ablating") as advance:
        found = patching.ablate(
            model,
            prompted,
            sets,
            standin=standin,
            draws=draws or 10,
            metric=metric,
            memory=memory << 20,
            seed=seed,
            progress=advance,
        )
    if plot:
        plots.write(found.plot(), plot)
    emit(found, _text(found, top), as_json=as_json, out=out)
    if found.unfinished:
        raise typer.Exit(130)


def _text(found: "Ablation", top: int) -> str:
    lines = [
        f"{found.provenance.behaviour}: {found.standin} ablation, change of the {found.metric} in "
        f"{found.unit}, {count(found.n_prompts, 'prompt')}",
        f"intact: {found.intact:.3f}, positive on {found.intact_accuracy:.2f} of the prompts",
    ]
    for name in found.top(top):
        bounds = found.interval(name)
        shown = "[{:.3f}, {:.3f}]".format(*bounds) if bounds else "no interval"
        kept = float(found.accuracy[found.names.index(name)])
        lines.append(f"{name:<16}  {found[name]:8.3f}  {shown}  positive on {kept:.2f}")
    left = len(found.names) - top
    lines += [f"and {left} with smaller losses"] if left > 0 else []
    return "\n".join([*lines, *found.notes, provenance_line(found.provenance)])
