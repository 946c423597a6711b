"""How much less an exact patching sweep costs than TransformerLens' (issue: at least 6.5, 4.2, 8).

GPT-2-small shape, random weights, logit difference at the last position, both in this process, CPU
time of one thread. TransformerLens runs one forward pass a cell, so a few cells drawn at random
give its cost a cell; ours is a whole sweep with both unpatched runs in it, except heads by position
at 64 tokens, where every eighth position is taken on both sides. The same cells must agree within
1e-5.

Prompts differ from their first token on, or agree over their first half. Two rows a case: with the
fp32 product that torch takes by default, as TransformerLens does, and with the faster one of two
that the engine measures and takes (the default).

    python benchmarks/patching.py [--tokens 16 64] [--prompts 2] [--cells 4] [--device cpu]
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import machine
import pandas
import torch
from transformer_lens import patching as lens_patching

from interp import models, patching
from interp.behaviours import Behaviour
from interp.patching import Effects, engine
from train import recipes
from train.model import GPT, init_gpt


BOUNDS = {
    "none": {"residual": 6.5, "heads": 4.2, "heads by position": 8.0},
    "half": {"residual": 18.0, "heads": 6.0, "heads by position": 15.0},
}
LENS = {
    "residual": ("resid_pre", lens_patching.layer_pos_patch_setter, ["layer", "pos"]),
    "heads": ("z", lens_patching.layer_head_vector_patch_setter, ["layer", "head"]),
    "heads by position": (
        "z",
        lens_patching.layer_pos_head_vector_patch_setter,
        ["layer", "pos", "head"],
    ),
}
EVERY = 8  # positions of heads by position, at 64 tokens


@dataclass(frozen=True)
class Side:
    """What one way of doing it cost and found."""

    seconds_a_cell: float
    scores: dict[tuple[int, ...], float]


def main() -> int:
    """Measure every case and print it; 1 when a ratio or an agreement is missed."""
    asked = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    asked.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    asked.add_argument("--prompts", type=int, default=2)
    asked.add_argument("--cells", type=int, default=4, help="of TransformerLens, per case")
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--sweeps", nargs="+", default=list(LENS))
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine.described('torch', 'transformer_lens')}, {given.threads} threads", flush=True)
    model = init_gpt(recipes.GPT2_124M.model, seed=0).eval().to(given.device)
    lens = models.transformer_lens(model)
    clock = time.process_time if given.device == "cpu" and given.threads == 1 else time.perf_counter
    missed = []
    for n_pos in given.tokens:
        for shared, bounds in BOUNDS.items():
            first = 0 if shared == "none" else n_pos // 2
            behaviour = contrast(model, n_pos, given.prompts, first)
            for sweep in given.sweeps:
                theirs = by_lens(lens, behaviour, sweep, given.cells, clock)
                for product in ("default", "measured"):
                    ours = by_engine(model, behaviour, sweep, product, clock)
                    ratio = theirs.seconds_a_cell / ours.seconds_a_cell
                    error = max(abs(ours.scores[cell] - x) for cell, x in theirs.scores.items())
                    print(
                        f"{n_pos:3} tokens, shared {shared:4}, {sweep:17}, {product:8} product: "
                        f"{1e3 * theirs.seconds_a_cell:6.1f} / {1e3 * ours.seconds_a_cell:5.2f} ms "
                        f"a cell of {len(ours.scores):5} = {ratio:5.1f} times, asked "
                        f"{bounds[sweep]}; largest difference {error:.1e} of {spread(ours):.2f}",
                        flush=True,
                    )
                if not (ratio >= bounds[sweep] and error <= 1e-5):
                    missed.append(f"{n_pos} {shared} {sweep}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory of the process {peak:.2f} GB")
    print(f"missed: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def contrast(model: GPT, n_pos: int, n_prompts: int, first: int) -> Behaviour:
    """Random prompts that differ from `first` on; the answers are what the model says of them."""
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (
        torch.randint(model.cfg.d_vocab, (n_prompts, n_pos), generator=draw) for _ in range(2)
    )
    corrupt[:, :first] = clean[:, :first]
    with torch.inference_mode():
        last = model(clean.to(model.device))[:, -1].cpu()
    return Behaviour("random", clean, corrupt, last.argmax(dim=1), last.argmin(dim=1))


def by_lens(
    lens: Any, behaviour: Behaviour, sweep: str, cells: int, clock: Callable[[], float]
) -> Side:
    """A few cells, each drawn at random; both cache passes are not counted."""
    name, setter, axes = LENS[sweep]
    device = next(lens.parameters()).device
    clean, corrupt = behaviour.clean.to(device), behaviour.corrupt.to(device)
    sizes = {"layer": lens.cfg.n_layers, "head": lens.cfg.n_heads, "pos": behaviour.n_pos}
    draw, rows = random.Random(0), []
    for _ in range(cells):
        row = {axis: draw.randrange(sizes[axis]) for axis in axes}
        if "pos" in row and "head" in row:
            row["pos"] -= row["pos"] % step(behaviour)
        rows.append(row)
    with torch.inference_mode():
        _, cache = lens.run_with_cache(clean)
        begin = clock()
        found = lens_patching.generic_activation_patch(
            lens,
            corrupt,
            cache,
            lambda logits: behaviour.score(logits).mean(),
            setter,
            name,
            index_df=pandas.DataFrame(rows, columns=axes),
        ).tolist()
        seconds = clock() - begin
    scores = {tuple(row.values()): x for row, x in zip(rows, found, strict=True)}
    return Side(seconds / cells, scores)


def by_engine(
    model: GPT, behaviour: Behaviour, sweep: str, product: str, clock: Callable[[], float]
) -> Side:
    """The whole sweep, both unpatched runs and the check of the behaviour included."""
    run: dict[str, Callable[[], Effects]] = {
        "residual": lambda: patching.residual(model, behaviour),
        "heads": lambda: patching.heads(model, behaviour),
        "heads by position": lambda: patching.heads(
            model, behaviour, positions=list(range(0, behaviour.n_pos, step(behaviour)))
        ),
    }
    engine.fast_product()  # measured once a process, before the clock starts
    # The engine's choice is taken out of its hands by telling it that the default is the fastest.
    fastest = engine.fast_product
    engine.fast_product = (lambda: "highest") if product == "default" else fastest
    try:
        begin = clock()
        effects = run[sweep]()
        seconds = clock() - begin
    finally:
        engine.fast_product = fastest
    shares = effects.values.double()
    scores = effects.corrupt + shares * (effects.clean - effects.corrupt)
    cells = {}
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shares.shape)).tolist():
        key = tuple(index)
        if len(key) == 3:
            key = (key[0], key[2] * step(behaviour), key[1])
        cells[key] = scores[tuple(index)].item()
    return Side(seconds / len(cells), cells)


def step(behaviour: Behaviour) -> int:
    return 1 if behaviour.n_pos <= 16 else EVERY


def spread(side: Side) -> float:
    """Between the lowest and the highest score: what a difference is to be held against."""
    return max(side.scores.values()) - min(side.scores.values())


if __name__ == "__main__":
    sys.exit(main())
