"""`openbook attribution`: how good evidence for documents is, and what it is collected from."""

import typer


attribution = typer.Typer(
    help="Evidence for documents: collected beforehand, and put to the test.", no_args_is_help=True
)
