"""The commands `openbook run ...`: what is known about a run, its replay, import and export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from train.cli.options import CommandGroup, Json, RunOptions, ShardOptimizer, option_groups
from train.cli.output import Output, emit, lines, run_summary
from train.cli.ranks import connect_ranks, start_ranks
from train.errors import RecipeError
from train.progress import count, visible


run = typer.Typer(
    cls=CommandGroup,
    help="Show, verify, resume, replay, import and export training runs.",
    no_args_is_help=True,
)


@run.command("show")
@option_groups
def run_show(source: RunOptions, output: Output) -> None:
    """Show what is known about a run."""
    result = run_summary(source.open())
    output.emit(result, lines(result))


@run.command("verify")
@option_groups
def run_verify(
    source: RunOptions,
    output: Output,
    spans: Annotated[
        int, typer.Option(min=0, help="Number of random spans of 10 steps to replay.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for choosing the spans.")] = 0,
    require: Annotated[
        Literal["bit-exact", "within-tolerance", "order-only"] | None,
        typer.Option(
            help="Lowest level that passes (exit code 1 below it); default: within-tolerance if "
            "steps were replayed, otherwise none."
        ),
    ] = None,
) -> None:
    """Check every file of a run and of its token store, then replay random spans of its steps.

    A run that is being trained, or that was stopped, is checked as far as it has come. Exit code 3:
    files are damaged. Exit code 1: the run is below the level of --require.
    """
    from dataclasses import asdict

    from train import progress, trainer

    opened = source.open()
    with progress.bar("verifying") as advance:
        found = trainer.verify(opened, spans=spans, seed=seed, progress=advance)
    result = {**asdict(found), "ok": found.ok}
    digests = "file holds its digest" if found.files == 1 else "files hold their digests"
    summary = (
        f"{found.level}: {found.files:,} {digests}, {count(len(found.spans), 'span')} "
        f"replayed, largest difference in loss {found.difference:.3g} nats"
    )
    if not opened.finished:
        summary += (
            f"; not finished: {len(opened.ledger):,} of {opened.recipe.steps:,} steps are done. "
            f"Unless it is being trained now, go on with `openbook run resume {source.path}`"
        )
    claims = [f"{one.verdict:<17}  {one.claim}: {one.says}" for one in found.claims]
    output.emit(result, "\n".join([summary, *claims]) if found.ok else found.level)
    if not found.ok:
        for problem in found.problems:
            typer.echo(f"error: {visible(problem)}", err=True)
        raise typer.Exit(3)
    # An imported run has no steps to replay: it fails only if a level was required.
    least = require or ("within-tolerance" if found.spans else None)
    if least and not found.reaches(least):
        typer.echo(f"error: {source.path} is {found.level}; {least} was required", err=True)
        raise typer.Exit(1)


@run.command("resume")
@option_groups
def run_resume(
    source: RunOptions,
    output: Output,
    data_workers: Annotated[
        int, typer.Option(min=0, help="Threads that read batches ahead; 0: none.")
    ] = 0,
    shard_optimizer: ShardOptimizer = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", hidden=True, metavar="KEY=VALUE", help="Refused: the recipe stays."),
    ] = None,
) -> None:
    """Continue a training that was stopped, from its last checkpoint to its last step.

    Recipe, seeds, precision, number of processes and measurements are those with which the training
    began. A finished run is left as it is.
    """
    from train import trainer

    if settings:
        raise RecipeError(
            f"a resumed run keeps the recipe that it began with, so --set {settings[0]} cannot "
            "hold for its later steps alone; train another run with `openbook train RECIPE STORE "
            f"--out RUN --set {settings[0]}`"
        )
    opened = source.open()
    numerics = None if opened.finished else opened.numerics
    if numerics:
        start_ranks(numerics.world_size, source.path)
    with connect_ranks(numerics, "training") as advance:
        trained = trainer.resume(
            source.path,
            store=source.store,
            data_workers=data_workers,
            shard_optimizer=shard_optimizer,
            progress=advance,
        )
    result = run_summary(trained)
    output.emit(result, lines(result))


@run.command("documents")
@option_groups
def run_documents(
    source: RunOptions,
    output: Output,
    step: Annotated[
        int, typer.Argument(metavar="STEP", help="Step of the training, counted from 0.")
    ],
) -> None:
    """List the documents that STEP read."""
    opened = source.open()
    found = opened.documents_read(step).tolist()
    text = "\n".join(f"{one}\t{opened.store.document(one).id}" for one in found)
    output.emit({"step": step, "documents": found}, text)


@run.command("steps")
@option_groups
def run_steps(
    source: RunOptions,
    output: Output,
    document: Annotated[
        int, typer.Argument(metavar="DOCUMENT", help="Index of a document in the token store.")
    ],
) -> None:
    """List the steps that read DOCUMENT."""
    found = source.open().steps_reading(document).tolist()
    output.emit({"document": document, "steps": found}, "\n".join(map(str, found)))


@run.command("replay")
@option_groups
def run_replay(
    source: RunOptions,
    output: Output,
    first: Annotated[int, typer.Option("--from", help="First step to replay.")],
    last: Annotated[int, typer.Option("--to", help="Last step to replay (included).")],
    without: Annotated[
        list[int] | None,
        typer.Option(help="Index of a document to remove; may be repeated."),
    ] = None,
    mode: Annotated[
        Literal["blank", "loss"],
        typer.Option(
            help="How to remove documents. blank: replace their tokens by end-of-text. loss: keep "
            "them as context but do not train on them."
        ),
    ] = "blank",
) -> None:
    """Run steps again from the nearest checkpoint and compare them with the ledger.

    Exit code 1: nothing was removed, and the replay is not bit-exact.
    """
    from dataclasses import asdict

    from train import progress, trainer
    from train.data import DocumentRemoval

    removal = DocumentRemoval(tuple(sorted(set(without))), mode) if without else None
    with progress.bar("replaying") as advance:
        found = trainer.replay(source.open(), first, last, removal=removal, progress=advance)
    result = {
        "exact": found.exact,
        "same_order": found.same_order,
        "difference": found.difference,
        "removed": asdict(removal) if removal else None,
        "rows": [asdict(row) for row in found.rows],
    }
    says = "bit-exact" if found.exact else f"differs by {found.difference:.3g} nats at most"
    text = f"steps {first} to {last}: {says}; the same windows were read: {found.same_order}"
    output.emit(result, text)
    if removal is None and not found.exact:
        raise typer.Exit(1)


@run.command("import")
def run_import(
    source: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Hugging Face folder, nanoGPT ckpt.pt or .gguf file."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the run.")],
    order: Annotated[
        Path | None,
        typer.Option(
            help="Index (.idx) of the token sequences in the order in which the run read them, as "
            "Pythia publishes it; the run is then of knowledge level data-known."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of sequences of a step of --order.")
    ] = 1024,
    step: Annotated[int, typer.Option(min=0, help="Step at which the weights were saved.")] = 0,
    as_json: Json = False,
) -> None:
    """Import weights that were trained elsewhere, as a run of knowledge level weights-only."""
    from train import convert

    imported = convert.import_run({step: source}, out=out, order=order, batch=batch)
    result = run_summary(imported)
    emit(result, lines(result), as_json=as_json)


@run.command("export")
@option_groups
def run_export(
    source: RunOptions,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to create for the Hugging Face checkpoint.")
    ],
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint to export; default: the last.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint and its tokenizer as a Hugging Face folder."""
    from train import convert

    written = convert.export_run(source.open(), out=out, step=step)
    emit({"out": str(written)}, f"written: {written}", as_json=as_json)
