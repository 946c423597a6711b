"""The command `openbook chain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from train.cli.options import Device, Json, Precision, StoreFolder, option_groups
from train.cli.output import emit
from train.cli.recipes import RecipeName, Settings, parsed_settings
from train.cli.train import RecipeOptions


@option_groups
def chain_command(
    recipe: RecipeName,
    store: StoreFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the members.")],
    changes: RecipeOptions,
    settings: Settings = None,
    members: Annotated[int, typer.Option(min=1, help="Number of members.")] = 3,
    untaught: Annotated[
        int, typer.Option(min=1, help="Number of first members that have no teacher.")
    ] = 1,
    distill_weight: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of a member's loss that is its divergence from the member before it, "
            "instead of the recipe's; 0: nobody is taught, as in a plain ensemble.",
        ),
    ] = 0.5,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of CPU threads; default: all cores, at most 8."),
    ] = None,
    data_workers: Annotated[
        int, typer.Option(min=0, help="Threads that read batches ahead; 0: none.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Train runs of RECIPE on STORE one after another, each taught by the one before.

    The same command continues a chain that was stopped. Each member has a folder of its own, and
    `openbook ensemble` averages their probabilities.
    """
    from train import ensembles, numerics, progress, recipes
    from train.data import open_store

    options = {**asdict(changes), "distill_weight": distill_weight}
    fields = {**parsed_settings(settings, **options), "distill_weight": distill_weight}
    loaded = recipes.load(recipe, fields)
    how = numerics.choose(device=device, precision=precision, threads=threads)
    with progress.bar("training") as advance:
        chain = ensembles.train_chain(
            loaded,
            open_store(store),
            out=out,
            members=members,
            untaught=untaught,
            numerics=how,
            data_workers=data_workers,
            progress=advance,
            **options,
        )
    rows = [
        {
            "run": str(run.path),
            "id": run.id,
            "teacher": (run.predicate.get("teacher") or {}).get("run_id"),
            "loss": run.ledger[-1].loss,
        }
        for run in chain
    ]
    taught = (f"taught by {row['teacher']}" if row["teacher"] else "no teacher" for row in rows)
    lines = [
        f"{row['run']}  {row['id']}  loss {row['loss']:.3f}  {teacher}"
        for row, teacher in zip(rows, taught, strict=True)
    ]
    emit({"members": rows}, "\n".join(lines), as_json=as_json)
