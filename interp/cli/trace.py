"""The command `openbook trace components`: causal tracing by layer and position."""

from typing import Annotated, Literal

import typer

from interp.cli.options import Named, Prompts, Seed, Source, Step
from interp.cli.patch import PROMPTS, Memory, Plot, effects_text
from interp.errors import InterpError
from train.cli.options import Json, Out, StorePath
from train.cli.output import answer


def trace_components_command(
    source: Source,
    behaviour: Named,
    damage: Annotated[
        Literal["replaced", "noised"],
        typer.Option(help="How to damage the subject: replaced by another subject, or noised."),
    ] = "replaced",
    noise: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="With --damage noised: size of the noise, in standard deviations of the subjects' "
            "embeddings; default: 3.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="With --damage noised: number of draws of noise; default: 10."),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            min=1, help="Number of layers whose MLP or attention outputs are restored together."
        ),
    ] = 1,
    metric: Annotated[
        Literal["logit-difference", "log-probability", "probability"],
        typer.Option(help="Score of which the restored share is measured."),
    ] = "logit-difference",
    memory: Memory = 2048,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Annotated[
        int, typer.Option(min=1, help="Number of states to print per map (--json prints all).")
    ] = 5,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Damage the subject of BEHAVIOUR's prompts, then restore one state of RUN at a time."""
    if damage == "replaced" and (noise or draws):
        raise InterpError("--noise and --draws belong to --damage noised")
    from interp import behaviours, metrics, models, patching, plots
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    with progress.bar("tracing") as advance:
        trace = patching.causal_trace(
            model,
            prompted,
            damage=damage,
            noise=noise or 3.0,
            draws=draws or 10,
            window=window,
            metric=metrics.named(metric, prompted),
            memory=memory << 20,
            seed=seed,
            progress=advance,
        )
    if plot:
        plots.write(trace.plot(), plot)
    if out:
        trace.save(out)
    maps = (trace.residual, trace.mlps, trace.attention)
    text = "\n\n".join(effects_text(one, top) for one in maps)
    answer(trace.to_dict(), text, as_json=as_json, out=None)
    if any(one.unfinished for one in maps) or (draws and trace.draws < draws):
        raise typer.Exit(130)
