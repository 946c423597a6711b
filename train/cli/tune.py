"""The commands `openbook tune ...`: examples for tuning, SFT and DPO of a trained run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from train.cli.options import CommandGroup, Json, RunOptions, StoreFolder, option_groups
from train.cli.output import Output, emit, lines, run_summary


tune = typer.Typer(
    cls=CommandGroup,
    help="Tune a trained run on instructions (sft) or preferences (dpo), as a new run.",
    no_args_is_help=True,
)


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of a tuning, most of which are fields of its recipe."""

    out: Annotated[Path, typer.Option("--out", help="Folder to create for the new run.")]
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint to begin with; default: the last.")
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of training steps; default: three passes over instructions, one over "
            "preferences.",
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate; default: 1/30 (sft) or 1/60 (dpo) of the first run's."
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples per step; default: 16.")
    ] = None
    order_seed: Annotated[int, typer.Option(min=0, help="Random seed of the data order.")] = 0
    as_json: Json = False


@tune.command("data")
@option_groups
def tune_data(
    source: RunOptions,
    output: Output,
    examples: Annotated[
        str,
        typer.Argument(
            metavar="EXAMPLES", help="A .json or .jsonl file, or `planted` for the generated set."
        ),
    ],
    folder: Annotated[Path, typer.Option("--folder", help="Folder to create for the token store.")],
    kind: Annotated[
        Literal["instructions", "preferences"], typer.Option(help="Kind of the examples.")
    ] = "instructions",
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of examples to keep out of training, chosen by the hash of their prompt."
        ),
    ] = 0.0,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop",
            help="Leave out examples that are too long or empty or have equal answers, and count "
            "them; without it the first one is an error.",
        ),
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out rows that are no examples (other fields, no JSON, no UTF-8), count "
            "them, and list them with their reasons in skipped.jsonl of the store; without it the "
            "first one is an error.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Content seed of the planted corpus; files ignore it.")
    ] = 0,
) -> None:
    """Encode EXAMPLES with the tokenizer of RUN and write a token store for tuning it."""
    from train.data import tuning

    opened = source.open()
    built = tuning.build_tuning_store(
        tuning.open_tuning_set(examples, kind, seed=seed, skip_bad=skip_bad),
        out=folder,
        tokenizer=opened.known_tokenizer(),
        context=opened.config.n_ctx,
        held_out=held_out,
        drop=drop,
    )
    counts = built.manifest["counts"]
    result = {"store": str(built.path), "kind": built.tuning, **counts}
    output.emit(result, lines(result))


@tune.command("sft")
@option_groups
def tune_sft(source: RunOptions, options: TuningOptions, examples: StoreFolder) -> None:
    """Tune RUN on the responses of the instructions in STORE.

    Exit code 3: RUN, or a run that it was tuned from, fails verification.
    """
    _tune(source, options, examples, "sft")


@tune.command("dpo")
@option_groups
def tune_dpo(
    source: RunOptions,
    options: TuningOptions,
    examples: StoreFolder,
    beta: Annotated[
        float, typer.Option(help="Strength with which the run is held at its reference, RUN.")
    ] = 0.1,
) -> None:
    """Tune RUN to prefer the chosen over the rejected responses of the preferences in STORE.

    Exit code 3: RUN, or a run that it was tuned from, fails verification.
    """
    _tune(source, options, examples, "dpo", dpo_beta=beta)


def _tune(
    source: RunOptions,
    options: TuningOptions,
    examples: Path,
    objective: str,
    dpo_beta: float | None = None,
) -> None:
    from train import progress, trainer
    from train.data import open_store

    given = asdict(options)
    as_json, out, step = given.pop("as_json"), given.pop("out"), given.pop("step")
    with progress.bar("tuning") as advance:
        tuned = trainer.tune(
            source.open(),
            open_store(examples),
            objective,
            out=out,
            step=step,
            progress=advance,
            dpo_beta=dpo_beta,
            **given,
        )
    result = run_summary(tuned)
    emit(result, lines(result), as_json=as_json)
