"""The command `openbook generate`: text that a model continues."""

from typing import Annotated

import typer

from interp.cli.options import ModelOptions, origin_row
from train.cli.options import option_groups
from train.cli.output import Output


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
