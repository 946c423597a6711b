"""Binary search in sorted suffixes: one pattern in microseconds, or many at once.

Every occurrence of a pattern is in one contiguous range of ranks in the suffix array that
`suffix_array` makes (Manber & Myers 1993). This file does not know about documents.

The table of first tokens and the table of keys (`prefix_table`) leave some 64 ranks to search in.
One pattern is searched without numpy, whose calls cost more than the search itself. Many patterns
are searched together; there each comparison starts after the tokens that both ends of the bracket
already share with the pattern (Manber & Myers' skip), so long repeats cost no more than short ones.

A *row* is the tuple or list of tokens of a suffix that is compared with the pattern; `bisect`
compares rows as Python does.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt, UInt32, UInt64

from data_attribution.token_index import prefix_table
from data_attribution.token_index.prefix_table import STRIDE


__all__ = ["Finder", "finder", "search"]

# Words of 64 bits read from many suffixes at once: few at first, because they decide most
# comparisons.
NARROW, WIDE = 4, 64
# Tokens of one pattern compared at first; they decide most comparisons.
FIRST = 16
# Patterns searched together: more are not faster, and take more memory.
TOGETHER = 1 << 14

Ranks = tuple[int, int]
Longest = tuple[int, int, int]  # number of tokens, and ranks
Narrowed = Callable[[Sequence[int], int, int], tuple[int, int, int, int]]
Row = Callable[[int], Any]  # returns a tuple or a list, as the piece it is compared with


class Finder(NamedTuple):
    """Three functions that search one pattern, in microseconds each.

    Attributes:
        find: `find(pattern)`: ranks [low, high) of the suffixes that start with it. The pattern
            must have a token.
        stands: `stands(text, start, stop)`: whether text[start:stop] occurs. It must have a token.
        longest: `longest(text, start, stop)`: how many tokens of text[start:stop], from its first
            on, occur somewhere, and the ranks of the suffixes that start with them.
    """

    find: Callable[[Sequence[int]], Ranks]
    stands: Callable[[Sequence[int], int, int], bool]
    longest: Callable[[Sequence[int], int, int], Longest]


class Sorted(NamedTuple):
    """The arrays that one pattern is searched in, as memoryviews, and the functions that read them.

    `rows[n]` reads the first `n` tokens of a suffix, `begins` is the table of first tokens.
    """

    text: memoryview
    order: memoryview
    begins: memoryview
    rows: Sequence[Row]
    narrowed: Narrowed


def finder(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    table: Int64[np.ndarray, " bucket"],
    keys: UInt64[np.ndarray, " key"] | None = None,
) -> Finder:
    """Return functions that search one pattern at a time, without numpy, in memoryviews.

    The first tokens of patterns must lie inside the table.

    Args:
        table: Result of `suffix_array.buckets` on these tokens.
        keys: Result of `prefix_table.build` on them; without it a search takes more bisection
            steps.
    """
    rows = [_row(tokens.data, n) for n in range(FIRST + 1)]
    narrowed = _narrowing(keys, tokens.dtype)
    within = Sorted(tokens.data, suffixes.data, table.data, rows, narrowed)
    return Finder(_finding(within), _standing(within), _lengthening(within))


def _finding(within: Sorted) -> Callable[[Sequence[int]], Ranks]:
    text, order, begins, rows, narrowed = within
    widest = len(rows) - 1

    def find(pattern: Sequence[int]) -> Ranks:
        low, high = begins[pattern[0]], begins[pattern[0] + 1]
        if len(pattern) == 1 or low == high:
            return low, high
        # The first match has a rank in [low, before]; the matches end at a rank in [after, high].
        low, before, after, high = narrowed(pattern, low, high)
        head, row = tuple(pattern[:widest]), rows[min(len(pattern), widest)]
        low = bisect_left(order, head, low, before, key=row)
        if after > low:
            high = bisect_right(order, head, after, high, key=row)
        else:  # most patterns occur once or twice: search the end from the beginning on
            high = _end(order, row, head, low, high)
        done = widest
        # Invariant: the suffixes at ranks [low, high) are those that start with pattern[:done].
        while low < high and done < len(pattern):
            piece = list(pattern[done : 2 * done])
            row = partial(_piece, text, done, done + len(piece))
            low = bisect_left(order, piece, low, high, key=row)
            high = bisect_right(order, piece, low, high, key=row)
            done += len(piece)
        return low, high

    return find


def _standing(within: Sorted) -> Callable[[Sequence[int], int, int], bool]:
    text, order, begins, rows, narrowed = within
    widest = len(rows) - 1

    def stands(pattern: Sequence[int], start: int, stop: int) -> bool:
        low, high = begins[pattern[start]], begins[pattern[start] + 1]
        if low == high or stop - start == 1:
            return low < high
        head = tuple(pattern[start : min(stop, start + widest)])
        low, before, after, high = narrowed(head, low, high)
        row, done = rows[len(head)], len(head)
        ends = start + done == stop
        if ends and after > low:
            return True  # a suffix with a key in the table begins with it
        low = bisect_left(order, head, low, before, key=row)
        if low == high or row(order[low]) != head:
            return False
        if not ends:
            high = bisect_right(order, head, max(low, after), high, key=row)
        # Invariant: the suffixes at ranks [low, high) are those that start with the first `done`
        # tokens. Each round compares only the tokens behind these, and doubles `done`.
        while start + done < stop:
            piece = list(pattern[start + done : min(stop, start + 2 * done)])
            row = partial(_piece, text, done, done + len(piece))
            low = bisect_left(order, piece, low, high, key=row)
            if low == high or row(order[low]) != piece:
                return False
            high = bisect_right(order, piece, low, high, key=row)
            done += len(piece)
        return True

    return stands


def _lengthening(within: Sorted) -> Callable[[Sequence[int], int, int], Longest]:
    text, order, begins, rows, narrowed = within
    widest = len(rows) - 1

    def longest(pattern: Sequence[int], start: int, stop: int) -> Longest:
        if start == stop:
            return 0, 0, len(order)
        low, high = begins[pattern[start]], begins[pattern[start] + 1]
        if low == high or stop - start == 1:
            return int(low < high), low, high
        head = tuple(pattern[start : min(stop, start + widest)])
        first, before, after, last = narrowed(head, low, high)
        row, done = rows[len(head)], len(head)
        # The suffixes that share most tokens with the head are next to the rank where it would be
        # inserted: at `place` or just before it.
        place = bisect_left(order, head, first, before, key=row)
        there = row(order[place]) if place < high else ()
        if there != head:
            behind = row(order[place - 1]) if place > low else ()
            same = max(_common(head, there), _common(head, behind))
            if same == 1:
                return 1, low, high
            return same, *_both_ends(order, rows[same], head[:same], place, low, high)
        low, high = place, bisect_right(order, head, max(place, after), last, key=row)
        # Invariant as in `stands`; the first piece that does not occur ends the search.
        while start + done < stop:
            piece = list(pattern[start + done : min(stop, start + 2 * done)])
            row = partial(_piece, text, done, done + len(piece))
            place = bisect_left(order, piece, low, high, key=row)
            there = row(order[place]) if place < high else []
            if there != piece:
                behind = row(order[place - 1]) if place > low else []
                same = max(_common(piece, there), _common(piece, behind))
                row = partial(_piece, text, done, done + same)
                return done + same, *_both_ends(order, row, piece[:same], place, low, high)
            low, high = place, bisect_right(order, piece, place, high, key=row)
            done += len(piece)
        return done, low, high

    return longest


def _end(order: memoryview, row: Row, head: Any, low: int, high: int) -> int:
    """Return the first rank of [low, high) whose row is not `head`; fast if it is near `low`."""
    # Steps 0, 1, 3, 7, ...: the row at low + (step - 1) / 2 was `head`, so the end lies behind it.
    step = 0
    while low + step < high and row(order[low + step]) == head:
        step = 2 * step + 1
    past = min(low + step, high)
    return bisect_right(order, head, low + ((step + 1) >> 1), past, key=row)


def _both_ends(order: memoryview, row: Row, head: Any, place: int, low: int, high: int) -> Ranks:
    """Return the ranks of [low, high) whose row is `head`.

    They begin or end at `place`, or hold it.
    """
    # All rows in [first, place) are `head`; the step backwards doubles until one is not.
    step, first = 1, place
    while first - step >= low and row(order[first - step]) == head:
        first, step = first - step, 2 * step
    first = bisect_left(order, head, max(low, first - step + 1), first, key=row)
    return first, _end(order, row, head, place, high)


def _narrowing(keys: UInt64[np.ndarray, " key"] | None, dtype: np.dtype) -> Narrowed:
    """Return `narrowed(pattern, low, high)`: two brackets of ranks inside [low, high).

    The first holds the rank where the pattern's matches begin, the second the rank where they end,
    as in `prefix_table.brackets`. If the second begins after the first, a suffix whose key is in
    the table starts with the pattern.
    """
    if keys is None:
        return lambda pattern, low, high: (low, high, low, high)
    packed, held, bits = keys.data, prefix_table.span(dtype), 8 * dtype.itemsize

    def narrowed(pattern: Sequence[int], low: int, high: int) -> tuple[int, int, int, int]:
        if high - low <= STRIDE:
            return low, high, low, high
        key = 0
        for token in pattern[:held]:
            key = key << bits | token
        free = bits * (held - len(pattern)) if len(pattern) < held else 0
        key <<= free
        # Of the sampled suffixes (ranks 0, 64, 128, ...): those before `left` have a smaller key
        # and sort before the pattern; those from `right` on have a greater one and start with it or
        # sort behind it; those from `past` on sort behind it. Equal keys decide nothing: a key
        # holds the first tokens only, and zeros also stand past the end of the text.
        stop = -(-high // STRIDE)
        left = right = bisect_left(packed, key, -(-low // STRIDE), stop)
        if left < stop and packed[left] == key:
            right = bisect_right(packed, key, left, stop)
        past = right
        if free and right < stop and packed[right] <= (most := key | (1 << free) - 1):
            past = bisect_right(packed, most, right, stop)
        low = max(low, (left - 1) * STRIDE + 1)
        after = (past - 1) * STRIDE + 1 if past > right else low
        return low, min(high, right * STRIDE), after, min(high, past * STRIDE)

    return narrowed


def _row(text: memoryview, n: int) -> Row:
    """Return a function from a position to the `n` tokens from there, or as many as are left."""
    unpack, size = struct.Struct(f"{n}{text.format}").unpack_from, text.itemsize

    @no_type_check  # called at every bisection step: type checks took most of the tests' time
    def read(at: int) -> tuple[int, ...]:
        try:
            return unpack(text, at * size)
        except struct.error:
            return tuple(text[at:])

    return read


@no_type_check  # as above
def _piece(text: memoryview, start: int, stop: int, at: int) -> list[int]:
    return text[at + start : at + stop].tolist()


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    common = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        common += 1
    return common


def search(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    patterns: Sequence[Integer[np.ndarray, " _"]],
    table: Int64[np.ndarray, " bucket"] | None = None,
    keys: UInt64[np.ndarray, " key"] | None = None,
) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
    """Return ranks [low, high) of the suffixes that start with each pattern.

    The count of a pattern is high - low.

    Args:
        table: Result of `suffix_array.buckets` on these tokens. With it, every pattern must have a
            token, and its first must lie inside the table.
        keys: Result of `prefix_table.build` on them. Both tables only save bisection steps.
    """
    found = [np.empty((0, 2), np.int64)]
    for first in range(0, len(patterns), TOGETHER):
        some = patterns[first : first + TOGETHER]
        stops = np.cumsum([len(pattern) for pattern in some])
        starts = np.append(0, stops[:-1])
        text = np.concatenate(some).astype(np.int64)
        ranks = _bisect(tokens, suffixes, text, starts, stops, table, keys)
        found.append(ranks.reshape(2, -1).T)
    low, high = np.concatenate(found).T
    return low, high


def _bisect(
    tokens: UInt[np.ndarray, " token"],
    suffixes: UInt32[np.ndarray, " token"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    table: Int64[np.ndarray, " bucket"] | None,
    keys: UInt64[np.ndarray, " key"] | None,
) -> Int64[np.ndarray, " bound"]:
    """Return the first rank not before each pattern text[start:stop].

    The second half of the result is the first rank past each pattern's matches. `left` and `right`
    are how many tokens each pattern shares with both ends of its bracket.
    """
    low, high = _brackets(tokens, np.append(text, 0), starts, stops, table, keys)
    # Zeros past the end, so that the words read with the last tokens of a pattern exist.
    text = np.append(text, np.zeros(8 * WIDE, np.int64)).astype(tokens.dtype)
    past = np.arange(len(low)) >= len(starts)
    starts, lengths = np.tile(starts, 2), np.tile(stops - starts, 2)
    left, right = np.zeros_like(low), np.zeros_like(low)
    # Invariant: the bound lies in [low, high]; `left` tokens of the pattern are shared by the
    # suffix at rank low - 1, `right` by that at rank high (0 where it was never compared). All
    # suffixes between share the smaller number, so a comparison may skip that many tokens.
    while (rows := np.flatnonzero(low < high)).size:
        middle = (low[rows] + high[rows]) >> 1
        at = suffixes[middle].astype(np.int64)
        skip = np.minimum(left[rows], right[rows])
        common, before, whole = _compare(tokens, at, text, starts[rows], lengths[rows], skip)
        up = before | (whole & past[rows])
        low[rows[up]], left[rows[up]] = middle[up] + 1, common[up]
        high[rows[~up]], right[rows[~up]] = middle[~up], common[~up]
    return low


def _brackets(
    tokens: UInt[np.ndarray, " token"],
    text: Int64[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    stops: Int64[np.ndarray, " pattern"],
    table: Int64[np.ndarray, " bucket"] | None,
    keys: UInt64[np.ndarray, " key"] | None,
) -> tuple[Int64[np.ndarray, " bound"], Int64[np.ndarray, " bound"]]:
    """Return the ranks between which each bound lies by the tables; first matches come first."""
    low, high = np.zeros_like(starts), np.full_like(starts, len(tokens))
    if table is not None:
        low, high = table[text[starts]], table[text[starts] + 1]
    bounds = [(low, high)] * 2
    if keys is not None:
        found = prefix_table.packed(text, starts, stops, prefix_table.span(tokens.dtype))
        bounds = [
            (np.maximum(low, first), np.minimum(high, last))
            for first, last in prefix_table.brackets(keys, *found)
        ]
    low, high = (np.concatenate(one) for one in zip(*bounds, strict=True))
    return low, high


def _compare(
    tokens: UInt[np.ndarray, " token"],
    at: Int64[np.ndarray, " pattern"],
    text: UInt[np.ndarray, " pos"],
    starts: Int64[np.ndarray, " pattern"],
    lengths: Int64[np.ndarray, " pattern"],
    common: Int64[np.ndarray, " pattern"],
) -> tuple[
    Int64[np.ndarray, " pattern"], Bool[np.ndarray, " pattern"], Bool[np.ndarray, " pattern"]
]:
    """Return shared tokens, whether a suffix is before its pattern, and whether it starts with it.

    `common` tokens are known to be shared and are not read again. The others are read in words of
    64 bits: the lowest bit in which two words differ lies in the first token that does.
    """
    n, left = len(tokens), len(tokens) - at
    room = np.minimum(lengths, left)
    ours, theirs, held = _words(tokens), _words(text), prefix_table.span(tokens.dtype)
    bits, width, rows = 64 // held, NARROW, (common < room).nonzero()[0]
    while rows.size:
        done = common[rows]
        ahead = np.arange(0, held * width, held)
        place = (at[rows] + done)[:, None] + ahead
        if place.max() < len(ours):
            word = ours[place]
        else:
            inside = np.minimum(place, len(ours) - 1)
            # Past the last whole word: shift the last one, so that zeros stand for missing tokens.
            word = ours[inside] >> ((place - inside) * bits).astype(np.uint64)
        differ = word ^ theirs[(starts[rows] + done)[:, None] + ahead]
        which = (differ != 0).argmax(axis=1)
        first = differ[np.arange(len(rows)), which]
        # popcount((x & -x) - 1) is the number of zero bits below the lowest set bit of x.
        same = held * which + np.bitwise_count((first & -first) - np.uint64(1)) // np.uint8(bits)
        same[first == 0] = held * width
        done = np.minimum(done + same, room[rows])
        common[rows] = done
        rows = rows[(first == 0) & (done < room[rows])]
        width = min(2 * width, WIDE)
    whole = common == lengths
    # A suffix that ends inside the pattern (common == left) sorts before it.
    smaller = tokens[np.minimum(at + common, n - 1)] < text[starts + common]
    return common, ~whole & (smaller | (common == left)), whole


def _words(tokens: UInt[np.ndarray, " token"]) -> UInt64[np.ndarray, " word"]:
    """Return 64 bits from each token on, the first token lowest; a view unless very short."""
    held = prefix_table.span(tokens.dtype)
    if len(tokens) < held:
        tokens = np.append(tokens, np.zeros(held, tokens.dtype))
    shape, strides = (len(tokens) - held + 1,), (tokens.itemsize,)
    return np.ndarray(shape, np.uint64, tokens, strides=strides)
