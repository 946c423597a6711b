"""Suffix arrays: all suffixes of a token array in sorted order.

A suffix array lists the positions of an array so that the suffixes starting there are sorted; every
occurrence of a pattern is then in one contiguous range of ranks (Manber & Myers 1993), which
`suffix_search` finds. Order is by token id, and a suffix that ends first comes first. This file
does not know about documents.

Three sorters give exactly the same array; only their time and memory differ:

* `pydivsufsort`, the default: libdivsufsort from a Python wheel. It sorts bytes, so tokens are
  encoded as bytes that sort as the tokens do (`byte_encoding`), and only the byte suffixes that
  begin a token are kept.
* `libsais`, several times as fast: a library built by the user and given by its path. It runs in
  this process, so use only a library that you trust.
* `numpy`: prefix doubling, if neither of the others is available.
"""

import ctypes
from importlib import util
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt, UInt32

from data_attribution.errors import SorterError
from data_attribution.token_index import byte_encoding


__all__ = [
    "BACKENDS",
    "backend",
    "buckets",
    "build",
    "bytes_a_token",
    "divsufsort",
    "doubling",
    "economical",
    "sais",
]

BACKENDS = ("pydivsufsort", "libsais", "numpy")
# Positions are uint32, and `doubling` packs two ranks and "past the end" into 64 bits; libsais16
# counts in int32.
LARGEST = {"pydivsufsort": 2**32 - 2, "numpy": 2**32 - 2, "libsais": 2**31 - 2}
HUGE = 1 << 24
CHUNK = 1 << 18
SMALL_CHUNK = 1 << 16


def build(
    tokens: UInt[np.ndarray, " token"],
    *,
    sorter: str | None = None,
    libsais: str | Path | None = None,
    threads: int = 1,
    counts: Int64[np.ndarray, " id"] | None = None,
) -> UInt32[np.ndarray, " token"]:
    """Return the positions of `tokens` in the order of the suffixes that start there.

    Takes `bytes_a_token(sorter)` bytes of memory per token.

    Args:
        sorter: One of `BACKENDS`; default: the fastest available.
        libsais: Path of a shared library with `libsais16`, for the sorter of that name.
        threads: Threads of `pydivsufsort`. More than one start OpenMP in this process, and a
            process forked from it later hangs when it sorts, too.
        counts: How often each id occurs, if that is known already.

    Raises:
        SorterError: There is no such sorter here, or it cannot sort so many tokens.
    """
    name = backend(sorter, libsais)
    if len(tokens) > LARGEST[name]:
        raise SorterError(
            f"{name} sorts at most {LARGEST[name]:,} tokens at once, {len(tokens):,} were given; "
            "cut them into shards"
        )
    if name == "libsais":
        return sais(tokens, str(libsais))
    return divsufsort(tokens, threads, counts) if name == "pydivsufsort" else doubling(tokens)


def backend(sorter: str | None = None, libsais: str | Path | None = None) -> str:
    """Return the name of the sorter that `build` uses here.

    The choice changes the time, never the result.

    Raises:
        SorterError: The requested sorter is unknown or not available.

    Examples:
        >>> token_index.backend("numpy")
        'numpy'
    """
    there = "pydivsufsort" if util.find_spec("pydivsufsort") else "numpy"
    name = sorter or ("libsais" if libsais else there)
    if name not in BACKENDS:
        raise SorterError(f"there is no sorter {name!r}; known are {', '.join(BACKENDS)}")
    if name == "pydivsufsort" != there:
        raise SorterError("pydivsufsort is not installed; install it, or sort with numpy")
    if (name == "libsais") != bool(libsais):
        raise SorterError("the sorter libsais and the path of its library go together; give both")
    if name == "libsais":
        _library(str(libsais))
    return name


def bytes_a_token(sorter: str, itemsize: int = 2, n_tokens: int = 0) -> int:
    """Return the memory of sorting in bytes per token, including the `itemsize` bytes of the token.

    For uint32 ids, more than 65,536 of them are assumed to occur.
    """
    if sorter == "libsais":  # positions, and ids in int32 unless they are uint16
        return 6 if itemsize == 2 else 12
    if sorter == "numpy":
        return 74 + itemsize
    # The tokens' bytes, their code, and a position per byte: int32 as long as that can count them.
    position = 4 if n_tokens <= economical(sorter, itemsize) else 8
    return itemsize + itemsize + position * itemsize


def economical(sorter: str, itemsize: int = 2) -> int:
    """Return the largest number of tokens that can be sorted with positions of four bytes."""
    return (2**31 - 1) // itemsize if sorter == "pydivsufsort" else LARGEST[sorter]


