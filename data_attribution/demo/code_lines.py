"""Known lines: lines of held-out files that a few training files hold word for word.

What is known of such a line was read in these files, for its second half does not stand in the
prompt. Lines are found and compared by token counts alone, never by an answer of the model. Lines
that share a file are a *group*: they are of one subject and often of one table, so a group is one
case of every interval (`Behaviour.groups`).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from train.data import TokenStore
from train.runs import Run
from train.short_repr import short_repr


__all__ = [
    "LINES",
    "KnownLine",
    "groups_of",
    "holders_of",
    "known_lines",
    "largest_groups",
    "line_behaviour",
    "line_foils",
    "line_readings",
]

LINES = "known-lines"  # name of the behaviour


@dataclass(frozen=True)
class KnownLine:
    """A line of a held-out file that training files hold word for word.

    Attributes:
        document: The held-out document.
        context: The `SHOWN` tokens of code before the line's second half; they end in the first
            half.
        half: Number of tokens of the first half.
        continuation: Tokens of the second half.
        holders: Training documents that hold the whole line.
        places: Positions of the line in the training text.
        LENGTHS: Fewest and most tokens of a known line, besides its indentation.
        SHOWN: Tokens of code that are shown before the second half of a line.
        MOST_HOLDERS: Most training documents that may hold a known line.
    """

    LENGTHS: ClassVar[tuple[int, int]] = (16, 64)
    SHOWN: ClassVar[int] = 96
    MOST_HOLDERS: ClassVar[int] = 3

    document: int
    context: tuple[int, ...]
    half: int
    continuation: tuple[int, ...]
    holders: tuple[int, ...]
    places: tuple[int, ...]

    __repr__ = short_repr

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the tokens of the line."""
        return (*self.context[len(self.context) - self.half :], *self.continuation)


