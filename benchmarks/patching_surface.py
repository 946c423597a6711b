"""How much less an exact sweep costs than TransformerLens', over prompts and tokens; and the bound.

GPT-2-small's shape with random weights, prompts that differ from their first token on, CPU time of
one thread, both sides in this process. TransformerLens runs one forward pass a cell; a few cells
drawn at random give its cost a cell, and must agree within 1e-5. The engine runs every layer, of
large cases only every few heads or positions, with both unpatched runs in it.

The bound is what no exact sweep over heads on this processor can exceed: TransformerLens' cost of a
cell divided by the time of what is left when everything that can be shared or avoided is free. A
patched head changes the residual stream at every position. So the activation function and the
output product of the MLP of its layer are left, and the same and all four products of each later
layer, except in the last layer, where only the last position is read. Attention, norms, sums, and
the last layer count nothing.

    python benchmarks/patching_surface.py [--prompts 2 8 24 64] [--tokens 16 64] [--cells 3]

For AVX2 on a processor with AVX-512, set MKL_ENABLE_INSTRUCTIONS=AVX2, ATEN_CPU_CAPABILITY=avx2 and
ONEDNN_MAX_CPU_ISA=AVX2 (and OPENBLAS_CORETYPE=Haswell for numpy). Exit 1 when a score differs.
"""

import argparse
import sys
import time
from collections.abc import Callable

import machine
import numpy as np
import torch
from patching import Side, by_lens, contrast

from interp import components, models, patching
from interp.behaviours import Behaviour
from interp.patching import SweepLayout, engine
from train import recipes
from train.model import GPT, init_gpt


ROWS = 1 << 17  # positions times cells that one sweep of the engine computes, about
AGREEMENT = 1e-5


def main() -> int:
    """Measure every case and print a table; 1 when a score differs from TransformerLens'."""
    asked = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    asked.add_argument("--prompts", type=int, nargs="+", default=[2, 8, 24, 64])
    asked.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    asked.add_argument("--cells", type=int, default=3, help="of TransformerLens, per case")
    given = asked.parse_args()
    torch.set_num_threads(1)
    print(f"{machine.described('torch', 'transformer_lens')}, 1 thread", flush=True)
    print(f"PyTorch computes with {torch.backends.cpu.get_cpu_capability()}", flush=True)
    model = init_gpt(recipes.GPT2_124M.model, seed=0).eval()
    lens = models.transformer_lens(model)
    engine.fast_product()  # measured once a process, before the clock starts
    differ = []
    for n_pos in given.tokens:
        for n_prompts in given.prompts:
            behaviour = contrast(model, n_pos, n_prompts, first=0)
            for sweep in ("residual", "heads"):
                theirs = by_lens(lens, behaviour, sweep, given.cells, time.process_time)
                ours = by_engine(model, behaviour, sweep, set(theirs.scores))
                found = f"{theirs.seconds_a_cell / ours.seconds_a_cell:5.1f} times"
                if sweep == "heads":
                    least = least_seconds(model, n_prompts * n_pos)
                    found += f", at most {theirs.seconds_a_cell / least:4.1f} in any way"
                error = float(
                    np.max([abs(ours.scores[cell] - x) for cell, x in theirs.scores.items()])
                )
                print(
                    f"{n_prompts:3} prompts of {n_pos:2} tokens, {sweep:8}: {found}; "
                    f"{1e3 * theirs.seconds_a_cell:7.1f} / {1e3 * ours.seconds_a_cell:6.2f} ms a "
                    f"cell of {len(ours.scores)}; largest difference {error:.1e}",
                    flush=True,
                )
                if not error <= AGREEMENT:
                    differ.append(f"{sweep} of {n_prompts} x {n_pos}")
    print(f"differ: {', '.join(differ) or 'none'}")
    return int(bool(differ))


def by_engine(model: GPT, behaviour: Behaviour, sweep: str, wanted: set[tuple[int, ...]]) -> Side:
    """A sweep over every layer, and of a large case every few heads or positions and `wanted`."""
    cfg, n_prompts = model.cfg, behaviour.n_prompts
    n_columns = cfg.n_heads if sweep == "heads" else behaviour.n_pos
    rows = n_prompts * behaviour.n_pos * cfg.n_layers * n_columns
    every = max(1, min(n_columns // 3, rows // ROWS))
    drawn = [(layer, i) for layer in range(cfg.n_layers) for i in range(0, n_columns, every)]
    cells = list(dict.fromkeys([*drawn, *sorted(wanted)]))
    names = [
        f"L{layer}H{i}" if sweep == "heads" else f"L{layer}.resid_pre@{i}" for layer, i in cells
    ]
    layout = SweepLayout("cell", ("cell",), (len(names),), tuple(names))
    places = [[components.parse(name)] for name in names]
    begin = time.process_time()
    effects = patching.sweep(model, behaviour, places, layout)
    seconds = time.process_time() - begin
    scores = effects.corrupt + effects.values.double() * (effects.clean - effects.corrupt)
    return Side(seconds / len(cells), dict(zip(cells, scores.tolist(), strict=True)))


def least_seconds(model: GPT, rows: int) -> float:
    """Seconds of the products and activation functions that a cell over heads needs, on average."""
    cfg = model.cfg
    many = max(rows, 1 << 11) // rows  # runs that share a product, as the engine takes them
    draw = torch.Generator().manual_seed(0)
    sizes = {
        "qkv": (cfg.d_model, 3 * cfg.d_model),
        "out": (cfg.d_model, cfg.d_model),
        "up": (cfg.d_model, cfg.d_mlp),
        "down": (cfg.d_mlp, cfg.d_model),
    }
    seconds = {}
    for name, (n_in, n_out) in sizes.items():
        x, weight = (
            torch.randn(shape, generator=draw) for shape in ((many * rows, n_in), (n_out, n_in))
        )
        seconds[name] = fastest(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
    hidden = torch.randn(many * rows, cfg.d_mlp, generator=draw)
    activation = fastest(lambda: torch.nn.functional.gelu(hidden, approximate="tanh"))
    early = cfg.n_layers - 1  # layers in which a patch can be, but for the last
    later = sum(early - 1 - layer for layer in range(early))  # whole layers behind it, together
    total = early * (activation + seconds["down"])
    total += later * (activation + sum(seconds.values()))
    return total / cfg.n_layers / many


def fastest(work: Callable[[], object], times: int = 5) -> float:
    """The least CPU time of a few calls, with the faster of torch's two fp32 products."""
    found = []
    before = torch.get_float32_matmul_precision()
    for product in ("highest", engine.fast_product()):
        torch.set_float32_matmul_precision(product)
        with torch.inference_mode():
            work()
            for _ in range(times):
                begin = time.process_time()
                work()
                found.append(time.process_time() - begin)
    torch.set_float32_matmul_precision(before)
    return min(found)


if __name__ == "__main__":
    sys.exit(main())
