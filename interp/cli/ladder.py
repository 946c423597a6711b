"""The command `openbook ladder`: what each part of an architecture is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import Plot
from train.cli.options import Json, StoreFolder
from train.cli.output import emit
from train.cli.recipes import Settings, parsed_settings


if TYPE_CHECKING:
    from interp.plots import Figure
    from train.ladder import LadderTable


def ladder_command(
    start: Annotated[
        str,
        typer.Argument(metavar="START", help="Architecture to start from, such as retro-nano."),
    ],
    end: Annotated[
        str, typer.Argument(metavar="END", help="Architecture to end with, such as modern-nano.")
    ],
    store: StoreFolder,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder of the ladder; a ladder that is there already is continued."
        ),
    ],
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Number of seeds of weights and data order for each member."),
    ] = 3,
    equal: Annotated[
        Literal["parameters", "compute"],
        typer.Option(
            help="Quantity in which every member equals START, by a changed width of its MLP: "
            "parameters, or FLOPs of training."
        ),
    ] = "parameters",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of training steps; default: the recipe's."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Recipe that gives batch size, optimizer and everything else but the architecture."
        ),
    ] = "planted",
    settings: Settings = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device: auto, cpu, cuda, or one GPU such as cuda:0; default: auto, or the "
            "ladder's."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision: fp32, bf16 or auto; default: auto, or the ladder's."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of CPU threads of each process; default: all cores, at most 8, or the "
            "ladder's.",
        ),
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Train from START to END, one factor at a time and cumulatively, on the token store STORE.

    Prints the cost first. Start the same command again, also on other machines that share the
    folder, to train members at the same time; a stopped ladder continues in the same way.
    """
    from train import ladder, numerics, progress, recipes
    from train.data import open_store

    tokens = open_store(store)
    shared = {**parsed_settings(settings, steps=steps), **({"steps": steps} if steps else {})}
    first, last = (
        recipes.load(recipe, {"model.preset": name, "name": name, **shared})
        for name in (start, end)
    )
    how = None
    if device or precision or threads:
        how = numerics.choose(
            device=device or "auto", precision=precision or "auto", threads=threads
        )
    climbed = ladder.begin(first, last, tokens, out=out, equal=equal, seeds=seeds, numerics=how)
    typer.echo(ladder.cost(climbed), err=True)
    with progress.bar("ladder") as advance:
        ladder.climb(climbed, progress=advance)
    table = ladder.save_table(climbed)
    if plot:
        from interp import plots

        plots.write(ladder_figure(table), plot)
    emit(table, str(table), as_json=as_json)


def ladder_figure(table: "LadderTable") -> "Figure":
    """Draw the change in held-out loss of every rung with its interval."""
    import pandas

    from interp import plots

    kinds = {"alone": "alone", "cumulative": "with those before"}
    rows = [
        {
            "factor": row.factor,
            "changed": kinds[row.kind],
            "change": row.change.value,
            "low": row.change.low,
            "high": row.change.high,
        }
        for row in table.rows
        if row.change
    ]
    return plots.grouped_bars(
        pandas.DataFrame(rows, dtype=object),
        across="factor",
        by="changed",
        value="change",
        low="low",
        high="high",
        title=f"{table.names[0]} to {table.names[1]}, equal {table.equal}, {table.seeds} seeds",
        unit="change in held-out loss (nats)",
    )
