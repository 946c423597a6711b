"""Writer of activation stores, for a corpus or for prompts; an interrupted store can be resumed.

The windows (`interp.activations.windows`) determine what the model reads, the sites what is kept.
Windows are processed in shards of a few hundred MB. Within a shard, windows of the same length form
a batch, so nothing is padded, and in fp32 a value equals that of `run_with_cache` for the same
batch to the last bit. Layers above the last site, and the logits, are not computed.

A shard is written under a temporary name and renamed when complete (`train.storage.new_folder`),
with every site and the sha256 of each file. The manifest is written first without shards, and at
the end with them. A process killed at any moment therefore leaves a store that can be resumed, and
the resumed store has the same bytes as one written without interruption, on the same machine and
number of threads.

bf16 keeps 8 significant bits of a value (relative error below 2**-8). fp16 keeps 11 bits of values
up to 65,504; larger values are an error. So are NaN and infinite values, for every dtype.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from interp.activations import capture, identity, plan, store
from interp.activations.plan import SHARD_BYTES, Plan
from interp.activations.store import DTYPES, MANIFEST, ROWS, SHARD, ActivationStore
from interp.activations.windows import Windows
from interp.components import HookedModel, device_of
from interp.errors import ModelError
from train import storage
from train.errors import DamagedError, StoreError
from train.progress import Progress, readable_size


__all__ = ["batches", "write_planned_store", "write_store"]

# Space that a file takes beyond its bytes: at most one block of the file system.
BLOCK = 4096

# Keys of a manifest that follow from the others, so they are not compared.
RESULTS = {"bytes", "rows", "shards", "finished", "digest"}


def write_store(
    model: HookedModel,
    source: Windows | Int[Tensor, "prompt pos"],
    *,
    sites: Sequence[str],
    out: str | Path,
    dtype: str = "bf16",
    batch: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    resume: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Write the activations of a model at some sites, for every token of a source.

    Args:
        model: A hooked model, from `interp.models.load`.
        source: Windows of a token store (`document_windows`, `training_windows`), or prompts.
        sites: Names of sites: TransformerLens names, names of components, or patterns, as
            `interp.activations.capture.located` resolves them.
        out: Folder of the store.
        dtype: Type of the values on disk: "bf16", "fp16" or "fp32".
        batch: Number of windows in a forward pass. None: as many as make 4096 tokens.
        shard_bytes: Size of the values of a shard, which are in memory while it is written.
        resume: Continue an interrupted store at `out`.
        progress: Called with the number of rows done.

    Raises:
        HookError, ModelError: As for `plan_store`. A ModelError also if a value is NaN, infinite,
            or too large for fp16.
        StoreError: `out` is not empty and `resume` is false, or it holds a store made with other
            parameters. Or another process is writing it.
        DamagedError: A shard of the interrupted store was changed.
        DiskError: The disk has too little space; raised before anything is written.

    Examples:
        >>> stored = activations.write_store(model, ioi.clean, sites=["L1.mlp"], out=folder / "new")
        >>> stored.sites
        ['blocks.1.hook_mlp_out']
        >>> tuple(stored.read("L1.mlp").shape)
        (960, 128)
    """
    planned = plan.plan_store(
        model, source, sites=sites, dtype=dtype, batch=batch, shard_bytes=shard_bytes
    )
    return write_planned_store(model, planned, out=out, resume=resume, progress=progress)


