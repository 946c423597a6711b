"""The commands `openbook counterfactual` and `openbook forget`: retraining without documents."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_attribution.cli import formatting
from data_attribution.errors import CounterfactualError
from interp.cli.options import Named, Prompts, Seed
from interp.cli.patch import PROMPTS
from train.cli.options import Json, Out, RunPath, StorePath, readable
from train.cli.output import answer


TOP, EXPOSURES = 50, 16
CONTROLS = 2  # as in `counterfactuals.without`, which takes a second to import


def counterfactual_command(
    path: RunPath,
    behaviour: Named,
    without: Annotated[
        Path | None,
        typer.Option(
            callback=readable,
            help="File of `openbook trace documents --out`: remove its top documents.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Remove this many documents of --without; default: 50."),
    ] = None,
    document: Annotated[
        list[int] | None,
        typer.Option(help="Index of a document to remove; may be repeated."),
    ] = None,
    together: Annotated[
        Literal["near", "exact", "none"],
        typer.Option(
            help="Which copies of each document to remove as well: near-duplicates and exact ones "
            "(near), exact ones, or none."
        ),
    ] = "near",
    unrelated: Annotated[
        list[str] | None,
        typer.Option(
            help="Another behaviour to measure, which should not change; may be repeated."
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            help="A head, e.g. L1H0, whose direct effect on BEHAVIOUR is measured too; may be "
            "repeated."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of controls that remove random documents (one retraining each); 0: none; "
            "the noise is unknown below 2.",
        ),
    ] = CONTROLS,
    mode: Annotated[
        Literal["blank", "loss"],
        typer.Option(
            help="How to remove documents. blank: replace their tokens by end-of-text. loss: keep "
            "them as context but do not train on them."
        ),
    ] = "blank",
    runs_folder: Annotated[
        Path | None,
        typer.Option(
            "--runs", help="Folder for the retrained runs; default: counterfactuals inside RUN."
        ),
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Retrain RUN without some documents, and measure what that does to BEHAVIOUR.

    As a control, RUN is also retrained without as many matched random documents.
    """
    if top is not None and without is None:
        raise CounterfactualError(f"--top {top} counts documents of --without FILE; give that file")
    from data_attribution import component_queries, counterfactuals
    from data_attribution.attribution import Sources
    from interp import behaviours
    from train import progress, runs

    opened = runs.open(path, store=store)
    sources = Sources.load(without) if without else None
    removed = [*(document or []), *(sources.top(top or TOP).documents if sources else ())]
    asked, *others = (
        behaviours.load(name, opened, n_prompts=prompts, seed=seed)
        for name in (behaviour, *(unrelated or ()))
    )
    model = opened.load()
    heads = [component_queries.direct_effect(model, asked, one) for one in component or ()]
    with progress.bar("retraining") as advance:
        found = counterfactuals.without(
            opened,
            removed,
            [asked, *heads],
            together=together,
            unrelated=others,
            avoid=sources or (),  # lower-ranked sources are not drawn as random controls either
            out=runs_folder,
            control="matched-random" if seeds else "none",
            seeds=seeds,
            mode=mode,
            progress=advance,
        )
    result = found.to_dict()
    answer(result, formatting.counterfactual_lines(result), as_json=as_json, out=out)


def forget_command(
    path: RunPath,
    facts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FACT]...",
            help="Facts to remove, e.g. 'capital of E' or just E; default: nine facts, those read "
            "late in training if the run has any.",
        ),
    ] = None,
    exposures: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often the facts that are chosen by default are stated; default: 16."
        ),
    ] = None,
    seed: Seed = 0,
    runs_folder: Annotated[
        Path | None,
        typer.Option(
            "--runs", help="Folder for the retrained runs; default: counterfactuals inside RUN."
        ),
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Retrain a planted RUN without any document of some facts, and measure their recall.

    As a control, RUN is also retrained without the documents of as many other facts that are
    stated equally often.
    """
    if facts and exposures is not None:
        raise CounterfactualError(
            f"--exposures {exposures} chooses facts, but {len(facts)} are named; give either"
        )
    from dataclasses import asdict

    from data_attribution import counterfactuals
    from train import progress, runs

    opened = runs.open(path, store=store)
    names = facts or counterfactuals.removable_facts(opened, exposures=exposures or EXPOSURES)
    with progress.bar("retraining") as advance:
        found = counterfactuals.forget_facts(
            opened, names, out=runs_folder, seed=seed, progress=advance
        )
    answer(asdict(found), found.to_frame().to_string(index=False), as_json=as_json, out=out)
