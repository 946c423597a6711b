"""Build, open and verify the token index of a store.

    STORE/index/ shard-000.*   sorted suffixes, first tokens and keys of a part (`shard_files`)
                 index.json    its store, its shards, and every file's sha256; sealed

The index is over the same file that the trainer reads; there is no second copy of the text. `index`
answers queries, and `sharding` decides where the text is cut.

An index is built in STORE/.index.partial, shard by shard, and renamed into place when it is
complete. Whatever stops a build, kill -9 and a full disk included, leaves the finished shards; the
next build continues with them, cut in the same way.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_attribution.errors import (
    AttributionError,
    IndexMismatch,
    IndexMissing,
    IndexSpaceError,
)
from data_attribution.token_index import cost, shard_files, sharding, sort_workers
from data_attribution.token_index.index import TokenIndex
from data_attribution.token_index.index_part import Part
from data_attribution.token_index.shard_files import Shard, Task
from data_attribution.token_index.sharding import ShardPlan
from train import storage
from train.data import TokenStore
from train.errors import DamagedError
from train.progress import Progress


__all__ = ["INDEX_FOLDER", "build", "open", "verify"]

SCHEMA = 2
TOKENS, PLAN = "tokens.bin", storage.ARTIFACT_PLAN
INDEX_FOLDER = "index"
SHAPE = {
    "backend": str,
    "parts": [{"name": str, "start": int, "stop": int, "held_out": bool}],
}


def build(
    store: TokenStore,
    *,
    shards: int | None = None,
    shard_tokens: int | None = None,
    workers: int = 1,
    memory: int | None = None,
    progress: Progress | None = None,
) -> TokenIndex:
    """Sort the store's text and keep the result in the store.

    An older index is replaced at the end. Takes 4.13 bytes of disk per token, and 12 bytes of
    memory per token of every shard that is sorted at the same time.

    Args:
        shards: Number of shards of the train region; the held-out region has its own. If neither
            this nor `shard_tokens` is given: as few as memory allows, and as many as
            workers.
        shard_tokens: Largest number of tokens in a shard, instead of `shards`.
        workers: Number of processes that sort one shard each; 1: this process sorts.
        memory: Bytes that sorting may take; default: three quarters of what is available.

    Raises:
        DamagedError: tokens.bin or documents.parquet does not match the store's manifest.
        DiskError: The disk is too small for the index.
        AttributionError: Another process is building this index.
        IndexSpaceError: A shard does not fit into memory.
        SorterError: The shards do not fit the documents.

    Examples:
        >>> index = token_index.build(store)
        >>> index.count("of runethi").count
        6
    """
    artifact = artifact_of(store)
    partial = storage.partial_path(artifact.path)
    with storage.lock_artifact(artifact):
        store.check_files(anew=True)
        plan = _plan(store, shards, shard_tokens, workers, memory)
        with _folder(partial):
            files = _sort(store, plan, partial, progress)
            manifest = _manifest(store, plan, partial, files)
            storage.write_json(partial / storage.ARTIFACT_MANIFEST, storage.seal(manifest))
            # From here on the manifest says how the index was cut. The plan is removed before the
            # folder has its name, because what a killed process leaves there stays.
            (partial / PLAN).unlink()
        storage.replace_folder(partial, artifact.path)
    return open(store)


def open(store: TokenStore) -> TokenIndex:
    """Open the index of a store; the arrays stay on disk until they are read.

    Raises:
        IndexMissing: It has not been built yet.
        IndexMismatch: It belongs to another store, to an earlier store at this path, or has another
            version.
        DamagedError: A file is truncated or changed, or the manifest does not match its seal, or is
            not that of an index (`storage.artifact_manifest`).

    Examples:
        >>> index = token_index.open(store)
        >>> index.count("of runethi").count
        6
    """
    artifact = artifact_of(store)
    manifest, path = storage.artifact_manifest(artifact), artifact.path
    place = path / storage.ARTIFACT_MANIFEST
    storage.check_shape(manifest, SHAPE, place)
    tokens = store.tokens.view(np.ndarray)
    parts, end = [], 0
    for one in manifest["parts"]:
        start, stop = one["start"], one["stop"]
        if start != end or not start < stop <= len(tokens):
            raise DamagedError(
                f"{place}: a part of tokens {start} to {stop}, behind one that ends at {end}, in "
                f"a text of {len(tokens)}; rebuild it with `{artifact.command}`"
            )
        storage.listed_file(place, one["name"])  # refuses names of other folders
        held, end = shard_files.read(path, one["name"], stop - start, store.vocab_size), stop
        parts.append(
            Part(
                start=start,
                held_out=one["held_out"],
                tokens=tokens[start:stop],
                suffixes=held.suffixes,
                buckets=held.buckets,
                keys=held.keys,
            )
        )
    return TokenIndex(store, manifest["backend"], tuple(parts))


def verify(store: TokenStore, progress: Progress | None = None) -> None:
    """Check every byte of a store's index, and of the tokens and the table that it is about.

    Raises:
        DamagedError: A file was changed; the message names it.

    Examples:
        >>> token_index.verify(store)
    """
    store.check_files(anew=True)
    storage.verify_artifact(artifact_of(store), progress)


def artifact_of(store: TokenStore) -> storage.Artifact:
    """Return the description of the folder of a store's index."""
    return storage.Artifact(
        path=store.path / INDEX_FOLDER,
        schema=SCHEMA,
        source=store.identity,
        name="index",
        command=f"openbook index build {store.path}",
        missing=IndexMissing,
        mismatch=IndexMismatch,
        busy=AttributionError,
        entries=("backend", "counts", "parts"),
    )


