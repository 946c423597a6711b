"""`openbook ablate`: what a model loses without a component."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.app import Named, Prompts, Seed, Source, Step, provenance_line
from interp.cli.patch import PROMPTS, Memory, Plot
from interp.errors import InterpError
from train.cli.app import Json, Out, StorePath, answer, readable


if TYPE_CHECKING:
    from interp.patching import Ablation


def _effects(path: Path | None) -> Path | None:
    """A file of effects; a component's name is told where it belongs."""
    if path is not None and not path.exists() and "." not in path.name:
        raise InterpError(f"no file is called {path}; for a component it is --component {path}")
    return readable(path)


def ablate_command(
    source: Source,
    behaviour: Named,
    components: Annotated[
        Path | None,
        typer.Option(callback=_effects, help="Effects of `openbook patch --out`: its best."),
    ] = None,
    take: Annotated[
        int | None, typer.Option(min=1, help="How many of --components; default 5.")
    ] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="L0H2, L1.mlp@3 and so on; may be repeated.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All at once, and not one at a time.")
    ] = False,
    standin: Annotated[
        Literal["zero", "mean", "resample", "corrupt"],
        typer.Option(help="What is put in the place of a component."),
    ] = "mean",
    draws: Annotated[int | None, typer.Option(min=1, help="Of resample; default 10.")] = None,
    metric: Annotated[
        Literal["logit-difference", "log-probability", "probability"],
        typer.Option(help="What is scored."),
    ] = "logit-difference",
    memory: Memory = 2048,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Annotated[int, typer.Option(min=1, help="Rows to print; --json prints all.")] = 10,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Take components of RUN away and measure BEHAVIOUR; default: every head and every MLP."""
    from interp import behaviours, metrics, models, patching, plots
    from interp.patching import Effects
    from train import progress

    if draws and standin != "resample":
        raise InterpError(f"--draws belongs to --standin resample, not to {standin}")
    if take and not components:
        raise InterpError("--take belongs to --components; --component names one")
    named = list(component or [])
    if components:
        named += Effects.load(components).top(take or 5)
    if together and not named:
        raise InterpError("--together needs --component or --components, or nothing is left")
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
            metric=metrics.named(metric, prompted),
            memory=memory << 20,
            seed=seed,
            progress=advance,
        )
    if plot:
        plots.write(found.plot(), plot)
    if out:
        found.save(out)
    answer(found.to_dict(), _text(found, top), as_json=as_json, out=None)
    if found.unfinished:
        raise typer.Exit(130)


def _text(found: "Ablation", top: int) -> str:
    lines = [
        f"{found.provenance.behaviour}: {found.standin} ablation, change of the {found.metric} in "
        f"{found.unit}, {found.n_prompts} prompts",
        f"intact: {found.intact:.3f}, positive on {found.intact_accuracy:.2f} of the prompts",
    ]
    for name in found.top(top):
        bounds = found.interval(name)
        shown = "[{:.3f}, {:.3f}]".format(*bounds) if bounds else "no interval"
        kept = float(found.accuracy[found.names.index(name)])
        lines.append(f"{name:<16}  {found[name]:8.3f}  {shown}  positive on {kept:.2f}")
    left = len(found.names) - top
    lines += [f"and {left} that cost less"] if left > 0 else []
    return "\n".join([*lines, *found.notes, provenance_line(found.provenance)])
