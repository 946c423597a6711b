"""Retrained runs on disk: which documents they lack, why, and which are controls of which.

Runs of `openbook counterfactual` and of `openbook forget` lie side by side in one folder. The
manifest of each records the removed documents and how they were chosen, so a later reader can tell
a control that was drawn at random from a retraining for another question.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_attribution.attribution import Sources
from data_attribution.errors import DamagedRunWarning
from train import runs
from train.data import RemovalChoice
from train.errors import TrainError
from train.runs import Run


__all__ = ["found", "removal_mode", "removed_documents", "retrained_from"]


def found(run: Run, sources: Sources, *, out: str | Path | None = None) -> list[Run]:
    """Return the finished retraining without the first source, and its controls; [] if none is.

    Among the retrained runs in a folder it is the one that removed the first source and the most of
    the others. Documents that were drawn at random count if all of them are listed, or if the run
    has controls of its own: their removal was asked for, too. Its controls removed as many
    documents in the same way, none that is listed, and were drawn as controls of it. Runs of
    earlier versions do not record how their documents were chosen (`Run.removal_choice` is None):
    one that lacks as many documents for another reason counts as a control, too. Give `out` where a
    folder holds several experiments of that kind.

    Warns with a `DamagedRunWarning` for each folder that cannot be read, and goes on without it.

    Args:
        out: Folder of the retrained runs; default: `counterfactuals/` inside the run.

    Examples:
        >>> sources = attribution.documents(run, fact, methods="lexical", limit=3)
        >>> counterfactuals.found(run, sources)  # nothing was retrained yet
        []
    """
    listed = {one for group in sources.groups for one in group}
    place = Path(out) if out else run.path / "counterfactuals"
    last, retrained = run.steps[-1], []
    for path in sorted(place.glob(f"*/{runs.MANIFEST}")):
        with _left_out_if_damaged(path.parent):
            again = runs.open(path.parent, store=run.store_place)
            if retrained_from(run, again) and last in again.steps:
                documents = frozenset(removed_documents(again, run))
                retrained.append(_Retrained(again, documents, again.removal_choice))
    first = sources.documents[0] if sources.documents else None
    asked = {frozenset(one.choice.matched_to) for one in retrained if one.choice}
    with_first = [
        one
        for one in retrained
        if first in one.documents
        and (not one.drawn or one.documents <= listed or one.documents in asked)
    ]
    for best in sorted(with_first, key=lambda one: (-len(listed & one.documents), one.drawn)):
        if _loads(best.run, last):
            controls = [one.run for one in retrained if one.controls(best, listed)]
            return [best.run, *(one for one in controls if _loads(one, last))]
    return []


def retrained_from(run: Run, again: Run) -> bool:
    """Return whether a run was retrained from `run` without documents."""
    parent = again.predicate.get("parent")
    return again.removal is not None and parent is not None and parent["run_id"] == run.id


def removed_documents(again: Run, run: Run) -> tuple[int, ...]:
    """Return what was removed, without what had been removed from the parent already."""
    before = run.removal.documents if run.removal else ()
    return tuple(sorted({*(again.removal.documents if again.removal else ())} - {*before}))


def removal_mode(again: Run) -> str:
    """Return how documents were removed: `blank` or `loss`; "" if none were."""
    return again.removal.mode if again.removal else ""


@dataclass(frozen=True)
class _Retrained:
    """A run that was retrained without documents, and how these were chosen, if it says so."""

    run: Run
    documents: frozenset[int]
    choice: RemovalChoice | None

    @property
    def drawn(self) -> bool:
        return self.choice is not None and bool(self.choice.matched_to)

    def controls(self, other: "_Retrained", listed: set[int]) -> bool:
        """Return whether it is a control of another one and has none of the listed documents."""
        meant = self.choice is None or {*self.choice.matched_to} == other.documents
        as_many = len(self.documents) == len(other.documents)
        same_mode = removal_mode(self.run) == removal_mode(other.run)
        return meant and as_many and same_mode and not listed & self.documents


@contextmanager
def _left_out_if_damaged(path: Path) -> Iterator[None]:
    """Turn an error about a retrained run into a warning that names its folder."""
    try:
        yield
    except TrainError as error:
        warnings.warn(
            f"{path} is left out, because it cannot be read: {error}",
            DamagedRunWarning,
            stacklevel=4,
        )


def _loads(again: Run, step: int) -> bool:
    with _left_out_if_damaged(again.path):
        again.load(step)
        return True
    return False
