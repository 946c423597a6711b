"""GPT-2 124M on one GPU: tokens per second, MFU, the price of determinism, exact resume and replay.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python benchmarks/gpu_training.py --out /tmp/gpu

Made for one run of at most eight minutes on a lent GPU. The text is random words of a vocabulary as
large as GPT-2's, built in seconds. Every row trains with the product's own step (context 1024,
524,288 tokens a step, bf16), and the mean of the later steps is printed:

    tokens/s   targets per second, ledger and digests included
    MFU        6 N + 12 L d T floating-point operations a token, over --peak (H100, H200: 989e12)

`deterministic` is how the trainer always trains; the row without it is measured for its price only.
Then a run is stopped and resumed, and a span of it replayed; both must equal it bit for bit.
With `--device cpu --small` the same script runs in a minute without a GPU, as a test of itself.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import machine
import numpy as np
import torch

from train import recipes, runs, trainer
from train.data import Corpus, Document, TokenStore, build_store, open_store
from train.numerics import Numerics, applied
from train.recipes import Recipe


WORDS = 50_256  # and the end-of-text token: GPT-2's vocabulary
PEAK = 989e12
FIRST = 4  # steps before this one are not counted: kernels are compiled and memory is taken


def main() -> int:
    """Measure, print; 1 if resume or replay is not exact."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the store and runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=16, help="steps of each row")
    parser.add_argument(
        "--micro", type=int, nargs="+", default=[16, 32, 64], help="windows at once"
    )
    parser.add_argument("--peak", type=float, default=PEAK, help="bf16 operations per second")
    parser.add_argument("--small", action="store_true", help="a tiny model, to test this script")
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else "no GPU"
    print(f"{machine.described('torch')}, {name}", flush=True)
    store = made_store(arguments.out / "store", WORDS if not arguments.small else 500)
    recipe = recipe_for(store, arguments.steps, small=arguments.small)
    sizes = [2] if arguments.small else arguments.micro
    best = (0.0, sizes[0])
    for compiled in (False, True) if arguments.device != "cpu" else (False,):
        for size in sizes:
            speed = row(recipe, store, arguments, size, compiled=compiled, deterministic=True)
            best = max(best, (speed, size))
    free = row(recipe, store, arguments, best[1], compiled=False, deterministic=False)
    print(f"determinism costs {free / max(best[0], 1e-9) - 1:+.1%} of the tokens per second")
    return exact(recipe, store, arguments, best[1])


def made_store(path: Path, n_words: int) -> TokenStore:
    """Build a store of four million random words, every word of the vocabulary at least once."""
    if path.exists():
        return open_store(path)
    draw = np.random.default_rng(0)
    size, n_documents = 1000, 4000 if n_words > 1000 else 60

    def read() -> Iterator[Document]:
        for number in range(n_documents):
            words = draw_of(number)
            yield Document(f"random@0/{number}", " ".join(words), "random", "0", number)

    def draw_of(number: int) -> list[str]:
        first = number * size % n_words
        known = [f"w{(first + i) % n_words}" for i in range(size // 2)]
        return known + [f"w{word}" for word in draw.integers(n_words, size=size // 2)]

    corpus = Corpus("random", "random", "0", read, tokenizer="word")
    return build_store(corpus, out=path)


def recipe_for(store: TokenStore, steps: int, *, small: bool) -> Recipe:
    """Return the recipe of GPT-2 124M, a few steps long."""
    recipe = replace(recipes.GPT2_124M, vocabulary="store", warmup_steps=2, eval_every=0)
    if small:
        cfg = replace(recipe.model, n_layers=2, n_heads=2, n_key_value_heads=2, d_model=64)
        cfg = replace(cfg, d_head=32, d_mlp=128, n_ctx=64)
        recipe = replace(recipe, model=cfg, batch_size=8)
    half = max(steps // 2, 1)
    changes = {"steps": steps, "checkpoint_every": half, "optimizer_every": half}
    return recipes.resolve(recipe, store, **changes)


def row(
    recipe: Recipe,
    store: TokenStore,
    arguments: argparse.Namespace,
    micro: int,
    *,
    compiled: bool,
    deterministic: bool,
) -> float:
    """Train a few steps, print a row of the table, and return tokens per second."""
    recipe = replace(recipe, micro_batch_size=micro)
    how = Numerics(arguments.device, "bf16", 1, compile=compiled)
    state = trainer.initial_state(recipe, how)
    order = runs.order_of(recipe, store)
    with applied(how), loosened(not deterministic):
        for stop in (FIRST, recipe.steps):  # the first steps compile kernels and take memory
            begin = time.perf_counter()
            for _ in trainer.training_steps(state, recipe, store, order, how, stop):
                pass
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - begin) / (recipe.steps - FIRST)
    speed = recipe.tokens_per_step / seconds
    cfg = recipe.model
    each = 6 * cfg.n_params + 12 * cfg.n_layers * cfg.d_model * cfg.n_ctx
    memory = torch.cuda.max_memory_allocated() / 2**30 if arguments.device != "cpu" else 0.0
    print(
        f"micro-batch {micro:3}  {'compiled' if compiled else 'eager   '}  "
        f"{'deterministic    ' if deterministic else 'not deterministic'}  "
        f"{speed:10,.0f} tokens/s  MFU {speed * each / arguments.peak:6.1%}  {memory:5.1f} GiB  "
        f"{seconds * 1e3:.0f} ms a step",
        flush=True,
    )
    return speed


@contextmanager
def loosened(loose: bool) -> Iterator[None]:
    """Allow kernels that add in any order inside the block, to measure what forbidding costs."""
    if loose:
        torch.use_deterministic_algorithms(False)
    yield


def exact(recipe: Recipe, store: TokenStore, arguments: argparse.Namespace, micro: int) -> int:
    """Print whether a resumed run and a replayed span equal the run; 1 if one does not."""
    recipe = replace(recipe, micro_batch_size=micro)
    how, half = Numerics(arguments.device, "bf16", 1), recipe.steps // 2
    whole = trainer.train(recipe, store, out=fresh(arguments.out, "whole"), numerics=how)
    path = fresh(arguments.out, "stopped")

    class Stopped(Exception):
        pass

    def stop(text: str, done: int, total: int | None) -> None:
        if done > half:
            raise Stopped

    try:
        trainer.train(recipe, store, out=path, numerics=how, progress=stop)
    except Stopped:
        resumed = trainer.resume(path, store=store.path)
        same = [one.files for one in resumed.saved] == [one.files for one in whole.saved]
    else:
        same = False
    replay = trainer.replay(whole, half, recipe.steps - 1)
    print(f"resumed after step {half}: {'bit-exact' if same else 'DIFFERS'}")
    print(
        f"steps {half} to {recipe.steps - 1} replayed: {'bit-exact' if replay.exact else 'DIFFER'}"
    )
    return int(not (same and replay.exact))


def fresh(folder: Path, name: str) -> Path:
    """Return a path in the folder that does not exist yet."""
    number = 0
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


if __name__ == "__main__":
    sys.exit(main())
