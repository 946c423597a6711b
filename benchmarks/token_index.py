"""Build and question a token index beside infini-gram 2.6.0 and tokengrams 0.3.3, on real text.

    python -m venv /tmp/infini-gram && /tmp/infini-gram/bin/pip install infini-gram==2.6.0
    python -m venv /tmp/tokengrams && /tmp/tokengrams/bin/pip install tokengrams==0.3.3
    python benchmarks/token_index.py --store /tmp/real-text \\
        --infini-gram /tmp/infini-gram/bin/python --tokengrams /tmp/tokengrams/bin/python

The text is what the machine holds (`real_text.py` says what; made once, at least 50 million
tokens). Every library builds from tokens that lie on the disk in its own layout, on all cores this
process may use, in a process of its own, in alternation; the shortest of the rounds counts, wall
and CPU time. What is timed of ours is `indexing.build` whole: checking the tokens' sha256, sorting,
first-token and key tables, hashing and syncing every file. infini-gram and tokengrams sort and
write; neither hashes or syncs. A single shard keeps libdivsufsort's second thread busy for a part
of the time only; two shards are sorted by a process each.

`token_index_queries.py` then asks all of them the same questions. Exit 1 when a bound is missed:
one shard 1.3 times as fast as infini-gram and 1.5 times as tokengrams, two shards twice as fast as
both, 6.0 bytes a token with the text and key tables less than 3 % more; and when a library is
missing, so that its bounds were not checked, unless --alone says that this is meant.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
import real_text

from train.data import TokenStore, open_store


__all__ = ["Build", "Others", "builds_hold"]

ASKED = {"one shard": (1.3, 1.5), "two shards": (2.0, 2.0)}
PLAIN, TABLES = 6.0, 0.03  # bytes a token with the text; what the tables may add
SEPARATOR = 0xFFFF  # infini-gram's, before every document
# Importing is not timed: tokengrams' takes seconds, for it imports transformers.
TIMED = """
import json, resource, sys, time
def used():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, kinds))
def timed(build):
    begin, before = time.perf_counter(), used()
    build()
    print()
    print(json.dumps([time.perf_counter() - begin, used() - before]))
"""
OURS = """
from data_attribution import token_index
from train.data import open_store
store, shards, workers = open_store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
timed(lambda: token_index.build(store, shards=shards, workers=workers))
"""
TOKENGRAMS = """
from tokengrams.tokengrams import MemmapIndex
tokens, index, vocab = sys.argv[1:]
timed(lambda: MemmapIndex.build(tokens, index, vocab=int(vocab), verbose=False))
"""
INFINI_GRAM = """
import subprocess
timed(lambda: subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL))
"""


@dataclass(frozen=True)
class Build:
    """The shortest of several builds, in seconds."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Others:
    """Where the other libraries are, and what they built: None for one that was not given.

    `infini_gram` is its python and the folder of its index; `tokengrams` its python, the file of
    tokens and the file of the index.
    """

    infini_gram: tuple[Path, Path] | None = None
    tokengrams: tuple[Path, Path, Path] | None = None


def main() -> int:
    """Make the text, build, ask, and print; 1 when a bound is missed."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder)
        store = real_text.store(options.store or place / "store", options.tokens)
        print(machine.described("numpy", "pydivsufsort"))
        print(
            f"{store.n_tokens:,} tokens in {store.n_documents:,} documents of "
            f"{store.manifest['corpus']['source']}"
        )
        # A copy, so that the index of a store that was given is left as it is.
        copy = place / "copy"
        shutil.copytree(store.path, copy, ignore=shutil.ignore_patterns("index", "bm25", ".*"))
        store = open_store(copy)
        others = _prepared(store, place, options)
        built = _alternated(store, others, options.rounds)
        compared = builds_hold(built, store.n_tokens, alone=options.alone)
        held = [compared, _bytes_hold(store)]
        if not options.builds_only:
            import token_index_queries

            held += token_index_queries.queries(store, others)
    return int(not all(held))


def builds_hold(built: dict[str, Build], n_tokens: int, *, alone: bool = False) -> bool:
    """Print every build and how many times as long as ours it took; whether the bounds hold.

    A library that was not built misses its bounds, unless they are to be left out (`alone`).
    """
    held = []
    for name, one in built.items():
        print(
            f"build {name:<12} {one.wall:7.2f} s wall {one.cpu:7.2f} s CPU "
            f"{n_tokens / one.wall / 1e6:6.2f} Mtok/s"
        )
    for name in {"infini-gram", "tokengrams"} - built.keys():
        print(f"{name} was not given (--{name} PYTHON): the bounds beside it were not checked")
        held.append(alone)
    for ours, asked in ASKED.items():
        for name, least in zip(("infini-gram", "tokengrams"), asked, strict=True):
            if name in built:
                wall, cpu = (
                    getattr(built[name], kind) / getattr(built[ours], kind)
                    for kind in ("wall", "cpu")
                )
                held.append(wall >= least)
                print(
                    f"{ours} against {name:<12} {wall:.2f} times as fast, asked {least:g} "
                    f"({cpu:.2f} times less CPU)"
                )
    return all(held)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="of real text; made there if it is not there")
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where indices go for a while")
    parser.add_argument("--infini-gram", type=Path, metavar="PYTHON")
    parser.add_argument("--tokengrams", type=Path, metavar="PYTHON")
    parser.add_argument("--alone", action="store_true", help="leave out bounds beside the others")
    parser.add_argument("--builds-only", action="store_true", help="ask no questions")
    return parser.parse_args()


def _prepared(store: TokenStore, place: Path, options: argparse.Namespace) -> Others:
    """The store's tokens in the layouts of the others."""
    infini_gram = tokengrams = None
    if options.infini_gram:
        infini_gram = options.infini_gram, _for_infini_gram(store, place / "infini-gram")
    if options.tokengrams:
        tokengrams = options.tokengrams, store.path / "tokens.bin", place / "tokengrams.idx"
    return Others(infini_gram, tokengrams)


