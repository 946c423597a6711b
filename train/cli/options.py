"""Options that several commands share, and what they refuse."""

from pathlib import Path
from typing import Annotated

import typer

from train.errors import TrainError
from train.storage import writable


def readable(path: Path | None) -> Path | None:
    """Raise a TrainError if `path` is not a file that an earlier command wrote."""
    if path is not None and not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise TrainError(f"a file was expected at {path}, and there is {found}")
    return path


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        callback=writable,
        help="Also write the result as JSON, with a digest, to this file.",
    ),
]


RunPath = Annotated[Path, typer.Argument(help="Folder of the run.")]


StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the token store, if it has moved since training."),
]
