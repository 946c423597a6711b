"""How seconds and memory of an index grow with its tokens, and what OpenWebText would take.

    python benchmarks/real_text.py --tokens 200000000 --out /tmp/real-text --more FOLDER ...
    python benchmarks/index_growth.py --store /tmp/real-text

Sorts the first 1, 10, 50 and 200 million tokens of a store of real text (one that holds fewer is
refused), each in a process of its own on one core: CPU seconds, the shortest of some rounds, and
the most memory it held. From the largest size a table of what 9.04 billion
tokens would take on machines of 24 and 64 GB, cut at the ends of 8,009,762 simulated documents.

Exit 1 when memory is over what `token_index.memory_of` says beforehand, when from 10 million tokens
on a ten times larger shard costs over 1.6 times as much a token, or when that growth was not
measured because --sizes left it out.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np
import real_text

from data_attribution import token_index
from data_attribution.errors import AttributionError
from data_attribution.token_index import Rate, suffix_array
from train.data import open_store
from train.progress import duration


MILLION, GB = 1_000_000, 10**9
SIZES = (1, 10, 50, 200)
ROUNDS = {1: 5, 10: 3}
CACHED, GROWTH = 10, 1.6  # smaller shards, in million tokens, lie in a processor's caches
DOCUMENTS, TOKENS, VOCABULARY = 8_009_762, 9_035_582_198, 50257


def main() -> int:
    """Measure sorting, then reckon; 1 when a bound is missed."""
    options = _options()
    if options.part:
        print(json.dumps(_sorted(options.store, options.part)))
        return 0
    store = real_text.store(options.store, max(options.sizes) * MILLION, more=options.more)
    print(machine.described("numpy", "pydivsufsort"))
    print(f"{store.n_tokens:,} tokens of {store.manifest['corpus']['source']}")
    rows = [measured(options, one) for one in sorted(options.sizes)]
    held = holds(rows)
    _table(Rate(rows[-1]["tokens"], rows[-1]["tokens"] / rows[-1]["cpu"]))
    return int(not held)


def holds(rows: list[dict[str, Any]]) -> bool:
    """Print the growth; whether memory and growth are within their bounds.

    They are not if no growth was measured beyond 10 million tokens.
    """
    good, bounded = True, False
    for row, before in zip(rows, [None, *rows], strict=False):
        growth = ""
        if before:
            decades = math.log10(row["tokens"] / before["tokens"])
            dearer = (row["cpu"] / row["tokens"]) / (before["cpu"] / before["tokens"])
            rise = dearer ** (1 / decades)
            growth = f", {rise:.2f} times as dear a token for ten times as many"
            if before["tokens"] >= CACHED * MILLION:
                good, bounded = good and rise <= GROWTH, True
        good &= row["peak"] <= row["said"]
        print(
            f"{row['tokens'] / MILLION:6.0f} M tokens {row['cpu']:8.2f} s "
            f"{row['tokens'] / row['cpu'] / MILLION:6.2f} Mtok/s, "
            f"{row['peak'] / row['tokens']:5.1f} bytes a token (said: at most "
            f"{row['said'] / row['tokens']:.1f}){growth}"
        )
    if not bounded:
        print(f"no growth from {CACHED} M tokens on was measured: its bound is missed")
    return good and bounded


def measured(options: argparse.Namespace, millions: int) -> dict[str, Any]:
    """The shortest of some sorts in processes of their own, and the most memory of any."""
    command = [sys.executable, __file__, "--store", str(options.store)]
    command += ["--part", str(millions * MILLION)]
    said = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(ROUNDS.get(millions, 1))
    ]
    best = min(said, key=lambda one: one["cpu"])
    return {**best, "peak": max(one["peak"] for one in said)}


def _sorted(path: Path, n_tokens: int) -> dict[str, Any]:
    tokens = open_store(path).tokens.view(np.ndarray)[:n_tokens]
    suffix_array.build(tokens[:1000])  # the library is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    suffix_array.build(tokens)
    cpu = time.process_time() - begin
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    itemsize = tokens.dtype.itemsize
    said = token_index.memory_of(n_tokens, itemsize=itemsize, workers=1)
    return {"tokens": n_tokens, "cpu": cpu, "peak": peak, "said": said + token_index.PROCESS}


def _table(rate: Rate) -> None:
    """What 9.04 billion tokens take, by the rate measured here."""
    print(f"\n{TOKENS:,} tokens, reckoned from the largest size above:")
    store: Any = _simulated()
    for gigabytes in (24, 64):
        for shards, workers in ((5, 1), (None, 1), (None, 4)):
            asked = f"{gigabytes} GB, {shards or 'as few as fit'}"
            try:
                plan = token_index.plan_shards(
                    store, shards=shards, workers=workers, memory=gigabytes * GB
                )
            except AttributionError as refused:
                print(f"{asked}: {refused}")
                continue
            found = token_index.estimate_shards(store, plan).sentence()
            seconds = token_index.sorting_seconds(plan, rate)
            print(f"{asked}: {found}, sorted in about {duration(seconds)}")


def _simulated() -> SimpleNamespace:
    """As much of a store as is cut: documents of log-normal length."""
    weights = np.random.default_rng(0).lognormal(0.0, 1.0, DOCUMENTS)
    lengths = np.maximum((weights / weights.sum() * (TOKENS - DOCUMENTS)).astype(np.int64), 1)
    starts = 1 + np.cumsum(lengths + 1) - (lengths + 1)
    n_tokens = int(starts[-1] + lengths[-1] + 1)
    tokens = np.empty(0, np.uint16)
    return SimpleNamespace(
        starts=starts,
        n_tokens=n_tokens,
        train_tokens=n_tokens,
        tokens=tokens,
        vocab_size=VOCABULARY,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True, help="of real text; made if missing")
    parser.add_argument("--more", type=Path, nargs="+", default=(), help="`real_text.py --more`")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="millions of tokens")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
