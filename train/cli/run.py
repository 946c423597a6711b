"""The commands `openbook run ...`: what is known about a run, its replay, import and export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from train.cli.options import CommandGroup, Json, Out, RunPath, StorePath
from train.cli.output import emit, lines, run_summary
from train.cli.ranks import ranks_joined, started_ranks


run = typer.Typer(
    cls=CommandGroup,
    help="Show, verify, resume, replay, import and export training runs.",
    no_args_is_help=True,
)


@run.command("show")
def run_show(
    path: RunPath, store: StorePath = None, as_json: Json = False, out: Out = None
) -> None:
    """Show what is known about a run."""
    from train import runs

    result = run_summary(runs.open(path, store=store))
    emit(result, lines(result), as_json=as_json, out=out)


@run.command("verify")
def run_verify(
    path: RunPath,
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
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Check every file of a run and of its token store, then replay random spans of its steps.

    Exit code 3: files are damaged. Exit code 1: the run is below the level of --require.
    """
    from dataclasses import asdict

    from train import progress, runs, trainer

    with progress.bar("verifying") as advance:
        found = trainer.verify(
            runs.open(path, store=store), spans=spans, seed=seed, progress=advance
        )
    result = {**asdict(found), "ok": found.ok}
    summary = (
        f"{found.level}: {found.files} files hold their digests, {len(found.spans)} spans "
        f"replayed, largest difference in loss {found.difference:.3g} nats"
    )
    emit(result, summary if found.ok else found.level, as_json=as_json, out=out)
    if not found.ok:
        for problem in found.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(3)
    # An imported run has no steps to replay: it fails only if a level was required.
    least = require or ("within-tolerance" if found.spans else None)
    if least and not found.reaches(least):
        typer.echo(f"error: {path} is {found.level}; {least} was required", err=True)
        raise typer.Exit(1)


@run.command("resume")
def run_resume(
    path: RunPath,
    data_workers: Annotated[
        int, typer.Option(min=0, help="Threads that read batches ahead; 0: none.")
    ] = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Continue a training that was stopped, from its last checkpoint to its last step.

    Recipe, seeds, precision, number of processes and measurements are those with which the training
    began. A finished run is left as it is.
    """
    from train import runs, trainer

    opened = runs.open(path, store=store)
    numerics = None if opened.finished else opened.numerics
    if numerics:
        started_ranks(numerics.world_size, path)
    with ranks_joined(numerics, "training") as advance:
        trained = trainer.resume(path, store=store, data_workers=data_workers, progress=advance)
    result = run_summary(trained)
    emit(result, lines(result), as_json=as_json, out=out)


@run.command("documents")
def run_documents(
    path: RunPath,
    step: Annotated[int, typer.Argument(help="Step of the training, counted from 0.")],
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """List the documents that STEP read."""
    from train import runs

    opened = runs.open(path, store=store)
    found = opened.documents_read(step).tolist()
    text = "\n".join(f"{one}\t{opened.store.document(one).id}" for one in found)
    emit({"step": step, "documents": found}, text, as_json=as_json, out=out)


@run.command("steps")
def run_steps(
    path: RunPath,
    document: Annotated[int, typer.Argument(help="Index of a document in the token store.")],
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """List the steps that read DOCUMENT."""
    from train import runs

    found = runs.open(path, store=store).steps_reading(document).tolist()
    result = {"document": document, "steps": found}
    emit(result, "\n".join(map(str, found)), as_json=as_json, out=out)


@run.command("replay")
def run_replay(
    path: RunPath,
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
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Run steps again from the nearest checkpoint and compare them with the ledger.

    Exit code 1: nothing was removed, and the replay is not bit-exact.
    """
    from dataclasses import asdict

    from train import progress, runs, trainer
    from train.data import DocumentRemoval

    removal = DocumentRemoval(tuple(sorted(set(without))), mode) if without else None
    with progress.bar("replaying") as advance:
        found = trainer.replay(
            runs.open(path, store=store), first, last, removal=removal, progress=advance
        )
    result = {
        "exact": found.exact,
        "same_order": found.same_order,
        "difference": found.difference,
        "removed": asdict(removal) if removal else None,
        "rows": [asdict(row) for row in found.rows],
    }
    says = "bit-exact" if found.exact else f"differs by {found.difference:.3g} nats at most"
    text = f"steps {first} to {last}: {says}; the same windows were read: {found.same_order}"
    emit(result, text, as_json=as_json, out=out)
    if removal is None and not found.exact:
        raise typer.Exit(1)


@run.command("import")
def run_import(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face folder, nanoGPT ckpt.pt or .gguf file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the run.")],
    as_json: Json = False,
) -> None:
    """Import weights that were trained elsewhere, as a run of knowledge level weights-only."""
    from train import convert

    result = run_summary(convert.import_run(source, out=out))
    emit(result, lines(result), as_json=as_json)


@run.command("export")
def run_export(
    path: RunPath,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to create for the Hugging Face checkpoint.")
    ],
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint to export; default: the last.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint and its tokenizer as a Hugging Face folder."""
    from train import convert, runs

    written = convert.export_run(runs.open(path, store=store), out=out, step=step)
    emit({"out": str(written)}, f"written: {written}", as_json=as_json)
