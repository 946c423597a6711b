"""The commands `openbook recipes list` and `show`, and the option `--set`."""

import tomllib
from typing import Annotated, Any, no_type_check

import typer

from train.cli.options import CommandGroup, Json, Out
from train.cli.output import emit
from train.errors import RecipeError


recipe_commands = typer.Typer(cls=CommandGroup, invoke_without_command=True)

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe: a name of `openbook recipes list`, or the path of a .toml file.",
    ),
]

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Another value for a field of the recipe, such as lr=1e-3 or model.n_layers=4; may be "
        "repeated.",
    ),
]


# Not type-checked at run time: typer passes a context of another class than the annotated one.
@recipe_commands.callback()
@no_type_check
def recipes_command(context: typer.Context) -> None:
    """List the named recipes, or show all fields of a recipe; without a command: list."""
    if context.invoked_subcommand is None:
        recipes_list()


@recipe_commands.command("list")
def recipes_list(as_json: Json = False, out: Out = None) -> None:
    """List the named recipes: parameters, tokens of training (padding included), and purpose."""
    from train import recipes

    rows = []
    for name, purpose in recipes.PURPOSES.items():
        recipe = recipes.by_name(name)
        rows.append(
            {
                "recipe": name,
                "parameters": recipe.model.n_params,
                "tokens": recipe.steps * recipe.tokens_per_step,
                "purpose": purpose,
            }
        )
    text = f"{'recipe':<17}{'parameters':>14}{'tokens':>18}  purpose"
    for row in rows:
        text += "\n{recipe:<17}{parameters:>14,}{tokens:>18,}  {purpose}".format(**row)
    emit({"recipes": rows}, text, as_json=as_json, out=out)


@recipe_commands.command("show")
def recipes_show(
    recipe: RecipeName, settings: Settings = None, as_json: Json = False, out: Out = None
) -> None:
    """Print every field of a recipe as TOML, which `openbook train` takes as a file."""
    from train import recipes

    if out and out.suffix == ".toml":
        raise RecipeError(
            f"--out writes JSON, not {out}; write a recipe file with "
            f"`openbook recipes show {recipe} > {out}`"
        )
    loaded = recipes.load(recipe, parsed_settings(settings))
    emit(recipes.to_dict(loaded), recipes.to_toml(loaded).rstrip("\n"), as_json=as_json, out=out)


def parsed_settings(texts: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return the values of `--set FIELD=VALUE`, by field.

    A value is written as in TOML; what is not TOML is text, so that `--set model.mlp=swiglu` needs
    no quotes.

    Args:
        options: Values of other options by the field that they set; None: not given.

    Raises:
        RecipeError: A text has no value, or a field is set twice.
    """
    settings: dict[str, Any] = {}
    for text in texts or []:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value:
            raise RecipeError(f"--set {text!r} has no field or no value; write --set lr=1e-3")
        if key in settings:
            raise RecipeError(f"--set {key} is given twice, the second time as {value!r}; give one")
        if options.get(key) is not None:
            option = "seed" if key == "init_seed" else key.replace("_", "-")
            raise RecipeError(
                f"--{option} {options[key]} and --set {text} both set {key}; give one of them"
            )
        settings[key] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
