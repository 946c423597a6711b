"""Cost estimate of building an index, before it is built: disk, memory, and the time of sorting.

Bytes are for shards of equal length. Where documents end is only known for an existing store; for
that, `sharding.estimate_shards` counts the shards as they will be cut. Time is known only where
some tokens of a store are sorted first (`measure_rate`), on the machine in question.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_attribution.errors import IndexSpaceError, SorterError
from data_attribution.token_index import prefix_table, suffix_array
from train.data import TokenStore
from train.progress import count, readable_size


__all__ = [
    "Estimate",
    "Rate",
    "available_memory",
    "disk",
    "estimate_cost",
    "for_workers",
    "measure_rate",
    "memory_of",
    "most_tokens",
    "refuse_small",
]

# Bytes of a process that has imported what sorting needs, with the libraries' own tables.
PROCESS = 100 << 20
SHARE = 0.75  # share of the available memory, unless a number is given
# Below WORTH_A_WORKER tokens, sorting two shards of half the size is not faster than sorting one,
# because starting a process costs more.
WORTH_A_WORKER, MOST_FOR_WORKERS = 2_000_000, 8
SAMPLE = 1_000_000
MEASURED = 5_000_000  # exceeds the processor's caches, which make smaller sorts look faster
PAGE = 4096
# Factor in time per token for a shard ten times as large; measured on 10 to 200 million tokens of
# real text by `benchmarks/index_growth.py`.
GROWTH = 1.4


@dataclass(frozen=True)
class Rate:
    """The speed of a measured sort: number of tokens, and tokens per second."""

    tokens: int
    tokens_a_second: float

    def seconds(self, n_tokens: int) -> float:
        """Return the time of sorting one shard: a token takes GROWTH times as long per decade."""
        decades = math.log10(n_tokens / self.tokens)
        return n_tokens / self.tokens_a_second * GROWTH**decades


@dataclass(frozen=True)
class Estimate:
    """The disk and memory that a build takes.

    `memory` includes the pages of tokens.bin that sorting reads. `disk` is the size of the index
    alone, with one page for each shard's listing, which takes less.
    """

    tokens: int
    shards: int
    shard_tokens: int
    workers: int
    disk: int
    memory: int
    bytes_a_token: float  # including the text

    def sentence(self) -> str:
        """Return the estimate as one line of text."""
        return (
            f"{count(self.tokens, 'token')} in {count(self.shards, 'shard')} of up to "
            f"{self.shard_tokens:,}, {self.workers} at once: {readable_size(self.memory)} of "
            f"memory, {readable_size(self.disk)} of disk "
            f"({self.bytes_a_token:.2f} bytes a token with the text)"
        )


def estimate_cost(
    n_tokens: int,
    *,
    shards: int | None = None,
    workers: int = 1,
    memory: int | None = None,
    vocab_size: int = 50257,
) -> Estimate:
    """Estimate the cost of an index of `n_tokens` tokens, before there is a store.

    Shards are assumed to be equally long; the ends of documents make some a little longer.

    Args:
        shards: Number of shards; default: as few as `memory` allows.
        memory: Bytes; default: what is available on this machine.

    Raises:
        IndexSpaceError: That number of shards does not fit into the memory.

    Examples:
        >>> estimate = token_index.estimate_cost(9_000_000_000, memory=64_000_000_000)
        >>> estimate.shards, round(estimate.disk / 1e9, 1), round(estimate.memory / 1e9, 1)
        (9, 37.1, 12.0)
    """
    refuse_small(n_tokens=n_tokens, shards=shards, workers=workers, memory=memory)
    itemsize = 2 if vocab_size <= 1 << 16 else 4
    budget = available_memory() if memory is None else memory
    at_once = min(workers, shards or workers)
    most = most_tokens(budget, itemsize=itemsize, workers=at_once)
    if most < min(SAMPLE, n_tokens):
        raise IndexSpaceError(
            f"{readable_size(budget)} of memory hold no shards of {SAMPLE:,} tokens, {at_once} at "
            "once; give more memory or fewer workers"
        )
    fewest = -(-n_tokens // most)
    shards = shards or max(fewest, for_workers(n_tokens, workers))
    shard_tokens = -(-n_tokens // shards)
    taken = memory_of(shard_tokens, itemsize=itemsize, workers=at_once)
    if taken > budget or shard_tokens > suffix_array.LARGEST:
        raise IndexSpaceError(
            f"{shards} shards of {shard_tokens:,} tokens, {at_once} at once, take "
            f"{readable_size(taken)} of memory, at most {suffix_array.LARGEST:,} tokens are sorted "
            f"at once, and {readable_size(budget)} may be used; ask for {fewest} shards, or for "
            "fewer workers"
        )
    at_once = min(workers, shards)
    on_disk = shards * disk(shard_tokens, vocab_size)
    return Estimate(
        tokens=n_tokens,
        shards=shards,
        shard_tokens=shard_tokens,
        workers=at_once,
        disk=on_disk,
        memory=memory_of(shard_tokens, itemsize=itemsize, workers=at_once),
        bytes_a_token=itemsize + on_disk / n_tokens,
    )


def for_workers(n_tokens: int, workers: int) -> int:
    """Return the number of shards worth making so that workers can sort at the same time.

    It is small, because every query searches every shard.
    """
    return max(1, min(workers, n_tokens // WORTH_A_WORKER, MOST_FOR_WORKERS))


def measure_rate(store: TokenStore) -> Rate:
    """Sort up to five million tokens of a store and return this machine's speed.

    Examples:
        >>> rate = token_index.measure_rate(store)
        >>> rate.tokens, rate.tokens_a_second > 0
        (602113, True)
    """
    tokens = np.array(store.tokens[:MEASURED])
    begin = time.perf_counter()
    suffix_array.build(tokens)
    return Rate(len(tokens), len(tokens) / (time.perf_counter() - begin))


def memory_of(shard_tokens: int, *, itemsize: int, workers: int) -> int:
    """Return the bytes that sorting takes, one shard per worker.

    A single worker is this process, whose own memory is not counted.

    Examples:
        >>> token_index.memory_of(1_000_000, itemsize=2, workers=1)
        12000000
    """
    each = shard_tokens * suffix_array.bytes_a_token(itemsize, shard_tokens)
    return each if workers == 1 else workers * (PROCESS + each)


def most_tokens(memory: int, *, itemsize: int, workers: int) -> int:
    """Return the largest shard that `memory` holds and positions of four bytes count, or 0."""
    each = memory // workers - (0 if workers == 1 else PROCESS)
    held = max(each, 0) // suffix_array.bytes_a_token(itemsize)
    return min(held, suffix_array.economical(itemsize))


def disk(n_tokens: int, vocab_size: int) -> int:
    """Return the bytes of a shard's files: positions, keys, first tokens, and a page of listing."""
    return 4 * n_tokens + 8 * -(-n_tokens // prefix_table.STRIDE) + 8 * (vocab_size + 1) + PAGE


def available_memory() -> int:
    """Return three quarters of the bytes that could be used now without swapping."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    table = Path("/proc/meminfo")
    if table.is_file():
        lines = table.read_text(encoding="utf-8").splitlines()
        kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        found = min([found, *(1024 * one for one in kib)])
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (held := limit.read_text(encoding="utf-8").strip()).isdigit():
        found = min(found, int(held))
    return int(found * SHARE)


def refuse_small(**numbers: int | None) -> None:
    """Raise SorterError for counts below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise SorterError(f"{name.replace('_', ' ')} is {number}; give 1 or more")
