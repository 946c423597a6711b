"""Progress bars for the terminal and for notebooks.

Library functions report progress through a callable `(what, done, total)`; this module provides
the callables. Bars are written to stderr, so that stdout holds only the result. If stderr is a log
file instead of a terminal, `bar` writes a line with the estimated time left at most every ten
seconds, and nothing for work that takes less than that. In a notebook, each bar is one line of
text that is rewritten in place, so that a saved or converted notebook holds one line for it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "bar", "count", "duration", "listed", "readable_size", "shown", "visible"]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_WITHOUT = 1.0
SECONDS_BETWEEN_DRAWINGS = 0.2
NOTEBOOK_BAR = 24  # characters
Progress = Callable[[str, int, int | None], None]
# Control characters but line ends and tabs, and those that turn the direction of a text.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_SHOWN |= {
    code: f"U+{code:04X}"
    for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Show a bar with the time used and the time left; it is erased when the block ends.

    In a notebook, a line with the time used stays.
    """
    # Imported here, so that importing this module costs nothing.
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        with _notebook_line(title, stays=True) as advance:
            yield advance
    elif console.is_terminal:
        with _bar(title, console) as advance:
            yield advance
    else:
        yield log_lines(title, console)


@contextmanager
def shown(
    title: str, given: Progress | None, *, delay: float = SECONDS_WITHOUT
) -> Iterator[Progress]:
    """Yield the caller's progress callable `given`, or else one that shows a bar.

    The bar appears after `delay` seconds, and only in a terminal or a notebook. It is erased when
    the block ends.
    """
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
            if advance is None and watched and time.monotonic() - begin > delay:
                drawn = _notebook_line(title) if console.is_jupyter else _bar(title, console)
                advance = stack.enter_context(drawn)
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
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None)

        def advance(what: str, done: int, total: int | None) -> None:
            description = f"{title}: {what}" if what else title
            bars.update(task, description=description, completed=done, total=total)

        yield advance


@contextmanager
def _notebook_line(title: str, *, stays: bool = False) -> Iterator[Progress]:
    """Show one line of text, rewritten in place, that no widget or thread is needed for.

    Widgets are lost when a notebook is saved or converted, and two threads that draw at the same
    moment take each other's output.
    """
    from IPython.display import display

    begin, last = time.monotonic(), -math.inf
    line = title
    shown = display({"text/plain": title}, raw=True, display_id=True)

    def draw(text: str) -> None:
        if shown is not None:  # None outside a kernel
            shown.update({"text/plain": text}, raw=True)

    def advance(what: str, done: int, total: int | None) -> None:
        nonlocal last, line
        now = time.monotonic()
        number = f"{done:,} of {total:,}" if total is not None else f"{done:,}"
        line = visible(f"{title}: {what} {number}" if what else f"{title}: {number}")
        if now - last < SECONDS_BETWEEN_DRAWINGS:
            return
        last = now
        left = ""
        if total is not None and 0 < done <= total:
            left = f", {duration((now - begin) / done * (total - done))} left"
        draw(f"{_blocks(done, total)}{line}, {duration(now - begin)}{left}")

    try:
        yield advance
    finally:
        draw(f"{line}, {duration(time.monotonic() - begin)}" if stays else "")


def _blocks(done: int, total: int | None) -> str:
    """Return a bar of characters; none for work of unknown length."""
    if not total:
        return ""
    full = round(NOTEBOOK_BAR * min(max(done / total, 0), 1))
    return "█" * full + "░" * (NOTEBOOK_BAR - full) + " "


def count(n: int | float, noun: str, plural: str = "") -> str:
    """Format a number of things: "1 span", "1,200 spans", "0.5 readings", "0.008 readings".

    `plural` is for nouns such as "copy". A number that is not whole has one decimal, and one that
    would be shown as 0 has its first digit.
    """
    number = f"{n:.1g}" if 0 < n < 0.05 else f"{n:,.1f}".removesuffix(".0")
    return f"{number} {noun if number == '1' else plural or noun + 's'}"


def listed(numbers: Iterable[int]) -> str:
    """Format a list of numbers: "3, 8", or "3; 2,025" where a number itself has a comma."""
    shown = [f"{one:,}" for one in numbers]
    return ("; " if any("," in one for one in shown) else ", ").join(shown)


def duration(seconds: float) -> str:
    """Format a number of seconds: "8 s", "4 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def visible(text: str) -> str:
    """Return a text whose control characters are shown and have no effect on a terminal or page.

    A document may hold characters that move the cursor, ring a bell, or turn the direction of the
    text after them. Line ends and tabs stay.

    Examples:
        >>> from train.progress import visible
        >>> visible("red \x1b[31m and turned \u202e")
        'red \\\\x1b[31m and turned U+202E'
    """
    return text.translate(_SHOWN)


def readable_size(n_bytes: int) -> str:
    """Format a number of bytes: "1.5 GB"."""
    value, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"


def log_lines(
    title: str, console: "Console", clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Return a progress callable that writes a log line at most every ten seconds.

    The time left is extrapolated from the first reported count, because a resumed training does
    not begin at 0. A count that falls means that new work began under the same title, so the clock
    restarts.
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
