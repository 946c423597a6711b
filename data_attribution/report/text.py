"""Phrases for numbers, shared by the pages and the terminal."""

__all__ = ["interval", "steps_line"]

SHOWN_STEPS = 8


def steps_line(steps: list[int] | tuple[int, ...]) -> str:
    """Return the first steps as text, and how many more there are.

    Examples:
        >>> report.steps_line([3, 8]), report.steps_line(list(range(20)))
        ('read at steps 3, 8', 'read at steps 0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    shown = ", ".join(map(str, steps[:SHOWN_STEPS]))
    more = len(steps) - SHOWN_STEPS
    tail = f" and {more} more" if more > 0 else ""
    return f"read at steps {shown}{tail}" if steps else "never read"


def interval(low: float | None, high: float | None, n_of: str = "prompt") -> str:
    """Return signed bounds as text, or the reason why there are none.

    Examples:
        >>> report.interval(0.1, 0.3), report.interval(None, None)
        ('[+0.100, +0.300]', 'one prompt, no interval')
    """
    if low is None or high is None:
        return f"one {n_of}, no interval"
    return f"[{low:+.3f}, {high:+.3f}]"
