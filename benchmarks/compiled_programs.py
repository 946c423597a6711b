"""Compiled programs: transformers whose circuit is known and not inferred.

tracr (Lindner et al. 2023, https://arxiv.org/abs/2301.05062) compiles a RASP program to weights.
The compiler records which head or MLP computes what, and all other weights are zero. The programs
are those of InterpBench (Gupta et al. 2024, https://arxiv.org/abs/2407.14494). They run here in the
same model class that we train and study, `train.model.GPT` (`compiled_weights` converts
the weights).

A folder of programs, or a .tar.xz of one, holds pairs of `case_N.json` and `case_N.safetensors`
with TransformerLens' tensor names. Nothing is unpacked onto the disk.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiled_weights
import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from interp import patching
from interp.components import Component
from interp.metrics import Metric
from interp.patching import ContrastCheck
from train.errors import DamagedError, nearest
from train.model import GPT
from train.runs import Origin


__all__ = [
    "HIT",
    "Example",
    "Program",
    "needed_components",
    "open_programs",
    "program_contrast",
    "read_program",
]

# Threshold on the change of an output. Components that matter change one by at least 3e-3, and all
# others by at most 4e-9.
HIT = 1e-4

TIE = 1e-7
SOME_LENGTHS = (2, 3, 5, 10, 30, 60)
NODE = re.compile(r"blocks\.(\d+)\.(?:attn\[(\d+)\]|(mlp))")


@dataclass(frozen=True)
class Example:
    """Input that begins with BOS, and the program's output at every position.

    The output at position 0 has no meaning.
    """

    tokens: tuple[int, ...]
    output: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """Compiled program with its model, its circuit and examples.

    Attributes:
        name: Name such as "case_3".
        task: Description of what it computes, in one sentence.
        model: Transformer of the program. Columns of the logits from `n_outputs` on are padding.
        symbols: Symbols that may follow BOS, with their tokens.
        bos: Token that every input begins with.
        outputs: Meaning of each column of the logits; None: column 0 is the output value itself.
        n_outputs: Number of columns that are not padding.
        circuit: Components that take part in the computation, according to the compiler.
        edges: Pairs of nodes under the compiler's names, embeddings included.
        labels: Meaning of each direction of the residual stream.
        examples: Inputs of equal length with their outputs.
    """

    name: str
    task: str
    model: GPT
    symbols: dict[str, int]
    bos: int
    outputs: tuple[str, ...] | None
    n_outputs: int
    circuit: tuple[Component, ...]
    edges: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    @property
    def components(self) -> tuple[Component, ...]:
        """All heads and MLPs: the heads of layer 0, its MLP, the heads of layer 1 and so on."""
        cfg = self.model.cfg
        return tuple(
            place
            for layer in range(cfg.n_layers)
            for place in (
                *(Component("head", layer, head) for head in range(cfg.n_heads)),
                Component("mlp", layer),
            )
        )

    @property
    def tokens(self) -> Int[Tensor, "prompt pos"]:
        """Inputs of the examples."""
        return torch.tensor([one.tokens for one in self.examples])

    def decode(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> list[list[Any]]:
        """Return the output at every position but the first: a number, or a symbol as text.

        Columns that equal the highest one up to rounding are ties; the first of them is chosen.
        """
        logits = logits[:, 1:, : self.n_outputs]
        if self.outputs is None:
            return logits[..., 0].tolist()
        # TIE lies between the smallest real margin (5.4e-7) and the differences that rounding adds
        # to the exact ties of case_13 (1e-8).
        best = logits >= logits.amax(-1, keepdim=True) - TIE
        return [[self.outputs[column] for column in row] for row in best.int().argmax(-1).tolist()]

    def counts(self, hits: Collection[Component]) -> dict[str, int]:
        """Compare components with the circuit: counts of tp, fp, fn and tn."""
        found, true = set(hits), set(self.circuit)
        every = set(self.components)
        return {
            "tp": len(found & true),
            "fp": len(found - true),
            "fn": len(true - found),
            "tn": len(every - found - true),
        }

    def varied_inputs(self, seed: int = 0) -> list[Int[Tensor, "_ _"]]:
        """Draw one batch of inputs for each of `lengths`, to vary everything the program reads.

        Each batch has 60 random inputs, 15 of one repeated symbol, 30 sorted ones, and the same 30
        reversed.
        """
        draw = np.random.Generator(np.random.Philox(key=seed))
        symbols = np.array(list(self.symbols.values()))
        return [self._of_length(length, symbols, draw) for length in self.lengths]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of inputs, BOS included: 2 up to the context, or some of them if it is long."""
        n_ctx = self.model.cfg.n_ctx
        return tuple(range(2, n_ctx + 1)) if n_ctx < SOME_LENGTHS[-1] else SOME_LENGTHS

    def _of_length(
        self, length: int, symbols: np.ndarray, draw: np.random.Generator
    ) -> Int[Tensor, "prompt pos"]:
        drawn = draw.choice(symbols, (60, length - 1))
        constant = draw.choice(symbols, (15, 1)).repeat(length - 1, axis=1)
        ascending = np.sort(draw.choice(symbols, (30, length - 1)), axis=1)
        rows = np.concatenate([drawn, constant, ascending, ascending[:, ::-1]])
        return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=self.bos))

    @torch.inference_mode()
    def mismatches(self, tolerance: float = 1e-4) -> int:
        """Count the examples on which the model and the program differ, in one forward pass."""
        decoded = self.decode(self.model(self.tokens))
        wrong = 0
        for example, row in zip(self.examples, decoded, strict=True):
            pairs = list(zip(row, example.output[1:], strict=True))
            if self.outputs is None:
                wrong += any(abs(got - float(said)) > tolerance for got, said in pairs)
            else:
                wrong += any(got != str(said) for got, said in pairs)
        return wrong


