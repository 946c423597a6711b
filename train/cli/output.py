"""How a command prints its result: as text or JSON, and into a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import typer

from train.cli.options import Json, Out, kind_of_result
from train.errors import TrainError
from train.progress import visible


if TYPE_CHECKING:
    from train.runs import Run


@runtime_checkable
class Saved(Protocol):
    """A result of the library: saves itself as sealed JSON and returns plain values."""

    def save(self, path: Path) -> None: ...

    def to_dict(self) -> dict[str, object]: ...


def emit(
    result: "Mapping[str, object] | Saved",
    text: str,
    *,
    as_json: bool,
    out: Path | None = None,
    shown: Mapping[str, object] | None = None,
    meaning: str = "",
) -> None:
    """Print a result as text or as JSON, and write it as sealed JSON to `out` if given.

    Args:
        result: A result of the library, which saves itself, or plain values.
        text: What is printed without `as_json`.
        as_json: Print JSON.
        out: File to write; one that exists must hold a result of the same kind.
        shown: What `as_json` prints if it is more than the result.
        meaning: What the result shows and does not show; that of a result which knows it itself.
    """
    plain = result if isinstance(result, Mapping) else result.to_dict()
    said = meaning or getattr(result, "meaning", "")
    if as_json:
        about = {"meaning": said} if said else {}
        typer.echo(json.dumps({**(shown or plain), **about}, indent=1, ensure_ascii=False))
    else:
        typer.echo(visible("\n".join(filter(None, [text, said]))))
    if out:
        _refuse_another_kind(out, plain)
    if out and isinstance(result, Mapping):
        from train import storage

        storage.write_json(out, storage.seal(result))
    elif out and not isinstance(result, Mapping):
        result.save(out)


def _refuse_another_kind(out: Path, result: Mapping[str, object]) -> None:
    """Raise if the file holds another kind of result, which no option could show beforehand.

    Results that name no kind are alike if one has all the keys of the other.
    """
    if not out.is_file():
        return
    from train import storage

    held = {key: value for key, value in storage.read_sealed(out).items() if key != "digest"}
    kinds = {kind_of_result(held), kind_of_result(result)}
    alike = held.keys() <= result.keys() or result.keys() <= held.keys()
    if len(kinds) > 1 or (kinds == {""} and not alike):
        raise TrainError(
            f"{out} holds another kind of result, so it is not replaced: this one was printed and "
            "not written; name another file"
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of how a command prints its result, and where it writes it."""

    as_json: Json = False
    out: Out = None

    def emit(
        self,
        result: Mapping[str, object] | Saved,
        text: str,
        *,
        shown: Mapping[str, object] | None = None,
        meaning: str = "",
    ) -> None:
        """Print a result, and write it if asked; see `emit`."""
        emit(result, text, as_json=self.as_json, out=self.out, shown=shown, meaning=meaning)


def run_summary(opened: "Run") -> dict[str, object]:
    """Return what is known about a run, in the order of printing."""
    shown: dict[str, object] = {
        "run": str(opened.path),
        "id": opened.id,
        "knowledge": opened.knowledge,
        "finished": opened.finished,
        "checkpoints": opened.steps,
    }
    if opened.knowledge != "full":
        order = {"order": opened.predicate["order"]} if "order" in opened.predicate else {}
        return {**shown, "origin": opened.predicate["origin"], **order}
    rows, saved, seen = opened.ledger, opened.saved, opened.watched
    return {
        **shown,
        "recipe": opened.recipe.name,
        "steps": f"{len(rows)} of {opened.recipe.steps}",
        "watched": seen.summary if seen else None,
        "loss": rows[-1].loss if rows else None,
        "tokens": rows[-1].tokens if rows else 0,
        "store": opened.predicate["data"]["fingerprint"],
        "weights": saved[-1].files["model.safetensors"] if saved else None,
        "numerics": opened.predicate["numerics"],
        "seeds": opened.predicate["seeds"],
        "parent": opened.predicate.get("parent"),
        **({"base": opened.base.identity} if opened.base else {}),
    }


def without_blocks(by_block: bool) -> str:
    """Return what to add about a store of an earlier version, which has no digests by block."""
    said = "; it has no digests by block, so each file is checked as a whole when it is first read"
    return "" if by_block else said


def lines(result: Mapping[str, object]) -> str:
    width = max(len(key) for key in result)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in result.items())
