"""The commands `openbook exposure ...`: how often a run read a text or documents, and when."""

from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution.cli import formatting
from train.cli.options import CommandGroup, RunOptions, option_groups
from train.cli.output import Output


if TYPE_CHECKING:
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
@option_groups
def exposure_text(
    source: RunOptions,
    output: Output,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to count, verbatim.")],
    before: Before = None,
) -> None:
    """Count how often RUN had read TEXT before each checkpoint."""
    from data_attribution import tracing

    opened = source.open()
    _emit(opened, tracing.exposure_of_text(opened, text, before=before), output)


@exposure.command("documents")
@option_groups
def exposure_documents(
    source: RunOptions,
    output: Output,
    documents: Annotated[
        list[int], typer.Argument(metavar="DOCUMENT", help="Indices of documents to count.")
    ],
    before: Before = None,
) -> None:
    """Count how often RUN had read some documents, taken together, before each checkpoint."""
    from data_attribution import tracing

    opened = source.open()
    _emit(opened, tracing.exposure_of_documents(opened, documents, before=before), output)


def _emit(opened: "Run", found: "Exposure", output: Output) -> None:
    row = formatting.exposure_row(found, opened.steps)
    output.emit(row, formatting.exposure_lines(row), meaning=found.meaning)