def known_lines(index: TokenIndex, read: Collection[int]) -> list[KnownLine]:
    """Find the lines of held-out files that one to three training files hold word for word.

    A line has 16 to 64 tokens besides its indentation. In most of the places where the training
    text has its first half, it goes on as the line does; and its second half does not stand in the
    96 tokens of code before that half, which are in the same file. Equal lines are taken once. The
    model is not asked.

    Args:
        read: Documents that were read; a line that another one holds too is left out.
    """
    store, found = index.store, []
    candidates, documents = _candidates(store), frozenset(read)
    everywhere = index.occurrences([store.tokens[start:stop] for start, stop in candidates])
    kept = []
    for (start, stop), places in zip(candidates, everywhere, strict=True):
        holders = tuple(np.unique(store.document_at(places)).tolist()) if len(places) else ()
        if 1 <= len(holders) <= KnownLine.MOST_HOLDERS and documents.issuperset(holders):
            kept.append((start, stop, holders, tuple(places.tolist())))
    halves = index.occurrences([store.tokens[a : (a + b) // 2] for a, b, *_ in kept])
    for (start, stop, holders, places), half in zip(kept, halves, strict=True):
        document, middle = int(store.document_at(start)), (start + stop) // 2
        first = middle - KnownLine.SHOWN
        context, continuation = store.tokens[max(first, 0) : middle], store.tokens[middle:stop]
        if (
            first >= store.starts[document]
            and 2 * len(places) > len(half)
            and _bytes(store, continuation) not in _bytes(store, context)
        ):
            found.append(
                KnownLine(
                    document,
                    tuple(context.tolist()),
                    middle - start,
                    tuple(continuation.tolist()),
                    holders,
                    places,
                )
            )
    return list({one.tokens: one for one in reversed(found)}.values())[::-1]


def _candidates(store: TokenStore) -> list[tuple[int, int]]:
    """Return the half-open spans of tokens of the lines of held-out files, without indentation.

    The tokenizer joins a newline and the indentation after it; a line begins after that token.
    """
    newline = np.array([b"\n" in piece for piece in store.tokenizer.pieces])
    least, most = KnownLine.LENGTHS
    found = []
    for document in range(
        int(np.searchsorted(store.starts, store.train_tokens)), len(store.starts)
    ):
        start = int(store.starts[document])
        tokens = np.asarray(store.tokens[start : start + int(store.lengths[document])])
        ends = start + np.flatnonzero(newline[tokens])
        found += [(a + 1, b) for a, b in pairwise(ends.tolist()) if least <= b - a - 1 <= most]
    return found


def _bytes(store: TokenStore, tokens: Int64[np.ndarray, " pos"] | np.ndarray) -> bytes:
    return b"".join(store.tokenizer.pieces[one] for one in tokens.tolist())


def largest_groups(lines: Sequence[KnownLine], n: int) -> list[tuple[KnownLine, ...]]:
    """Return the n largest groups of lines that the same training files hold, largest first.

    No two groups share a file; of equally large groups the one whose line comes first is taken.
    """
    groups: dict[tuple[int, ...], list[KnownLine]] = defaultdict(list)
    for line in lines:
        groups[line.holders].append(line)
    taken: set[int] = set()
    chosen = []
    for holders, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if taken.isdisjoint(holders) and len(chosen) < n:
            taken.update(holders)
            chosen.append(tuple(group))
    return chosen


def line_foils(index: TokenIndex, lines: Sequence[KnownLine]) -> dict[KnownLine, KnownLine]:
    """Return for each line another one whose first half can stand in place of its own.

    It has a first half of as many tokens, another one, its second half begins with another token,
    and no file holds both. Of such lines it is the one whose second half begins with the token that
    follows the line's first half most often in the training text, as far as its last token says:
    a guess from that token alone is then right in few lines. Of equal ones it is the next line,
    after the last comes the first. Lines that have no such other one are left out.
    """
    fitting = {
        line: [one for one in (*lines[place + 1 :], *lines[:place]) if _is_foil(one, line)]
        for place, line in enumerate(lines)
    }
    bigrams = sorted({_bigram(line, one) for line, others in fitting.items() for one in others})
    often = dict(zip(bigrams, (one.count for one in index.counts(bigrams)), strict=True))
    return {
        line: max(others, key=lambda one, line=line: often[_bigram(line, one)])
        for line, others in fitting.items()
        if others
    }


def line_readings(run: Run, line: KnownLine) -> int:
    """Return the number of steps that read a line, or a part of it, in a training file.

    A step that read it in several places counts once.
    """
    length = len(line.tokens)
    steps = [run.steps_reading_tokens(place, place + length) for place in line.places]
    return len({int(step) for some in steps for step in some})


def _bigram(line: KnownLine, other: KnownLine) -> tuple[int, int]:
    """Return the last token of a line's first half, and the first of another's second half."""
    return line.context[-1], other.continuation[0]


def _is_foil(other: KnownLine, line: KnownLine) -> bool:
    return (
        other.half == line.half
        and other.context[-line.half :] != line.context[-line.half :]
        and other.continuation[0] != line.continuation[0]
        and not {*other.holders} & {*line.holders}
    )


def line_behaviour(
    lines: Sequence[KnownLine], foils: Mapping[KnownLine, KnownLine], store: TokenStore
) -> Behaviour:
    """Return the behaviour `known-lines`: the second half of a line begins after its first half.

    A clean prompt is an end-of-text and the 96 tokens of code before the second half; the answer is
    the first token of that half. In the corrupt prompt the first half is that of the line's foil,
    and the foil is the first token of that line's second half. Lines that share a file are one
    case of its intervals (`groups_of`).
    """
    halves = [foils[line].context[-line.half :] for line in lines]
    return Behaviour(
        LINES,
        torch.tensor([[store.eot, *line.context] for line in lines]),
        torch.tensor(
            [
                [store.eot, *line.context[: -line.half], *half]
                for line, half in zip(lines, halves, strict=True)
            ]
        ),
        torch.tensor([line.continuation[0] for line in lines]),
        torch.tensor([foils[line].continuation[0] for line in lines]),
        description=f"complete a line of code that 1 to {KnownLine.MOST_HOLDERS} training files "
        "hold word for word",
        tokenizer=store.tokenizer.sha256,
        groups=groups_of(lines),
    )


def groups_of(lines: Sequence[KnownLine]) -> tuple[int, ...]:
    """Return the group of each line, from 0: those that share a file are in one.

    It may be the held-out file or one that holds them. Lines that only a third one joins are in one
    group too, so that lines of different groups share no file.
    """
    group_of: dict[int, int] = {}
    for number, line in enumerate(lines):
        files = (line.document, *line.holders)
        joined = {group_of.setdefault(one, number) for one in files}
        group_of = {
            one: min(joined) if group in joined else group for one, group in group_of.items()
        }
    found = [group_of[line.document] for line in lines]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(found))}
    return tuple(numbers[group] for group in found)


def holders_of(lines: Sequence[KnownLine]) -> tuple[int, ...]:
    """Return the training documents that hold the lines, without repetition."""
    return tuple(dict.fromkeys(one for line in lines for one in line.holders))
