"""The gradient store: projected gradients of a whole corpus on disk, for any later query.

    RUN/gradients/ features.f16     one row per document, the sites side by side
                   exponents.i8     an exponent per row and site: value / 2**exponent is stored
                   documents.i64    the document of each row, ascending
                   gradients.json   sealed: run, checkpoint, store, sites, rank, seed, sha256s

Gradients of two documents differ by orders of magnitude, and so do those of two sites. With an
exponent for each, the largest number of a block lies between 1/2 and 1, and fp16 keeps 11 bits of
every number that is not 8,000 times smaller than that. The store is written in pieces of some
thousand documents; a build that was killed continues after the last whole piece and writes the same
bytes. It continues with the matrix product that it began with, because every process measures anew
which of torch's two products is faster.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, Int64

from data_attribution.errors import EvidenceError
from data_attribution.gradients import preconditioner, store_size, weight_selection
from data_attribution.gradients.features import Block, Features, document_features
from data_attribution.gradients.weight_selection import Selection, Within
from interp.patching import engine
from train import storage
from train.errors import DamagedError, nearest
from train.progress import Progress
from train.runs import Run


__all__ = [
    "GRADIENT_FOLDER",
    "LOG_ODDS",
    "METRIC",
    "METRICS",
    "RANK",
    "GradientStore",
    "build_gradient_store",
    "open_gradient_store",
    "trained_documents",
    "verify_gradient_store",
]

GRADIENT_FOLDER, MANIFEST, SCHEMA = "gradients", "gradients.json", 1
FEATURES, EXPONENTS, DOCUMENTS = "features.f16", "exponents.i8", "documents.i64"
SHAPE = {
    "documents": int,
    "blocks": [[(str, int)]],
    "files": {str: {"bytes": int, "sha256": str}},
    "store": str,
    "run": str,
    "step": int,
    "checkpoint_sha256": str,
    "rank": int,
    "seed": int,
}
PLAN, DONE = "plan.json", "done.json"
REMEDY = "collect them again"
PIECE = 4096
METRICS = ("plain", "adam")
# Defaults; `similarity` says how they were chosen.
RANK, METRIC, LOG_ODDS = 32, "adam", 0.01


@dataclass(frozen=True, eq=False)
class GradientStore:
    """An opened folder of gradients; rows are read when they are needed."""

    path: Path
    manifest: storage.JsonObject = field(repr=False)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return name, first column and end column (exclusive) of every site."""
        return tuple((name, start, stop) for name, start, stop in self.manifest["blocks"])

    @cached_property
    def documents(self) -> Int64[np.ndarray, " document"]:
        """Return the stored documents, ascending."""
        entry = self.manifest["files"][DOCUMENTS]
        storage.check_once(self.path / DOCUMENTS, entry["sha256"], MANIFEST, REMEDY)
        return np.fromfile(self.path / DOCUMENTS, dtype="<i8")

    @property
    def by_block(self) -> bool:
        """False for a store of an earlier version, which has no digests by block.

        Each of its files is checked as a whole before it is first read.
        """
        return all("xxh3" in self.manifest["files"][name] for name in (FEATURES, EXPONENTS))

    def features(self, documents: Sequence[int] | Int64[np.ndarray, " document"]) -> Features:
        """Return the gradients of some documents, in the given order, as fp32.

        Raises:
            EvidenceError: One of them is not stored.
        """
        asked = np.asarray(documents, dtype=np.int64)
        rows = np.searchsorted(self.documents, asked)
        rows = np.minimum(rows, len(self.documents) - 1)
        missing = asked[self.documents[rows] != asked]
        if len(missing):
            raise EvidenceError(
                f"{self.path} holds {len(self.documents)} documents, and document {missing[0]} is "
                "none of them; collect it again with all that are wanted"
            )
        return self._read(rows)

    def pieces(self, size: int = PIECE) -> Iterator[Features]:
        """Yield the gradients of all documents, `size` at a time."""
        for first in range(0, len(self.documents), size):
            yield self._read(np.arange(first, min(first + size, len(self.documents))))

    def fits(self, **asked: object) -> bool:
        """Return whether the store was collected with these values of the manifest's entries.

        The entries are `checkpoint_sha256`, `sites`, `rank`, `metric` and `log_odds`.
        """
        return all(self.manifest[name] == value for name, value in asked.items())

    def _read(self, rows: np.ndarray) -> Features:
        features, exponents = self._digests
        features.check_rows(self._features, rows)
        exponents.check_rows(self._exponents, rows)
        values = self._features[rows].astype(np.float32)
        exponents = self._exponents[rows].astype(np.int32)
        for number, (_, start, stop) in enumerate(self.blocks):
            block = values[:, start:stop]
            np.ldexp(block, exponents[:, number, None], out=block)
        rank, seed = self.manifest["rank"], self.manifest["seed"]
        return Features(self.documents[rows], values, self.blocks, rank, seed)

    @cached_property
    def _digests(self) -> tuple[storage.BlockCheck, storage.BlockCheck]:
        files = self.manifest["files"]
        features, exponents = (
            storage.BlockCheck(self.path / name, files[name], MANIFEST, REMEDY)
            for name in (FEATURES, EXPONENTS)
        )
        return features, exponents

    @cached_property
    def _features(self) -> Float[np.ndarray, "document dim"]:
        shape = len(self.documents), self.blocks[-1][2]
        return np.memmap(self.path / FEATURES, dtype="<f2", mode="r", shape=shape)

    @cached_property
    def _exponents(self) -> Int8[np.ndarray, "document site"]:
        shape = len(self.documents), len(self.blocks)
        return np.memmap(self.path / EXPONENTS, dtype="i1", mode="r", shape=shape)


