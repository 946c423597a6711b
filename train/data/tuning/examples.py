"""The types `Example` and `TuningSet`: prompts with the responses that a model should give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from train.data.readers import SkippedRow
from train.short_repr import short_repr


__all__ = ["KINDS", "Example", "TuningSet", "example_problem"]

KINDS = ("instructions", "preferences")


@dataclass(frozen=True)
class Example:
    """A prompt and what a model should answer, and for a preference what it should not.

    Attributes:
        row: Number of the example in its file, from 0; for a list or lines of JSON.
        response: The response, or the chosen one of a preference.
        rejected: The rejected response; None for an instruction.
        title: What the example teaches, if that is known.
    """

    row: int
    prompt: str
    response: str
    rejected: str | None = None
    title: str = ""

    __repr__ = short_repr


@dataclass(frozen=True)
class TuningSet:
    """Examples of one kind in a fixed order.

    Attributes:
        kind: `instructions` or `preferences`.
        revision: Version of the content: a digest, or the seed of a generated set.
        read: Function that iterates over the examples from the beginning.
        place: Function that describes the place of a row, for error messages.
        truth: Truth table of a planted set.
        rows: Function that iterates over the examples and the bad rows between them, for a set
            whose bad rows are left out; None for another one.

    Examples:
        >>> one = tuning.Example(0, "the capital of runethi is", "koreskul .")
        >>> examples = tuning.TuningSet("mine", "instructions", "0", lambda: iter([one]))
        >>> [example.response for example in examples.read()]
        ['koreskul .']
    """

    name: str
    kind: str
    revision: str
    read: Callable[[], Iterator[Example]]
    place: Callable[[int], str] = "example {}".format
    truth: dict | None = None
    rows: Callable[[], Iterator[Example | SkippedRow]] | None = None

    __repr__ = short_repr


def example_problem(example: Example) -> str | None:
    """Return why an example teaches nothing, or None: a text is empty, or both answers are equal.

    Examples:
        >>> tuning.example_problem(tuning.Example(0, "is it so ?", "yes", "yes"))
        'has equal answers, so it prefers nothing'
    """
    texts = {"prompt": example.prompt, "response": example.response}
    if example.rejected is not None:
        texts = {"prompt": example.prompt, "chosen": example.response, "rejected": example.rejected}
    for name, text in texts.items():
        if not text.strip():
            return f"has an empty {name}"
    if example.rejected is not None and example.rejected.split() == example.response.split():
        return "has equal answers, so it prefers nothing"
    return None
