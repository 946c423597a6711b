"""How fast the trainer trains, beside nanoGPT on the same batches from the same weights.

    python benchmarks/training.py --nanogpt FOLDER [--large]

FOLDER is a checkout of https://github.com/karpathy/nanoGPT; its `model.py` is imported from there.
Both models have the same sizes, weights, batches and settings of the optimizer. Steps alternate:
`train.trainer.training_steps` with its ledger on disk, the same without ledger and digests, and the
loop of nanoGPT's `train.py`. nanoGPT runs in a process of its own that waits for its turn, because
settings of torch and of the C library hold for a whole process. Each has one thread, and the times
are CPU times, because the wall clock of a shared machine says little.

"Products alone" is the time of the matrix products of one step of ours, repeated alone: no step
with these products takes less. Set ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and
MKL_ENABLE_INSTRUCTIONS=AVX2 to measure as on a processor without AVX-512. Exit 1 when a ratio
misses its bound, when ledger and digests take more than 2 %, or when the losses differ.
"""

import argparse
import contextlib
import io
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import machine
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train import convert, numerics, runs, storage, trainer
from train.data import Order, TokenStore, build_store, open_corpus, open_store
from train.data import batches as batch_reader
from train.model import GPT, GPTConfig
from train.numerics import Numerics
from train.recipes import Recipe


@dataclass(frozen=True)
class Case:
    """Sizes of model and batch, and how many times as fast as nanoGPT the trainer should be."""

    n_layers: int
    n_heads: int
    d_model: int
    n_ctx: int
    batch: int
    d_vocab: int
    steps: int
    asked: dict[str, float]


CASES = {
    "a": Case(4, 4, 128, 64, 12, 65, 60, {"bf16": 1.4, "fp32": 1.3}),
    "b": Case(6, 6, 384, 256, 4, 65, 8, {"bf16": 2.5, "fp32": 1.1}),
}
LARGE = {"c": Case(12, 12, 768, 256, 2, 50304, 3, {"bf16": 3.0})}
OPENBOOK, BARE, NANOGPT = "openbook", "without ledger", "nanoGPT"
LEDGER_SHARE = 0.02
# Nats between the losses of one step: the two add in another order, and bf16 has 8 bits.
MOST_APART = {"fp32": 2e-3, "bf16": 5e-2}
WARM_UP = 4  # steps that are not timed: kernels are chosen and memory is first touched
# Operators of torch by the part of a step that they are. What is not listed is elementwise.
PARTS = {
    "matrix products": "mm addmm",
    "attention": (
        "bmm baddbmm _softmax _softmax_backward_data triu full "
        "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention_for_cpu_backward"
    ),
    "optimizer": "_fused_adamw_ _foreach_add_ _foreach_norm _foreach_mul_ linalg_vector_norm stack",
    "loss": "_log_softmax _log_softmax_backward_data nll_loss_forward nll_loss_backward",
    "norms": "native_layer_norm native_layer_norm_backward",
    "activation": "gelu gelu_backward",
    "casts and copies": "_to_copy copy_ clone cat",
}


