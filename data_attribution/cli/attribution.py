"""The command `openbook attribution evaluate`: how good each attribution method is."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import Seed
from train.cli.options import CommandGroup, RunOptions, option_groups
from train.cli.output import Output


attribution = typer.Typer(
    cls=CommandGroup, help="Evaluate attribution methods.", no_args_is_help=True
)


@attribution.command("evaluate")
@option_groups
def evaluate_command(
    source: RunOptions,
    output: Output,
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
        int | None,
        typer.Option(
            "--tail-patch",
            min=0,
            help="Facts per kind for tail patching (one gradient step per document); 0 skips it; "
            "default: 6, or 0 if RUN keeps no state of its optimizer.",
        ),
    ] = None,
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
) -> None:
    """Evaluate every attribution method on planted facts of RUN, with n and 95 % intervals."""
    from data_attribution import evaluation, gradients
    from train import progress

    opened = source.open()
    if reason := gradients.missing_moments(opened):
        typer.echo(f"gradients are not compared in Adam's metric: {reason}", err=True)
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
    output.emit(found.to_dict(), found.lines(), meaning=found.meaning)
