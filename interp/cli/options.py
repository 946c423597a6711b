"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.plots import drawable


if TYPE_CHECKING:
    from interp.results import Provenance
    from train.runs import Origin


Source = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or a local Hugging Face folder.")
]


Named = Annotated[
    str,
    typer.Argument(
        metavar="BEHAVIOUR",
        help="Name of a behaviour (`openbook behaviours RUN` lists them), a .toml file of prompt "
        "templates, or a saved .json file.",
    ),
]


Step = Annotated[
    int | None, typer.Option(min=0, help="Step of the checkpoint to load; default: the last.")
]


Prompts = Annotated[int, typer.Option(min=1, help="Maximum number of prompts.")]


Seed = Annotated[
    int, typer.Option(min=0, help="Random seed for sampling prompts and everything else sampled.")
]


PROMPTS = 64


Plot = Annotated[
    Path | None,
    typer.Option(
        callback=drawable,
        help="Write a figure to this .html file; to .svg, .pdf or .png if Chrome is installed.",
    ),
]


Memory = Annotated[
    int, typer.Option(min=1, help="Memory limit in MB, not counting the model's weights.")
]


MEMORY = 2048


MetricName = Annotated[
    Literal["logit-difference", "log-probability", "probability"],
    typer.Option("--metric", help="Metric in which the behaviour is scored."),
]


MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Metric: logit-difference, log-probability or probability; may be repeated.",
    ),
]


Direction = Annotated[
    Literal["denoising", "noising"],
    typer.Option(
        help="denoising: clean values into corrupt prompts. noising: corrupt values into clean "
        "prompts."
    ),
]


Rows = Annotated[
    int, typer.Option("--top", min=1, help="Number of rows to print (--json prints all).")
]


def provenance_line(origin: "Origin | Provenance") -> str:
    return (
        f"run {origin.run_id}, step {origin.step}, checkpoint {origin.checkpoint_sha256[:12]}, "
        f"knowledge {origin.knowledge}"
    )


def origin_row(origin: "Origin") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(origin)
