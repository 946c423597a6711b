"""Reading of files that others wrote: bounded, and with one error that says what the file is.

Whatever a file holds, reading it ends in its text, in a JSON value or in a `DamagedError` of one
line that begins with its path. A file that stands in for another one (a git-lfs pointer, the HTML
page of a login) is named as such. What lies at the path may also be a folder, a pipe or a link to
itself: only regular files are read, so that nothing waits for a writer or reads without an end.

A seal says that a file was not changed by accident, not that it holds what its reader expects.
`reading` stands around every place that takes values out of a file: whatever they make Python
raise becomes one error about the file.
"""

import errno
import json
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from train.errors import DamagedError, is_out_of_memory
from train.progress import readable_size


__all__ = ["damaged_json", "open_foreign", "parse_json", "read_foreign_bytes", "read_foreign_json"]
__all__ += ["read_foreign_text", "reading", "stand_in"]

MOST_BYTES = 1 << 28  # of a text that is read whole; the largest tokenizer.json known has 34 MB
# Of a JSON text: a value takes up to 72 bytes of memory and as few as two of the text. A circuit
# of Llama-3.1-8B has 5 million.
MOST_VALUES = 1 << 24
# Beginnings of files that a download leaves in place of what was asked for.
STAND_INS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; run `git lfs pull`",
    b"<!doctype html": "an HTML page, not the file itself; download it again",
    b"<html": "an HTML page, not the file itself; download it again",
}
LONGEST_BEGINNING = 64
# What is at a path instead of a file.
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# What the system says of a path that leads nowhere or to something else.
RAISED_BY_PLACES = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO)
# An .xz file may ask for a dictionary of 4 GB; those that `xz -9` writes take 65 MB.
UNPACKERS = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lambda: lzma.LZMADecompressor(memlimit=1 << 28),
}


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


def read_foreign_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file whole, unpacked if its name ends in .gz or .xz.

    Raises:
        DamagedError: The file is missing, is no file, is larger than `most_bytes` (unpacked), is no
            whole packed file, or stands in for another file.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> storage.read_foreign_bytes(folder / "a.txt")
        b'abc'
    """
    with open_foreign(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(size + 1)
    content = _unpacked(path, content, most_bytes + 1)
    if max(size, len(content)) > most_bytes:
        raise DamagedError(
            f"{path}: {readable_size(max(size, len(content)))}, and at most "
            f"{readable_size(most_bytes)} are read"
        )
    if said := stand_in(content):
        raise DamagedError(f"{path}: {said}")
    return content


def _unpacked(path: Path, content: bytes, most: int) -> bytes:
    """Return what a file of .gz or .xz holds, at most `most` bytes of it; else the content itself.

    The packed file says how much memory unpacking takes, so that is bounded, too.
    """
    make = UNPACKERS.get(path.suffix.lower())
    if make is None:
        return content
    pieces, size = [], 0
    try:
        while content and size < most:
            unpacker = make()
            pieces.append(unpacker.decompress(content, most - size))
            size += len(pieces[-1])
            if not unpacker.eof and size < most:
                raise EOFError("it ends early")
            content = unpacker.unused_data.lstrip(b"\0")  # padding between two streams
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedError(
            f"{path}: the compressed file is cut off or changed ({_in_words(error)})"
        ) from None
    return b"".join(pieces)


def read_foreign_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file as UTF-8, without the byte order mark that it may begin with.

    Raises:
        DamagedError: As for `read_foreign_bytes`, or the file is not UTF-8.

    Examples:
        >>> storage.write_bytes(folder / "a.txt", b"\\xef\\xbb\\xbfabc")
        >>> storage.read_foreign_text(folder / "a.txt")
        'abc'
    """
    try:
        return read_foreign_bytes(path, most_bytes=most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def stand_in(content: bytes) -> str:
    """Return what a file is that stands in for another one, or an empty text.

    Examples:
        >>> storage.stand_in(b"version https://git-lfs.github.com/spec/v1")
        'a git-lfs pointer, not the file itself; run `git lfs pull`'
    """
    begin = content[:LONGEST_BEGINNING].lstrip().lower()
    return next((said for mark, said in STAND_INS.items() if begin.startswith(mark)), "")


def read_foreign_json(path: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        DamagedError: As for `read_foreign_text`, or the file is empty or not JSON.

    Examples:
        >>> storage.write_text(folder / "a.json", '{"a": 1}')
        >>> storage.read_foreign_json(folder / "a.json")
        {'a': 1}
    """
    return parse_json(read_foreign_text(path, most_bytes=most_bytes), path)


def parse_json(text: str | bytes, where: object) -> Any:
    """Return the value of a JSON text.

    Raises:
        DamagedError: The text is empty, is not JSON, is nested too deeply, has a number of too many
            digits, a character that UTF-8 does not have, or more than 16,777,216 values. The
            message begins with `where`.

    Examples:
        >>> storage.parse_json("[1, 2]", "numbers")
        [1, 2]
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if (values := sum(map(text.count, ",[{"))) > MOST_VALUES:
            raise DamagedError(
                f"{where}: about {values:,} values, and at most {MOST_VALUES:,} are read"
            )
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair, which no file can be written with
            json.dumps(value, ensure_ascii=False).encode()
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where}: {damaged_json(text, error)}") from None
    return value


def damaged_json(text: str | bytes, error: Exception) -> str:
    """Say in a few words why a text is not read as JSON.

    Examples:
        >>> storage.damaged_json(" ", ValueError())
        'empty, and JSON is expected'
    """
    if not text.strip():
        return "empty, and JSON is expected"
    if isinstance(error, RecursionError):
        return "not readable as JSON (nested too deeply)"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, UnicodeError):
        return "not readable as JSON (it has half of a surrogate pair, which UTF-8 lacks)"
    if isinstance(error, json.JSONDecodeError):
        return f"not readable as JSON ({error})"
    return "not readable as JSON (a number has too many digits)"
