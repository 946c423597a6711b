"""The command `openbook ensemble`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train.cli.options import StorePath, option_groups
from train.cli.output import Output


if TYPE_CHECKING:
    from train.runs import Run

AT_A_STEP = re.compile(r"(.+)@(\d+)")


@option_groups
def ensemble_command(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@STEP]",
            help="Folders of the runs, each with its last checkpoint or that of a step.",
        ),
    ],
    output: Output,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn-weights",
            help="Learn the weights on one half of the held-out documents and report on the other; "
            "default: equal weights on all of them.",
        ),
    ] = False,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a single run to compare with; repeated, with at least two amounts of "
            "training tokens. Prints how many tokens such a run needs for the ensemble's loss."
        ),
    ] = None,
    store: StorePath = None,
) -> None:
    """Average the probabilities of RUNs of one store, and compare with each of them.

    Losses are those of the held-out documents, with 95 % intervals, paired by document. Checkpoints
    of one run are also averaged in weights.
    """
    from train import ensembles, progress, runs

    ensemble = ensembles.ensemble_of([_checkpoint(text, store) for text in checkpoints])
    single = [runs.open(path, store=store) for path in baseline or ()]
    with progress.bar("scoring") as advance:
        found = ensembles.evaluate(ensemble, learn=learn, baseline=single, progress=advance)
    output.emit(found, found.lines())


def _checkpoint(text: str, store: Path | None) -> "Run | tuple[Run, int]":
    """Open what RUN or RUN@STEP names; a folder may have an @ in its name."""
    from train import runs

    named = AT_A_STEP.fullmatch(text)
    if named is None or Path(text).exists():
        return runs.open(text, store=store)
    return runs.open(named[1], store=store), int(named[2])
