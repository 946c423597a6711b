"""`openbook trace`: from what a model does to its components, and to the documents behind it."""

from typing import Annotated

import typer

from data_attribution import printing
from data_attribution.errors import EvidenceError
from interp.cli import Prompts, Seed
from interp.commands.patch import PROMPTS
from interp.commands.trace import trace_components_command
from train.cli import Json, Out, RunPath, StorePath, answer


trace = typer.Typer(help="Trace what a model does to its causes.", no_args_is_help=True)
trace.command("components")(trace_components_command)


@trace.command("documents")
def trace_documents(
    path: RunPath,
    behaviour: Annotated[
        str | None, typer.Argument(metavar="[BEHAVIOUR]", help="Or a text, with --text.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Trace this text instead.")] = None,
    method: Annotated[str, typer.Option(help="Kind of evidence.")] = "lexical",
    limit: Annotated[int, typer.Option(min=1, help="Documents.")] = 20,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught BEHAVIOUR or a text."""
    if (behaviour is None) == (text is None):
        raise EvidenceError("give either a BEHAVIOUR or --text TEXT")
    from dataclasses import asdict

    from data_attribution import attributing
    from interp import behaviours
    from train import progress, runs

    opened = runs.open(path, store=store)
    target = text
    if target is None:
        target = behaviours.load(str(behaviour), opened, n_prompts=prompts, seed=seed)
    with progress.bar("tracing") as advance:
        sources = attributing.documents(
            opened,
            target,
            method=method,
            limit=limit,
            progress=advance,
        )
    if out:
        sources.save(out)
    answer(asdict(sources), printing.sources_lines(sources), as_json=as_json, out=None)


@trace.command("exposure")
def trace_exposure(
    path: RunPath,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Verbatim.")] = None,
    document: Annotated[
        list[int] | None, typer.Option(help="This document instead; may be repeated.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=0, help="Checkpoint; default: the last one.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Count how often RUN had read TEXT, or documents, before each checkpoint."""
    if (text is None) == (not document):
        raise EvidenceError("give either a TEXT or --document N")
    from data_attribution import exposures
    from train import runs

    opened = runs.open(path, store=store)
    if text is None:
        found = exposures.of_documents(opened, document or (), before=before)
    else:
        found = exposures.of(opened, text, before=before)
    result = printing.exposure_row(found, opened.steps)
    answer(result, printing.exposure_lines(result), as_json=as_json, out=out)