def _for_infini_gram(store: TokenStore, folder: Path) -> Path:
    """Its step 1 done already: 0xffff before every document, and where documents begin."""
    folder.mkdir()
    tokens = np.array(store.tokens[:-1])
    tokens[tokens == store.eot] = SEPARATOR
    tokens.tofile(folder / "tokenized.0")
    (2 * (store.starts - 1)).astype("<u8").tofile(folder / "offset.0")
    return folder


def _alternated(store: TokenStore, others: Others, rounds: int) -> dict[str, Build]:
    """Every build once a round, each in a process of its own; the shortest of each."""
    builders: dict[str, Callable[[], Build]] = {
        "two shards": lambda: _ours(store, 2),
        "one shard": lambda: _ours(store, 1),
    }
    if others.infini_gram:
        builders["infini-gram"] = lambda: _infini_gram(*(others.infini_gram or ()))
    if others.tokengrams:
        builders["tokengrams"] = lambda: _tokengrams(store, *(others.tokengrams or ()))
    taken = {name: [] for name in builders}
    for _ in range(rounds):
        for name, build in builders.items():
            taken[name].append(build())
    return {
        name: Build(min(one.wall for one in found), min(one.cpu for one in found))
        for name, found in taken.items()
    }


def _ours(store: TokenStore, shards: int) -> Build:
    shutil.rmtree(store.path / "index", ignore_errors=True)
    return _timed(Path(sys.executable), OURS, str(store.path), str(shards), _cores())


def _infini_gram(python: Path, folder: Path) -> Build:
    (folder / "table.0").unlink(missing_ok=True)
    command = [str(python), "-m", "infini_gram.indexing", "--data_dir", str(folder)]
    command += ["--save_dir", str(folder), "--token_dtype", "u16", "--cpus", _cores()]
    return _timed(python, INFINI_GRAM, *command, "--mem", "8", "--ulimit", "4096")


def _tokengrams(store: TokenStore, python: Path, tokens: Path, index: Path) -> Build:
    index.unlink(missing_ok=True)
    return _timed(python, TOKENGRAMS, str(tokens), str(index), str(store.vocab_size))


def _cores() -> str:
    return str(len(os.sched_getaffinity(0)))


def _timed(python: Path, code: str, *arguments: str) -> Build:
    """Run code that times itself by `timed`, children included, in a process of its own."""
    ended = subprocess.run(
        [str(python), "-c", TIMED + code, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if ended.returncode:
        sys.exit(f"{python} failed:\n{ended.stdout[-500:]}{ended.stderr[-2000:]}")
    return Build(*json.loads(ended.stdout.splitlines()[-1]))


def _bytes_hold(store: TokenStore) -> bool:
    """Print what the last index, of one shard, takes on disk; whether it is as little as asked."""
    index = store.path / "index"
    files = json.loads((index / "index.json").read_text())["files"]
    kinds = {kind: 0 for kind in ("suffixes.u32", "keys.u64", "buckets.i64", "json")}
    for name, file in files.items():
        kinds[name.split(".", 1)[1]] += file["bytes"]
    text = (store.path / "tokens.bin").stat().st_size
    plain = (text + kinds["suffixes.u32"]) / store.n_tokens
    tables = sum(size for kind, size in kinds.items() if kind != "suffixes.u32")
    share = tables / (text + kinds["suffixes.u32"])
    print(f"{plain:.3f} bytes a token with the text, tables {share:.2%} more")
    return plain <= PLAIN and share < TABLES


if __name__ == "__main__":
    sys.exit(main())
