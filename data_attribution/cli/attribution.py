"""The commands `openbook attribution evaluate` and `openbook attribution index`."""

from pathlib import Path
from typing import Annotated

import typer

from data_attribution.errors import EvidenceError
from interp.cli.options import Seed
from train.cli.options import Json, Out, RunPath, StorePath
from train.cli.output import answer


# Defaults of `index`. `trace documents` uses a gradient store only if it has the same options.
RANK, METRIC, LOG_ODDS = 32, "adam", 0.01


attribution = typer.Typer(
    help="Evaluate attribution methods, and collect gradients beforehand.", no_args_is_help=True
)


@attribution.command("evaluate")
def evaluate_command(
    path: RunPath,
    facts: Annotated[int, typer.Option(min=1, help="Number of facts of each kind.")] = 24,
    k: Annotated[
        int, typer.Option(min=1, help="Number of top documents that count as found.")
    ] = 10,
    candidates: Annotated[
        int,
        typer.Option(min=1, help="Candidate documents per fact whose gradients are compared."),
    ] = 300,
    within: Annotated[
        list[str] | None,
        typer.Option(
            help="Component of the localised gradients, e.g. L1H0 or L0.mlp; may be repeated; "
            "default: those that patching finds on other facts."
        ),
    ] = None,
    patched: Annotated[
        int,
        typer.Option(
            "--tail-patch",
            min=0,
            help="Facts per kind for tail patching (one gradient step per document); 0 skips it.",
        ),
    ] = 6,
    replayed: Annotated[
        int,
        typer.Option(
            "--replay",
            min=0,
            help="Facts per kind for the replay method, those stated most often; 0 skips it.",
        ),
    ] = 4,
    steps: Annotated[
        int, typer.Option(min=1, help="Number of last training steps that --replay and --lds use.")
    ] = 100,
    removal: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of random controls for removing the top documents; retrains 3 times plus "
            "once per control; 0 skips it.",
        ),
    ] = 0,
    subsets: Annotated[
        int,
        typer.Option(
            "--lds",
            min=0,
            help="Number of random subsets for the linear datamodelling score (LDS); trains "
            "--steps steps for each; 0 skips it.",
        ),
    ] = 0,
    runs_folder: Annotated[
        Path | None,
        typer.Option(
            "--runs", help="Folder for the retrained weights; default: evaluations inside RUN."
        ),
    ] = None,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Evaluate every attribution method on planted facts of RUN, with n and 95 % intervals."""
    from data_attribution import evaluation
    from train import progress, runs

    opened = runs.open(path, store=store)
    asked = evaluation.EvaluationOptions(
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
        list[str] | None,
        typer.Option(
            help="Component whose gradients are collected, e.g. L1H0, L0.mlp or unembed; may be "
            "repeated; default: all."
        ),
    ] = None,
    rank: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rank of the random projection; stores RANK x RANK numbers per weight matrix.",
        ),
    ] = RANK,
    metric: Annotated[
        str,
        typer.Option(
            help="Scale of the gradients. adam: as the run's optimizer scales them. plain: as they "
            "are."
        ),
    ] = METRIC,
    log_odds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Follow the log-odds instead of the loss, dividing each target's gradient by "
            "max(1 - p, this value); 0 follows the loss.",
        ),
    ] = LOG_ODDS,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the projections.")] = 0,
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint to use; default: the last.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the gradient store; default: RUN/gradients.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print size and time, and collect nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check the stored gradients against their digests, and collect nothing.",
        ),
    ] = False,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Collect and store the gradients of every document that RUN could read.

    Prints the size on disk and the time first. `openbook trace documents` uses the store if it was
    collected with the same options, as it is by default; in Python,
    `data_attribution.gradients.collect` uses it too.
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
        answer(result, f"all files match their digests: {kept.path}", as_json=as_json, out=out)
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
    """Raise an EvidenceError if an option that --verify ignores differs from its default.

    Args:
        given: Value and default of each such option, by parameter name.
    """
    said = [name for name, (one, default) in given.items() if one not in (default, [])]
    if said:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise EvidenceError(
            f"{listed} cannot be used with --verify, which collects nothing; leave it out"
        )