def program_contrast(
    program: Program, clean: Int[Tensor, "prompt pos"], corrupt: Int[Tensor, "_ _"]
) -> ContrastCheck:
    """Check what patching each component between paired inputs can show.

    See `interp.patching.informative`.
    """
    metric = _noticed(program, clean)
    return patching.informative(program.model, clean, corrupt, program.components, metric=metric)


def needed_components(
    program: Program, batches: Sequence[Int[Tensor, "_ _"]]
) -> dict[Component, float]:
    """Measure the largest change of an output over all inputs when a component is set to zero.

    A component is needed if the change exceeds `HIT`. Costs one patched pass for each component and
    batch. The inputs of a batch have the same length.
    """
    changes = [
        patching.removed(
            program.model, tokens, program.components, metric=_noticed(program, tokens)
        )
        for tokens in batches
    ]
    largest = torch.stack(changes).amax(dim=0).tolist()
    return dict(zip(program.components, largest, strict=True))


def _noticed(program: Program, tokens: Int[Tensor, "prompt pos"]) -> Metric:
    """Return the metric "largest change of an output", without BOS and padding columns."""
    positions, columns = range(1, tokens.shape[1]), range(program.n_outputs)
    return patching.largest_change(program.model, tokens, positions=positions, columns=columns)


def open_programs(source: str | Path, names: Sequence[str] | None = None) -> Iterator[Program]:
    """Yield the programs of a folder or a tar by number, or those of `names` in that order.

    Raises:
        DamagedError: A file is missing, unreadable or does not fit its configuration, or there is
            no program of a name.
    """
    found = compiled_weights.contents(Path(source), None if names is None else set(names))
    known = sorted(found, key=lambda name: int(name.removeprefix("case_")))
    for name in names or ():
        if name not in found:
            raise DamagedError(f"{source}: no program {name!r}{nearest(name, known)}")
    for name in known if names is None else names:
        parts = found.pop(name)
        if parts.keys() != {"json", "safetensors"}:
            raise DamagedError(f"{source}: {name} has only its {', '.join(parts)}")
        yield _program(name, parts["json"], parts["safetensors"], f"{source}: {name}")


def read_program(source: str | Path, name: str) -> Program:
    """Read one program; see `open_programs`."""
    return next(open_programs(source, [name]))


# --- one program ---------------------------------------------------------------------------------


def _program(name: str, facts: bytes, weights: bytes, where: str) -> Program:
    try:
        said = json.loads(facts)
        theirs = {key: value.float() for key, value in safetensors.torch.load(weights).items()}
        model = compiled_weights.model(said["cfg"], theirs)
        encoding, decoding = said["input_encoding"], said["output_encoding"]
        numerical = decoding == "numerical"
        outputs = None if numerical else tuple(sorted(decoding, key=decoding.__getitem__))
        examples = tuple(
            Example(tuple(one["token_ids"]), tuple(one["output"])) for one in said["examples"]
        )
        program = Program(
            name=name,
            task=said["task"],
            model=model,
            symbols={symbol: encoding[str(symbol)] for symbol in map(str, said["vocab"])},
            bos=encoding["BOS"],
            outputs=outputs,
            n_outputs=said["cfg"]["d_vocab_out"],
            circuit=_circuit(said["circuit_nodes"]),
            edges=tuple((start, end) for start, end in said["circuit_edges"]),
            labels=tuple(said["residual_labels"]),
            examples=examples,
        )
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(f"{where}: not readable as a compiled program ({reason})") from None
    model.origin = Origin(name, 0, hashlib.sha256(weights).hexdigest(), "weights-only")
    return program


def _circuit(nodes: Sequence[str]) -> tuple[Component, ...]:
    """Return the compiler's nodes that are heads or MLPs; embeddings are left out."""
    found = (NODE.fullmatch(node) for node in nodes)
    places = [
        Component("mlp", int(one[1])) if one[3] else Component("head", int(one[1]), int(one[2]))
        for one in found
        if one
    ]
    return tuple(places)
