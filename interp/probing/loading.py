"""Loading of probe tasks by name or from a file."""

from pathlib import Path

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


def load_task(
    name: str | Path, source: object, *, n_cases: int = N_CASES, seed: int = 0
) -> ProbeTask:
    """Load a probe task by name or from a file, in the tokens of a model or run.

    Args:
        name: One of `PLANTED`, or the path of a .json file of labelled tokens or texts, or of a
            .jsonl or .jsonl.gz file of tagged sentences.
        source: A run, a token store, or a model with a tokenizer.
        n_cases: Maximum number of cases; a .json file is read whole.
        seed: Random seed for sampling the cases.

    Raises:
        ProbeError: There is no such task, or it has too few cases in these tokens.
        ModelError: The task needs a planted corpus or a tokenizer, and `source` has none.

    Examples:
        >>> task = probing.load_task("word-class", run, n_cases=200)
        >>> task.type_of, sorted(set(task.labels))[:3]
        ('word', ['entity', 'name', 'nonce'])
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_task(path, tokenizer_of(source))
    if ".jsonl" in path.suffixes:
        return part_of_speech(path, tokenizer_of(source), n_cases=n_cases, seed=seed)
    name = str(name)
    if truth_of(source) is None and name in PLANTED:
        planted_truth(source)  # raises a ModelError that names what is missing
    if name not in PLANTED:
        raise ProbeError(
            f"there is no probe task {name!r}{nearest(name, PLANTED)}; your own labels are a .json"
        )
    return planted_tasks.load(name, source, n_cases=n_cases, seed=seed)