@dataclass
class Times:
    """CPU seconds and losses of every step by participant, and where the time of ours goes."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    products: float = 0.0
    ledger: float = 0.0


def main() -> int:
    """Measure every case; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--large", action="store_true", help="also 124 M parameters")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--cases", help="letters of the cases to measure; default: all")
    arguments = parser.parse_args()
    if not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"{arguments.nanogpt} has no model.py; give a checkout of nanoGPT")
    how = numerics.choose(device="cpu", precision=arguments.precision, threads=1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{machine.described('torch')}, {capability}\n{how!r}")
    cases, holds = CASES | (LARGE if arguments.large else {}), True
    with tempfile.TemporaryDirectory() as folder:
        store = chain_store(Path(folder))
        for name in arguments.cases or cases:
            case = cases[name]
            holds &= report(name, case, measured(case, how, store, arguments.nanogpt), how)
    return int(not holds)


def chain_store(folder: Path) -> TokenStore:
    """Build a store of 64 words, each of which is followed by one of four, and end-of-text."""
    draw = random.Random(0)
    followers = [draw.sample(range(64), 4) for _ in range(64)]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(400):
            words = [draw.randrange(64)]
            while len(words) < 500:
                words.append(draw.choice(followers[words[-1]]))
            file.write('{"text": "' + " ".join(f"w{word}" for word in words) + '"}\n')
    corpus = open_corpus(folder / "text.jsonl")
    return build_store(corpus, out=folder / "store", tokenizer="word", held_out=0.0)


def measured(case: Case, how: Numerics, store: TokenStore, nanogpt: Path) -> Times:
    """Train all three in alternation, then look at where the time of ours goes."""
    recipe, times = recipe_of(case), Times()
    with tempfile.TemporaryDirectory() as folder, other_process(case, nanogpt, store) as other:
        path = Path(folder) / "ckpt.pt"
        other.send(path)
        other.recv()
        writer = runs.ledger_writer(Path(folder) / runs.LEDGER, 0)
        full, bare = (steps_of(load(path, case), recipe, store, how) for _ in range(2))

        def one_step(name: str) -> tuple[float, float]:
            begin = time.process_time()
            if name == OPENBOOK:
                row = next(full)
                writer.append(asdict(row), sync=False)
            else:
                with patch.object(batch_reader.hashlib, "sha256", NoDigest):
                    row = next(bare)
            return time.process_time() - begin, row.loss

        with numerics.applied(how):
            for step in range(WARM_UP + case.steps):
                for name in (OPENBOOK, BARE, NANOGPT):
                    if name == NANOGPT:
                        other.send(step)
                    seconds, loss = other.recv() if name == NANOGPT else one_step(name)
                    times.losses.setdefault(name, []).append(loss)
                    times.seconds.setdefault(name, []).append(seconds)
            times.parts, times.products = parts_of(full), products_alone(full)
        times.seconds = {name: values[WARM_UP:] for name, values in times.seconds.items()}
        times.ledger = ledger_seconds(writer, store, runs.order_of(recipe, store))
        writer.close()
    return times


def recipe_of(case: Case) -> Recipe:
    """Return a recipe for the sizes of a case, with nanoGPT's settings of the optimizer."""
    model = GPTConfig(
        n_layers=case.n_layers, n_heads=case.n_heads, d_model=case.d_model, n_ctx=case.n_ctx,
        d_vocab=case.d_vocab, mlp="gelu",
    )  # fmt: skip
    return Recipe(
        "beside-nanogpt", model, batch_size=case.batch, steps=10_000, lr=1e-3, min_lr=1e-4,
        warmup_steps=10, beta2=0.99,
    )  # fmt: skip


def load(path: Path, case: Case) -> GPT:
    """Import nanoGPT's initial weights."""
    return convert.import_nanogpt(path, d_vocab=case.d_vocab).model


def steps_of(
    model: GPT, recipe: Recipe, store: TokenStore, how: Numerics
) -> Iterator[runs.LedgerRow]:
    """Return the trainer's own steps from these weights."""
    state = trainer.TrainState(model, trainer.adamw(model, recipe), step=0, tokens=0)
    order = runs.order_of(recipe, store)
    return trainer.training_steps(state, recipe, store, order, how, recipe.steps)


class NoDigest:
    """Takes the place of sha256, to train without digests."""

    def __init__(self, content: bytes) -> None:
        pass

    def hexdigest(self) -> str:
        """Return 64 digits."""
        return "0" * 64


# --- nanoGPT -------------------------------------------------------------------------------------


@contextlib.contextmanager
def other_process(case: Case, nanogpt: Path, store: TokenStore) -> Iterator[Connection]:
    """Start a process that trains nanoGPT: sent a path it saves its weights, sent a step it takes
    it and returns CPU seconds and loss.
    """
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=train_nanogpt, args=(there, case, nanogpt, store.path)
    )
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def train_nanogpt(connection: Connection, case: Case, nanogpt: Path, store_path: Path) -> None:
    """Train as nanoGPT's `train.py` does on a CPU, one step for each message."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {
        "n_layer": case.n_layers, "n_head": case.n_heads, "n_embd": case.d_model, "dropout": 0.0,
        "block_size": case.n_ctx, "vocab_size": case.d_vocab, "bias": True,
    }  # fmt: skip
    recipe = recipe_of(case)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**sizes))
        optimizer = model.configure_optimizers(
            recipe.weight_decay, recipe.lr, (recipe.beta1, recipe.beta2), "cpu"
        )
    model.train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    store = open_store(store_path)
    order = runs.order_of(recipe, store)
    with contextlib.suppress(EOFError):
        path = connection.recv()
        torch.save({"model": model.state_dict(), "model_args": sizes, "iter_num": 0}, path)
        connection.send("saved")
        while True:
            step = connection.recv()
            begin = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = trainer.lr_at(recipe, step)
            _, loss = model(*nanogpt_batch(store, order, step))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            seconds = time.process_time() - begin
            connection.send((seconds, loss.item()))


def nanogpt_batch(store: TokenStore, order: Order, step: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as nanoGPT's `get_batch` reads them, at the windows of a step."""
    data = np.memmap(store.path / "tokens.bin", dtype=store.manifest["dtype"], mode="r")
    n, starts = order.context, order.starts(step)
    return (
        torch.stack([torch.from_numpy(data[i : i + n].astype(np.int64)) for i in starts]),
        torch.stack([torch.from_numpy(data[i + 1 : i + 1 + n].astype(np.int64)) for i in starts]),
    )


# --- where the time goes -------------------------------------------------------------------------


