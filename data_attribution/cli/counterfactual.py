"""The commands `openbook counterfactual` and `openbook forget`: retraining without documents."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_attribution.cli import formatting
from interp.cli.options import PROMPTS, Named, Prompts, Seed
from train.cli.options import WRITERS, RunOptions, option_groups, result_of
from train.cli.output import Output


RANKINGS = WRITERS["sources"]  # commands that rank documents
TOP = 50
EXPOSURES = "16"
FORGET_CONTROLS = 3
CONTROLS = 2  # as in `counterfactuals.without`, which takes a second to import

Folder = Annotated[
    Path | None,
    typer.Option(
        "--runs", help="Folder for the retrained runs; default: counterfactuals inside RUN."
    ),
]


def _documents(named: list[str]) -> list[str]:
    """Raise an error for a name that is neither a number nor a file."""
    for name in named:
        if not name.isdecimal():
            result_of(*RANKINGS)(Path(name))
    return named


@option_groups
def counterfactual_command(
    source: RunOptions,
    output: Output,
    behaviour: Named,
    without: Annotated[
        list[str],
        typer.Option(
            callback=_documents,
            help="Documents to remove: a file of `openbook trace documents --out`, or the index "
            "of a document; may be repeated.",
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Remove only the first N of these documents; default: 50 of a file, and all that "
            "are given by index.",
        ),
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
    runs_folder: Folder = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
) -> None:
    """Retrain RUN without some documents, and measure what that does to BEHAVIOUR.

    As a control, RUN is also retrained without as many matched random documents.
    """
    from interp import behaviours

    for name in (behaviour, *(unrelated or ())):
        behaviours.refuse_unknown_name(name, source.path, source.store)
    from data_attribution import component_queries, counterfactuals
    from data_attribution.attribution import Sources
    from train import progress

    opened = source.open()
    named = [int(name) if name.isdecimal() else Sources.load(name) for name in without]
    asked, *others = (
        behaviours.load(name, opened, n_prompts=prompts, seed=seed)
        for name in (behaviour, *(unrelated or ()))
    )
    model = opened.load()
    heads = [component_queries.direct_effect(model, asked, one) for one in component or ()]
    with progress.bar("retraining") as advance:
        found = counterfactuals.without(
            opened,
            [one if isinstance(one, int) else one.top(top or TOP) for one in named],
            [asked, *heads],
            top=top,
            together=together,
            unrelated=others,
            avoid=named,  # lower-ranked sources are not drawn as random controls either
            out=runs_folder,
            control="matched-random" if seeds else "none",
            seeds=seeds,
            mode=mode,
            progress=advance,
        )
    result = found.to_dict()
    output.emit(result, formatting.counterfactual_lines(result), meaning=found.meaning)


@option_groups
def forget_command(
    source: RunOptions,
    output: Output,
    facts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FACT",
            help="Facts to remove, e.g. 'capital of E' or just E. A number such as 32 stands for "
            "nine facts that are stated so often, those read late in training if the run has any; "
            "default: 16.",
        ),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=1, help="Number of controls, each of which is another training.")
    ] = FORGET_CONTROLS,
    seed: Seed = 0,
    runs_folder: Folder = None,
) -> None:
    """Retrain a planted RUN without any document of some facts, and measure their recall.

    As controls, RUN is also retrained without the documents of as many other facts that are
    stated equally often.
    """
    from dataclasses import asdict

    from data_attribution import counterfactuals
    from train import progress

    opened = source.open()
    names = [
        name
        for fact in facts or [EXPOSURES]
        for name in (
            counterfactuals.removable_facts(opened, exposures=int(fact))
            if fact.isdecimal()
            else [fact]
        )
    ]
    with progress.bar("retraining") as advance:
        found = counterfactuals.forget_facts(
            opened, names, out=runs_folder, controls=controls, seed=seed, progress=advance
        )
    lines = [found.to_frame().to_string(index=False)]
    if found.beyond_controls:
        lines.append(
            f"log-probability of the removed facts: {formatting.effect_text(found.beyond_controls)}"
        )
    output.emit(asdict(found), "\n".join(lines), meaning=found.meaning)
