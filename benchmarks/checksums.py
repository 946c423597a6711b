"""What the checks of digests cost: every workload with them and without them, side by side.

    python benchmarks/checksums.py

The released planted run, its store, its indexes, gradients and activations are made in a temporary
folder. Each workload runs in pairs, with all checks and with those of commit 13cbd02 only (tokens
before an index is built, files of up to 8 MiB of an opened index), in turns. Seconds are of the
processor, on one thread, and the ratio is the median over the pairs. Exit 1 when training or
building an index takes more than --most of the time without checks and --least ms more: the files
are small: an index is built in 60 ms, of which hashing the document table takes one or two.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import machine
import numpy as np
import torch

from data_attribution import gradients, lexical, token_index
from interp import activations
from train import released, trainer
from train.data import TokenStore, open_store
from train.numerics import Numerics
from train.runs import Run
from train.storage import BlockCheck, artifact, digest_memory


BOUND = ("train 20 steps", "index build", "bm25 build")
STEPS, SITES = 20, ["L*.resid_post"]


@contextmanager
def unchecked() -> Iterator[None]:
    """Hash only what commit 13cbd02 hashed while the block runs."""
    with (
        mock.patch.object(digest_memory, "check_once", _nothing),
        mock.patch.object(artifact, "check_once", _check_small),
        mock.patch.object(TokenStore, "check_files", _check_tokens),
        mock.patch.object(BlockCheck, "check", _nothing),
        mock.patch.object(BlockCheck, "check_rows", _nothing),
    ):
        yield


def _nothing(*_: object) -> None:
    """Take the place of a function that checks a digest."""


def _check_small(path: Path, sha256: str, manifest: str, remedy: str) -> None:
    if path.stat().st_size <= digest_memory.HASHED:
        digest_memory.check_digest(path, sha256, manifest, remedy)


def _check_tokens(store: TokenStore, *, anew: bool = False) -> None:
    if anew:
        sha256 = store.manifest["files"]["tokens.bin"]
        digest_memory.check_digest(store.path / "tokens.bin", sha256, "store.json", "")


def workloads(run: Run, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the workloads by name; each opens its files anew."""
    store, out = run.store.path, folder / "out"
    recipe = replace(run.recipe, steps=STEPS, checkpoint_every=STEPS)
    numerics = Numerics("cpu", "fp32", 1)
    gradients.build_gradient_store(
        run, out=folder / "gradients", within=["L1.mlp"], documents=np.arange(4000), metric="plain"
    )
    windows = activations.document_windows(run.store, context=64, documents=range(8000))
    activations.write_store(run.load(), windows, sites=SITES, out=folder / "activations")

    def train() -> None:
        trainer.train(recipe, open_store(store), out=out, numerics=numerics)
        shutil.rmtree(out)

    def read_store(opened: TokenStore) -> int:
        return int(opened.tokens.sum()) + int(opened.starts[-1])

    def read_activations() -> None:
        stored = activations.open_store(folder / "activations")
        for site in stored.sites:
            stored.read(site)

    def read_gradients() -> None:
        for _ in gradients.open_gradient_store(folder / "gradients").pieces():
            pass

    return {
        BOUND[0]: train,
        BOUND[1]: lambda: token_index.build(open_store(store)),
        BOUND[2]: lambda: lexical.build_inverted_index(open_store(store)),
        "read tokens and table": lambda: read_store(open_store(store)),
        "open index, count": lambda: token_index.open(open_store(store)).count("of runethi"),
        "read activations": read_activations,
        "read gradients": read_gradients,
    }


def pairs(work: Callable[[], object], n: int) -> list[tuple[float, float]]:
    """Return seconds with and without checks of `n` pairs, whose order alternates."""

    def measured(checked: bool) -> float:
        with nullcontext() if checked else unchecked():
            return _seconds(work)

    work()
    found = []
    for number in range(n):
        first = number % 2 == 0
        seconds = {checked: measured(checked) for checked in (first, not first)}
        found.append((seconds[True], seconds[False]))
    return found


def _seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main(arguments: list[str] | None = None) -> int:
    """Print the ratios; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs of each workload")
    parser.add_argument("--most", type=float, default=1.02, help="largest ratio that passes")
    parser.add_argument("--least", type=float, default=5.0, help="ms that pass at any ratio")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine.described("torch", "numpy", "xxhash"))
    print(f"{'workload':<24}{'with':>12}{'without':>12}{'ratio':>8}")
    slow = []
    with tempfile.TemporaryDirectory() as name:
        run = released.open("planted", folder=Path(name) / "planted")
        for what, work in workloads(run, Path(name)).items():
            found = pairs(work, options.pairs)
            ratio = statistics.median(checked / without for checked, without in found)
            both = [statistics.median(one) * 1e3 for one in zip(*found, strict=True)]
            print(f"{what:<24}" + "".join(f"{one:>9.1f} ms" for one in both) + f"{ratio:>8.3f}")
            if what in BOUND and ratio > options.most and both[0] - both[1] > options.least:
                slow.append(what)
    for what in slow:
        print(f"{what} takes more than {options.most} times as long with checks", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
