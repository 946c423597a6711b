"""Suffix arrays: all suffixes of a token array in sorted order.

A suffix array lists the positions of an array so that the suffixes starting there are sorted; every
occurrence of a pattern is then in one contiguous range of ranks (Manber & Myers 1993), which
`suffix_search` finds. Order is by token id, and a suffix that ends first comes first. This file
does not know about documents.

libdivsufsort, from the package pydivsufsort, sorts bytes. So tokens are encoded as bytes that sort
as the tokens do (`byte_encoding`), and only the byte suffixes that begin a token are kept.
"""

import numpy as np
from jaxtyping import Int, Int64, UInt, UInt32

from data_attribution.errors import SorterError
from data_attribution.token_index import byte_encoding


__all__ = ["LARGEST", "SORTER", "buckets", "build", "bytes_a_token", "economical"]

SORTER = "pydivsufsort"  # as it is named in the files of an index
LARGEST = 2**32 - 2  # most tokens of an array: positions are uint32
HUGE = 1 << 24
CHUNK = 1 << 18
SMALL_CHUNK = 1 << 16


def build(
    tokens: UInt[np.ndarray, " token"],
    *,
    threads: int = 1,
    counts: Int64[np.ndarray, " id"] | None = None,
) -> UInt32[np.ndarray, " token"]:
    """Return the positions of `tokens` in the order of the suffixes that start there.

    Takes `bytes_a_token` bytes of memory per token.

    Args:
        threads: Threads of libdivsufsort. More than one start OpenMP in this process, and a process
            forked from it later hangs when it sorts, too.
        counts: How often each id occurs, if that is known already.

    Raises:
        SorterError: There are too many tokens.
    """
    from pydivsufsort import divsufsort
    from threadpoolctl import threadpool_limits

    if len(tokens) > LARGEST:
        raise SorterError(
            f"at most {LARGEST:,} tokens can be sorted at once, {len(tokens):,} were given; cut "
            "them into shards"
        )
    if len(tokens) == 0:
        return np.empty(0, np.uint32)
    if counts is None:
        tokens, counts = _counted(tokens)
    codes, width = byte_encoding.encoded(tokens, counts)
    with threadpool_limits(limits=threads, user_api="openmp"):
        suffixes = np.asarray(divsufsort(codes))
    return _token_starts(suffixes, width)


def bytes_a_token(itemsize: int = 2, n_tokens: int = 0) -> int:
    """Return the memory of sorting in bytes per token, including the `itemsize` bytes of the token.

    For uint32 ids, more than 65,536 of them are assumed to occur.
    """
    # The tokens' bytes, their code, and a position per byte: int32 as long as that can count them.
    position = 4 if n_tokens <= economical(itemsize) else 8
    return itemsize + itemsize + position * itemsize


def economical(itemsize: int = 2) -> int:
    """Return the largest number of tokens that can be sorted with positions of four bytes."""
    return (2**31 - 1) // itemsize


def buckets(tokens: UInt[np.ndarray, " token"], vocab_size: int) -> Int64[np.ndarray, " bucket"]:
    """Return where each first token's suffixes begin.

    Token t has ranks buckets[t] to buckets[t + 1]. The differences are the unigram counts.
    """
    return np.concatenate([[0], np.cumsum(_counts(tokens, vocab_size))])


def _counted(
    tokens: UInt[np.ndarray, " token"],
) -> tuple[UInt[np.ndarray, " token"], Int64[np.ndarray, " id"]]:
    """Return tokens and how often each id occurs; ids too large for a table become their ranks."""
    if tokens.max() >= HUGE:
        tokens = np.unique(tokens, return_inverse=True)[1].astype(np.uint32)
    return tokens, _counts(tokens, int(tokens.max()) + 1)


def _counts(tokens: UInt[np.ndarray, " token"], n_ids: int) -> Int64[np.ndarray, " id"]:
    counts, step = np.zeros(n_ids, np.int64), max(CHUNK, n_ids)
    for start in range(0, len(tokens), step):
        counts += np.bincount(tokens[start : start + step], minlength=n_ids)
    return counts


def _token_starts(suffixes: Int[np.ndarray, " byte"], width: int) -> UInt32[np.ndarray, " token"]:
    """Return the sorted byte positions that begin a token, counted in tokens; memory is reused."""
    # Positions of eight bytes (used if int32 cannot count them) become positions of four.
    starts = suffixes.view(np.uint32)
    if width == 1 and suffixes.itemsize == starts.itemsize:
        return starts
    # `width` is 1, 2 or 4. Invariant: `kept` <= `start`, and entries of `starts` take no more bytes
    # than those of `suffixes`, so nothing is overwritten before it is read.
    kept, inside, shift = 0, width - 1, width.bit_length() - 1
    for start in range(0, len(suffixes), SMALL_CHUNK):
        piece = suffixes[start : start + SMALL_CHUNK]
        # `compress` takes a third of the time of boolean indexing.
        begins = np.compress((piece & inside) == 0, piece) >> shift
        starts[kept : kept + len(begins)] = begins
        kept += len(begins)
    return starts[:kept]
