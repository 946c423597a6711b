"""The command `openbook report`: one HTML page of a behaviour, from its heads to the proof."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from data_attribution.cli.counterfactual import RANKINGS
from data_attribution.cli.trace import known_method
from interp.cli.options import PROMPTS, Named, Prompts, Seed
from train.cli.options import Json, RunOptions, option_groups, page_file, result_of
from train.progress import visible


PAGE = Path("page.html")


@option_groups
def report_command(
    source: RunOptions,
    behaviour: Named,
    out: Annotated[
        Path, typer.Option("--out", callback=page_file, help="HTML file to write.")
    ] = PAGE,
    sources: Annotated[
        Path | None,
        typer.Option(
            callback=result_of(*RANKINGS),
            help="Ranking to show: a file of `openbook trace documents --out`; default: documents "
            "are ranked by --method.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            callback=known_method,
            help="Evidence to rank documents by, as in `openbook trace documents --method`.",
        ),
    ] = "lexical",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of documents to list.")] = 20,
    proof: Annotated[
        Path | None,
        typer.Option(
            callback=result_of("counterfactual", "forget"),
            help="Result to show as the proof: a file of `openbook counterfactual --out` or "
            "`openbook forget --out`; default: retrained runs in counterfactuals inside RUN that "
            "removed the first document.",
        ),
    ] = None,
    unrelated: Annotated[
        list[str] | None,
        typer.Option(
            help="Another behaviour to measure in retrained runs, which should stay; may be "
            "repeated; default: three others that RUN does."
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Checkpoints to measure: all, log:40 (at most 40, spaced logarithmically), or "
            "steps such as 0,100,200; default: at most twelve."
        ),
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a BEHAVIOUR of RUN: prompts, heads, documents, and the proof.

    The page opens without a network. Nothing is trained, and what earlier commands have saved is
    read: rows of `openbook emergence`, a ranking, retrained runs.
    """
    import json

    from interp import behaviours

    for name in (behaviour, *(unrelated or ())):
        behaviours.refuse_unknown_name(name, source.path, source.store)
    from data_attribution import report
    from data_attribution.attribution import Sources
    from train import progress

    opened = source.open()
    options = "".join(
        f" --{name} {value}"
        for name, value, usual in (("prompts", prompts, PROMPTS), ("seed", seed, 0))
        if value != usual
    ).strip()
    with progress.bar("measuring") as advance:
        found = report.gather(
            opened,
            behaviours.load(behaviour, opened, n_prompts=prompts, seed=seed),
            named=quote(behaviour),
            options=options,
            sources=None if sources is None else Sources.load(sources),
            methods=method,
            limit=limit,
            proof=None if proof is None else report.read_proof(proof),
            unrelated=[
                behaviours.load(name, opened, n_prompts=prompts, seed=seed)
                for name in unrelated or ()
            ],
            steps=steps,
            seed=seed,
            progress=advance,
        )
    report.write_behaviour_page(found, out)
    summary = {**found.summary(), "page": str(out)}
    if as_json:
        typer.echo(json.dumps(summary, indent=1, ensure_ascii=False))
    else:
        typer.echo(visible(str(found)))
        typer.echo(f"page: {out}")
