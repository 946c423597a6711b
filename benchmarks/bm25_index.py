"""How fast the BM25 index is built and asked, on real text, and beside bm25s.

    python benchmarks/bm25_index.py --tokens 10000000
    python -m venv /tmp/bm25s && /tmp/bm25s/bin/pip install bm25s==0.3.16
    python benchmarks/bm25_index.py --tokens 10000000 --bm25s /tmp/bm25s/bin/python

The text is that of benchmarks/real_text.py, made anew unless --store names a store. bm25s
(Lucene's variant, k1 1.2, b 0.75) is handed the same token ids as lists and keeps scores in memory;
ours reads tokens.bin, writes to disk and hashes what it wrote. Seconds are of the processor, of a
build the best of --rounds alternated rounds; queries are stretches of 12 tokens, ten documents
each, and each is asked three times a round: quantiles are those of all calls but the first of
three. Exit 1 when the build is below 5 million tokens a second, above one byte a token or slower
than bm25s, when the two disagree on a score or on how many documents have one, or when bm25s was
not given and --alone did not say so.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np
import real_text

from data_attribution import lexical
from train.data import TokenStore, open_store


SPEED, SIZE, QUERIES, LENGTH, TOP = 5e6, 1.0, 100, 12, 10

THEIRS = """
import json, sys, time
import bm25s, numpy as np
folder = sys.argv[1]
tokens, edges = np.load(folder + "/tokens.npy", mmap_mode="r"), np.load(folder + "/edges.npy")
queries, vocab = json.load(open(folder + "/queries.json"))
ids = [tokens[a:b].tolist() for a, b in edges.tolist()]
begin = time.process_time()
model = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
model.index((ids, {str(k): k for k in range(vocab)}), show_progress=False)
build = time.process_time() - begin
size = sum(model.scores[name].nbytes for name in ("data", "indices", "indptr"))
found, asked = [], []
for query in queries:
    took = []
    for _ in range(3):
        begin = time.process_time()
        documents, scores = model.retrieve([query], k=10, show_progress=False)
        took.append(time.process_time() - begin)
    found.append(scores[0].tolist())
    asked += took[1:]
print(json.dumps({"build": build, "bytes": size, "asked": asked, "scores": found}))
"""


def main() -> int:
    """Build and ask, print, and say whether the bounds hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--store", type=Path, help="A token store, instead of making one.")
    parser.add_argument("--bm25s", type=Path, help="Its python.")
    parser.add_argument("--alone", action="store_true", help="Leave out the bounds beside bm25s.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = options.store or real_text.store(Path(folder) / "store", options.tokens).path
        store = linked(open_store(made), Path(folder) / "linked")
        queries = drawn(store)
        rounds = [
            (ours(store, queries), theirs(options.bm25s, store, queries, Path(folder)))
            for _ in range(options.rounds)
        ]
    said = machine.described("numpy", "scipy")
    print(f"{said}; {store.n_tokens:,} tokens, {store.n_documents:,} documents")
    held = report([one for one, _ in rounds], [one for _, one in rounds if one], store.n_tokens)
    if options.bm25s is None:
        print("bm25s was not given (--bm25s PYTHON): neither speed nor scores were compared")
    return held if options.bm25s or options.alone else 1


def linked(store: TokenStore, folder: Path) -> TokenStore:
    """The same files under another name, so that nothing is written into a store of yours."""
    folder.mkdir()
    for path in store.path.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path.resolve())
    return open_store(folder)


def drawn(store: TokenStore) -> list[list[int]]:
    """Distinct tokens of stretches of the text."""
    draw = np.random.default_rng(0)
    places = draw.integers(store.train_tokens - LENGTH, size=QUERIES)
    rows = (set(store.tokens[at : at + LENGTH].tolist()) - {store.eot} for at in places.tolist())
    return [sorted(row) for row in rows]


def ours(store: TokenStore, queries: list[list[int]]) -> dict[str, Any]:
    """Build once, and ask."""
    assert len(store.starts) == len(store.lengths)  # read before the clock starts
    begin = time.process_time()
    built = lexical.build_inverted_index(store)
    build = time.process_time() - begin
    index: Any = SimpleNamespace(store=store)  # all that is read of an index
    scores, asked = [], []
    for query in queries:
        bag, best, took = dict.fromkeys(query, 1.0), [], []
        for _ in range(3):
            begin = time.process_time()
            found = lexical.rank_by_words(index, [bag], limit=TOP)
            took.append(time.process_time() - begin)
            best = found.scores.tolist()
        scores.append(best)
        asked += took[1:]
    folder = store.path / lexical.INVERTED_FOLDER
    size = sum(path.stat().st_size for path in folder.iterdir())
    entries = built.n_entries
    return {"build": build, "bytes": size, "asked": asked, "scores": scores, "entries": entries}


def theirs(
    python: Path | None, store: TokenStore, queries: list[list[int]], folder: Path
) -> dict[str, Any] | None:
    """The same by bm25s, in a process of its own."""
    if python is None:
        return None
    n = int(np.searchsorted(store.starts, store.train_tokens))
    np.save(folder / "tokens.npy", store.tokens)
    edges = np.stack([store.starts[:n], store.starts[:n] + store.lengths[:n]], axis=1)
    np.save(folder / "edges.npy", edges)
    (folder / "queries.json").write_text(json.dumps([queries, store.vocab_size]))
    command = [python, "-c", THEIRS, folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def report(mine: list[dict[str, Any]], other: list[dict[str, Any]], n_tokens: int) -> int:
    """Print both, best round of each; 1 when a bound is missed."""
    build = line("openbook", mine, n_tokens)
    size = mine[0]["bytes"] / n_tokens
    held = [n_tokens / build >= SPEED, size <= SIZE]
    print(f"asked: {SPEED / 1e6:g} Mtok/s, {SIZE:g} B/token")
    if other:
        slower = line("bm25s", other, n_tokens)
        pairs = zip(mine[0]["scores"], other[0]["scores"], strict=True)
        off = float(np.max([difference(a, b) for a, b in pairs]))  # NaN stays NaN
        print(f"build {slower / build:.1f} times as fast; scores differ by {off:.1e} at most")
        held += [build <= slower, off <= 1e-4]
    return int(not all(held))


def difference(mine: list[float], other: list[float]) -> float:
    """The largest relative difference of two rankings' scores; a document missed is one of 1.

    bm25s leaves out the factor k1 + 1, keeps scores in 32 bits, and fills up with zeros.
    """
    longest = max(len(mine), len(other))
    ours, theirs = (
        np.pad(np.asarray(one, np.float64), (0, longest - len(one))) for one in (mine, other)
    )
    ours = ours / (1 + lexical.K1)
    return float((np.abs(ours - theirs) / np.maximum(np.maximum(ours, theirs), 1e-9)).max())


def line(name: str, rounds: list[dict[str, Any]], n_tokens: int) -> float:
    """Print one engine's numbers; the seconds of its best build."""
    build = min(one["build"] for one in rounds)
    asked = np.concatenate([one["asked"] for one in rounds])
    p50, p99 = 1e3 * np.quantile(asked, [0.5, 0.99])
    print(
        f"{name:<9} build {build:6.2f} s, {n_tokens / build / 1e6:5.1f} Mtok/s   "
        f"{rounds[0]['bytes'] / n_tokens:.2f} B/token   "
        f"query p50 {p50:.2f} ms  p99 {p99:.2f} ms   n {len(asked)}"
    )
    return build


if __name__ == "__main__":
    sys.exit(main())
