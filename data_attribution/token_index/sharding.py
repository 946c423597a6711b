"""Division of a corpus into shards, at the ends of documents, to fit memory and workers.

A shard never mixes train and held-out text. There are as few shards as memory allows, and at least
as many as workers where that is worthwhile. Memory is that of sorting
(`suffix_array.bytes_a_token`), once for every shard that is sorted at the same time.
"""

import os
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from data_attribution.errors import IndexSpaceError, SorterError
from data_attribution.token_index import suffix_array
from data_attribution.token_index.cost import (
    WORTH_A_WORKER,
    Estimate,
    Rate,
    available_memory,
    disk,
    for_workers,
    memory_of,
    most_tokens,
    refuse_small,
)
from data_attribution.token_index.shard_files import Shard
from train.data import TokenStore
from train.progress import readable_size
from train.short_repr import short_repr


__all__ = [
    "ShardPlan",
    "estimate_shards",
    "fitting",
    "plan_shards",
    "sorting_seconds",
    "worthwhile_workers",
]


@dataclass(frozen=True)
class ShardPlan:
    """The shards of a store in token order, and how many are sorted at once."""

    shards: tuple[Shard, ...]
    workers: int
    memory: int  # largest number of bytes that sorting takes

    __repr__ = short_repr


def plan_shards(
    store: TokenStore,
    *,
    shards: int | None = None,
    shard_tokens: int | None = None,
    workers: int = 1,
    memory: int | None = None,
) -> ShardPlan:
    """Divide a store into shards of which `workers` at once fit into memory.

    Args:
        shards: Number of shards of the train region; the held-out region gets its own.
        shard_tokens: Largest number of tokens in a shard, instead of `shards`.
        memory: Bytes that sorting may take; default: three quarters of what is available.

    Raises:
        IndexSpaceError: A requested shard, or a single document, takes more memory.
        SorterError: There are fewer documents than shards, or a number is below 1.

    Examples:
        >>> plan = token_index.plan_shards(store, shards=2)
        >>> [(shard.name, shard.start, shard.stop) for shard in plan.shards], plan.memory
        ([('shard-000', 0, 301057), ('shard-001', 301057, 602113)], 3612684)
    """
    refuse_small(shards=shards, shard_tokens=shard_tokens, workers=workers, memory=memory)
    if shards and shard_tokens:
        raise SorterError("the number of shards and their size were both given; give one")
    itemsize = store.tokens.dtype.itemsize
    budget = available_memory() if memory is None else memory
    room = most_tokens(budget, itemsize=itemsize, workers=workers)
    if room < 1:
        raise IndexSpaceError(
            f"{readable_size(budget)} of memory may be used, and {workers} sorting processes take "
            "more than that before the first token; allow more or ask for fewer workers"
        )
    most = min(shard_tokens or room, room)
    found: list[tuple[int, int, bool]] = []
    for start, stop, held_out in _regions(store):
        wanted = _wanted(stop - start, shards if not held_out else None, workers, found)
        limit = None if shards and not held_out else most
        cut = _edges(store, start, stop, wanted, limit)
        found += [(a, b, held_out) for a, b in pairwise(cut)]
    named = tuple(Shard(f"shard-{k:03d}", *one) for k, one in enumerate(found))
    return fitting(store, named, workers=workers, memory=budget)


def fitting(
    store: TokenStore,
    shards: tuple[Shard, ...],
    *,
    workers: int,
    memory: int | None = None,
) -> ShardPlan:
    """Return a plan for given shards.

    Raises:
        IndexSpaceError: They take more memory than there is.
        SorterError: A shard has more tokens than can be sorted at once.
    """
    itemsize = store.tokens.dtype.itemsize
    budget = available_memory() if memory is None else memory
    at_once, longest = min(workers, len(shards)), max(one.n_tokens for one in shards)
    if longest > suffix_array.LARGEST:
        raise SorterError(
            f"at most {suffix_array.LARGEST:,} tokens can be sorted at once, a shard has "
            f"{longest:,}; ask for more shards"
        )
    needed = memory_of(longest, itemsize=itemsize, workers=at_once)
    if needed > budget:
        raise IndexSpaceError(
            f"sorting shards of {longest:,} tokens, {at_once} at once, takes "
            f"{readable_size(needed)} of memory and {readable_size(budget)} may be used; ask for "
            "more shards or fewer workers"
        )
    return ShardPlan(shards, workers, needed)


