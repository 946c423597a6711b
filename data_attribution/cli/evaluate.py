"""The command `openbook evaluate`: scores of models, with intervals, overlap and differences."""

from pathlib import Path
from typing import Annotated

import typer

from train.cli.options import StorePath, option_groups
from train.cli.output import Output


@option_groups
def evaluate_command(
    output: Output,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folders of runs or local Hugging Face folders; RUN@STEP is a checkpoint. Each is "
            "compared with the first.",
        ),
    ],
    on: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILES",
            help="Evaluation set: heldout, heldout=STORE, lambada=FILE, wikitext=FILE, sst2=FILE, "
            "gsm8k=TEST,TRAIN or blimp=ZIP; may be repeated, each name once. Files may be "
            "compressed (.gz).",
        ),
    ],
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="Score every run of the lineage of a tuned run, such as pretraining, SFT and DPO; "
            "each is compared with the first.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest number of items of each set, the first ones (of blimp: of each "
            "paradigm); default: all.",
        ),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of tokens in a row that an item shares with the training text from which "
            "on it counts as overlapping.",
        ),
    ] = 13,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the finished scores; the same command reads them and continues."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda or cuda:0.")] = "cpu",
    store: StorePath = None,
) -> None:
    """Score models on evaluation sets, each number with n, interval and training overlap.

    Differences from the first model are computed item by item, and called higher or lower only if
    their 95 % interval leaves out 0. Overlap needs a token index (`openbook index build`). After
    Ctrl-C the finished scores are shown.
    """
    from data_attribution import contamination
    from train import numerics, progress

    numerics.refuse_missing(device)
    with progress.bar("evaluating") as advance:
        table = contamination.evaluate_models(
            models,
            on,
            stages=stages,
            limit=limit,
            n=overlap,
            device=device,
            store=store,
            results=results,
            progress=advance,
        )
    output.emit(table, table.lines())
