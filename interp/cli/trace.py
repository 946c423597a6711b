"""The command `openbook trace components`: causal tracing by layer and position."""

from typing import Annotated

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
)
from interp.cli.patch import effects_text
from interp.errors import InterpError
from train.cli.options import Json, Out, StorePath
from train.cli.output import emit


def trace_components_command(
    source: Source,
    behaviour: Named,
    noise: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Damage the subject by noise of this size, in standard deviations of the "
            "subjects' embeddings (3 is usual); default: replace it by another subject.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Number of draws of noise, with --noise only; default: 10."),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            min=1, help="Number of layers whose MLP or attention outputs are restored together."
        ),
    ] = 1,
    metric: MetricName = "logit-difference",
    memory: Memory = MEMORY,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Rows = 5,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Damage the subject of BEHAVIOUR's prompts, then restore one state of RUN at a time."""
    if draws and not noise:
        raise InterpError(f"--draws {draws} counts draws of noise; give its size with --noise 3")
    from interp import behaviours, models, patching, plots
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    with progress.bar("tracing") as advance:
        trace = patching.causal_trace(
            model,
            prompted,
            damage="noised" if noise else "replaced",
            noise=noise or 3.0,
            draws=draws or 10,
            window=window,
            metric=metric,
            memory=memory << 20,
            seed=seed,
            progress=advance,
        )
    if plot:
        plots.write(trace.plot(), plot)
    maps = (trace.residual, trace.mlps, trace.attention)
    text = "\n\n".join(effects_text(one, top) for one in maps)
    emit(trace, text, as_json=as_json, out=out)
    if any(one.unfinished for one in maps) or (draws and trace.draws < draws):
        raise typer.Exit(130)