def _plan(
    store: TokenStore,
    n_shards: int | None,
    shard_tokens: int | None,
    workers: int,
    memory: int | None,
) -> ShardPlan:
    """Return the requested shards, or those of an interrupted build if none are requested.

    The shards of an interrupted build are used only if they still fit.
    """
    fresh = sharding.plan_shards(
        store,
        shards=n_shards,
        shard_tokens=shard_tokens,
        workers=workers,
        memory=memory,
    )
    partial = storage.partial_path(store.path / INDEX_FOLDER)
    if n_shards or shard_tokens or not list(partial.glob("shard-*.json")):
        return fresh
    try:
        planned = (partial / PLAN).exists()
        begun = storage.read_sealed(partial / (PLAN if planned else storage.ARTIFACT_MANIFEST))
        if (begun["schema"], begun["store"]) != (SCHEMA, store.fingerprint):
            return fresh
        cut = tuple(Shard(**one) for one in begun["shards" if planned else "parts"])
        return sharding.fitting(store, cut, workers=workers, memory=memory)
    except (DamagedError, IndexSpaceError):
        return fresh


def _sort(
    store: TokenStore,
    plan: ShardPlan,
    folder: Path,
    progress: Progress | None,
) -> dict[str, storage.FileEntry]:
    """Sort the shards that no earlier build finished; return all files of all shards, by name."""
    tasks = {shard: _task(store, shard, folder) for shard in plan.shards}
    found = {shard: shard_files.finished(task) for shard, task in tasks.items()}
    missing = [shard for shard, files in found.items() if files is None]
    listed = [asdict(shard) for shard in plan.shards]
    about = {"schema": SCHEMA, "store": store.fingerprint, "shards": listed}
    storage.write_json(folder / PLAN, storage.seal(about))
    _clear(folder, {PLAN, *(name for files in found.values() for name in files or ())})
    needed = sum(cost.disk(one.n_tokens, store.vocab_size) for one in missing)
    remedy = "free some space and run the same command again"
    storage.check_room(store.path / INDEX_FOLDER, needed, remedy=remedy)
    done = store.n_tokens - sum(shard.n_tokens for shard in missing)
    _report(progress, done, store)
    for shard in sort_workers.sort_all([tasks[one] for one in missing], plan.workers):
        found[shard] = shard_files.listed(tasks[shard])
        done += shard.n_tokens
        _report(progress, done, store)
    return {name: file for files in found.values() for name, file in (files or {}).items()}


def _task(store: TokenStore, shard: Shard, folder: Path) -> Task:
    return Task(
        shard=shard,
        folder=str(folder.absolute()),
        tokens=str((store.path / TOKENS).absolute()),
        dtype=store.tokens.dtype.str,
        vocab_size=store.vocab_size,
        store=store.fingerprint,
        sha256=store.manifest["files"][TOKENS],
    )


def _manifest(
    store: TokenStore, plan: ShardPlan, folder: Path, files: dict[str, storage.FileEntry]
) -> dict[str, object]:
    sorters = {shard_files.sorter_of(folder, shard.name) for shard in plan.shards}
    return {
        "schema": SCHEMA,
        **store.identity,
        "backend": " and ".join(sorted(sorters)),
        "counts": {"tokens": store.n_tokens, "train_tokens": store.train_tokens},
        "parts": [asdict(shard) for shard in plan.shards],
        "files": files,
    }


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder of an unfinished index; if the block fails, finished shards stay in it."""
    with storage.disk_guard(path):
        path.mkdir(exist_ok=True)
        try:
            yield
        except BaseException:
            for file in path.glob(".*.partial"):
                file.unlink(missing_ok=True)
            if not list(path.glob("shard-*.json")):
                shutil.rmtree(path, ignore_errors=True)
            raise


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove what an earlier build left unfinished, or sorted for other shards."""
    for file in folder.iterdir():
        if file.name not in keep:
            file.unlink()


def _report(progress: Progress | None, done: int, store: TokenStore) -> None:
    if progress:
        progress("sorting suffixes", done, store.n_tokens)
