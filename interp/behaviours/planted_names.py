"""Names of the behaviours of a planted corpus, from its truth table.

Nothing heavy is imported, so that a command can refuse an unknown name before it imports torch.
"""

import json
from pathlib import Path
from typing import Any

from interp.errors import BehaviourError
from train.errors import nearest


__all__ = ["names_in", "refuse_unknown_name"]

FILES = (".toml", ".csv", ".tsv", ".jsonl", ".json")


def names_in(truth: dict[str, Any]) -> list[str]:
    """List the names of all behaviours that a truth table holds."""
    ioi = truth["ioi"]
    combinations = [
        f"ioi:{opening}-{closing}"
        for opening in range(len(ioi["openings"]))
        for closing in range(len(ioi["closings"]))
    ]
    facts = [f"fact:{fact['entity']}" for fact in truth["facts"]]
    return ["ioi", "induction", *truth["relations"], "ioi:names", *combinations, *facts]


def refuse_unknown_name(name: str, run: Path, store: Path | None = None) -> None:
    """Raise if a planted run has no behaviour of this name; takes 10 ms and imports no torch.

    Files are left to `behaviours.load`, and so is every run whose truth table is not at hand:
    loading checks digests, this does not.

    Args:
        name: Name of a behaviour, or of a file.
        run: Folder of a run.
        store: Folder of its token store; None for the place that the manifest names.

    Raises:
        BehaviourError: The truth table holds no such behaviour.

    Examples:
        >>> behaviours.refuse_unknown_name("capitol", run.path)
        Traceback (most recent call last):
            ...
        interp.errors.BehaviourError: there is no behaviour 'capitol', did you mean 'capital'?
    """
    if Path(name).suffix in FILES:
        return
    try:
        known = names_in(json.loads(((store or _store_of(run)) / "truth.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if name not in known:
        raise BehaviourError(f"there is no behaviour {name!r}{nearest(name, known)}")


def _store_of(run: Path) -> Path:
    """Return the folder that a run's manifest names as its token store."""
    manifest = json.loads((run / "manifest.json").read_bytes())
    return run / manifest["predicate"]["store_path"]
