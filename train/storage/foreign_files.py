"""Reading of files that others wrote: bounded, and with one error that says what the file is.

Whatever a file holds, reading it ends in its text, in a JSON value or in a `DamagedError` of one
line that begins with its path. A file that stands in for another one (a git-lfs pointer, the HTML
page of a login) is named as such.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from train.errors import DamagedError
from train.progress import readable_size
from train.storage.compressed_files import open_uncompressed


__all__ = ["damaged_json", "parse_json", "read_foreign_bytes", "read_foreign_json"]
__all__ += ["read_foreign_text", "read_foreign_toml", "stand_in"]

AT_ONCE = 1 << 20  # bytes
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
MOST_LEVELS = 100  # of tables and lists in TOML


def read_foreign_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file whole, unpacked if the ending of its name is one of `COMPRESSIONS`.

    Raises:
        DamagedError: The file is missing, is no file, is larger than `most_bytes` (unpacked), is no
            whole packed file, or stands in for another file.

    Examples:
        >>> storage.write_text(folder / "a.txt", "abc")
        >>> storage.read_foreign_bytes(folder / "a.txt")
        b'abc'
    """
    # A packed file is not larger than what it holds, but for a few bytes.
    pieces, size = [], path.stat().st_size if path.is_file() else 0
    with open_uncompressed(path) as file:
        n_read = 0
        while max(n_read, size) <= most_bytes and (piece := file.read(AT_ONCE)):
            pieces.append(piece)
            n_read += len(piece)
    if (size := max(n_read, size)) > most_bytes:
        raise DamagedError(
            f"{path}: {readable_size(size)}, and at most {readable_size(most_bytes)} are read"
        )
    content = b"".join(pieces)
    if said := stand_in(content):
        raise DamagedError(f"{path}: {said}")
    return content


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


def read_foreign_toml(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DamagedError: As for `read_foreign_text`, or the file is not TOML.

    Examples:
        >>> storage.write_text(folder / "a.toml", "a = 1")
        >>> storage.read_foreign_toml(folder / "a.toml")
        {'a': 1}
    """
    text = read_foreign_text(path, most_bytes=most_bytes)
    try:
        value = tomllib.loads(text)
        _refuse_deep(value)
        return value
    except RecursionError:
        raise DamagedError(f"{path}: not readable as TOML (nested too deeply)") from None
    except ValueError as error:
        said = " ".join(str(error).split())
        raise DamagedError(f"{path}: not readable as TOML ({said:.200})") from None


def _refuse_deep(value: object) -> None:
    """Raise a RecursionError as the reader of JSON does; every dot of a key opens a table."""
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        tables = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for table in tables for one in table if isinstance(one, dict | list)]
        if not level:
            return
    raise RecursionError


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
        line = f"line {error.lineno}, " if error.doc.strip().count("\n") else ""
        return f"not readable as JSON ({error.msg}, at {line}letter {error.colno})"
    return "not readable as JSON (a number has too many digits)"