def trained_documents(run: Run) -> Int64[np.ndarray, " document"]:
    """Return the documents of the train region.

    Examples:
        >>> len(gradients.trained_documents(run)), store.n_documents
        (28993, 28993)
    """
    return np.arange(int(np.searchsorted(run.store.starts, run.store.train_tokens)))


def build_gradient_store(
    run: Run,
    *,
    out: str | Path | None = None,
    within: Within = None,
    documents: Int64[np.ndarray, " document"] | None = None,
    step: int | None = None,
    rank: int = RANK,
    seed: int = 0,
    metric: str = METRIC,
    log_odds: float | None = LOG_ODDS,
    device: str = "cpu",
    piece: int = PIECE,
    progress: Progress | None = None,
) -> GradientStore:
    """Collect and store the gradients of all documents that a run could read.

    The defaults are the gradients that `similarity` compares by default.

    Args:
        out: A new folder; RUN/gradients if not given.
        documents: Documents to collect; None: the train region.
        step: Step of a checkpoint; None: the last.
        metric: `plain`, or `adam` for the metric of the optimizer's steps, see `preconditioner`.
        log_odds: See `losses`.
        piece: Number of documents per piece; a kill loses at most one piece.

    Raises:
        EvidenceError: `out` exists, is being built, or was begun with other choices, or the metric
            is that of Adam and the run's optimizer is Muon.
        DiskError: The disk has no room for it, or became full.

    Examples:
        >>> options = {"within": ["L0.mlp"], "documents": np.arange(50), "metric": "plain"}
        >>> stored = gradients.build_gradient_store(run, out=folder / "gradients", **options)
        >>> stored.documents.shape
        (50,)
    """
    if metric not in METRICS:
        raise EvidenceError(f"there is no metric {metric!r}{nearest(metric, METRICS)}")
    out = run.path / GRADIENT_FOLDER if out is None else Path(out)
    _refuse_existing(out)
    if metric == "adam":
        preconditioner.refuse_muon(run)
    model = run.load(step).to(device)
    selection = weight_selection.select_weights(model.cfg, within)
    wanted = (
        trained_documents(run) if documents is None else np.unique(np.asarray(documents, np.int64))
    )
    asked: dict[str, Any] = {"rank": rank, "seed": seed, "log_odds": log_odds}
    asked["product"] = _begun_product(out) or engine.product_for(model.device)
    about = {
        "schema": SCHEMA,
        "run": run.id,
        "step": model.origin.step,
        "checkpoint_sha256": model.origin.checkpoint_sha256,
        "store": run.store.fingerprint,
        "names": list(selection.names),
        "sites": [site.name for site in selection.sites],
        "metric": metric,
        "documents": len(wanted),
        "documents_sha256": hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest(),
        **asked,
    }
    if metric == "adam":
        asked["sides"] = preconditioner.adam(run, selection, step=step)
    _check_room(out, store_size.size(selection, len(wanted), rank=rank))
    with storage.disk_guard(out), _begun(out, about, _width(selection, rank)) as (folder, done):
        for first in range(done, len(wanted), piece):
            some = wanted[first : first + piece]
            told = _telling(progress, first, len(wanted))
            found = document_features(model, run.store, some, selection, **asked, progress=told)
            append_features(folder, found)
            storage.write_json(folder / DONE, storage.seal({"rows": first + len(some)}))
        storage.write_bytes(folder / DOCUMENTS, wanted.astype("<i8").tobytes())
        _finish(folder, out, {**about, "blocks": _blocks(selection, rank)})
    return open_gradient_store(out)


