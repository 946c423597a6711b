"""Loading of probe tasks by name or from a file, and tasks on the prompts of a behaviour."""

from collections.abc import Sequence
from pathlib import Path

import torch

from interp.behaviours import Behaviour, planted_truth, tokenizer_of, truth_of
from interp.errors import ProbeError
from interp.probing import planted_tasks
from interp.probing.tasks import N_CASES, ProbeTask, part_of_speech, read_task
from train.errors import nearest


__all__ = ["PLANTED", "load_task", "task_of_behaviour"]

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


def task_of_behaviour(
    behaviour: Behaviour, labels: Sequence[str], *, position: int = -1
) -> ProbeTask:
    """Label the clean prompts of a behaviour, to be read at one position of each.

    The type of a case, which a probe could learn by heart, is the subject of its prompt, or the
    whole prompt if the behaviour has no subject.

    Args:
        behaviour: The behaviour whose clean prompts are read.
        labels: One label per prompt.
        position: Position of the label in every prompt; negative ones count from the end.

    Raises:
        ProbeError: There are not as many labels as prompts, fewer than two different labels, no
            such position, or no subject occurs twice.

    Examples:
        >>> receivers = [model.to_string(ioi.answer[[row]]) for row in range(ioi.n_prompts)]
        >>> task = probing.task_of_behaviour(ioi, receivers)
        >>> task.positions[0].item(), len(task.labels)
        (14, 64)
    """
    n = behaviour.n_pos
    if not -n <= position < n:
        raise ProbeError(f"position {position} of prompts with positions 0 to {n - 1}")
    first, last = behaviour.subject or (0, n)
    return ProbeTask(
        name=behaviour.name,
        tokens=behaviour.clean,
        positions=torch.full((behaviour.n_prompts,), position % n),
        labels=tuple(map(str, labels)),
        types=tuple(" ".join(map(str, row)) for row in behaviour.clean[:, first:last].tolist()),
        type_of="subject" if behaviour.subject else "prompt",
        description=f"labels of the prompts of {behaviour.name}",
    )
