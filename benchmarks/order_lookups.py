"""How long step -> documents and document -> steps take at the size of OpenWebText.

    python benchmarks/order_lookups.py

A simulated store: 8,009,762 documents of log-normal length that sum to 9.04 billion tokens; the
order and the 52,453 steps of recipe gpt2-124m. Nothing is stored but the document table, and no
exposure ever is: what one was at any checkpoint is computed, here for one document and for a span
that stands in 10,000 of them. Exit 1 when the 99th percentile of a look-up, or of the exposure of
one document, is over a millisecond.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import machine
import numpy as np

from data_attribution import tracing
from train import recipes
from train.data import TokenStore
from train.runs import Run


N_DOCUMENTS, N_TOKENS, TRIALS = 8_009_762, 9_035_582_198, 2000
ASKED = 1.0  # milliseconds


def main() -> int:
    """Time random look-ups in both directions and print their quantiles; 1 when one is slow."""
    run, draw = simulated(), np.random.default_rng(1)
    steps = draw.integers(run.recipe.steps, size=TRIALS)
    documents = draw.integers(N_DOCUMENTS - 1, size=TRIALS)
    run.documents_read(0)
    run.steps_reading(0)
    tracing.exposure_of_documents(run, [0])
    print(f"{machine.described('numpy')}, n {TRIALS} each")
    held = [
        report("documents_read(step)", [timed(run.documents_read, int(step)) for step in steps]),
        report(
            "steps_reading(document)", [timed(run.steps_reading, int(one)) for one in documents]
        ),
        report("exposure of a document", [timed(exposed(run), int(one)) for one in documents]),
    ]
    many = np.unique(draw.integers(N_DOCUMENTS - 1, size=10_000))
    took = min(timed(exposed(run), many) for _ in range(5))
    print(
        f"{'exposure of many':<24} {took:.1f} ms for {len(many):,} documents, "
        f"{1e3 * took / len(many):.2f} us each"
    )
    return int(not all(held))


def exposed(run: Run) -> Callable[..., tracing.Exposure]:
    """What is timed: every reading of some documents before the last checkpoint."""
    return lambda documents: tracing.exposure_of_documents(run, np.atleast_1d(documents))


class SimulatedRun(Run):
    """A run whose store is nothing but a document table in memory."""

    @property
    def store(self) -> TokenStore:
        return simulated_store()


@cache
def simulated_store() -> TokenStore:
    """A store of documents that only have lengths."""
    draw = np.random.default_rng(0)
    weights = draw.lognormal(0.0, 1.0, N_DOCUMENTS)
    lengths = np.maximum((weights / weights.sum() * (N_TOKENS - N_DOCUMENTS)).astype(np.int64), 1)
    starts = 1 + np.cumsum(lengths + 1) - (lengths + 1)
    n_tokens = int(starts[-1] + lengths[-1] + 1)
    counts = {"documents": N_DOCUMENTS, "tokens": n_tokens, "train_tokens": n_tokens}
    store = TokenStore(Path("simulated"), {"counts": counts})
    vars(store).update(starts=starts, lengths=lengths)
    return store


def simulated() -> Run:
    """A run of gpt2-124m over the simulated store."""
    predicate = {
        "recipe": asdict(recipes.GPT2_124M),
        "knowledge": "full",
        "run_id": "simulated",
        "finished": True,
    }
    return SimulatedRun(Path("simulated"), {"predicate": predicate})


def timed(look_up: Callable[..., object], argument: int | np.ndarray) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    look_up(argument)
    return 1e3 * (time.perf_counter() - begin)


def report(name: str, milliseconds: list[float]) -> bool:
    """Print median, 99th percentile and maximum; whether the bound holds."""
    p50, p99, worst = np.quantile(milliseconds, [0.5, 0.99, 1.0])
    print(
        f"{name:<24} p50 {p50:.3f} ms   p99 {p99:.3f} ms   max {worst:.3f} ms   "
        f"asked p99 <= {ASKED:g} ms"
    )
    return bool(p99 <= ASKED)


if __name__ == "__main__":
    sys.exit(main())
