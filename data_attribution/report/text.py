"""Phrases for numbers, shared by the pages and the terminal.

Counts and steps have thousands separators (2,025). Numbers of documents have none: they are names,
which commands take as they stand.
"""

import shlex

from train.progress import count, listed


__all__ = ["interval", "read_line", "steps_line", "typed_text"]

SHOWN_STEPS = 8


def steps_line(steps: list[int] | tuple[int, ...]) -> str:
    """Return the first steps as text, and how many more there are.

    Examples:
        >>> report.steps_line([3, 2025]), report.steps_line(list(range(20)))
        ('read at steps 3; 2,025', 'read at steps 0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    shown = listed(steps[:SHOWN_STEPS])
    more = len(steps) - SHOWN_STEPS
    tail = f" and {more:,} more" if more > 0 else ""
    return f"read at step{'s' * (len(steps) > 1)} {shown}{tail}" if steps else "never read"


def typed_text(text: str, *options: str, word: str = "") -> str:
    """Return a text and the options behind it as a reader types them in a command.

    A text that begins with "-" looks like an option: it comes last, behind `--`.

    Args:
        options: Options with their values, as a shell reads them.
        word: What a shell reads as the text, such as the content of a file; default: the text,
            quoted.

    Examples:
        >>> from data_attribution.report.text import typed_text
        >>> typed_text("a b", "--limit 3"), typed_text("- 1", "--limit 3")
        ("'a b' --limit 3", "--limit 3 -- '- 1'")
    """
    word = word or shlex.quote(text)
    parts = [*options, "--", word] if text.startswith("-") else [word, *options]
    return " ".join(filter(None, parts))


def read_line(readings: float | int, *, sampled: bool = False) -> str:
    """Return how often something was read as text; a number from a sample is called about right.

    Examples:
        >>> report.read_line(2236), report.read_line(1), report.read_line(3e6, sampled=True)
        ('read 2,236 times', 'read 1 time', 'read about 3,000,000 times')
    """
    return f"read {'about ' * sampled}{count(readings, 'time')}"


def interval(low: float | None, high: float | None, n_of: str = "prompt") -> str:
    """Return signed bounds as text, or the reason why there are none.

    Examples:
        >>> report.interval(0.1, 0.3), report.interval(None, None)
        ('[+0.100, +0.300]', 'one prompt, no interval')
    """
    if low is None or high is None:
        return f"one {n_of}, no interval"
    return f"[{low:+.3f}, {high:+.3f}]"
