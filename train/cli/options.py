"""Options and groups that the commands share, and what the options refuse."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import OptionInfo

from train.errors import StoreError, TrainError, nearest_path
from train.storage import writable


if TYPE_CHECKING:
    from train.runs import Run


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
        raise TrainError(f"a file was expected at {path}, and there is {found}{nearest_path(path)}")
    return path


# Which commands write a kind of result. A kind that is not listed belongs to one command, and is
# compared when its result is written (`train.cli.output`).
WRITERS = {
    "generation": ["trace text"],
    "openbook.ablation": ["ablate"],
    "openbook.circuit": ["circuit"],
    "openbook.contributions": ["decompose"],
    "openbook.effects": ["patch", "paths", "estimate"],
    "openbook.ensemble": ["ensemble"],
    "openbook.erasure": ["erase"],
    "openbook.lineage": ["trace stages"],
    "openbook.probe": ["probe"],
    "openbook.readings": ["lens logit", "lens tuned"],
    "openbook.trace": ["trace components"],
    "openbook.trajectory": ["emergence"],
    "openbook.tuned_lens": ["lens fit"],
    "sources": ["trace documents", "trace sentence", "trace head"],
}


def kind_of_result(content: Mapping[str, object]) -> str:
    """Return the kind of a result: its schema without the version; "" if it names none."""
    for key in ("schema", "kind"):
        if isinstance(content.get(key), str):
            return str(content[key]).partition("/")[0]
    return ""


# Results that name no kind, or whose kind belongs to one command: how else they are told apart.
ALONE = {"openbook.head-scores": "detect", "openbook.ladder": "ladder"}
KEYS = {
    "counterfactual": {"parent", "named", "removed", "effects"},
    "forget": {"parent", "facts", "groups"},
    "recall": {"levels", "late"},
    "attribution evaluate": {"rows", "provenance"},
    "behaviours": {"behaviour", "accuracy"},
    "generate": {"prompt", "temperature"},
}


def result_of(*commands: str) -> Callable[[Path | None], Path | None]:
    """Return a callback for an option whose file one of some commands writes.

    The callback raises a TrainError if there is no file, or if another command wrote it. What is no
    result of openbook, or one that was changed, is left to the loading.
    """
    wanted = " or ".join(f"`openbook {one} --out`" for one in commands)

    def check(path: Path | None) -> Path | None:
        if readable(path) is None or path is None:
            return path
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return path
        writers = _writers(content) if isinstance(content, dict) else []
        if writers and not {*writers} & {*commands}:
            wrote = " or ".join(f"`openbook {one}`" for one in writers)
            raise TrainError(f"{path} was written by {wrote}; a file of {wanted} is read here")
        return path

    return check


def _writers(content: Mapping[str, object]) -> list[str]:
    """Return the commands of which one may have written a result; none if that is not known."""
    if kind := kind_of_result(content):
        return WRITERS.get(kind, [ALONE[kind]] if kind in ALONE else [])
    return [command for command, keys in KEYS.items() if keys <= content.keys()][:1]


# How a file begins that a page or a figure may replace, by its ending.
BEGINNINGS = {
    ".html": (b"<!doctype html", b"<html"),
    ".svg": (b"<svg", b"<?xml"),
    ".png": (b"\x89png",),
    ".pdf": (b"%pdf",),
}


def page_file(path: Path | None) -> Path | None:
    """Return the file for a page or a figure, unless it holds something else.

    What is no regular file, such as a pipe, holds nothing to keep.

    Raises:
        TrainError: No file can be written there, or the file there is no page or figure.
    """
    if writable(path) is None or path is None or not path.is_file():
        return path
    with path.open("rb") as file:
        held = file.read(64).lstrip().lower()
    if held and not held.startswith(BEGINNINGS.get(path.suffix.lower(), BEGINNINGS[".html"])):
        raise TrainError(
            f"{path} exists and is no page or figure, so it is not replaced; name another file"
        )
    return path


def result_file(context: Any, path: Path | None) -> Path | None:
    """Return the file for a result, unless it holds anything but a result of the same kind.

    What is no regular file, such as a pipe, holds nothing to keep.

    Raises:
        TrainError: No file can be written there, or the file there is no result, or one of another
            command.
    """
    if writable(path) is None or path is None or not path.is_file():
        return path
    from train import storage

    try:
        held = kind_of_result(storage.read_sealed(path))
    except TrainError:
        raise TrainError(
            f"{path} exists and is no result of openbook, so it is not replaced; name another file"
        ) from None
    command = _command(context)
    listed = any(command in commands for commands in WRITERS.values())
    if command not in WRITERS.get(held, [] if listed else [command]):
        raise TrainError(
            f"{path} holds {held or 'a result of another command'}, which `openbook {command}` "
            "does not write, so it is not replaced; name another file"
        )
    return path


def _command(context: Any) -> str:
    """Return the name of the command that is called, such as `trace documents`."""
    names = []
    while context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(reversed(names))


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        callback=result_file,
        help="Also write the result as JSON, with a digest, to this file. A file that exists is "
        "replaced only if it holds a result of the same kind.",
    ),
]


Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, or one GPU such as cuda:0.")]


Precision = Annotated[
    str,
    typer.Option(
        help="Precision: fp32, bf16, or auto (bf16 on a GPU; on a CPU whichever is measured to be "
        "faster)."
    ),
]


ShardOptimizer = Annotated[
    bool,
    typer.Option(
        "--shard-optimizer",
        help="Keep in each process only its share of AdamW's state: less memory, the same result.",
    ),
]


def _store_folder(path: Path) -> Path:
    """Raise a StoreError, before torch is imported, if there is no token store."""
    if not (path / "store.json").exists():
        raise StoreError(
            f"there is no token store at {path}; make one with `openbook corpus build`"
            + nearest_path(path, "store.json")
        )
    return path


StoreFolder = Annotated[
    Path,
    typer.Argument(metavar="STORE", callback=_store_folder, help="Folder of the token store."),
]


def _new_run(path: Path) -> Path:
    """Raise a TrainError, before torch is imported, if a run is there; others are seen later."""
    if (path / "manifest.json").exists():
        raise TrainError(
            f"{path} exists already; resume it with `openbook run resume` or choose another folder"
        )
    return path


NewRun = Annotated[
    Path, typer.Option("--out", callback=_new_run, help="Folder to create for the run.")
]


StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the token store, if it has moved since training."),
]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that name a run and its token store."""

    path: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
    store: StorePath = None

    def __post_init__(self) -> None:
        # Looked for before the command imports torch.
        if not self.path.exists():
            raise TrainError(
                f"no run at {self.path}: no manifest.json there; `openbook train` makes one"
                + nearest_path(self.path)
            )

    def open(self) -> "Run":
        """Open the run."""
        from train import runs

        return runs.open(self.path, store=self.store)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses whose fields are arguments and options.

    On the command line, a parameter with such a type stands for the fields of the dataclass; the
    command gets them as one object. Help lists a command's own options before those of dataclasses.
    """
    own, grouped = list[Parameter](), list[Parameter]()
    groups = dict[str, Any]()
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            grouped += inspect.signature(groups[parameter.name]).parameters.values()
        else:
            own.append(parameter)

    @functools.wraps(command)
    def grouped_command(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    arguments = [parameter for parameter in grouped if not _is_option(parameter)]
    options = [parameter for parameter in grouped if _is_option(parameter)]
    parameters = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*arguments, *own, *options)
    ]
    # Typer reads both.
    grouped_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped_command.__annotations__ = {one.name: one.annotation for one in parameters}
    return grouped_command


def _is_option(parameter: Parameter) -> bool:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(one, OptionInfo) for one in metadata)


def choice(*words: str, help: str) -> OptionInfo:
    """Return an option that takes one of some words; the word `mlps:N` stands for mlps:2 and so on.

    A number that only one of the choices reads is thus part of that choice. An underscore does for
    a hyphen.
    """

    def parse(text: str) -> str:
        text = text if text in words else text.replace("_", "-")
        if text.endswith(":N") or re.sub(r":[1-9][0-9]*$", ":N", text) not in words:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, words))}.")
        return text

    return typer.Option(parser=parse, metavar="|".join(words), help=help)


def number(text: str, default: int) -> int:
    """Return the number of a choice such as `mlps:3`, or the default if it has none."""
    return int(text.partition(":")[2] or default)
