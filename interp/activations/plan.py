"""Plan of an activation store: its content and size, before anything is computed.

A plan records everything that determines the bytes of a store: the sha256 of the model's weights,
the fingerprint of the token store and its division into windows, sites, dtype, and the number of
windows per forward pass and per shard. Writing is resumed only if all of it agrees.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.activations import capture, identity
from interp.activations.capture import Site
from interp.activations.store import DTYPES, SCHEMA
from interp.activations.windows import ROW, Windows, prompt_windows
from interp.components import HookedModel, device_of
from interp.errors import ModelError
from train import storage
from train.errors import StoreError, nearest
from train.model import GPTConfig
from train.progress import count, readable_size
from train.short_repr import short_repr


__all__ = ["SHARD_BYTES", "Plan", "plan_store"]

# Size of the values of a shard, which are in memory while it is written.
SHARD_BYTES = 256 << 20
# Number of tokens in a forward pass if no batch is given: 64 windows of 64 tokens, 4 of 1024.
PASS_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Plan:
    """Plan of an activation store: everything that determines its bytes.

    Attributes:
        windows: Windows of tokens that the model reads.
        sites: Sites that are kept.
        dtype: Type of the values on disk: "bf16", "fp16" or "fp32".
        batch: Number of windows in a forward pass.
        windows_per_shard: Number of windows in a shard.
        content: Manifest without its shards. Plans with equal contents give equal bytes.
    """

    windows: Windows
    sites: tuple[Site, ...]
    dtype: str
    batch: int
    windows_per_shard: int
    content: dict[str, object]

    __repr__ = short_repr

    @property
    def n_bytes(self) -> int:
        """Size of values and rows on disk, in bytes."""
        return self.windows.n_rows * _row_bytes(self.sites, self.dtype)

    @property
    def n_shards(self) -> int:
        """Number of shards, each of which is one folder."""
        return -(-len(self.windows) // self.windows_per_shard)

    def span(self, shard: int) -> tuple[int, int]:
        """Return the first window of a shard, and the one after its last."""
        start = shard * self.windows_per_shard
        return start, min(start + self.windows_per_shard, len(self.windows))

    def __str__(self) -> str:
        return (
            f"{count(self.windows.n_rows, 'row')} of {count(len(self.windows), 'window')}, "
            f"{count(len(self.sites), 'site')} in {self.dtype}: {readable_size(self.n_bytes)} in "
            f"{count(self.n_shards, 'shard')}"
        )


def plan_store(
    model: HookedModel,
    source: Windows | Int[Tensor, "prompt pos"],
    *,
    sites: Sequence[str],
    dtype: str = "bf16",
    batch: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Plan:
    """Plan what `write_store` would write, and its size. Runs the model on one and on two tokens.

    Args:
        model: A hooked model.
        source: Windows of a token store, or prompts.
        sites: Names of sites, as `interp.activations.capture.located` resolves them.
        dtype: Type of the values on disk: "bf16", "fp16" or "fp32".
        batch: Number of windows in a forward pass. None: as many as make 4096 tokens.
        shard_bytes: Size of the values of a shard, in bytes.

    Raises:
        HookError: There is no such site; the error suggests the nearest names.
        ModelError: A site has no value per token, or the model has another tokenizer or a smaller
            vocabulary than the source.
        StoreError: There is no such dtype, or fewer than one window in a forward pass.

    Examples:
        >>> planned = activations.plan_store(model, ioi.clean, sites=["L0H1", "L1.resid_post"])
        >>> [site.name for site in planned.sites], planned.content["bytes"]
        (['L0H1', 'blocks.1.hook_resid_post'], 334080)
    """
    windows = source if isinstance(source, Windows) else prompt_windows(source)
    if dtype not in DTYPES:
        raise StoreError(f"there is no dtype {dtype!r}{nearest(dtype, DTYPES)}")
    if batch is not None and batch < 1:
        raise StoreError(f"{batch} windows in a forward pass are none; give 1 or more")
    _refuse_other_tokenizer(model, windows)
    found = capture.located(model, sites)
    longest = int(windows.length.max())
    batch = max(PASS_TOKENS // longest, 1) if batch is None else batch
    passes = shard_bytes // (batch * longest * _row_bytes(found, dtype))
    per_shard = batch * max(int(passes), 1)
    content = _content(model, windows, found, dtype=dtype, batch=batch)
    content["windows_per_shard"] = per_shard
    # A round trip through JSON, so that the plan equals a manifest that was read from disk.
    content = json.loads(storage.canonical_json(content))
    return Plan(windows, found, dtype, batch, per_shard, content)


def _refuse_other_tokenizer(model: HookedModel, windows: Windows) -> None:
    tokenizer = getattr(model, "tokenizer", None)
    highest = int(windows.tokens.max()) if windows.store is None else windows.store.vocab_size - 1
    if highest >= model.cfg.d_vocab:
        raise ModelError(
            f"the source has token ids up to {highest}, the model a vocabulary of "
            f"{model.cfg.d_vocab}; they do not belong together"
        )
    if windows.store is None or tokenizer is None:
        return
    theirs = windows.store.tokenizer
    # Compare tokens, not files: two libraries write the same vocabulary to different files.
    ids = range(theirs.vocab_size)
    if tokenizer.sha256 != theirs.sha256 and (
        tokenizer.vocab_size != theirs.vocab_size or tokenizer.tokens(ids) != theirs.tokens(ids)
    ):
        raise ModelError(
            f"the model's {tokenizer.kind} tokenizer ({tokenizer.sha256[:12]}, "
            f"{tokenizer.vocab_size} tokens) is not the {theirs.kind} tokenizer of "
            f"{windows.store.path} ({theirs.sha256[:12]}, {theirs.vocab_size} tokens)"
        )


def _content(
    model: HookedModel, windows: Windows, sites: tuple[Site, ...], *, dtype: str, batch: int
) -> dict[str, object]:
    origin, store = getattr(model, "origin", None), windows.store
    weight = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return {
        "schema": SCHEMA,
        "model": {
            "run_id": getattr(origin, "run_id", ""),
            "step": getattr(origin, "step", None),
            "checkpoint_sha256": getattr(origin, "checkpoint_sha256", ""),
            "knowledge": getattr(origin, "knowledge", "unknown"),
            "weights_sha256": identity.weights_sha256(model),
            "config": _config(model.cfg),
            "precision": str(torch.float32 if weight is None else weight.dtype)[6:],
            "device": device_of(model).type,
        },
        "source": {
            **windows.reading,
            "windows": len(windows),
            "windows_sha256": windows.sha256,
            "store_fingerprint": store.fingerprint if store else None,
            "tokenizer_sha256": store.tokenizer.sha256 if store else None,
        },
        "sites": [{"name": s.name, "hook": s.hook, "shape": list(s.shape)} for s in sites],
        "dtype": dtype,
        "batch": batch,
        "rows": windows.n_rows,
        "bytes": windows.n_rows * _row_bytes(sites, dtype),
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }


def _config(config: object) -> dict[str, object]:
    """Return the configuration of an openbook model; of other models an empty table."""
    return config.to_dict() if isinstance(config, GPTConfig) else {}


def _row_bytes(sites: tuple[Site, ...], dtype: str) -> int:
    values = sum(prod(site.shape) for site in sites)
    return values * DTYPES[dtype][1].itemsize + ROW.itemsize