def open_gradient_store(path: str | Path, *, run: Run | None = None) -> GradientStore:
    """Open gradients by their folder.

    Seal and file sizes are checked; contents are checked block by block when they are first read,
    and all of them by `verify_gradient_store`.

    Args:
        run: Run to which they must belong, at one of its checkpoints.

    Raises:
        EvidenceError: There are none, or they have another version or belong to another run.
        DamagedError: The manifest was changed, or a file is missing or has another size.

    Examples:
        >>> options = {"within": ["L0.mlp"], "documents": np.arange(50), "metric": "plain"}
        >>> _ = gradients.build_gradient_store(run, out=folder / "gradients", **options)
        >>> stored = gradients.open_gradient_store(folder / "gradients", run=run)
        >>> stored.documents.shape
        (50,)
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise EvidenceError(
            f"no gradients are kept at {path}; `openbook gradients build` collects them"
        )
    manifest = storage.read_sealed(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise EvidenceError(
            f"{path} holds gradients of version {manifest.get('schema')!r:.40}, this reads "
            f"{SCHEMA}; collect them again"
        )
    storage.check_shape(manifest, SHAPE, path / MANIFEST)
    _check_sizes(path, manifest)
    if run is not None:
        _check_run(path, manifest, run)
    return GradientStore(path, manifest)


def _check_sizes(path: Path, manifest: storage.JsonObject) -> None:
    """Raise unless the files have the sizes that the listed blocks and documents need."""
    stops = [0]
    for block in manifest["blocks"]:
        kinds = [type(one) for one in block]
        if kinds != [str, int, int] or not stops[-1] == block[1] < block[2]:
            raise DamagedError(f"{path / MANIFEST}: {block!r:.60} is no block of columns")
        stops.append(block[2])
    n = manifest["documents"]
    needed = {DOCUMENTS: 8 * n, FEATURES: 2 * n * stops[-1], EXPONENTS: n * (len(stops) - 1)}
    for name, size in needed.items():
        if manifest["files"].get(name, {}).get("bytes") != size or n < 1:
            raise DamagedError(
                f"{path / MANIFEST}: {name} of {n} documents has {size} bytes, and another size is "
                "listed; collect them again"
            )
        storage.check_size(path / name, size, "collect them again")


def verify_gradient_store(stored: GradientStore) -> None:
    """Read all files and compare them with the manifest.

    Raises:
        DamagedError: A file differs; the message names it.

    Examples:
        >>> options = {"within": ["L0.mlp"], "documents": np.arange(50), "metric": "plain"}
        >>> stored = gradients.build_gradient_store(run, out=folder / "gradients", **options)
        >>> gradients.verify_gradient_store(stored)
    """
    for name, entry in stored.manifest["files"].items():
        storage.check_digest(stored.path / name, entry["sha256"], MANIFEST, REMEDY)


def _check_run(path: Path, manifest: storage.JsonObject, run: Run) -> None:
    if manifest["store"] != run.store.fingerprint or manifest["run"] != run.id:
        raise EvidenceError(
            f"{path} holds gradients of run {manifest['run']} on {manifest['store'][:12]}..., "
            f"this is run {run.id} on {run.store.fingerprint[:12]}...; collect them for this one"
        )
    saved = run.saved_at(manifest["step"])
    if saved.files["model.safetensors"] != manifest["checkpoint_sha256"]:
        raise EvidenceError(
            f"{path} holds gradients of other weights than step {saved.step} of the run has now; "
            "collect them again"
        )


def _width(selection: Selection, rank: int) -> tuple[int, int]:
    """Return the bytes of one row in features.f16 and in exponents.i8."""
    return 2 * store_size.numbers(selection, rank), len(selection.sites)


def _blocks(selection: Selection, rank: int) -> list[list[str | int]]:
    sizes = [store_size.numbers(Selection((), (site,)), rank) for site in selection.sites]
    stops = np.cumsum(sizes).tolist()
    return [
        [site.name, stop - size, stop]
        for site, size, stop in zip(selection.sites, sizes, stops, strict=True)
    ]


def _check_room(out: Path, needed: int) -> None:
    begun = storage.partial_path(out).glob("*") if storage.partial_path(out).is_dir() else ()
    needed -= sum(file.stat().st_size for file in begun)
    storage.check_room(out, needed, remedy="choose fewer components, a lower rank or another disk")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise EvidenceError(f"{out} exists already; remove it to collect its gradients again")


def _telling(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, _: progress(what, before + done, total)


@contextmanager
def _begun(
    out: Path, about: dict[str, object], width: tuple[int, int]
) -> Iterator[tuple[Path, int]]:
    """Yield the locked folder of an unfinished build, and the number of rows already safe in it."""
    refusal = EvidenceError(f"{out} is being collected by another process; wait for it")
    with storage.hold_build_lock(out, refusal):
        _refuse_existing(out)
        folder = storage.partial_path(out)
        folder.mkdir(exist_ok=True)
        if (folder / PLAN).is_file():
            _check_plan(folder, about)
        else:
            storage.write_json(folder / PLAN, storage.seal(about))
        done = storage.read_sealed(folder / DONE)["rows"] if (folder / DONE).is_file() else 0
        for name, row in zip((FEATURES, EXPONENTS), width, strict=True):
            with (folder / name).open("ab") as file:
                # Rows beyond the last recorded piece may be incomplete.
                file.truncate(done * row)
        yield folder, done


def _begun_product(out: Path) -> str | None:
    """Return the matrix product with which the existing rows were computed."""
    plan = storage.partial_path(out) / PLAN
    return storage.read_sealed(plan).get("product") if plan.is_file() else None


def _check_plan(folder: Path, about: dict[str, object]) -> None:
    before = storage.read_sealed(folder / PLAN)
    differs = sorted(key for key in about if before.get(key) != about[key])
    if differs:
        raise EvidenceError(
            f"{folder} was begun with other choices ({', '.join(differs)}); give the same ones to "
            "go on, or remove the folder to begin anew"
        )


def append_features(folder: Path, found: Features) -> None:
    """Append rows to those that are there, and make them durable."""
    values = found.values.copy()
    exponents = np.zeros((len(values), len(found.blocks)), dtype=np.int8)
    for number, (_, start, stop) in enumerate(found.blocks):
        block = values[:, start:stop]
        largest = np.frexp(np.abs(block).max(axis=1))[1]
        exponents[:, number] = np.clip(largest, -126, 126)
        np.ldexp(block, -exponents[:, number, None].astype(np.int32), out=block)
    for name, content in ((FEATURES, values.astype("<f2")), (EXPONENTS, exponents)):
        with (folder / name).open("ab") as file:
            file.write(content.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _finish(folder: Path, out: Path, about: dict[str, object]) -> None:
    files = {name: storage.block_entry(folder / name) for name in (FEATURES, EXPONENTS)}
    files[DOCUMENTS] = storage.file_entry(folder / DOCUMENTS)
    storage.write_json(folder / MANIFEST, storage.seal({**about, "files": files}))
    # Before the folder has its name: what a killed process leaves there stays. Without the plan the
    # number of rows would say nothing, so the plan is removed after it.
    for name in (DONE, PLAN):
        (folder / name).unlink(missing_ok=True)
    storage.sync_folder(folder)
    os.replace(folder, out)
    storage.sync_folder(out.parent)
