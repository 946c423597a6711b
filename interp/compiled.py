"""Programs compiled into transformers, for which the circuit is known and not inferred.

tracr (Lindner et al. 2023, https://arxiv.org/abs/2301.05062) turns a RASP program into weights: the
compiler says which head or MLP computes what, and every other weight is zero. InterpBench (Gupta
et al. 2024, https://arxiv.org/abs/2407.14494) wrote the programs. Here they run in the very module
that we train and study: no norm, ReLU, attention that may look ahead, and an unembedding narrower
or wider than the embedding, padded with zeros.

A compiled folder, or the .tar.xz of one, holds pairs `case_N.json` and `case_N.safetensors` with
TransformerLens' tensor names. Nothing is unpacked onto the disk.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from interp.components import Place
from train.architecture import GPTConfig
from train.errors import DamagedError, nearest
from train.model import GPT
from train.runs import Origin


__all__ = ["Example", "Program", "open", "read"]

# Of the tar's members these are read and no other; the largest is 38 MB.
MEMBER = re.compile(r"(?:.*/)?(case_\d+)\.(json|safetensors)")
TIE = 1e-7
SOME_LENGTHS = (2, 3, 5, 10, 30, 60)
LARGEST = 256 * 2**20
NODE = re.compile(r"blocks\.(\d+)\.(?:attn\[(\d+)\]|(mlp))")


@dataclass(frozen=True)
class Example:
    """An input, BOS first, and the program's output at every position; that at 0 means nothing."""

    tokens: tuple[int, ...]
    output: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled program.

    Attributes:
        name: As in "case_3".
        task: What it computes, in one sentence.
        model: Its transformer. Columns of the logits from `n_outputs` on are padding.
        symbols: What may follow BOS, with the token of each.
        bos: The token that every input begins with.
        outputs: Meaning of each column of the logits; None: column 0 is the value itself.
        n_outputs: Columns that mean something.
        circuit: The components that compute, by the compiler.
        edges: Pairs of nodes under the compiler's names, embeddings included.
        labels: What each direction of the residual stream means.
        examples: Of one length.
    """

    name: str
    task: str
    model: GPT
    symbols: dict[str, int]
    bos: int
    outputs: tuple[str, ...] | None
    n_outputs: int
    circuit: tuple[Place, ...]
    edges: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    @property
    def components(self) -> tuple[Place, ...]:
        """Heads and MLPs: the heads of layer 0, its MLP, the heads of layer 1 and so on."""
        cfg = self.model.cfg
        return tuple(
            place
            for layer in range(cfg.n_layers)
            for place in (
                *(Place("head", layer, head) for head in range(cfg.n_heads)),
                Place("mlp", layer),
            )
        )

    @property
    def tokens(self) -> Int[Tensor, "prompt pos"]:
        """The examples' inputs."""
        return torch.tensor([one.tokens for one in self.examples])

    def decode(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> list[list[Any]]:
        """The output at every position but the first: a number, or the text of a symbol.

        Columns as high as the best but for rounding are a tie, which goes to the first of them.
        """
        logits = logits[:, 1:, : self.n_outputs]
        if self.outputs is None:
            return logits[..., 0].tolist()
        # Programs decide by as little as 5.4e-7; rounding parts the exact ties of case_13 by 1e-8.
        best = logits >= logits.amax(-1, keepdim=True) - TIE
        return [[self.outputs[column] for column in row] for row in best.int().argmax(-1).tolist()]

    def counts(self, hits: Collection[Place]) -> dict[str, int]:
        """Components found against the circuit: tp, fp, fn, tn."""
        found, true = set(hits), set(self.circuit)
        every = set(self.components)
        return {
            "tp": len(found & true),
            "fp": len(found - true),
            "fn": len(true - found),
            "tn": len(every - found - true),
        }

    def varied_inputs(self, seed: int = 0) -> list[Int[Tensor, "prompt pos"]]:
        """Inputs of every length, so that whatever the program reads is varied; a batch a length.

        Each length has 60 random ones, 15 of one symbol, 30 sorted and the same 30 reversed.
        """
        draw = np.random.Generator(np.random.Philox(key=seed))
        symbols = np.array(list(self.symbols.values()))
        return [self._of_length(length, symbols, draw) for length in self.lengths]

    @property
    def lengths(self) -> tuple[int, ...]:
        """2 up to the context, BOS counted; of a long context some."""
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
        """Examples that the model decodes otherwise than the program says. One forward pass."""
        decoded = self.decode(self.model(self.tokens))
        wrong = 0
        for example, row in zip(self.examples, decoded, strict=True):
            pairs = list(zip(row, example.output[1:], strict=True))
            if self.outputs is None:
                wrong += any(abs(got - float(said)) > tolerance for got, said in pairs)
            else:
                wrong += any(got != str(said) for got, said in pairs)
        return wrong


def open(source: str | Path, names: Sequence[str] | None = None) -> Iterator[Program]:
    """The programs of a folder or a tar, by number; those of `names`, when given.

    Raises:
        DamagedError: A file is missing, unreadable, or does not fit its configuration; or a name
            is not there.
    """
    found = _contents(Path(source), None if names is None else set(names))
    known = sorted(found, key=lambda name: int(name.removeprefix("case_")))
    for name in names or ():
        if name not in found:
            raise DamagedError(f"{source}: no program {name!r}{nearest(name, known)}")
    for name in known if names is None else names:
        parts = found.pop(name)
        if parts.keys() != {"json", "safetensors"}:
            raise DamagedError(f"{source}: {name} has only its {', '.join(parts)}")
        yield _program(name, parts["json"], parts["safetensors"], f"{source}: {name}")


def read(source: str | Path, name: str) -> Program:
    """One program; see `open`."""
    return next(open(source, [name]))


# --- files ---------------------------------------------------------------------------------------


def _contents(path: Path, wanted: set[str] | None) -> dict[str, dict[str, bytes]]:
    """Name -> kind of file -> content, of the names wanted; of all names, when all are."""
    found: dict[str, dict[str, bytes]] = {}
    files = _folder(path) if path.is_dir() else _tar(path)
    for name, kind, content in files:
        if wanted is None or name in wanted:
            found.setdefault(name, {})[kind] = content
        else:
            found.setdefault(name, {})
    if not found:
        raise DamagedError(f"{path}: holds no case_N.json and case_N.safetensors")
    return found


def _folder(path: Path) -> Iterator[tuple[str, str, bytes]]:
    for file in sorted(path.rglob("case_*")):
        if (named := MEMBER.fullmatch(file.name)) and file.is_file():
            yield named[1], named[2], file.read_bytes()


def _tar(path: Path) -> Iterator[tuple[str, str, bytes]]:
    # Members are read into memory, so no name, link or device in the archive can touch the disk.
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                named = MEMBER.fullmatch(member.name)
                file = archive.extractfile(member) if named and member.isreg() else None
                if file is None or named is None:
                    continue
                if member.size > LARGEST:
                    raise DamagedError(f"{path}: {member.name} is {member.size:,} bytes")
                yield named[1], named[2], file.read()
    except FileNotFoundError:
        raise DamagedError(f"{path}: the file is missing") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedError(f"{path}: not readable as a tar ({error})") from None


# --- one program ---------------------------------------------------------------------------------


def _program(name: str, facts: bytes, weights: bytes, where: str) -> Program:
    try:
        said = json.loads(facts)
        theirs = {key: value.float() for key, value in safetensors.torch.load(weights).items()}
        model = _model(said["cfg"], theirs)
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


def _circuit(nodes: Sequence[str]) -> tuple[Place, ...]:
    """The components among the compiler's nodes; embeddings are none of ours."""
    found = (NODE.fullmatch(node) for node in nodes)
    places = [
        Place("mlp", int(one[1])) if one[3] else Place("head", int(one[1]), int(one[2]))
        for one in found
        if one
    ]
    return tuple(places)


def _model(said: dict[str, Any], theirs: dict[str, Tensor]) -> GPT:
    cfg = _architecture(said)
    ours = _state(cfg, theirs)
    model = GPT(cfg)
    model.load_state_dict(ours)
    return model.eval()


def _architecture(said: dict[str, Any]) -> GPTConfig:
    directions = {"causal": True, "bidirectional": False}
    if said["act_fn"] != "relu" or said["normalization_type"] is not None:
        raise ValueError(
            f"act_fn {said['act_fn']!r} and normalization_type {said['normalization_type']!r}; "
            "compiled programs have relu and none"
        )
    return GPTConfig(
        n_layers=said["n_layers"],
        n_heads=said["n_heads"],
        d_model=said["d_model"],
        n_ctx=said["n_ctx"],
        # One table for tokens in and columns out: the shorter one is padded with zeros.
        d_vocab=max(said["d_vocab"], said["d_vocab_out"]),
        d_head=said["d_head"],
        d_mlp=said["d_mlp"],
        norm="none",
        mlp="relu",
        tie=False,
        causal=directions[said["attention_dir"]],
    )


def _state(cfg: GPTConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dictionary; every tensor of theirs is used."""
    left = dict(theirs)
    ours = {
        "embed.weight": _padded(left.pop("embed.W_E"), cfg.rows),
        "pos_embed.weight": left.pop("pos_embed.W_pos"),
        "unembed.weight": _padded(left.pop("unembed.W_U").T, cfg.rows),
    }
    if left.pop("unembed.b_U").any():
        raise ValueError("unembed.b_U is not zero, and our unembedding has no bias")
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        weights = [left.pop(f"{block}attn.W_{one}") for one in "QKV"]
        biases = [left.pop(f"{block}attn.b_{one}") for one in "QKV"]
        rows = [rearrange(one, "head d_model d_head -> (head d_head) d_model") for one in weights]
        out = rearrange(
            left.pop(f"{block}attn.W_O"), "head d_head d_model -> d_model (head d_head)"
        )
        ours |= {
            f"{block}attn.qkv.weight": torch.cat(rows),
            f"{block}attn.qkv.bias": torch.cat([one.flatten() for one in biases]),
            f"{block}attn.out.weight": out,
            f"{block}attn.out.bias": left.pop(f"{block}attn.b_O"),
            f"{block}mlp.up.weight": left.pop(f"{block}mlp.W_in").T,
            f"{block}mlp.up.bias": left.pop(f"{block}mlp.b_in"),
            f"{block}mlp.down.weight": left.pop(f"{block}mlp.W_out").T,
            f"{block}mlp.down.bias": left.pop(f"{block}mlp.b_out"),
        }
    if left:
        raise ValueError(f"{len(left)} tensors have no place, the first is {min(left)}")
    return ours


def _padded(rows: Float[Tensor, "row d_model"], n_rows: int) -> Float[Tensor, "padded d_model"]:
    return torch.nn.functional.pad(rows, (0, 0, 0, n_rows - len(rows)))
