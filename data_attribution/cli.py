"""The `openbook` command: the one place where the three packages meet."""

import os
import sys

import typer

from train.cli import corpus, run, train_command


app = typer.Typer(
    help="Mechanistic interpretability and data attribution on a fully known GPT-2 checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(corpus, name="corpus")
app.command("train")(train_command)
app.add_typer(run, name="run")


def main() -> None:
    """Run the command. What we refuse is one line on stderr; what we did not foresee is a bug."""
    # No command of ours may wait for a hub that was not asked for, or start more threads than
    # cores.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on (train: with --resume)", err=True)
        sys.exit(130)
    except ValueError as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(code)
