"""Collect projected gradients beside bergson 2.5.1, from the same weights, one thread each.

    python -m venv /tmp/bergson
    /tmp/bergson/bin/pip install torch==2.13.0
    /tmp/bergson/bin/pip install --no-deps bergson==2.5.1 bitsandbytes
    /tmp/bergson/bin/pip install torch==2.13.0 accelerate datasets 'jaxtyping>=0.3.3' ml_dtypes \\
        natsort 'peft>=0.17' petname pyarrow pyyaml simple-parsing torchopt 'transformers>=5.0'
    python benchmarks/gradients.py --bergson /tmp/bergson/bin/python

(Installed plainly it asks for torchvision, which replaces a CPU's torch.) GPT-2's architecture with
4 layers of 128, 4 heads and 512 tokens; 512 documents of 64 positions; rank 16 on both sides. Each
library runs in a process of its own and they take turns; the least CPU time of a few rounds counts,
of the better of two batch sizes. bergson collects into memory, set up as its own `build` does it:
weights frozen, the embedding not, the same fp32 product as ours. It takes 16 matrices without
biases; ours takes the same with biases, and everything with embeddings, positions and unembedding.

First four documents are collected without projection: where both have the gradient of a matrix, it
must be the same. Exit 1 when it is not within 1e-4, when everything is not 1.3 times as fast as
bergson's 16 matrices, or the upper half not twice as fast.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np


ALL, UPPER, EXACT = 1.3, 2.0, 1e-4
DOCUMENTS, POSITIONS, VOCABULARY, LAYERS, RANK = 512, 64, 512, 4, 16
BATCHES = (1024, 2048)
MATRICES = {
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.o",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
FEW = 4  # documents that are compared number by number
OURS, THEIRS = (
    ("everything", "16 matrices", "upper half", "one head"),
    ("16 matrices", "upper half"),
)


def main() -> int:
    """Compare, time in turns and print; 1 when a bound is missed."""
    asked = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    asked.add_argument("--bergson", default=sys.executable, help="python of its environment")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--documents", type=int, default=DOCUMENTS)
    asked.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.worker:
        work(*given.worker)
        return 0
    print(machine.described("torch"), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        product = prepare(Path(folder), given.documents)
        print(
            f"rank {RANK}, fp32 product {product!r}, one thread, least CPU time of {given.rounds}"
        )
        workers = {
            "ours": Worker(sys.executable, "ours", folder, product),
            "bergson": Worker(given.bergson, "bergson", folder, product),
        }
        try:
            off = apart(Path(folder), workers)
            rates = in_turns(workers, given.rounds, given.documents)
        finally:
            for worker in workers.values():
                worker.stop()
    return report(rates, off)


def report(rates: dict[tuple[str, str], float], off: float) -> int:
    """Print documents a second; whether all bounds hold."""
    theirs = rates["bergson", "16 matrices"]
    for (who, what), rate in rates.items():
        against = rate / theirs
        print(f"{who:8} {what:12} {rate:7.1f} documents a second, {against:5.2f} x bergson's all")
    whole, upper = rates["ours", "everything"] / theirs, rates["ours", "upper half"] / theirs
    print(f"ours: the upper half is {upper / whole:.2f} x as fast as everything")
    print(f"largest difference of an unprojected gradient: {off:.1e} of its norm")
    held = whole >= ALL and upper >= UPPER and off <= EXACT
    verdict = "held" if held else "MISSED"
    print(f"asked: everything {ALL} x, upper half {UPPER} x, {EXACT} apart: {verdict}")
    return int(not held)


def in_turns(
    workers: dict[str, "Worker"], rounds: int, documents: int
) -> dict[tuple[str, str], float]:
    """Documents a second of every library and selection, at its better batch size."""
    cases = [(who, what) for who, kinds in (("ours", OURS), ("bergson", THEIRS)) for what in kinds]
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for batch in BATCHES:
            for who, what in cases:
                seconds = workers[who].ask({"what": what, "batch": batch})
                least[who, what] = min(least[who, what], seconds)
    return {case: documents / seconds for case, seconds in least.items()}


def apart(folder: Path, workers: dict[str, "Worker"]) -> float:
    """Largest distance of a document's gradient of a matrix in the two libraries; NaN if one is."""
    found = []
    for who, worker in workers.items():
        worker.ask({"what": "exact"})
        found.append(np.load(folder / f"{who}.npz"))
    ours, theirs = found
    distances = [
        np.linalg.norm(ours[n] - theirs[n], axis=1) / np.linalg.norm(ours[n], axis=1)
        for n in ours.files
    ]
    return float(np.max(distances))  # Python's max passes a NaN by