def write_planned_store(
    model: HookedModel,
    planned: Plan,
    *,
    out: str | Path,
    resume: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Write the store of a plan from `plan_store`, as `write_store` does.

    The model must be the one that the plan was made for.

    Examples:
        >>> planned = activations.plan_store(model, ioi.clean, sites=["L1.mlp"])
        >>> activations.write_planned_store(model, planned, out=folder / "new").sites
        ['blocks.1.hook_mlp_out']
    """
    out = Path(out)
    begun = _begun(out, planned, resume)
    if begun is not None and begun["finished"]:
        return store.open_store(out)
    _check_room(out, planned)
    if progress:
        progress(readable_size(planned.n_bytes), 0, planned.windows.n_rows)
    out.mkdir(parents=True, exist_ok=True)
    refusal = StoreError(f"{out} is being written by another process; wait for it")
    with storage.hold_lock(out, refusal):
        # Looked at again under the lock: another process may have written it meanwhile.
        begun = _begun(out, planned, resume or begun is not None)
        if begun is not None and begun["finished"]:
            return store.open_store(out)
        if begun is None:
            storage.write_json(out / MANIFEST, storage.seal(_manifest(planned, None)))
        shards, done = [], 0
        for number in range(planned.n_shards):
            shards.append(_shard(model, planned, number, out))
            done += shards[-1]["rows"]
            if progress:
                progress(readable_size(planned.n_bytes), done, planned.windows.n_rows)
        storage.write_json(out / MANIFEST, storage.seal(_manifest(planned, shards)))
    return store.open_store(out)


def batches(
    windows: Windows, start: int, stop: int, batch: int
) -> Iterator[Int64[np.ndarray, " window"]]:
    """Yield the windows [start, stop) in batches of equal length, shortest windows first."""
    shapes = np.stack([windows.repeated[start:stop], windows.length[start:stop]])
    order = np.lexsort(shapes) + start
    # A new batch begins where the length or the repeated context changes: batches are rectangular.
    changes = np.flatnonzero(np.diff(shapes[:, order - start]).any(axis=0)) + 1
    for group in np.split(order, changes):
        yield from (group[first : first + batch] for first in range(0, len(group), batch))


# --- the output folder ---------------------------------------------------------------------------


def _begun(out: Path, planned: Plan, resume: bool) -> storage.JsonObject | None:
    """Return the manifest of an interrupted or complete store at `out`; None if there is none.

    Raises:
        StoreError: `out` holds something else, a store made with other parameters, or any store if
            `resume` is false.
    """
    if not (out / MANIFEST).is_file():
        # A process killed while it wrote the first manifest leaves the manifest's temporary file.
        if out.exists() and (
            not out.is_dir() or not all(storage.is_partial(one) for one in out.iterdir())
        ):
            raise StoreError(f"{out} exists already and is no activation store; choose another")
        return None
    found = storage.read_sealed(out / MANIFEST)
    asked, bare = (
        {key: value for key, value in content.items() if key not in RESULTS}
        for content in (planned.content, found)
    )
    if said := identity.difference(asked, bare):
        raise StoreError(f"{out} holds a store made with {said}; choose another folder")
    if not resume:
        state = "is complete" if found["finished"] else "was begun; go on with it by --resume"
        raise StoreError(f"{out}: this store {state}, or choose another folder")
    return found


def _check_room(out: Path, planned: Plan) -> None:
    written = sum(
        file.stat().st_size for file in out.glob("shard-*/*") if file.name.endswith(".bin")
    )
    blocks = planned.n_shards * (len(planned.sites) + 2) * BLOCK
    needed = planned.n_bytes - written + blocks
    remedy = f"{planned}; keep fewer sites or documents, or another dtype"
    storage.check_room(out, needed, remedy=remedy)


def _manifest(planned: Plan, shards: list[storage.JsonObject] | None) -> dict[str, object]:
    return {**planned.content, "finished": shards is not None, "shards": shards or []}


# --- a shard -------------------------------------------------------------------------------------


def _shard(model: HookedModel, planned: Plan, number: int, out: Path) -> storage.JsonObject:
    """Write a shard unless it exists already, and return its listing."""
    folder = out / store.shard_name(number)
    plan_sha256 = hashlib.sha256(storage.canonical_json(planned.content).encode()).hexdigest()
    if folder.exists():
        return _kept(folder, number, plan_sha256)
    start, stop = planned.span(number)
    rows = planned.windows.rows(start, stop)
    columns = {ROWS: rows, **_values(model, planned, start, stop)}
    owned = rows[rows["document"] >= 0][["document", "offset"]]
    listing = {
        "shard": number,
        "plan_sha256": plan_sha256,
        "windows": [start, stop],
        "rows": len(rows),
        "places": [list(map(int, owned[end])) for end in (0, -1)] if len(owned) else None,
        "files": {name: storage.block_entry(values) for name, values in columns.items()},
    }
    with storage.new_folder(folder, locked=True) as temporary:
        for name, values in columns.items():
            # Not numpy's tofile: on a full disk its error does not name the cause.
            with (temporary / name).open("wb") as file:
                file.write(values.view(np.uint8).data)
        storage.write_json(temporary / SHARD, storage.seal(listing))
    return listing


def _kept(folder: Path, number: int, plan_sha256: str) -> storage.JsonObject:
    listing = storage.read_sealed(folder / SHARD)
    del listing["digest"]
    if (listing["shard"], listing["plan_sha256"]) != (number, plan_sha256):
        raise DamagedError(f"{folder}: is shard {listing['shard']} of another store; remove it")
    for name, listed in listing["files"].items():
        storage.check_digest(folder / name, listed["sha256"], SHARD, f"remove {folder} and go on")
    return listing


def _values(model: HookedModel, planned: Plan, start: int, stop: int) -> dict[str, np.ndarray]:
    """Compute the values of the windows [start, stop) at every site, row by row.

    Batches are computed by length; `rows` puts their values back in the order of the windows.
    """
    windows, stored = planned.windows, DTYPES[planned.dtype][1]
    kept = (windows.length - windows.repeated)[start:stop]
    first_row = np.cumsum(kept) - kept
    values = {
        f"{site.name}.bin": np.empty((int(kept.sum()), *site.shape), stored)
        for site in planned.sites
    }
    hooks = sorted({site.hook for site in planned.sites})
    for chosen in batches(windows, start, stop, planned.batch):
        tokens = torch.from_numpy(windows.inputs(chosen)).to(device_of(model))
        found = capture.activations(model, tokens, hooks)
        repeated = int(windows.repeated[chosen[0]])
        rows = first_row[chosen - start][:, None] + np.arange(int(kept[chosen[0] - start]))
        for site in planned.sites:
            value = capture.part(found[site.hook], site.index, site.name)[:, repeated:]
            values[f"{site.name}.bin"][rows] = _packed(value, planned.dtype, site.name)
    return values


def _packed(value: Tensor, dtype: str, name: str) -> np.ndarray:
    """Convert values to the type on disk.

    Raises:
        ModelError: A value is NaN or infinite, or becomes so in this type.
    """
    packed = value.to(DTYPES[dtype][0]).contiguous().cpu()
    if not torch.isfinite(packed).all():
        largest = value.abs().max().item()
        raise ModelError(
            f"{name} holds {largest:.3g}, which {dtype} cannot; use fp32 (or bf16 beyond 65,504)"
            if np.isfinite(largest)
            else f"{name} holds a value that is no number, so the model computes none; not kept"
        )
    if packed.dtype is torch.bfloat16:
        packed = packed.view(torch.int16)
    return packed.numpy().view(DTYPES[dtype][1])
