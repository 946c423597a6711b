"""Write docs/reference/cli.md from the commands themselves: `python docs/cli.py` writes it anew.

Names, defaults and texts are read from the Typer app, so the page cannot say anything else than
`openbook COMMAND --help`. tests/test_documents.py compares the two.
"""

import types
import typing
from pathlib import Path

import typer

from data_attribution.cli.app import app


PAGE = Path(__file__).with_name("reference") / "cli.md"
HEAD = """# Command line

Every command of `openbook`, with its arguments and options. `docs/cli.py` writes this page from the
commands themselves.

The result goes to stdout, progress and warnings go to stderr. Every command except `openbook demo`
takes `--json`.

| exit code | meaning |
|---|---|
| 0 | The command is done. |
| 1 | The command ran, and a claim that it checks does not hold. |
| 2 | The command line is wrong, or what it asks for does not exist. |
| 3 | A file is damaged or not to be trusted. |
| 4 | Memory or disk do not suffice. |
| 75 | The processes of a training cannot reach each other. |
| 130 | The command was interrupted. |
| 128 + n | Signal n ended a process of a training (137: SIGKILL). |

After an interruption, `openbook run resume` continues a training, and `openbook cache` continues
with `--resume`. The commands
`openbook demo`, `openbook index build`, `openbook emergence` and all retrainings continue when the
same command is typed again.
"""


def commands(command: typing.Any, name: str) -> typing.Iterator[tuple[str, typing.Any]]:
    """Yield the full name of every command and the command, groups before what is in them."""
    yield name, command
    for child in sorted(getattr(command, "commands", {})):
        yield from commands(command.commands[child], f"{name} {child}")


def values(parameter: typing.Any) -> str:
    """Say what a parameter takes: a choice, a path, a number with its least value."""
    if getattr(parameter, "is_flag", False):
        return "flag"
    if parameter.param_type_name == "option" and parameter.metavar:
        return ", ".join(f"`{word}`" for word in parameter.metavar.split("|"))
    kind = parameter.type_descriptor.annotation
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    several = typing.get_origin(kind) in (list, tuple)
    if several:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        said = ", ".join(f"`{one}`" for one in typing.get_args(kind))
    else:
        said = {str: "text", int: "integer", float: "number"}.get(kind, kind.__name__.lower())
    if getattr(parameter, "min", None) is not None:
        said += f", at least {parameter.min}"
    return f"{said}; repeatable" if several else said


def argument_name(parameter: typing.Any) -> str:
    """Return the name of an argument: in brackets if it may be left out, with dots if repeated."""
    name = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
    return name if parameter.nargs == 1 else f"{name}..."


def row(parameter: typing.Any, argument: bool) -> str:
    """Give the row of one argument or option in its table."""
    name = argument_name(parameter) if argument else ", ".join(parameter.opts)
    default = parameter.default
    empty = default is None or default == () or getattr(parameter, "is_flag", False)
    said = "required" if parameter.required else "" if empty else f"`{default}`"
    text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| `{name}` | {values(parameter)} | {said} | {text} |"


def section(name: str, command: typing.Any) -> str:
    """Give the section of one command: its text, how it is called, and a table of what it takes."""
    level = "##" if name.count(" ") < 2 else "###"
    lines = [f"{level} {name}", "", *(command.help or "").strip().splitlines(), ""]
    if getattr(command, "commands", None):
        return "\n".join(lines)
    shown = [one for one in command.params if not one.hidden and "--help" not in one.opts]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    called = map(argument_name, arguments)
    usage = " ".join([name, *called, *["[OPTIONS]"] * bool(options)])
    lines += ["```text", usage, "```", ""]
    if shown:
        lines += ["| name | takes | default | meaning |", "|---|---|---|---|"]
        lines += [row(one, True) for one in arguments]
        lines += [row(one, False) for one in options]
        lines.append("")
    return "\n".join(lines)


def reference() -> str:
    """Give the whole page."""
    root = typer.main.get_command(app)
    sections = [section(*found) for found in commands(root, "openbook") if " " in found[0]]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
