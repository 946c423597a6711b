"""The commands `openbook exposure ...`: how often a run read a text or documents, and when."""

from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution.cli import formatting
from train.cli.options import CommandGroup, Json, Out, RunPath, StorePath
from train.cli.output import emit


if TYPE_CHECKING:
    from pathlib import Path

    from data_attribution.tracing import Exposure
    from train.runs import Run

exposure = typer.Typer(
    cls=CommandGroup,
    help="Count how often a run had read a text, or documents, before each checkpoint.",
    no_args_is_help=True,
)

Before = Annotated[
    int | None,
    typer.Option(
        min=0, help="Step of the checkpoint up to which to count; default: the last checkpoint."
    ),
]


@exposure.command("text")
def exposure_text(
    path: RunPath,
    text: Annotated[str, typer.Argument(help="Text to count, verbatim.")],
    before: Before = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Count how often RUN had read TEXT before each checkpoint."""
    from data_attribution import tracing
    from train import runs

    opened = runs.open(path, store=store)
    _emit(opened, tracing.exposure_of_text(opened, text, before=before), as_json, out)


@exposure.command("documents")
def exposure_documents(
    path: RunPath,
    documents: Annotated[
        list[int], typer.Argument(metavar="DOCUMENT...", help="Indices of documents to count.")
    ],
    before: Before = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Count how often RUN had read some documents, taken together, before each checkpoint."""
    from data_attribution import tracing
    from train import runs

    opened = runs.open(path, store=store)
    _emit(opened, tracing.exposure_of_documents(opened, documents, before=before), as_json, out)


def _emit(opened: "Run", found: "Exposure", as_json: bool, out: "Path | None") -> None:
    row = formatting.exposure_row(found, opened.steps)
    emit(row, formatting.exposure_lines(row), as_json=as_json, out=out)