class OperatorClock(TorchDispatchMode):
    """Counts and times every operator, those of the backward pass included, and lists products."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.products: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the operator."""
        name = func.overloadpacket.__name__
        begin = time.process_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[name] += time.process_time() - begin
        self.calls[name] += 1
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            self.products[tuple((one.shape, one.stride(), one.dtype) for one in args[-2:])] += 1
        return result


def parts_of(steps: Iterator[runs.LedgerRow], n: int = 3) -> dict[str, float]:
    """Return the CPU seconds of the parts of a step, each the median of `n` steps.

    The clock adds to every operator about what a view takes, which is subtracted.
    """
    names = {name: part for part, members in PARTS.items() for name in members.split()}
    found = []
    for _ in range(n):
        with OperatorClock() as clock:
            next(steps)
        own = clock.seconds["view"] / clock.calls["view"]
        parts: dict[str, float] = defaultdict(float)
        for name, seconds in clock.seconds.items():
            parts[names.get(name, "elementwise")] += max(seconds - own * clock.calls[name], 0.0)
        found.append(parts)
    return {part: median(one[part] for one in found) for part in found[0]}


def products_alone(steps: Iterator[runs.LedgerRow]) -> float:
    """Return the CPU seconds of one step's matrix products alone, each the least of six."""
    with OperatorClock() as clock:
        next(steps)
    total = 0.0
    for operands, count in clock.products.items():
        left, right = (
            torch.empty_strided(shape, stride, dtype=dtype).copy_(torch.randn(shape))
            for shape, stride, dtype in operands
        )
        taken = []
        for _ in range(6):
            begin = time.process_time()
            torch.matmul(left, right)
            taken.append(time.process_time() - begin)
        total += count * min(taken)
    return total


def ledger_seconds(writer: storage.ChainWriter, store: TokenStore, order: Order) -> float:
    """Return the CPU seconds of a step's digest and ledger row alone, the median of 50."""
    starts = order.starts(0)
    tokens = np.asarray(store.tokens[starts[:, None] + np.arange(order.context + 1)])
    taken = []
    for step in range(50):
        begin = time.process_time()
        digest = batch_reader.hashlib.sha256(starts.tobytes() + tokens.tobytes()).hexdigest()
        row = runs.LedgerRow(10**6 + step, 1e-3, 2.3456789, 1.2345678, 10**6, digest[:16], 0.0123)
        writer.append(asdict(row), sync=False)
        taken.append(time.process_time() - begin)
    return median(taken)


def report(name: str, case: Case, times: Times, how: Numerics) -> bool:
    """Print a case; False when it misses a bound."""
    print(
        f"\n{name}: {case.n_layers} layers, {case.n_heads} heads, d {case.d_model}, {case.batch} x "
        f"{case.n_ctx} tokens, vocabulary {case.d_vocab}, {case.steps} steps"
    )
    for label, seconds in times.seconds.items():
        low, middle = 1e3 * min(seconds), 1e3 * median(seconds)
        print(f"  {label:<20} min {low:8.1f}   median {middle:8.1f} ms of CPU a step")
    ours, bare, other = (times.seconds[one] for one in (OPENBOOK, BARE, NANOGPT))
    ratio, asked = min(other) / min(ours), case.asked.get(how.precision)
    print(
        f"  times as fast as nanoGPT: {ratio:.2f} by minima, {median(other) / median(ours):.2f} by "
        f"medians; asked {asked or 'nothing'}; with products alone "
        f"{min(other) / times.products:.2f}"
    )
    rest = min(ours) - sum(times.parts.values())
    parts = {"products alone": times.products, **times.parts, "Python, dispatch, rest": rest}
    for part, seconds in parts.items():
        print(f"  {part:<22} {1e3 * seconds:8.2f} ms {seconds / min(ours):5.0%} of our step")
    share = times.ledger / min(ours)
    print(
        f"  ledger and digest: {share:.2%} of a step (at most {LEDGER_SHARE:.0%}); steps with them "
        f"take {min(ours) / min(bare) - 1:+.1%} by minima, "
        f"{median(ours) / median(bare) - 1:+.1%} by medians"
    )
    pairs = list(zip(times.losses[OPENBOOK], times.losses[NANOGPT], strict=True))
    shown = {step: pairs[step] for step in (0, len(pairs) // 2, len(pairs) - 1)}
    listed = ", ".join(f"step {step} {one:.4f} {two:.4f}" for step, (one, two) in shown.items())
    apart, most = max(abs(one - two) for one, two in pairs), MOST_APART[how.precision]
    print(f"  losses of openbook and nanoGPT: {listed}; at most {apart:.2g} apart ({most:g})")
    return share <= LEDGER_SHARE and apart <= most and (asked is None or ratio >= asked)


if __name__ == "__main__":
    sys.exit(main())
