"""A progress bar for anything over a second, in the terminal and in a notebook.

Library functions take a callable (what, done, total) and know nothing of bars; this file is the
bar. It writes to stderr, so that stdout stays the result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


__all__ = ["Progress", "bar"]

Progress = Callable[[str, int, int | None], None]


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar with time used and time left; it vanishes when the block ends."""
    # Here, so that importing this file costs nothing.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)

        def advance(what: str, done: int, total: int | None) -> None:
            description = f"{title}: {what}" if what else title
            bars.update(task, description=description, completed=done, total=total)

        yield advance
