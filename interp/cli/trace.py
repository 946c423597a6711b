"""The command `openbook trace components`: causal tracing by layer and position."""

from typing import Annotated

import typer

from interp.cli.options import MEMORY, BehaviourOptions, Memory, MetricName, PlotOutput, Rows
from interp.cli.patch import effects_text
from train.cli.options import option_groups


@option_groups
def trace_components_command(
    source: BehaviourOptions,
    output: PlotOutput,
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
        typer.Option(
            min=1, help="Number of draws of noise, of size 3 if none is given; default: 10."
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            min=1, help="Number of layers whose MLP or attention outputs are restored together."
        ),
    ] = 1,
    metric: MetricName = "logit-difference",
    memory: Memory = MEMORY,
    top: Rows = 5,
) -> None:
    """Damage the subject of BEHAVIOUR's prompts, then restore one state of RUN at a time."""
    from interp import patching
    from train import progress

    model, prompted = source.load()
    with progress.bar("tracing") as advance:
        trace = patching.causal_trace(
            model,
            prompted,
            damage="noised" if noise or draws else "replaced",
            noise=noise or 3.0,
            draws=draws or 10,
            window=window,
            metric=metric,
            memory=memory << 20,
            seed=source.seed,
            progress=advance,
        )
    output.draw(trace)
    maps = (trace.residual, trace.mlps, trace.attention)
    text = "\n\n".join(effects_text(one, top) for one in maps)
    output.emit(trace, text)
    if any(one.unfinished for one in maps) or (draws and trace.draws < draws):
        raise typer.Exit(130)
