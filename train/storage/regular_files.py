"""Opening of regular files, and one error about the file for whatever its values make Python raise.

What lies at a path may be a folder, a pipe or a link to itself. Only regular files are opened, so
that nothing waits for a writer or reads without an end.

A seal says that a file was not changed by accident, not that it holds what its reader expects.
`reading` stands around every place that takes values out of a file.
"""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from train.errors import DamagedError, is_out_of_memory


__all__ = ["open_foreign", "reading"]

# What is at a path instead of a file.
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# What the system says of a path that leads nowhere or to something else.
RAISED_BY_PLACES = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO)


@contextmanager
def reading(
    path: object, refusal: type[Exception] = DamagedError, *, kind: str = ""
) -> Iterator[None]:
    """Turn what the values of a file make Python raise into one error of one line about the file.

    Errors of openbook, lack of memory and failures of the disk pass unchanged.

    Args:
        path: The file, with which the message begins.
        refusal: Class of the error.
        kind: What the file should be, as in "as safetensors".

    Raises:
        refusal: The block raised an error of Python, numpy or torch.

    Examples:
        >>> with storage.reading("a.json"):
        ...     {}["names"]
        Traceback (most recent call last):
        ...
        train.errors.DamagedError: a.json: not readable (it has no 'names')
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise refusal(f"{path}: the file is missing") from None
        if error.errno in RAISED_BY_PLACES:
            raise refusal(f"{path}: {str(error.strerror).lower()}") from None
        raise
    except Exception as error:  # some libraries raise bare exceptions
        # Errors of the three packages have an exit code, and lack of memory is not the file's.
        if hasattr(error, "exit_code") or is_out_of_memory(error):
            raise
        said = f"not readable {kind}".strip()
        raise refusal(f"{path}: {said} ({_in_words(error)})") from None


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r:.80}" if error.args else "a key is missing"
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= 160 else f'{said[:157]}...'}"


def open_foreign(path: Path) -> BufferedReader:
    """Open a regular file for reading its bytes; nothing else is opened.

    Raises:
        DamagedError: The file is missing, or there is a folder, a pipe, a device or a link that
            leads nowhere.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> with storage.open_foreign(folder / "a.txt") as file:
        ...     file.read(2)
        b'ab'
    """
    with reading(path):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise DamagedError(f"{path}: {KINDS.get(kind, 'a device')}, and a file is expected")
        return path.open("rb")
