"""A progress bar for anything over a second, in the terminal and in a notebook.

Library functions take a callable (what, done, total) and know nothing of bars; this file is the
bar. It writes to stderr, so that stdout stays the result. Where stderr is no terminal but a log, at
most one line in ten seconds is written instead, with the estimate of the time left, and none for
what takes less.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "bar", "duration", "shown"]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_WITHOUT = 1.0
SECONDS_BETWEEN_DRAWINGS = 0.1
Progress = Callable[[str, int, int | None], None]


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar with time used and time left; it vanishes when the block ends."""
    # Here, so that importing this file costs nothing.
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with _bar(title, console) as advance:
            yield advance
    else:
        yield _lines(title, console)


@contextmanager
def shown(title: str, given: Progress | None) -> Iterator[Progress]:
    """What the caller gave; else a bar after a second, where a person looks."""
    if given is not None:
        yield given
        return
    from rich.console import Console

    console, begin = Console(stderr=True), time.monotonic()
    watched = console.is_terminal or console.is_jupyter
    with ExitStack() as stack:
        advance: Progress | None = None

        def tell(what: str, done: int, total: int | None) -> None:
            nonlocal advance
            if advance is None and watched and time.monotonic() - begin > SECONDS_WITHOUT:
                advance = stack.enter_context(_bar(title, console))
            if advance is not None:
                advance(what, done, total)

        yield tell


@contextmanager
def _bar(title: str, console: "Console") -> Iterator[Progress]:
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
    # A notebook's bars are drawn by whoever advances them: threads of two bars that draw at one
    # moment take each other's output, at which nbclient gives up.
    threaded = not console.is_jupyter
    with Bars(*columns, console=console, transient=True, auto_refresh=threaded) as bars:
        task = bars.add_task(title, total=None)
        drawn = 0.0

        def advance(what: str, done: int, total: int | None) -> None:
            nonlocal drawn
            description = f"{title}: {what}" if what else title
            bars.update(task, description=description, completed=done, total=total)
            if not threaded and time.monotonic() - drawn > SECONDS_BETWEEN_DRAWINGS:
                bars.refresh()
                drawn = time.monotonic()

        yield advance


def duration(seconds: float) -> str:
    """Return a number of seconds as people say it: "8 s", "4 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _lines(title: str, console: "Console", clock: Callable[[], float] = time.monotonic) -> Progress:
    """Write a line of log at most every ten seconds.

    The time left is reckoned from where the work began to be counted: a resumed training begins in
    the middle, and a count that falls is the next piece of work under the same title.
    """
    begin = last = clock()
    first: int | None = None
    before = 0

    def advance(what: str, done: int, total: int | None) -> None:
        nonlocal begin, last, first, before
        now = clock()
        if first is None or done < before:
            begin, first = now, done
        before = done
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        count = f"{done} of {total}" if total is not None else f"{done}"
        if total is not None and first < done <= total:
            seconds = (now - begin) / (done - first) * (total - done)
            count = f"{count}, {duration(seconds)} left"
        line = f"{title}: {what} {count}" if what else f"{title}: {count}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return advance
