"""What can go wrong while a checkpoint is made or opened, as a tree.

* TrainError               2  asked for something that cannot be done
  + CorpusError            2  the source holds no documents that can be read
  + StoreError             2  the token store does not fit what is asked of it
    - TokenizerError       2  a text or a vocabulary that the tokenizer cannot hold
  + OrderError             2  the data order cannot be drawn
  + RecipeError            2  a recipe that does not exist or contradicts itself
  + HookError              2  a hook point that does not exist, or a hook that never fired
  + DivergedError          1  the loss is no longer a number
  + DamagedError           3  a file is not what its digest says, or is not to be trusted
  + DiskError              4  the disk is full

The number is the exit code of the `openbook` command.
"""

from collections.abc import Iterable
from difflib import get_close_matches


__all__ = [
    "CorpusError",
    "DamagedError",
    "DiskError",
    "DivergedError",
    "HookError",
    "OrderError",
    "RecipeError",
    "StoreError",
    "TokenizerError",
    "TrainError",
    "nearest",
]


class TrainError(ValueError):
    """Base of every error raised by `train`; the command prints it without a traceback."""

    exit_code = 2


class CorpusError(TrainError):
    """The source holds no documents that can be read."""


class StoreError(TrainError):
    """The token store does not fit what is asked of it."""


class TokenizerError(StoreError):
    """A text or a vocabulary that the tokenizer cannot hold."""


class OrderError(TrainError):
    """The data order cannot be drawn."""


class RecipeError(TrainError):
    """A recipe that does not exist or contradicts itself."""


class HookError(TrainError):
    """A hook point that does not exist, or a hook that never fired."""


class DivergedError(TrainError):
    """The loss is no longer a number."""

    exit_code = 1


class DamagedError(TrainError):
    """A file is not what its digest says, or is not to be trusted; nothing of it was loaded."""

    exit_code = 3


class DiskError(TrainError):
    """The disk is full."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `, did you mean 'ioi' or 'induction'?`, or all known names."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return ", did you mean " + " or ".join(repr(one) for one in close) + "?"
    shown = ", ".join(known[:8])
    return f"; known are {shown}" + (f" and {len(known) - 8} more" if len(known) > 8 else "")
