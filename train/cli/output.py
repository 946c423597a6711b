"""How a command prints its result: as text or JSON, and into a file."""

import json
from pathlib import Path
from typing import Any

import typer


def answer(result: dict[str, Any], text: str, *, as_json: bool, out: Path | None) -> None:
    """Print a result as text or as JSON, and also write it as JSON to `out` if given."""
    if out:
        from train import storage

        storage.write_json(out, result)
    typer.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else text)


def run_summary(opened: Any) -> dict[str, Any]:
    """Return what is known about a run, in the order of printing."""
    shown: dict[str, Any] = {
        "run": str(opened.path),
        "id": opened.id,
        "knowledge": opened.knowledge,
        "finished": opened.finished,
        "checkpoints": opened.steps,
    }
    if opened.knowledge == "weights-only":
        return {**shown, "origin": opened.predicate["origin"]}
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
    }


def lines(result: dict[str, Any]) -> str:
    width = max(len(key) for key in result)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in result.items())
