"""`openbook counterfactual` and `forget`: train again without documents, and see what goes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_attribution.cli import formatting
from data_attribution.errors import CounterfactualError
from interp.cli.app import Named, Prompts, Seed
from interp.cli.patch import PROMPTS
from train.cli.app import Json, Out, RunPath, StorePath, answer, readable


TOP, EXPOSURES = 50, 16


def counterfactual_command(
    path: RunPath,
    behaviour: Named,
    without: Annotated[
        Path | None,
        typer.Option(callback=readable, help="Sources of `openbook trace documents --out`."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many of them, best first; default: 50.")
    ] = None,
    document: Annotated[
        list[int] | None, typer.Option(help="Leave out this document; may be repeated.")
    ] = None,
    together: Annotated[
        Literal["near", "exact", "none"], typer.Option(help="Copies that go with a document.")
    ] = "near",
    unrelated: Annotated[
        list[str] | None,
        typer.Option(help="Another BEHAVIOUR, that should stay; may be repeated."),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(help="A head, L1H0: its direct effect on BEHAVIOUR too; may be repeated."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Random controls; 0: none; below 2 the noise is unknown.")
    ] = 1,
    mode: Annotated[
        Literal["blank", "loss"], typer.Option(help="loss: stays as context.")
    ] = "blank",
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="For the retrained runs; default: inside RUN.")
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Train RUN again without documents, and without as many matched random ones."""
    if top is not None and without is None:
        raise CounterfactualError(f"--top {top} counts sources; give them with --without FILE")
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
            avoid=sources or (),  # rows below the top are no random documents either
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
            help="'capital of E', or E; default: nine facts, late ones where the run has any.",
        ),
    ] = None,
    exposures: Annotated[
        int | None, typer.Option(min=1, help="Of the facts chosen by default; default: 16.")
    ] = None,
    seed: Seed = 0,
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="For the retrained runs; default: inside RUN.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Train a planted RUN again without every document of some facts, and ask it for them.

    And once without every document of as many other facts, stated equally often: the control.
    """
    if facts and exposures is not None:
        raise CounterfactualError(
            f"--exposures {exposures} chooses facts, and {len(facts)} were named; give one of both"
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