def estimate_shards(store: TokenStore, cut: ShardPlan) -> Estimate:
    """Estimate the cost of building the index of a store, with its shards as they are cut.

    Examples:
        >>> plan = token_index.plan_shards(store, shards=2)
        >>> estimate = token_index.estimate_shards(store, plan)
        >>> estimate.shards, estimate.tokens, estimate.disk
        (2, 602113, 2507548)
    """
    itemsize = store.tokens.dtype.itemsize
    on_disk = sum(disk(one.n_tokens, store.vocab_size) for one in cut.shards)
    return Estimate(
        tokens=store.n_tokens,
        shards=len(cut.shards),
        shard_tokens=max(one.n_tokens for one in cut.shards),
        workers=min(cut.workers, len(cut.shards)),
        disk=on_disk,
        memory=cut.memory,
        bytes_a_token=itemsize + on_disk / store.n_tokens,
    )


def sorting_seconds(cut: ShardPlan, rate: Rate) -> float:
    """Return the time of sorting the shards of a plan, at the speed of `measure_rate`.

    Examples:
        >>> plan = token_index.plan_shards(store, shards=2)
        >>> rate = token_index.measure_rate(store)
        >>> token_index.sorting_seconds(plan, rate) > 0
        True
    """
    free = [0.0] * min(cut.workers, len(cut.shards))  # when each worker becomes free
    for one in cut.shards:
        free[free.index(min(free))] += rate.seconds(one.n_tokens)
    return max(free)


def worthwhile_workers(n_tokens: int) -> int:
    """Return the number of usable cores, or fewer if starting workers takes longer than sorting.

    Examples:
        >>> token_index.worthwhile_workers(100_000)
        1
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, n_tokens // WORTH_A_WORKER))


def _regions(store: TokenStore) -> list[tuple[int, int, bool]]:
    """Return the train region, then the held-out region, where not empty."""
    edge = store.train_tokens
    regions = [(0, edge, False), (edge, store.n_tokens, True)]
    return [one for one in regions if one[1] > one[0]]


def _wanted(
    n_tokens: int, shards: int | None, workers: int, found: list[tuple[int, int, bool]]
) -> int:
    """Return the least number of shards that a region of `n_tokens` should have."""
    if shards:
        return shards
    if found:  # held out: shards as large as the others
        return -(-n_tokens // max(stop - start for start, stop, _ in found))
    return for_workers(n_tokens, workers)


def _edges(store: TokenStore, start: int, stop: int, wanted: int, most: int | None) -> list[int]:
    """Divide a region at document starts into similar shards of at most `most` tokens."""
    firsts = store.starts[(store.starts >= start) & (store.starts < stop)][1:]
    if most is None:
        if wanted > len(firsts) + 1:
            raise SorterError(
                f"{wanted} shards were asked for and there are {len(firsts) + 1} documents; a "
                "shard holds at least one"
            )
        return _even(start, stop, firsts, wanted)
    wanted = min(max(wanted, -(-(stop - start) // most)), len(firsts) + 1)
    while True:
        edges = _even(start, stop, firsts, wanted)
        longest = int(np.diff(edges).max())
        if longest <= most:
            return edges
        if wanted == len(firsts) + 1:
            raise IndexSpaceError(
                f"a single document has {longest:,} tokens, a shard may have {most:,} by its size "
                "or the memory; allow more of either"
            )
        wanted = min(wanted + max(wanted // 16, 1), len(firsts) + 1)


def _even(start: int, stop: int, firsts: Int64[np.ndarray, " document"], wanted: int) -> list[int]:
    """Return the edges of `wanted` shards, each cut at the first document after its even share."""
    ideal = start + (stop - start) * np.arange(1, wanted) // wanted
    chosen = np.searchsorted(firsts, ideal)
    # Use no document start twice, and leave enough of them for the cuts that follow.
    ahead = np.arange(len(chosen))
    chosen = np.maximum.accumulate(chosen - ahead) + ahead
    chosen = np.minimum(chosen, len(firsts) - len(chosen) + ahead)
    return [start, *firsts[chosen].tolist(), stop]
