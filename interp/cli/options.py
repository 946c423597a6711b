"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

import typer

from interp import behaviours
from interp.errors import BehaviourError
from interp.plots import drawable
from train.cli.options import StorePath, choice, page_file
from train.cli.output import Output
from train.errors import TrainError, nearest_path


if TYPE_CHECKING:
    from interp import plots
    from interp.behaviours import Behaviour
    from interp.results import Provenance
    from train.model import GPT
    from train.runs import Origin, Run


def behaviour_file(name: str) -> str:
    """Raise a BehaviourError, before torch is imported, if a behaviour's file is missing."""
    ending = Path(name).suffix
    if ending in (".toml", ".csv", ".tsv", ".jsonl", ".json") and not Path(name).is_file():
        raise BehaviourError(f"{name}: there is no such file{nearest_path(name)}")
    return name


Named = Annotated[
    str,
    typer.Argument(
        metavar="BEHAVIOUR",
        callback=behaviour_file,
        help="Name of a behaviour (`openbook behaviours RUN` lists them), a file of your own "
        "(.toml, .csv, .tsv or .jsonl), or a saved .json file.",
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
        callback=lambda path: page_file(drawable(path)),
        help="Write a figure to this .html or .svg file; to .pdf or .png if Chrome is installed.",
    ),
]


Memory = Annotated[
    int, typer.Option(min=1, help="Memory limit in MB, not counting the model's weights.")
]


MEMORY = 2048


METRICS = ("logit-difference", "log-probability", "probability", "probability-difference")


MetricName = Annotated[str, choice(*METRICS, help="Metric in which the behaviour is scored.")]


MetricNames = Annotated[
    list[str] | None,
    choice(*METRICS, help="Metric in which the behaviour is scored; may be repeated."),
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


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that name a model."""

    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or a local Hugging Face folder.")
    ]
    step: Step = None
    store: StorePath = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="Tokenizer for a Hugging Face folder whose own is missing or not known: a "
            "tokenizer.json, or a folder with one or with vocab.json and merges.txt.",
        ),
    ] = None

    def __post_init__(self) -> None:
        # Looked for before the command imports torch.
        if not self.path.exists():
            raise TrainError(
                "neither a run (manifest.json) nor a Hugging Face model (config.json) lies at "
                f"{self.path}{nearest_path(self.path)}"
            )

    def open(self) -> "tuple[GPT, Run | GPT]":
        """Return the model, and the object from which to build its behaviours."""
        from interp import models

        return models.open(self.path, step=self.step, store=self.store, tokenizer=self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class BehaviourOptions(ModelOptions):
    """Options that name a model and a behaviour."""

    behaviour: Named
    prompts: Prompts = PROMPTS
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        behaviours.refuse_unknown_name(self.behaviour, self.path, self.store)

    def load(self) -> "tuple[GPT, Behaviour]":
        """Return the model and the behaviour."""
        model, words = self.open()
        behaviour = behaviours.load(self.behaviour, words, n_prompts=self.prompts, seed=self.seed)
        return model, behaviour


@runtime_checkable
class Drawn(Protocol):
    """A result that can be drawn."""

    def plot(self) -> "plots.Figure": ...


@dataclass(frozen=True, kw_only=True)
class PlotOutput(Output):
    """Options of how a command prints its result, writes it and draws it."""

    plot: Plot = None

    def draw(self, result: Drawn) -> None:
        """Write the figure of a result if it was asked for."""
        if self.plot:
            from interp import plots

            plots.write(result.plot(), self.plot)


def provenance_line(origin: "Origin | Provenance") -> str:
    return (
        f"run {origin.run_id}, step {origin.step}, checkpoint {origin.checkpoint_sha256[:12]}, "
        f"knowledge {origin.knowledge}"
    )


def origin_row(origin: "Origin") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(origin)
