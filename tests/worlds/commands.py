"""How a command ended, and what it left behind."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def refused(ended: Ended, code: int, *words: str) -> None:
    """Assert one line on stderr, nothing on stdout, the code, and the words that help."""
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    for word in words:
        assert word in ended.err


def left(folder: Path) -> list[str]:
    """Everything in a folder, what is hidden and half-written included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