class Worker:
    """A library in a process of its own, which answers with CPU seconds."""

    def __init__(self, python: str, who: str, folder: str, product: str) -> None:
        here = Path(__file__)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        self.command = [python, str(here), "--worker", who, folder, product]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, question: dict) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        sys.exit(f"{' '.join(self.command[:3])} ... ended without an answer")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def prepare(folder: Path, documents: int) -> str:
    """Weights for both libraries and documents; the fastest true fp32 product of this machine."""
    import torch

    from interp.patching.engine import fast_product
    from train import convert
    from train.model import GPTConfig, init_gpt

    cfg = GPTConfig(
        n_layers=LAYERS, n_heads=4, d_model=128, n_ctx=POSITIONS, d_vocab=VOCABULARY, init_std=0.1
    )
    convert.export_huggingface(init_gpt(cfg, 0), None, folder / "model")
    draw = np.random.default_rng(0)
    np.save(folder / "tokens.npy", draw.integers(1, VOCABULARY, (documents, POSITIONS - 1)))
    torch.set_num_threads(1)
    return fast_product()


def work(who: str, folder: str, product: str) -> None:
    """Answer questions from stdin until it ends."""
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(product)
    answering = {"ours": ours, "bergson": bergson}[who](Path(folder))
    for line in sys.stdin:
        begin = time.process_time()
        answering(**json.loads(line))
        print(f"seconds {time.process_time() - begin}", flush=True)


def ours(folder: Path) -> Callable[..., None]:
    """Ours: a document is end-of-text and 63 tokens, its targets the tokens and end-of-text."""
    from data_attribution import gradients
    from interp import models

    model, texts = models.load(folder / "model"), np.load(folder / "tokens.npy")
    whole = [f"L{layer}.{part}" for layer in range(LAYERS) for part in ("attn", "mlp")]
    names = {
        "everything": None,
        "16 matrices": whole,
        "upper half": whole[LAYERS:],
        "one head": [f"L{LAYERS - 1}H0"],
    }

    def collect(what: str, batch: int = 0) -> None:
        if what == "exact":
            store = stored(texts[:FEW, :-1])
            selection = gradients.select_weights(model.cfg, whole)
            found = gradients.document_features(model, store, np.arange(FEW), selection, rank=10**6)
            blocks = {site.name: found.of(site.name) for site in selection.sites}
            widths = {site.name: (site.height, site.width) for site in selection.sites}
            weights: dict[str, Any] = {
                name: block.reshape(FEW, *widths[name])[:, :, :-1].reshape(FEW, -1)
                for name, block in blocks.items()
            }
            np.savez(folder / "ours.npz", **weights)
            return
        selection = gradients.select_weights(model.cfg, names[what])
        documents, store = np.arange(len(texts)), stored(texts)
        gradients.document_features(
            model, store, documents, selection, rank=RANK, batch_tokens=batch
        )

    return collect


def stored(texts: np.ndarray) -> Any:
    """As much of a token store as is asked for."""
    n, length = texts.shape
    tokens = np.zeros((n, length + 1), dtype=np.uint16)
    tokens[:, 1:] = texts
    tokens = np.append(tokens.ravel(), np.uint16(0))
    return SimpleNamespace(
        tokens=tokens,
        starts=1 + (length + 1) * np.arange(n),
        lengths=np.full(n, length),
        eot=0,
        n_documents=n,
        n_tokens=len(tokens),
    )


def bergson(folder: Path) -> Callable[..., None]:
    """bergson: a row is 64 tokens, its targets the last 63 of them."""
    # Installed in an environment of its own.
    from bergson import (  # pyright: ignore[reportMissingImports]
        CollectorComputer,
        GradientProcessor,
        IndexConfig,
        InMemoryCollector,
    )
    from bergson.data import allocate_batches  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder / "model").eval()
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    texts = np.load(folder / "tokens.npy")
    rows = np.concatenate([np.zeros_like(texts[:, :1]), texts], axis=1)
    few = rows[:FEW].copy()
    few[:, -1] = 0
    upper = ",".join(f"h.{layer}.*" for layer in range(LAYERS // 2))

    def collect(what: str, batch: int = 2048) -> None:
        exact = what == "exact"
        data = few if exact else rows
        dataset = Dataset.from_dict({"input_ids": data.tolist()})
        with tempfile.TemporaryDirectory() as temporary:
            config = IndexConfig(
                run_path=f"{temporary}/run",
                projection_dim=0 if exact else RANK,
                token_batch_size=batch,
                filter_modules=upper if what == "upper half" else None,
            )
            config.partial_run_path.mkdir()
            collector = InMemoryCollector(
                model=model.base_model,
                data=dataset,
                cfg=config,
                processor=GradientProcessor(projection_dim=config.projection_dim),
            )
            batches = allocate_batches([POSITIONS] * len(data), batch)
            CollectorComputer(
                model, dataset, collector=collector, batches=batches, cfg=config
            ).run_with_collector_hooks("gradients")
        wanted = (LAYERS // 2 if what == "upper half" else LAYERS) * len(MATRICES)
        if len(collector.gradients) != wanted:
            sys.exit(f"bergson collected {sorted(collector.gradients)}, {wanted} were asked for")
        if exact:
            named = {
                f"L{layer}.{ours}": collector.gradients[f"h.{layer}.{theirs}"].float().numpy()
                for layer in range(LAYERS)
                for theirs, ours in MATRICES.items()
            }
            np.savez(folder / "bergson.npz", **named)

    return collect


if __name__ == "__main__":
    sys.exit(main())
