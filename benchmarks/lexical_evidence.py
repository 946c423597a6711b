"""How well lexical evidence finds the documents of planted facts, and what its weights are worth.

    python benchmarks/lexical_evidence.py --seed 0

For every fact of the planted corpus: of its n documents, the share among the first n ranked, and
among the first n + its distractors + 1 (its mention), for facts that were stated in the asked form
and for facts that never were. Ranked by BM25 with the template at four weights; 1 is plain BM25.
Then the share of its documents among the 100 and the 1,000 candidates that methods which follow
gradients look at. Nothing is trained. Half a minute.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow.parquet as pq

from data_attribution import lexical, queries, token_index
from data_attribution.request import Request
from interp import behaviours
from train.data import build_store, open_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="Of the planted corpus.")
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(open_corpus("planted", seed=seed), out=Path(folder) / "planted")
        start = time.perf_counter()
        index = token_index.build(store)
        print(f"{machine.described('numpy')}, {store.n_documents:,} documents")
        print(f"index of {store.n_tokens:,} tokens built in {time.perf_counter() - start:.2f} s")
        # The truth table names documents by their row in the corpus; the store packs them anew.
        rows = pq.read_table(store.path / "documents.parquet", columns=["row"])["row"].to_numpy()
        places = np.empty(rows.max() + 1, np.int64)
        places[rows] = np.arange(len(rows))
        start = time.perf_counter()
        lexical.build_inverted_index(store)
        print(f"BM25 index built in {time.perf_counter() - start:.2f} s")
        for shared in (1.0, 0.3, 0.1, 0.0):
            report(index, places, shared)
        for limit in (100, 1000):
            candidates(index, places, limit)


def stated_facts(index: token_index.TokenIndex) -> list[dict[str, Any]]:
    """The facts that some document states."""
    truth = index.store.truth
    assert truth
    return [fact for fact in truth["facts"] if fact["documents"]]


def report(index: token_index.TokenIndex, places: np.ndarray, shared: float) -> None:
    found, start = defaultdict(list), time.perf_counter()
    facts = stated_facts(index)
    for fact in facts:
        asked = behaviours.load(f"fact:{fact['entity']}", index.store, n_prompts=1)
        (bag,) = lexical.prompt_bags(index.store, asked)
        bag = {token: shared if weight < 1 else weight for token, weight in bag.items()}
        ranked = lexical.rank_by_words(index, [bag]).documents.tolist()
        true = set(places[fact["documents"]].tolist())
        allowed = len(true) + len(fact["distractors"]) + 1
        kind = "never in the asked form" if fact["paraphrase_only"] else "in the asked form"
        shares = [len(true & set(ranked[:n])) / len(true) for n in (len(true), allowed)]
        found[kind].append(shares)
    each = (time.perf_counter() - start) / len(facts)
    for kind, shares in sorted(found.items()):
        exact, allowed = np.mean(shares, axis=0)
        print(
            f"template weighs {shared:.1f}, {len(shares):3} facts stated {kind:23}: "
            f"{exact:.2f} in the first n, {allowed:.2f} with room for distractors; "
            f"{1000 * each:.0f} ms a fact"
        )


def candidates(index: token_index.TokenIndex, places: np.ndarray, limit: int) -> None:
    found = defaultdict(list)
    for fact in stated_facts(index):
        asked = behaviours.load(f"fact:{fact['entity']}", index.store, n_prompts=1)
        request = Request(None, index, asked, queries.query_of_behaviour(asked))
        kind = "never in the asked form" if fact["paraphrase_only"] else "in the asked form"
        there = np.isin(places[fact["documents"]], lexical.candidates(request, limit=limit))
        found[kind].append(there.mean())
    for kind, shares in sorted(found.items()):
        print(
            f"{limit:,} candidates, {len(shares):3} facts stated {kind:23}: "
            f"{np.mean(shares):.3f} of their documents, the worst fact {min(shares):.2f}"
        )


if __name__ == "__main__":
    main()
