"""Held-out Python files of a token store, with the place of every word among the tokens."""

import ast
import io
import keyword
import token
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from train.data import TokenStore
from train.short_repr import short_repr


__all__ = ["PythonFile", "Word", "held_out_files"]

# Python 3.12 and later read an f-string as several words. They are skipped, so that every version
# finds the same words.
STRING_STARTS = {getattr(token, name, -1) for name in ("FSTRING_START", "TSTRING_START")}
STRING_ENDS = {getattr(token, name, -1) for name in ("FSTRING_END", "TSTRING_END")}


class Word(NamedTuple):
    """A token of Python's grammar, with its half-open span of bytes in the file.

    Attributes:
        kind: `tokenize.NAME`, `tokenize.OP`, `tokenize.NEWLINE`, ...
    """

    kind: int
    text: str
    start: int
    end: int

    @property
    def is_identifier(self) -> bool:
        """True if the word is a name and no keyword."""
        return self.kind == tokenize.NAME and not keyword.iskeyword(self.text)


@dataclass(frozen=True, eq=False)
class PythonFile:
    """A file as bytes, as tokens of a store, as words of Python's grammar, and as a syntax tree.

    Attributes:
        starts: First byte of each token, and the number of bytes.
        line_starts: First byte of each line.
    """

    text: bytes
    tokens: Int64[np.ndarray, " pos"]
    starts: Sequence[int]
    line_starts: Sequence[int]
    words: Sequence[Word]
    tree: ast.Module

    __repr__ = short_repr

    def token_at(self, byte: int) -> int | None:
        """Return the index of the token that begins at a byte; None if none begins there."""
        index = bisect_left(self.starts, byte)
        return index if index < len(self.starts) and self.starts[index] == byte else None

    def span(self, word: Word) -> tuple[int, int] | None:
        """Return the half-open span of tokens of a word, together with one space before it.

        None if its tokens also hold something else.
        """
        spaced = self.text[word.start - 1 : word.start] == b" "
        first, last = self.token_at(word.start - spaced), self.token_at(word.end)
        return None if first is None or last is None else (first, last)

    def byte(self, line: int, column: int) -> int:
        """Return the byte at a line, counted from 1, and a column in bytes, as in `ast`."""
        return self.line_starts[line - 1] + column


def held_out_files(store: TokenStore, *, limit: int | None = None) -> Iterator[PythonFile]:
    """Read those of the first `limit` held-out documents of a store that are Python, in order."""
    first = int(np.searchsorted(store.starts, store.train_tokens))
    for index in islice(range(first, store.n_documents), limit):
        start, length = int(store.starts[index]), int(store.lengths[index])
        file = _parsed(np.asarray(store.tokens[start : start + length], np.int64), store)
        if file is not None:
            yield file


def _parsed(tokens: Int64[np.ndarray, " pos"], store: TokenStore) -> PythonFile | None:
    pieces = [store.tokenizer.pieces[one] for one in tokens.tolist()]
    text = b"".join(pieces)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in strings
            tree = ast.parse(text)
        lines = list(io.StringIO(text.decode()))  # unlike `splitlines`, cuts at \n alone
        line_starts = np.cumsum([0, *(len(line.encode()) for line in lines)]).tolist()
        words = list(_words(lines, line_starts))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    starts = np.cumsum([0, *map(len, pieces)]).tolist()
    return PythonFile(text, tokens, starts, line_starts, words, tree)


def _words(lines: Sequence[str], line_starts: Sequence[int]) -> Iterator[Word]:
    def byte(place: tuple[int, int]) -> int:
        line, column = place
        if line > len(lines):
            return line_starts[-1]
        return line_starts[line - 1] + len(lines[line - 1][:column].encode())

    depth = 0
    for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        depth += kind in STRING_STARTS
        if depth == 0:
            yield Word(kind, text, byte(start), byte(end))
        depth -= kind in STRING_ENDS
