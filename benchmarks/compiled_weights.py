"""Files of compiled programs, and conversion of their weights to `train.model.GPT`.

`contents` reads a folder or a tar. A tar is never unpacked: members are read into memory, so no
name, link or device in an archive can touch the disk.

`model` converts the weights. Compiled programs have no norm, use ReLU, and may attend to later
positions. Their unembedding may be narrower or wider than their embedding; both get one vocabulary,
and the shorter one is padded with zeros. The files use TransformerLens names, with matrices that
multiply from the right (x @ W) and a separate matrix for each head.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from train.errors import DamagedError
from train.model import GPT, GPTConfig


__all__ = ["contents", "model"]

# Names of the members that are read; others are ignored. The largest known member has 38 MB.
MEMBER = re.compile(r"(?:.*/)?(case_\d+)\.(json|safetensors)")
LARGEST = 256 * 2**20


def contents(path: Path, wanted: set[str] | None) -> dict[str, dict[str, bytes]]:
    """Read program files as a mapping: name -> kind of file ("json", "safetensors") -> content.

    Args:
        path: A folder, or a tar of one.
        wanted: Names of programs to read; for others only the name is returned. None: all.

    Raises:
        DamagedError: The path cannot be read, holds no program, or has a member above 256 MiB.
    """
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


def model(said: dict[str, Any], theirs: dict[str, Tensor]) -> GPT:
    """Build the model of a configuration and its tensors, using every tensor.

    Raises:
        ValueError: The configuration or a tensor has no equivalent in `train.model.GPT`.
        KeyError: A setting or a tensor is missing.
    """
    cfg = _architecture(said)
    ours = _state(cfg, theirs)
    found = GPT(cfg)
    found.load_state_dict(ours)
    return found.eval()


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
        # Input tokens and output columns share one vocabulary: the shorter is padded with zeros.
        d_vocab=max(said["d_vocab"], said["d_vocab_out"]),
        d_head=said["d_head"],
        d_mlp=said["d_mlp"],
        norm="none",
        mlp="relu",
        tie=False,
        causal=directions[said["attention_dir"]],
    )


def _state(cfg: GPTConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors to our state dictionary, and check that every one is used.

    Raises:
        ValueError: A tensor has no equivalent.
        KeyError: A tensor is missing.
    """
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
