"""Ask a token index and other libraries the same questions; `token_index.py` runs it.

Counts of 300 n-grams of 1 to 16 tokens that stand inside documents, the last token of 30 % of them
replaced; up to 100 documents of each; all maximal spans of 256-token texts, which are stretches of
documents with every tenth token, on average, replaced. Replacements are drawn as often as they
stand in the text. All from one seed.

Every library answers in a process of its own, warm: each question is asked once, then PASSES times,
in several rounds that alternate with the others'. Times are taken around the public call, on lists
of token ids, with one thread. p50 and p99 are over all calls but the first of each question, so
that what the machine does meanwhile is in them. infini-gram is asked `count`, `creativity` (longest
match of each start) and `attribute` (maximal spans with up to 10 documents), of which the faster
one counts; tokengrams `count` and, for documents, `positions`, which gives every place without its
document.

Bounds: count p50 20 and p99 60 microseconds; 100 documents p99 0.2 ms; spans p99 2 ms and 25 times
as fast as infini-gram. All libraries count the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.data import TokenStore


if TYPE_CHECKING:
    from token_index import Others

__all__ = ["asked", "holds", "queries"]

GRAMS, TEXTS, LENGTH, LONGEST = 300, 20, 256, 16
ROUNDS, PASSES = 3, 5
# Microseconds: (p50, p99) of all warm calls.
ASKED = {"count": (20.0, 60.0), "documents": (None, 200.0), "spans": (None, 2000.0)}
FASTER = 25.0

TIMED = f"""
import json, sys, time
asked = json.load(open(sys.argv[1]))
def timed(call, cases):
    warm = []
    for turn in range({PASSES} + 1):
        for case in cases:
            begin = time.perf_counter()
            call(case)
            taken = time.perf_counter() - begin
            warm += [taken] if turn else []
    return warm
def answer(counts, **times):
    json.dump({{"counts": counts, **times}}, sys.stdout)
"""
OURS = """
from data_attribution import token_index
from train.data import open_store
index = token_index.open(open_store(sys.argv[2]))
answer(
    [index.count(one).count for one in asked["grams"]],
    count=timed(index.count, asked["grams"]),
    documents=timed(lambda one: list(index.find(one, limit=100)), asked["grams"]),
    spans=timed(index.maximal_spans, asked["texts"]),
    batch=timed(index.counts, [asked["grams"]] * 3),
    next=timed(index.next_tokens, asked["grams"]),
)
"""
INFINI_GRAM = """
from infini_gram.engine import InfiniGramEngine
index = InfiniGramEngine(index_dir=sys.argv[2], eos_token_id=int(sys.argv[3]))
answer(
    [index.count(one)["count"] for one in asked["grams"]],
    count=timed(index.count, asked["grams"]),
    spans=timed(index.creativity, asked["texts"]),
    attribute=timed(
        lambda one: index.attribute(one, delim_ids=[], min_len=1, max_cnt=10, enforce_bow=False),
        asked["texts"],
    ),
)
"""
TOKENGRAMS = """
from tokengrams.tokengrams import MemmapIndex
index = MemmapIndex(sys.argv[2], sys.argv[3], vocab=int(sys.argv[4]))
answer(
    [index.count(one) for one in asked["grams"]],
    count=timed(index.count, asked["grams"]),
    documents=timed(index.positions, asked["grams"]),
)
"""


def queries(store: TokenStore, others: "Others") -> list[bool]:
    """Ask everybody, print what it took, and say which bounds hold."""
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "asked.json"
        questions.write_text(json.dumps(asked(store, seed=0)))
        commands = {"ours": [sys.executable, "-c", TIMED + OURS, questions, store.path]}
        if others.infini_gram:
            python, index = others.infini_gram
            commands["infini-gram"] = [
                python, "-c", TIMED + INFINI_GRAM, questions, index, store.eot,
            ]  # fmt: skip
        if others.tokengrams:
            python, tokens, index = others.tokengrams
            commands["tokengrams"] = [
                python, "-c", TIMED + TOKENGRAMS, questions, tokens, index, store.vocab_size,
            ]  # fmt: skip
        found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                found[name].append(_answered([str(one) for one in command]))
    return holds({name: _together(rounds) for name, rounds in found.items()})


def asked(store: TokenStore, seed: int) -> dict[str, list[list[int]]]:
    """N-grams and texts of a store, as lists of token ids."""
    random = np.random.default_rng(seed)
    wide = np.flatnonzero(store.lengths >= LENGTH)
    wide = wide[store.starts[wide] < store.train_tokens]

    def stretch(n: int) -> np.ndarray:
        document = random.choice(wide)
        start = store.starts[document] + random.integers(store.lengths[document] - n + 1)
        return np.array(store.tokens[start : start + n], np.int64)

    grams, texts = [], []
    for _ in range(GRAMS):
        gram = stretch(int(random.integers(1, LONGEST + 1)))
        if random.random() < 0.3:
            gram[-1] = stretch(1)[0]
        grams.append(gram.tolist())
    for _ in range(TEXTS):
        text = stretch(LENGTH)
        for at in np.flatnonzero(random.random(LENGTH) < 0.1):
            text[at] = stretch(1)[0]
        texts.append(text.tolist())
    return {"grams": grams, "texts": texts}


def holds(found: dict[str, dict[str, list[float]]]) -> list[bool]:
    """Print every time, in microseconds; whether ours are as short as asked, and all counts equal.

    Args:
        found: Of each library seconds by kind of question, and its counts.
    """
    ours, held = found["ours"], []
    for name, answers in found.items():
        for kind, seconds in answers.items():
            if kind != "counts":
                p50, p99, most = np.percentile(np.array(seconds) * 1e6, [50, 99, 100])
                print(f"{name:<12} {kind:<10} p50 {p50:9.1f} us p99 {p99:9.1f} us most {most:9.1f}")
        same = answers["counts"] == ours["counts"]
        print(f"{name:<12} counts {'as ours' if same else 'DIFFER FROM OURS'}")
        held.append(same)
    for kind, (median, high) in ASKED.items():
        times = np.array(ours[kind]) * 1e6
        last = np.percentile(times, 99)
        held.append(bool(last <= high and (median is None or np.median(times) <= median)))
        print(f"{kind}: {'holds' if held[-1] else 'MISSED'} (p50 {median}, high {high} us)")
    if "infini-gram" in found:
        theirs = found["infini-gram"]
        fastest = min(np.sum(theirs["spans"]), np.sum(theirs["attribute"]))
        times = fastest / np.sum(ours["spans"])
        held.append(bool(times >= FASTER))
        print(f"spans {times:.1f} times as fast as infini-gram's, asked {FASTER:g}")
    return held


def _together(rounds: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The times of all rounds; the counts are the same in each."""
    every = {kind: np.concatenate([one[kind] for one in rounds]).tolist() for kind in rounds[0]}
    return {**every, "counts": rounds[0]["counts"]}


def _answered(command: list[str]) -> dict[str, list[float]]:
    alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **alone})
    if ended.returncode:
        sys.exit(f"{command[0]} failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])
