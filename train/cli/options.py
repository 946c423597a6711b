"""Options and groups that the commands share, and what the options refuse."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from train.errors import TrainError
from train.storage import writable


class CommandGroup(TyperGroup):
    """A group of commands whose help shows the whole first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one entry per command, without the limit of one line."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(limit=1000)) for name, one in commands if one]
            )


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
