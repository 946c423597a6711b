"""The command `openbook generate`: text that a model continues."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from interp.cli.options import ModelOptions, origin_row
from train.cli.options import option_groups
from train.cli.output import Output


class GenerateCommand(TyperCommand):
    """The command; of a text that stands behind no option, it says which option takes it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as every command does."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            said = str(getattr(error, "message", ""))
            if "unexpected extra argument" in said:
                error.message = f"{said}; --prompt takes the text to continue"  # type: ignore[attr-defined]
            raise


@option_groups
def generate_command(
    source: ModelOptions,
    output: Output,
    prompt: Annotated[
        str, typer.Option(help="Text to continue, behind an end of text; default: none.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to add.")] = 50,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Temperature of sampling; 0 takes the most probable token."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling.")] = 0,
) -> None:
    """Continue a prompt with RUN and print the whole text, until the model ends it."""
    model, _ = source.open()
    text = model.generate(prompt, tokens, temperature=temperature, seed=seed)
    result = {
        "prompt": prompt,
        "text": text,
        "tokens": tokens,
        "temperature": temperature,
        "seed": seed,
        "provenance": origin_row(model.origin),
    }
    output.emit(result, text)
