"""Exact edge ablation: forward passes in which only some edges are kept, many circuits at a time.

A kept edge carries the output that its source computes in this pass, from the kept edges into that
source. Every other edge carries a stand-in: the source's output on the corrupt prompt, its mean
over the clean prompts at the same position, or its output on another clean prompt. A reader r reads

    sum over its sources s of standin_s  +  sum over its kept edges s -> r of (now_s - standin_s).

With all edges kept this is the clean run; with none, and corrupt stand-ins, the corrupt run
(tests/interp/circuits/test_graph.py checks both). Nothing is approximated, and no hooks are added
to the model.
"""

from dataclasses import replace

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn import functional

from interp import metrics
from interp.behaviours import Behaviour
from interp.circuits.graph import Graph, graph_of
from interp.errors import BudgetError
from interp.metrics import Metric, MetricOf
from train import statistics
from train.model import GPT, Block
from train.progress import Progress


__all__ = ["MEMORY", "STANDINS", "read_heads"]
__all__ += ["score", "scores", "with_bias", "written"]

STANDINS = ("corrupt", "mean", "resample")  # what ablated edges carry
MEMORY = 2 << 30  # bytes above the weights
CACHED = 16 << 20  # bytes of a portion on a CPU, so that it stays in the caches


@torch.inference_mode()
def scores(
    model: GPT,
    behaviour: Behaviour,
    kept: Bool[Tensor, "circuit edge"],
    *,
    metric: MetricOf = "logit-difference",
    standin: str = "corrupt",
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Float[Tensor, "circuit prompt"]:
    """Score every prompt with only the `kept` edges carrying the clean run, per circuit.

    All other edges carry the `standin`, one of `STANDINS`; `seed` draws the other prompts of
    "resample".

    The scores are exact. A circuit costs as much as a few forward passes, because every reader has
    its own sum, norm and projection. As many circuits and prompts are run together as fit into
    `memory` bytes.

    Raises:
        ModelError: The edges of the model cannot be ablated.
        BehaviourError: The metric reads values at hook points.
        BudgetError: Not even one circuit on one prompt fits into the memory.
    """
    graph = graph_of(model)
    n_prompts, n_circuits = _portions(graph, behaviour, memory, on_cpu=model.device.type == "cpu")
    found = torch.empty(len(kept), behaviour.n_prompts, dtype=torch.float32)
    done, total = 0, found.numel()
    if standin == "resample":
        behaviour = replace(behaviour, corrupt=behaviour.clean[_others(behaviour, seed)])
    portions = torch.arange(behaviour.n_prompts).split(n_prompts)
    mean = _mean_written(model, behaviour, n_prompts) if standin == "mean" else None
    for rows in portions:
        part = behaviour.of(rows)
        clean_and_corrupt = written(model, part)
        if mean is not None:
            clean = clean_and_corrupt[0]
            clean_and_corrupt = clean, mean.expand_as(clean)
        measure = metrics.made_for(metric, part)
        for circuits in torch.arange(len(kept)).split(n_circuits * n_prompts // len(rows)):
            if progress:
                progress("cutting edges", done, total)
            last = _run(model, kept[circuits], *clean_and_corrupt)
            found[circuits[:, None], rows] = score(model, last, measure).cpu().float()
            done += len(circuits) * len(rows)
    if progress:
        progress("cutting edges", total, total)
    return found


def score(
    model: GPT, resid: Float[Tensor, "circuit prompt pos d_model"], metric: Metric
) -> Float[Tensor, "circuit prompt"]:
    """Compute the metric from the last residual stream, at the positions and columns it reads."""
    read = resid[:, :, metric.reads(resid.shape[2])].flatten(0, 1)
    prompt = torch.arange(resid.shape[1], device=resid.device).repeat(len(resid))
    # Positions are cut before the unembedding, so all that are left are read.
    cut = replace(metric, positions=None)
    return cut.of_logits(model.to_logits(read), prompt).view(resid.shape[:2])


@torch.inference_mode()
def written(
    model: GPT, behaviour: Behaviour
) -> tuple[Float[Tensor, "source prompt pos d_model"], Float[Tensor, "source prompt pos d_model"]]:
    """Return the output of each source on the clean and on the corrupt prompts.

    Costs two plain forward passes.
    """
    layers = range(model.cfg.n_layers)
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{i}.{at}" for i in layers for at in ("attn.hook_z", "hook_mlp_out")]
    both = []
    for tokens in (behaviour.clean, behaviour.corrupt):
        _, cache = model.run_with_cache(tokens.to(model.device), names_filter=names)
        parts = [cache["resid_pre", 0][None]]
        for layer, block in enumerate(model.blocks):
            parts.append(_out_of_heads(block, cache["z", layer].movedim(2, 0)))
            parts.append(cache["mlp_out", layer][None])
        both.append(torch.cat(parts))
    return both[0], both[1]


def _mean_written(
    model: GPT, behaviour: Behaviour, at_once: int
) -> Float[Tensor, "source 1 pos d_model"]:
    """Return the mean output of each source over the clean prompts, by position.

    A prompt with several foils has several rows and counts once.
    """
    once = np.sort(_first_rows(behaviour)[0])
    total = 0
    for rows in torch.from_numpy(once).split(at_once):
        total = total + written(model, behaviour.of(rows))[0].double().sum(dim=1)
    assert isinstance(total, Tensor)
    return (total / len(once)).float()[:, None]


def _first_rows(
    behaviour: Behaviour,
) -> tuple[Int64[np.ndarray, " prompt"], Int64[np.ndarray, " row"]]:
    """Return the first row of each distinct clean prompt, and the number of each row's prompt."""
    prompts = statistics.n_prompts(behaviour.clean)
    return np.unique(prompts, return_index=True)[1], prompts


def _others(behaviour: Behaviour, seed: int) -> Int[Tensor, " row"]:
    """Return for each row a row of another prompt, drawn so that every prompt is used once."""
    first, prompts = _first_rows(behaviour)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(first))
    another = np.empty_like(order)
    another[order] = np.roll(order, 1)
    return torch.from_numpy(first[another[prompts]])


def _portions(graph: Graph, behaviour: Behaviour, memory: int, *, on_cpu: bool) -> tuple[int, int]:
    """Return how many prompts to run at once, and how many circuits on each portion of prompts."""
    vector = behaviour.n_pos * graph.d_model * 4  # fp32
    # Fixed: the sources of the clean and the corrupt run. Per circuit: the change of every source,
    # and for the readers of one layer their sum, two copies of it, its norm, a projection and a
    # rotation, each at most as wide as the sum.
    fixed = 2 * len(graph.sources) * vector
    each = (len(graph.sources) + 6 * 3 * graph.n_heads + 16) * vector
    if memory < fixed + each:
        raise BudgetError(
            f"one circuit on one prompt of {behaviour.n_pos} tokens takes {fixed + each:,} bytes, "
            f"and {memory:,} are allowed; allow more or take shorter prompts"
        )
    n_prompts = min(behaviour.n_prompts, memory // (fixed + each))
    if on_cpu:
        # A portion that fits into the caches is faster: 110 circuits on 64 prompts of the planted
        # run take 2.3 s, against 5.1 s in portions of 2 GiB.
        n_prompts = min(n_prompts, max(CACHED // (fixed + each), 8))
        memory = min(memory, max(CACHED, n_prompts * (fixed + each)))
    return n_prompts, max(1, (memory - n_prompts * fixed) // (n_prompts * each))


def _run(
    model: GPT,
    kept: Bool[Tensor, "circuit edge"],
    clean: Float[Tensor, "source prompt pos d_model"],
    corrupt: Float[Tensor, "source prompt pos d_model"],
) -> Float[Tensor, "circuit prompt pos d_model"]:
    """Run the circuits and return the residual stream that the logits read."""
    stream = _Streams(graph_of(model), kept, corrupt)
    stream.write((clean[0] - corrupt[0]).expand(1, len(kept), *clean.shape[1:]) + corrupt[0])
    rotation = model.rotation(clean.shape[2])
    for block in model.blocks:
        heads = read_heads(block, stream.read(3 * model.cfg.n_heads), rotation)
        # With a parallel residual the MLP reads the stream before the heads write.
        into_mlp = stream.read(1) if block.parallel else None
        stream.write(heads)
        stream.base = with_bias(block, stream.base)
        into_mlp = stream.read(1) if into_mlp is None else into_mlp
        stream.write(block.mlp(block.ln2(into_mlp)))
    return stream.read(1).view(len(kept), *clean.shape[1:])


class _Streams:
    """Residual streams of many circuits, stored as the corrupt stream plus changes by kept edges.

    Sources write and readers read in the order of the graph.

    Attributes:
        weight: 1 for kept edges, else 0, [circuit reader source].
        base: Corrupt residual stream so far: what a reader without kept edges reads.
        change: Output of each source now minus its corrupt output, [circuit, source, prompt pos
            d_model], filled source by source.
        n_read: Number of readers that have read.
        n_written: Number of sources that have written.
    """

    def __init__(
        self,
        graph: Graph,
        kept: Bool[Tensor, "circuit edge"],
        corrupt: Float[Tensor, "source prompt pos d_model"],
    ) -> None:
        self.corrupt, self.shape = corrupt, (len(kept), *corrupt.shape[1:])
        self.weight = graph.matrix(kept.to(corrupt)).transpose(-2, -1).contiguous()
        self.base = torch.zeros_like(corrupt[0])
        self.change = corrupt.new_zeros(len(kept), len(corrupt), corrupt[0].numel())
        self.n_read = self.n_written = 0

    def read(self, n_readers: int) -> Float[Tensor, "reader row pos d_model"]:
        """Return the inputs of the next readers, [reader, circuit prompt, pos, d_model].

        The input of a reader is base + sum over sources of weight * change.
        """
        readers = slice(self.n_read, self.n_read + n_readers)
        self.n_read += n_readers
        sums = self.weight[:, readers, : self.n_written] @ self.change[:, : self.n_written]
        sums = sums.transpose(0, 1).reshape(n_readers, *self.shape)
        return (sums + self.base).flatten(1, 2)

    def write(self, made: Float[Tensor, "source *row_pos d_model"]) -> None:
        """Store the outputs of the next sources."""
        sources = slice(self.n_written, self.n_written + len(made))
        self.n_written += len(made)
        corrupt = self.corrupt[sources]
        change = made.reshape(len(made), *self.shape) - corrupt[:, None]
        self.change[:, sources] = change.transpose(0, 1).flatten(2)
        self.base = self.base + corrupt.sum(dim=0)


def read_heads(
    block: Block,
    inputs: Float[Tensor, "reader row pos d_model"],
    rotation: tuple[Tensor, Tensor] | None,
) -> Float[Tensor, "head row pos d_model"]:
    """Return the output of each head of a layer whose queries, keys and values have own inputs.

    `inputs` are in the order all queries, all keys, all values. The output bias is left out, since
    it belongs to no head. Keys and values that query heads share (GQA) are computed once per query
    head, so that they can read different sums.
    """
    attn = block.attn
    normed = block.ln1(inputs).unflatten(0, (3, attn.n_heads))
    q, k, v = (
        einsum(one, weight, "head row pos d_model, head d_model d_head -> row pos head d_head")
        + bias
        for one, weight, bias in zip(
            normed, (attn.W_Q, attn.W_K, attn.W_V), attn.b_QKV, strict=True
        )
    )
    q, k = attn.normalise_and_rotate(q, k, rotation)
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    if attn.window:
        mask = attn.hidden(q.shape[2], q, -torch.inf)
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _out_of_heads(block, z.transpose(0, 1))


def with_bias(
    block: Block, resid: Float[Tensor, "*some d_model"]
) -> Float[Tensor, "*some d_model"]:
    """Add the output bias of the attention, which later readers read whichever edges are kept."""
    return resid if block.attn.out.bias is None else resid + block.attn.out.bias


def _out_of_heads(
    block: Block, z: Float[Tensor, "head row pos d_head"]
) -> Float[Tensor, "head row pos d_model"]:
    return einsum(
        z, block.attn.W_O, "head row pos d_head, head d_head d_model -> head row pos d_model"
    )
