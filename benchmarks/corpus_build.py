"""Peak memory and throughput of `token_store.build` on a synthetic jsonl.

    python benchmarks/corpus_build.py --megabytes 1000

Claims: the peak resident memory of a build stays under 1 GB whatever the size of the corpus, and
its throughput is at least 0.8 of plain tiktoken's `encode_ordinary_batch` on as many threads.

The file is made here from a seed: words of the Python manual in their own frequencies, one in ten
an invented word so that byte pairs have work, documents of log-normal length (median 3 kB). The
build is timed whole: hashing the file, reading JSON, encoding, hashing texts, writing and syncing
tokens and table, hashing the store. The baseline is timed on the encoding alone, of the same texts,
32 MB at a time so that its lists of ids fit into memory. Each runs in a process of its own, in
alternation. Exit 1 when a claim is missed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import machine
import numpy as np

from train.data import build_store, gpt2_tokenizer, open_corpus


MEGABYTE = 1_000_000
BASELINE_BYTES = 32 * MEGABYTE
PEAK, RATIO = 1000, 0.8


def main() -> int:
    options = _options()
    if options.part:
        part = {"build": _build, "baseline": _baseline}[options.part]
        part(Path(options.file), options.threads)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "synthetic.jsonl"
        documents, text_bytes = _write_corpus(path, options.megabytes * MEGABYTE, options.seed)
        print(f"machine    {machine.described('tiktoken')}, {options.threads} threads")
        print(f"corpus     {text_bytes / MEGABYTE:.0f} MB of text, {documents:,} documents")
        results = [measured_round(path, options.threads, text_bytes) for _ in range(options.rounds)]
    peak = max(result["peak_mb"] for result in results)
    ratio = statistics.median(result["ratio"] for result in results)
    print(f"peak       {peak:.0f} MB resident (under {PEAK} is claimed)")
    print(f"ratio      {ratio:.2f} (median of n={len(results)}; at least {RATIO} is claimed)")
    return int(peak >= PEAK or ratio < RATIO)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the corpus and the stores go for a while")
    parser.add_argument("--part", choices=["build", "baseline"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured_round(path: Path, threads: int, text_bytes: int) -> dict[str, float]:
    baseline = _child("baseline", path, threads)
    build = _child("build", path, threads)
    assert baseline["tokens"] == build["tokens"], "the two encoded different text"
    speeds = [text_bytes / MEGABYTE / one["seconds"] for one in (build, baseline)]
    ratio = speeds[0] / speeds[1]
    print(
        f"round      build {speeds[0]:.1f} MB/s, encode_ordinary_batch {speeds[1]:.1f} MB/s, ratio "
        f"{ratio:.2f}, peak {build['peak_mb']:.0f} MB, {build['tokens']:,} tokens"
    )
    return {"ratio": ratio, "peak_mb": build["peak_mb"]}


def _child(part: str, path: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, "--file", str(path)]
    found = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout)


def _build(path: Path, threads: int) -> None:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / "store"
        store = build_store(open_corpus(path), out=out, threads=threads)
        _report(time.perf_counter() - begin, int(store.lengths.sum()))


def _baseline(path: Path, threads: int) -> None:
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    pieces = gpt2_tokenizer().pieces[:-1]
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks={piece: rank for rank, piece in enumerate(pieces)},
        special_tokens={"<|endoftext|>": len(pieces)},
    )
    seconds, tokens = 0.0, 0
    for texts in _texts(path):
        begin = time.perf_counter()
        ids = encoding.encode_ordinary_batch(texts, num_threads=threads)
        seconds += time.perf_counter() - begin
        tokens += sum(map(len, ids))
    _report(seconds, tokens)


def _texts(path: Path) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size >= BASELINE_BYTES:
                yield texts
                texts, size = [], 0
    yield texts


def _report(seconds: float, tokens: int) -> None:
    # Linux counts in kB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
    print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_mb": peak}))


def _write_corpus(path: Path, size: int, seed: int) -> tuple[int, int]:
    """Write about `size` bytes of text as jsonl; documents and bytes of text."""
    draw = np.random.Generator(np.random.PCG64(seed))
    manual = np.array(" ".join(topics.values()).split())
    invented = _invented(draw, 50_000)
    documents = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            n_words = int(np.clip(draw.lognormal(np.log(500), 0.9), 5, 50_000))
            words = manual[draw.integers(manual.size, size=n_words)]
            rare = draw.random(n_words) < 0.1
            words = np.where(rare, invented[draw.integers(invented.size, size=n_words)], words)
            text = " ".join(words.tolist())
            file.write(json.dumps({"text": text, "title": f"Document {documents}"}) + "\n")
            documents += 1
            written += len(text.encode())
    return documents, written


def _invented(draw: np.random.Generator, count: int) -> np.ndarray:
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "st")]
    chosen = draw.integers(len(syllables), size=(count, 3))
    return np.array(["".join(syllables[one] for one in row) for row in chosen.tolist()])


if __name__ == "__main__":
    sys.exit(main())
