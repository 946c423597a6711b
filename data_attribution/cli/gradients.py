"""The commands `openbook gradients ...`: collect the gradients of documents for all queries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train.cli.options import CommandGroup, RunOptions, option_groups
from train.cli.output import Output, without_blocks


if TYPE_CHECKING:
    from data_attribution.gradients import StoreSize
    from train.runs import Run

gradient_commands = typer.Typer(
    cls=CommandGroup,
    help="Collect the gradients of every document, for `openbook trace documents`.",
    no_args_is_help=True,
)

# Defaults. `trace documents` uses a gradient store only if it has the same options.
RANK, LOG_ODDS = 32, 0.01

Within = Annotated[
    list[str] | None,
    typer.Option(
        help="Component whose gradients are collected, e.g. L1H0, L0.mlp or unembed; may be "
        "repeated; default: all."
    ),
]
Rank = Annotated[
    int,
    typer.Option(
        min=1,
        help="Rank of the random projection; stores RANK x RANK numbers per weight matrix.",
    ),
]
Step = Annotated[int | None, typer.Option(help="Step of the checkpoint to use; default: the last.")]
Folder = Annotated[
    Path | None, typer.Option(help="Folder of the gradient store; default: RUN/gradients.")
]


@gradient_commands.command("build")
@option_groups
def gradients_build(
    source: RunOptions,
    output: Output,
    within: Within = None,
    rank: Rank = RANK,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Scale of the gradients. adam: as the run's optimizer scales them. plain: as they "
            "are. Default: adam, or plain if the checkpoint keeps no state of its optimizer."
        ),
    ] = None,
    log_odds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Follow the log-odds instead of the loss, dividing each target's gradient by "
            "max(1 - p, this value); 0 follows the loss.",
        ),
    ] = LOG_ODDS,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the projections.")] = 0,
    step: Step = None,
    folder: Folder = None,
) -> None:
    """Collect and store the gradients of every document that RUN could read.

    `openbook trace documents` uses the store if it was collected with the same options, as it is by
    default; in Python, `data_attribution.gradients.collect` uses it too. `openbook gradients plan`
    estimates size and time.
    """
    from dataclasses import asdict

    from data_attribution import gradients
    from train import progress

    opened = source.open()
    if metric is None:
        reason = gradients.missing_moments(opened, step=step)
        metric = "plain" if reason else "adam"
        if reason:
            typer.echo(f"no metric was named, so {metric} is used: {reason}", err=True)
    plan = _plan(opened, step, within, rank)
    typer.echo(str(plan), err=True)
    with progress.bar("collecting") as advance:
        built = gradients.build_gradient_store(
            opened,
            out=folder,
            within=within,
            step=step,
            rank=rank,
            seed=seed,
            metric=metric,
            log_odds=log_odds or None,
            progress=advance,
        )
    result = {"path": str(built.path), **asdict(plan), "sites": list(built.manifest["sites"])}
    output.emit(result, f"{plan.bytes:,} bytes: {built.path}")


@gradient_commands.command("plan")
@option_groups
def gradients_plan(
    source: RunOptions,
    output: Output,
    within: Within = None,
    rank: Rank = RANK,
    step: Step = None,
) -> None:
    """Estimate the size on disk and the time of collecting the gradients, and collect nothing."""
    from dataclasses import asdict

    plan = _plan(source.open(), step, within, rank)
    output.emit(asdict(plan), str(plan))


@gradient_commands.command("verify")
@option_groups
def gradients_verify(
    source: RunOptions,
    output: Output,
    folder: Folder = None,
) -> None:
    """Check every file of the gradient store of RUN against the digests of when it was built."""
    from data_attribution import gradients

    opened = source.open()
    stored = gradients.open_gradient_store(
        folder or opened.path / gradients.GRADIENT_FOLDER, run=opened
    )
    gradients.verify_gradient_store(stored)
    result = {
        "path": str(stored.path),
        "documents": len(stored.documents),
        "verified": True,
        "by_block": stored.by_block,
    }
    text = f"all files match their digests: {stored.path}{without_blocks(stored.by_block)}"
    output.emit(result, text)


def _plan(opened: "Run", step: int | None, within: list[str] | None, rank: int) -> "StoreSize":
    from data_attribution import gradients

    model = opened.load(step)
    selection = gradients.select_weights(model.cfg, within)
    documents = gradients.trained_documents(opened)
    return gradients.plan_gradient_store(model, opened.store, documents, selection, rank=rank)
