"""What writing attention out saves in a training step on a CPU in bf16.

    python benchmarks/attention_cpu.py

Steps of the planted recipe as the trainer takes them, with the attention of
train/model/attention.py and with torch's fused kernel in its place, in alternation, from equal
weights over equal batches. CPU time, because the wall clock of a shared machine says little; the
ratio is that of the medians over rounds. Exit 1 when writing out is not the faster.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import machine
from torch import Tensor
from torch.nn import functional

from train import numerics, recipes, trainer
from train.data import TokenStore, build_store, open_corpus
from train.model import Attention, init_gpt
from train.runs import order_of


def main() -> int:
    """Time rounds in alternation and print CPU milliseconds a step and their ratio."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="of one round")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    print(f"{machine.described('torch')}, {asked.threads} threads")
    written, kernel = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(open_corpus("planted"), out=Path(folder) / "store")
        cpu_seconds(store, 2, asked.threads)  # kernels are chosen at the first call
        for _ in range(asked.rounds):
            written.append(cpu_seconds(store, asked.steps, asked.threads))
            with patch.object(Attention, "explicit_attention", fused):
                kernel.append(cpu_seconds(store, asked.steps, asked.threads))
    for name, seconds in (("written out", written), ("fused kernel", kernel)):
        print(
            f"{name:<12} median {1e3 * statistics.median(seconds):.1f}   min "
            f"{1e3 * min(seconds):.1f}   max {1e3 * max(seconds):.1f} ms of CPU a step"
        )
    ratio = statistics.median(written) / statistics.median(kernel)
    print(f"ratio        {ratio:.2f}   n {asked.rounds} rounds of {asked.steps} steps")
    return int(ratio >= 1)


def cpu_seconds(store: TokenStore, steps: int, threads: int) -> float:
    """CPU time of one step, the mean over the first `steps` of the planted recipe in bf16."""
    recipe = recipes.resolve(recipes.PLANTED, store)
    how = numerics.Numerics("cpu", "bf16", threads)
    model = init_gpt(recipe.model, recipe.init_seed)
    state = trainer.TrainState(model, trainer.adamw(model, recipe), step=0, tokens=0)
    with numerics.applied(how):
        begin = time.process_time()
        for _ in trainer.training_steps(state, recipe, store, order_of(recipe, store), how, steps):
            pass
        return (time.process_time() - begin) / steps


def fused(_: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What torch offers, in the place of the sum written out."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


if __name__ == "__main__":
    sys.exit(main())
