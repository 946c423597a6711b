"""Finds a probe task by its name or in a file."""

from pathlib import Path
from typing import Any

from interp.behaviours import planted_truth, tokenizer_of, truth_of
from interp.errors import ProbeError
from interp.probing import planted_tasks
from interp.probing.tasks import N_CASES, ProbeTask, part_of_speech, read_task
from train.errors import nearest


__all__ = ["PLANTED", "load_task"]

PLANTED = (
    "word-class",
    "position",
    "repeats",
    "relation",
    "subject-name",
    "indirect-name",
    "indirect-order",
)


def load_task(name: str | Path, source: Any, *, n_cases: int = N_CASES, seed: int = 0) -> ProbeTask:
    """The probe task of a name, or in a file, in the tokens of a model or run.

    Args:
        name: One of `PLANTED`; a .json of labelled tokens or texts; a .jsonl or .jsonl.gz of tagged
            sentences.
        source: A run, a token store, or a model with a tokenizer.
        n_cases: At most so many cases; a file of labels is taken whole.
        seed: Of the draw of the cases.

    Raises:
        ProbeError: No such task, or none that these tokens can state.
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_task(path, tokenizer_of(source))
    if ".jsonl" in path.suffixes:
        return part_of_speech(path, tokenizer_of(source), n_cases=n_cases, seed=seed)
    name = str(name)
    if truth_of(source) is None and name in PLANTED:
        planted_truth(source)  # raises, and says what is missing
    if name not in PLANTED:
        raise ProbeError(
            f"there is no probe task {name!r}{nearest(name, PLANTED)}; your own labels are a .json"
        )
    return planted_tasks.load(name, source, n_cases=n_cases, seed=seed)
