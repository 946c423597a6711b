"""The command `openbook train`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, no_type_check

import typer

from train.cli.options import (
    Device,
    Json,
    NewRun,
    Precision,
    ShardOptimizer,
    StoreFolder,
    option_groups,
)
from train.cli.output import emit, lines, run_summary
from train.cli.ranks import connect_ranks, start_ranks
from train.cli.recipes import RecipeName, Settings, parsed_settings
from train.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options that change a recipe, named as in `recipes.resolve`."""

    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of training steps, to which the learning rate schedule is fitted; "
            "default: the recipe's.",
        ),
    ] = None
    init_seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="Random seed of the initial weights; default: the recipe's."
        ),
    ] = None
    order_seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed of the data order; default: the recipe's."),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per step; default: the recipe's.")
    ] = None
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows per forward and backward pass, to save memory; default: the recipe's.",
        ),
    ] = None
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps between measurements of the held-out loss; 0: never; default: the "
            "recipe's.",
        ),
    ] = None


# Not type-checked at run time: typer passes a context of another class than the annotated one.
@option_groups
@no_type_check
def train_command(
    context: typer.Context,
    recipe: RecipeName,
    store: StoreFolder,
    out: NewRun,
    changes: RecipeOptions,
    settings: Settings = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Folder of a run whose last checkpoint teaches this one, with the recipe's "
            "distill_weight.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of CPU threads of each process; default: all cores divided by the number "
            "of processes, at most 8.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes that share the windows of each step, each on a GPU of its "
            "own or on CPU threads of its own; default: 1.",
        ),
    ] = None,
    data_workers: Annotated[
        int, typer.Option(min=0, help="Threads that read batches ahead; 0: none.")
    ] = 0,
    shard_optimizer: ShardOptimizer = False,
    watch: Annotated[
        bool,
        typer.Option(
            help="Measure induction, copying and behaviours during training (costs about 1 % of "
            "the time; much more of a run of few steps, of which the first and last are measured)."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Train RECIPE on the token store STORE.

    A training that was stopped at any moment continues with `openbook run resume`.
    """
    world_size = start_ranks(devices, out, device=device)
    from train import numerics, recipes, runs, trainer
    from train.data import open_store

    options = asdict(changes)
    loaded = recipes.load(recipe, parsed_settings(settings, **options))
    tokens = open_store(store)
    resolved = recipes.resolve(loaded, tokens, **options)
    # `train` knows no behaviours: whoever registered this command passes functions that make them
    # in the context.
    known = [trainer.store_tasks, *(context.obj or [])] if watch else []
    how = numerics.choose(
        device=device, precision=precision, threads=threads, world_size=world_size
    )
    if teacher and not resolved.distill_weight:
        raise RecipeError(
            f"recipe {resolved.name!r} has distill_weight=0, so {teacher} would teach nothing; "
            "add --set distill_weight=0.5"
        )
    with connect_ranks(how, "training") as advance:
        trained = trainer.train(
            resolved,
            tokens,
            out=out,
            teacher=runs.open(teacher) if teacher else None,
            numerics=how,
            data_workers=data_workers,
            watch=[one for of_store in known for one in of_store(tokens, resolved.model.n_ctx)],
            shard_optimizer=shard_optimizer,
            progress=advance,
        )
    result = run_summary(trained)
    emit(result, lines(result), as_json=as_json)
