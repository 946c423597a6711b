"""The errors raised by `train`, as a tree.

* TrainError               2  the request cannot be carried out
  + CorpusError            2  the source holds no readable documents
  + StoreError             2  the token store does not fit the request
    - TokenizerError       2  the tokenizer cannot represent a text or a vocabulary
  + OrderError             2  the data order cannot be drawn
  + RecipeError            2  the recipe does not exist or contradicts itself
  + HookError              2  a hook point does not exist, or a hook never fired
  + DivergedError          1  the loss or a weight is NaN or infinite
  + UnequalRanksError      1  the processes of a training hold different weights
  + LostRankError         75  the processes of a training cannot reach each other
  + DamagedError           3  a file differs from its digest, or must not be trusted
  + DiskError              4  the disk is full

The number is the exit code of the `openbook` command.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from train.progress import visible


__all__ = [
    "CorpusError",
    "DamagedError",
    "DiskError",
    "DivergedError",
    "HookError",
    "LostRankError",
    "OrderError",
    "RecipeError",
    "ShortError",
    "StoreError",
    "TokenizerError",
    "TrainError",
    "UnequalRanksError",
    "is_out_of_memory",
    "nearest",
    "nearest_path",
]


# Letters of a message that are kept of its beginning and its end: a file may have put a text of any
# length into it.
BEGINNING, END = 700, 200


class ShortError(ValueError):
    """Base of all errors of openbook. Their messages are one line, whatever a file put into them.

    A long message is cut in the middle, and control characters are shown (`progress.visible`).
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(_shortened(one) if isinstance(one, str) else one for one in parts))


def _shortened(message: str) -> str:
    left = len(message) - BEGINNING - END
    if left > 0:  # before anything is done to all of its letters
        begin, end = _in_one_line(message[:BEGINNING]), _in_one_line(message[-END:])
        return f"{begin[:BEGINNING]}... ({left:,} letters) ...{end[-END:]}"
    line = _in_one_line(message)
    return line if len(line) <= BEGINNING + END else _shortened(line)


def _in_one_line(message: str) -> str:
    return " ".join(filter(None, map(str.strip, visible(message).splitlines())))


class TrainError(ShortError):
    """Base of every error raised by `train`; the command prints it without a traceback."""

    exit_code = 2


class CorpusError(TrainError):
    """The source holds no readable documents."""


class StoreError(TrainError):
    """The token store does not fit the request."""


class TokenizerError(StoreError):
    """The tokenizer cannot represent a text or a vocabulary."""


class OrderError(TrainError):
    """The data order cannot be drawn."""


class RecipeError(TrainError):
    """The recipe does not exist or contradicts itself."""


class HookError(TrainError):
    """A hook point does not exist, or a hook never fired."""


class DivergedError(TrainError):
    """The loss or a weight is NaN or infinite."""

    exit_code = 1


class UnequalRanksError(TrainError):
    """The processes of a training hold different weights or optimizer states."""

    exit_code = 1


class LostRankError(TrainError):
    """Another process of the same training has ended or cannot be reached."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class DamagedError(TrainError):
    """A file differs from its digest, or must not be trusted; nothing of it was loaded."""

    exit_code = 3


class DiskError(TrainError):
    """The disk is full."""

    exit_code = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, numpy or torch says that the memory does not suffice."""
    # torch raises a RuntimeError on a CPU and its own class on a GPU. That class is compared by
    # name, because importing torch here would slow down `--help`.
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests names similar to `name`.

    The text is `, did you mean 'ioi' or 'induction'?`, or a list of the first eight known names if
    none is similar.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return ", did you mean " + " or ".join(repr(one) for one in close) + "?"
    shown = ", ".join(known[:8])
    return f"; known are {shown}" + (f" and {len(known) - 8} more" if len(known) > 8 else "")


def nearest_path(path: str | Path, *markers: str) -> str:
    """Return the end of an error message about a path at which nothing fitting lies.

    Of a path that does not exist, it names a similar one, or the nearest folder that exists and
    what it holds. Of a folder, it names those inside it that hold one of the files `markers`.

    Examples:
        >>> from train.errors import nearest_path
        >>> (folder / "released" / "run").mkdir(parents=True)
        >>> nearest_path(folder / "releasd" / "run").endswith("released/run?")
        True
    """
    try:
        return _nearest_path(Path(path), markers)
    except OSError:  # a folder that may not be listed, or a name too long for the system
        return ""


def _nearest_path(path: Path, markers: tuple[str, ...]) -> str:
    if path.is_dir():
        fitting = [one for one in _listed(path) if any((one / mark).is_file() for mark in markers)]
        return f"; {_some(map(str, fitting))} inside it would do" if fitting else ""
    if path.exists():
        return ""
    above = next(one for one in path.parents if one.exists())
    missing, *rest = path.relative_to(above).parts
    inside = [one for one in _listed(above) if not one.name.startswith(".")]
    for name in get_close_matches(missing, [one.name for one in inside], n=1, cutoff=0.7):
        meant = above.joinpath(name, *rest)
        return f", did you mean {meant if meant.exists() else above / name}?"
    holds = _some([one.name for one in inside if one.is_dir()] or [one.name for one in inside])
    where = "this folder" if above == Path() else str(above)
    return f"; {where} exists and holds {holds or 'nothing'}"


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _some(names: Iterable[str], n: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
