"""`openbook attribution`: how good evidence for documents is, and what it is collected from."""

from pathlib import Path
from typing import Annotated

import typer

from data_attribution.errors import EvidenceError
from interp.cli.app import Seed
from train.cli.app import Json, Out, RunPath, StorePath, answer


# Of `index`: how gradients are collected, as `trace documents` compares them by default.
RANK, METRIC, LOG_ODDS = 32, "adam", 0.01


attribution = typer.Typer(
    help="Evidence for documents: collected beforehand, and put to the test.", no_args_is_help=True
)


@attribution.command("evaluate")
def evaluate_command(
    path: RunPath,
    facts: Annotated[int, typer.Option(min=1, help="Facts of each kind.")] = 24,
    k: Annotated[int, typer.Option(min=1, help="Documents that count as found.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="A fact, for gradients.")] = 300,
    within: Annotated[
        list[str] | None,
        typer.Option(help="L1H0, L0.mlp ...; default: found by patching other facts."),
    ] = None,
    patched: Annotated[
        int, typer.Option("--tail-patch", min=0, help="Facts of each kind, a step a document.")
    ] = 6,
    replayed: Annotated[
        int,
        typer.Option("--replay", min=0, help="Facts of each kind, the most stated; 0: no row."),
    ] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Last steps, of --replay and --lds.")] = 100,
    removal: Annotated[
        int, typer.Option(min=0, help="Control seeds; trains 3 times and once a seed; 0: none.")
    ] = 0,
    subsets: Annotated[
        int, typer.Option("--lds", min=0, help="Random subsets; trains --steps steps for each.")
    ] = 0,
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="For retrained weights; default: inside RUN.")
    ] = None,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Put every method to planted facts of RUN: one table, with n and 95 % intervals."""
    from data_attribution import evaluation
    from train import progress, runs

    opened = runs.open(path, store=store)
    asked = evaluation.Asked(
        n=facts,
        k=k,
        each=candidates,
        replayed=replayed,
        patched=patched,
        removal=removal,
        subsets=subsets,
        steps=steps,
        seed=seed,
    )
    with progress.bar("evaluating") as advance:
        found = evaluation.evaluate(
            opened,
            asked,
            within=within,
            out=runs_folder or opened.path / "evaluations",
            progress=advance,
        )
    answer(found.to_dict(), found.lines(), as_json=as_json, out=out)


@attribution.command("index")
def index_command(
    path: RunPath,
    within: Annotated[
        list[str] | None, typer.Option(help="L1H0, L0.mlp, unembed ...; default: everything.")
    ] = None,
    rank: Annotated[
        int, typer.Option(min=1, help="Of the projections: its square a matrix.")
    ] = RANK,
    metric: Annotated[str, typer.Option(help="adam: as the optimizer steps; plain.")] = METRIC,
    log_odds: Annotated[
        float, typer.Option(min=0, help="Least 1 - p a target is divided by; 0: follow the loss.")
    ] = LOG_ODDS,
    seed: Annotated[int, typer.Option(min=0, help="Of the projections.")] = 0,
    step: Annotated[int | None, typer.Option(help="Checkpoint; default: the last.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Default: RUN/gradients.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Collect nothing.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what is kept with its digests instead.")
    ] = False,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Collect the gradients of every document RUN could read; bytes and time are said first.

    As they are by default, so `trace documents` compares them; others wait for `comparing.collect`.
    """
    from dataclasses import asdict

    from data_attribution import gradients
    from train import progress, runs

    if verify:
        _refuse_idle(
            within=(within, None),
            rank=(rank, RANK),
            metric=(metric, METRIC),
            log_odds=(log_odds, LOG_ODDS),
            seed=(seed, 0),
            step=(step, None),
            estimate=(estimate, False),
        )
    opened = runs.open(path, store=store)
    if verify:
        kept = gradients.open_gradient_store(
            folder or opened.path / gradients.GRADIENT_FOLDER, run=opened
        )
        gradients.verify_gradient_store(kept)
        result = {"path": str(kept.path), "documents": len(kept.documents), "verified": True}
        answer(result, f"as it was written: {kept.path}", as_json=as_json, out=out)
        return
    model = opened.load(step)
    selection = gradients.select_weights(model.cfg, within)
    documents = gradients.trained_documents(opened)
    plan = gradients.plan_gradient_store(model, opened.store, documents, selection, rank=rank)
    if estimate:
        answer(asdict(plan), str(plan), as_json=as_json, out=out)
        return
    typer.echo(str(plan), err=True)
    with progress.bar("collecting") as advance:
        built = gradients.build_gradient_store(
            opened,
            out=folder,
            within=within,
            step=step,
            rank=rank,
            seed=seed,
            metric=metric,
            log_odds=log_odds or None,
            progress=advance,
        )
    result = {"path": str(built.path), **asdict(plan), "sites": list(built.manifest["sites"])}
    answer(result, f"{plan.bytes:,} bytes: {built.path}", as_json=as_json, out=out)


def _refuse_idle(**given: tuple[object, object]) -> None:
    """What --verify would not look at, each with its default."""
    said = [name for name, (one, default) in given.items() if one not in (default, [])]
    if said:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise EvidenceError(
            f"{listed} would do nothing, for --verify collects nothing; leave it out"
        )