def divsufsort(
    tokens: UInt[np.ndarray, " token"],
    threads: int = 1,
    counts: Int64[np.ndarray, " id"] | None = None,
) -> UInt32[np.ndarray, " token"]:
    """Sort with libdivsufsort; `counts` as in `build`."""
    from pydivsufsort import divsufsort as sort
    from threadpoolctl import threadpool_limits

    if len(tokens) == 0:
        return np.empty(0, np.uint32)
    if counts is None:
        tokens, counts = _counted(tokens)
    codes, width = byte_encoding.encoded(tokens, counts)
    with threadpool_limits(limits=threads, user_api="openmp"):
        suffixes = np.asarray(sort(codes))
    return _token_starts(suffixes, width)


def sais(tokens: UInt[np.ndarray, " token"], path: str) -> UInt32[np.ndarray, " token"]:
    """Sort with the `libsais16` of a shared library (Grebnov, github.com/IlyaGrebnov/libsais).

    Raises:
        SorterError: The file is not such a library, or the library failed.
    """
    library, n = _library(path), len(tokens)
    if n == 0:
        return np.empty(0, np.uint32)
    suffixes = np.empty(n, np.int32)
    if tokens.dtype == np.uint16:
        held = np.ascontiguousarray(tokens)
        code = library.libsais16(_at(held), _at(suffixes), n, 0, None)
    else:
        # Replace ids by their ranks among those that occur, which makes the alphabet as small as
        # possible.
        tokens, counts = _counted(tokens)
        ranks = (np.cumsum(counts > 0) - 1).astype(np.int32)
        held, letters = ranks[tokens], int(ranks[-1]) + 1
        code = library.libsais16_int(_at(held), _at(suffixes), n, letters, 0)
    if code:
        raise SorterError(f"libsais16 of {path} gave up with code {code} on {n:,} tokens")
    return suffixes.view(np.uint32)


def doubling(tokens: UInt[np.ndarray, " token"]) -> UInt32[np.ndarray, " token"]:
    """Sort by prefix doubling: only suffixes that still tie are sorted again, by twice the length.

    A suffix's rank is the first place of its group of ties in the sorted array, so a suffix that
    ties with none already has its final rank (Larsson & Sadakane 2007).
    """
    n = len(tokens)
    keys, span = _packed(np.asarray(tokens))
    order = np.argsort(keys, kind="stable")
    rank = np.empty(n, np.uint64)
    slots = np.arange(n)
    heads = _heads(keys[order], slots)
    rank[order] = heads
    while True:
        # Invariant: suffixes are sorted by their first `span` tokens, and equal ranks mean equal
        # first `span` tokens. Sorting ties by (own rank, rank of the suffix `span` tokens later)
        # doubles span.
        tied = _tied(heads)
        slots, heads = slots[tied], heads[tied]
        if not slots.size:
            return order.astype(np.uint32)
        at = order[slots]
        following = np.zeros(len(at), np.uint64)  # 0: the suffix ends here, before every rank
        inside = at + span < n
        following[inside] = rank[at[inside] + span] + np.uint64(1)
        keys = heads.astype(np.uint64) << np.uint64(32) | following
        again = np.argsort(keys, kind="stable")
        order[slots] = at[again]
        heads = _heads(keys[again], slots)
        rank[order[slots]] = heads
        span *= 2


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


def _library(path: str) -> ctypes.CDLL:
    """Return a shared library that holds libsais16."""
    try:
        library = ctypes.CDLL(str(Path(path).absolute()))
        sorters = library.libsais16, library.libsais16_int
    except (OSError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise SorterError(f"{path} is no shared library of libsais16 ({reason})") from None
    for sorter, arguments in zip(sorters, ("ppiip", "ppiii"), strict=True):
        kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int32}
        sorter.argtypes = [kinds[one] for one in arguments]
        sorter.restype = ctypes.c_int32
    return library


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


def _packed(tokens: UInt[np.ndarray, " token"]) -> tuple[UInt[np.ndarray, " token"], int]:
    """Return as many leading tokens of each suffix as fit into 64 bits, and their number."""
    # A key is the number whose digits in base 2^width are the tokens, the first one highest; keys
    # are therefore ordered as the tokens are. 0 is "past the end", so ids count from 1.
    width = (int(tokens.max(initial=0)) + 1).bit_length()
    span = 64 // width
    keys = np.zeros(len(tokens), np.uint64)
    symbols = np.concatenate([tokens.astype(np.uint64) + np.uint64(1), np.zeros(span, np.uint64)])
    for ahead in range(span):
        keys = keys << np.uint64(width) | symbols[ahead : ahead + len(tokens)]
    return keys, span


def _heads(
    keys: UInt[np.ndarray, " tied"], slots: Int[np.ndarray, " tied"]
) -> Int[np.ndarray, " tied"]:
    """Return the first slot of each run of equal sorted keys, one entry per key."""
    begins = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return slots[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]


def _tied(heads: Int[np.ndarray, " tied"]) -> Bool[np.ndarray, " tied"]:
    """Return which entries share their head with a neighbour."""
    same = heads[1:] == heads[:-1]
    return np.append(same, False)[: len(heads)] | np.append(False, same)[: len(heads)]
