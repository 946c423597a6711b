"""Activations on disk: which model, which tokens, which values, found again by document and offset.

    store/ manifest.json         sealed: model, source, sites, dtype, shards with their sha256
           shard-00000/          appears whole, with all sites, or not at all
             rows.bin            a record of `windowing.ROW` for every row
             <site>.bin          [row, ...] raw little endian; bf16 as the two bytes of a uint16
             shard.json          sealed: sha256 and bytes of each file

Everything is memory-mapped: a row range or a set of (document, offset) touches what was asked for
and, of the shards it lies in, the records of the rows. A hit of the token index carries the same
document and offset. `interp.activations.writer` writes; a store is complete or is not opened.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from interp import components
from interp.activations import identity
from interp.activations.windows import ROW
from interp.errors import ModelError
from train import storage
from train.data import TokenStore
from train.errors import DamagedError, StoreError, nearest


__all__ = [
    "DTYPES", "MANIFEST", "ROWS", "SCHEMA", "SHARD", "ActivationStore", "open_store", "shard_name",
    "verify_store",
]  # fmt: skip

SCHEMA = "openbook.activations/1"
MANIFEST, SHARD, ROWS = "manifest.json", "shard.json", "rows.bin"
# numpy has no bf16: its two bytes are kept as they are, and given to torch on the way out.
DTYPES = {
    "bf16": (torch.bfloat16, np.dtype("<u2")),
    "fp16": (torch.float16, np.dtype("<f2")),
    "fp32": (torch.float32, np.dtype("<f4")),
}


@dataclass(frozen=True)
class ActivationStore:
    """A complete store. Opening reads the manifest and the sizes of the files, nothing else."""

    path: Path
    manifest: dict[str, Any] = field(repr=False, compare=False)

    @property
    def sites(self) -> list[str]:
        """Names of what was kept, in the order asked for."""
        return [one["name"] for one in self.manifest["sites"]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the values on disk, which is the dtype they are given in."""
        return DTYPES[self.manifest["dtype"]][0]

    @property
    def n_bytes(self) -> int:
        """Values and rows on disk."""
        return self.manifest["bytes"]

    def __len__(self) -> int:
        return self.manifest["rows"]

    def shape(self, site: str) -> tuple[int, ...]:
        """Axes of one row of a site: (d_model,), or (head, d_head) and the like."""
        return tuple(self.manifest["sites"][self.sites.index(self._site(site))]["shape"])

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Records of the rows [start, stop): window, pos, token, document, offset, position."""
        parts = [self._rows(shard)[low:high] for shard, low, high in self._pieces(start, stop)]
        return np.concatenate(parts)

    def read(self, site: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Values of the rows [start, stop), [row, ...]; the rest of the store is not touched.

        Raises:
            StoreError: There is no such site or row.
        """
        name = self._site(site)
        pieces = self._pieces(start, stop)
        parts = [np.array(self._values(name, shard)[low:high]) for shard, low, high in pieces]
        return self._tensor(np.concatenate(parts))

    def at(
        self,
        site: str,
        documents: Integer[np.ndarray, " place"] | Sequence[int],
        offsets: Integer[np.ndarray, " place"] | Sequence[int],
    ) -> Tensor:
        """Values at tokens of documents, [place, ...]: `at(site, [hit.document], [hit.offset])`.

        Raises:
            StoreError: A token that was not kept, or no such site.
        """
        found = self.find(documents, offsets)
        if (found < 0).any():
            one = int((found < 0).argmax())
            raise StoreError(
                f"token {int(offsets[one])} of document {int(documents[one])} is not in {self.path}"
                f" ({int((found < 0).sum())} of {len(found)} places are not); its documents are "
                f"{self._documents()}"
            )
        return self.take(site, found)

    def take(self, site: str, rows: Integer[np.ndarray, " place"] | Sequence[int]) -> Tensor:
        """Values of rows by their number, in the order asked for, [place, ...]."""
        name, rows = self._site(site), np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise StoreError(
                f"rows {rows.min()} to {rows.max()} were asked of {len(self)} rows in {self.path}"
            )
        values = np.empty((len(rows), *self.shape(name)), DTYPES[self.manifest["dtype"]][1])
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            here = shards == shard
            values[here] = self._values(name, shard)[rows[here] - self._first_rows[shard]]
        return self._tensor(values)

    def find(
        self,
        documents: Integer[np.ndarray, " place"] | Sequence[int],
        offsets: Integer[np.ndarray, " place"] | Sequence[int],
    ) -> Int64[np.ndarray, " place"]:
        """Rows of tokens of documents; -1 where a token was not kept.

        Raises:
            StoreError: The store was made of prompts, which have no documents.
        """
        if self.manifest["source"]["kind"] == "prompts":
            raise StoreError(f"{self.path} was made of prompts, which are no documents; use window")
        wanted = _keys(np.asarray(documents), np.asarray(offsets))
        found = np.full(len(wanted), -1, dtype=np.int64)
        for shard, one in enumerate(self._shards):
            if one["places"] is None:
                continue
            low, high = _keys(*np.array(one["places"]).T)
            here = np.flatnonzero((wanted >= low) & (wanted <= high))
            if len(here):
                found[here] = self._search(shard, wanted[here])
        return found

    def window(self, window: int) -> tuple[int, int]:
        """First row of a window (a prompt, of prompts), and the row after its last.

        Raises:
            StoreError: There is no such window.
        """
        n_windows = self.manifest["source"]["windows"]
        if not 0 <= window < n_windows:
            raise StoreError(f"window {window} was asked of {n_windows} in {self.path}")
        shard = window // self.manifest["windows_per_shard"]
        numbers = self._rows(shard)["window"]
        low, high = np.searchsorted(numbers, [window, window + 1])
        return int(self._first_rows[shard] + low), int(self._first_rows[shard] + high)

    def to_frame(self, start: int = 0, stop: int | None = None) -> Any:
        """The records of the rows [start, stop) as a pandas table."""
        import pandas

        return pandas.DataFrame(self.rows(start, stop))

    @property
    def _shards(self) -> list[dict[str, Any]]:
        return self.manifest["shards"]

    @cached_property
    def _first_rows(self) -> Int64[np.ndarray, " shard"]:
        counts = np.array([one["rows"] for one in self._shards], dtype=np.int64)
        return np.cumsum(counts) - counts

    def _pieces(self, start: int, stop: int | None) -> Iterator[tuple[int, int, int]]:
        """(shard, first, last + 1) that make up the rows [start, stop)."""
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise StoreError(f"rows {start} to {stop} were asked of {len(self)} in {self.path}")
        first = int(np.searchsorted(self._first_rows, start, side="right")) - 1
        return self._pieces_from(first, start, stop)

    def _pieces_from(self, shard: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        while start < stop:
            begin = int(self._first_rows[shard])
            end = min(stop, begin + self._shards[shard]["rows"])
            yield shard, start - begin, end - begin
            start, shard = end, shard + 1

    def _rows(self, shard: int) -> np.ndarray:
        return np.memmap(self._file(shard, ROWS), dtype=ROW, mode="r")

    def _values(self, name: str, shard: int) -> np.ndarray:
        shape = (self._shards[shard]["rows"], *self.shape(name))
        dtype = DTYPES[self.manifest["dtype"]][1]
        return np.memmap(self._file(shard, f"{name}.bin"), dtype=dtype, mode="r", shape=shape)

    def _file(self, shard: int, name: str) -> Path:
        path = self.path / shard_name(shard) / name
        if not path.is_file():
            raise DamagedError(f"{path}: the file is missing; it was there when the store was open")
        return path

    def _search(
        self, shard: int, wanted: Int64[np.ndarray, " place"]
    ) -> Int64[np.ndarray, " place"]:
        rows = self._rows(shard)
        owned = np.flatnonzero(rows["document"] >= 0)
        keys = _keys(rows["document"][owned], rows["offset"][owned])
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, self._first_rows[shard] + owned[place], -1)

    def _tensor(self, values: np.ndarray) -> Tensor:
        if self.dtype is torch.bfloat16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    def _site(self, name: str) -> str:
        """A kept site by its own name, or by the place that it is."""
        if name in self.sites:
            return name
        try:
            place = components.parse(name)
        except ModelError:
            place = None
        if place is not None and place.pos is None and place.hook in self.sites:
            if place.head is None and place.neuron is None:
                return place.hook
            raise StoreError(
                f"{name} was not kept on its own in {self.path}; read {place.hook} and take "
                f"[:, {place.neuron if place.head is None else place.head}]"
            )
        raise StoreError(f"{name!r} was not kept in {self.path}{nearest(name, self.sites)}")

    def _documents(self) -> str:
        places = [one["places"] for one in self._shards if one["places"]]
        return f"{places[0][0][0]} to {places[-1][1][0]}" if places else "none"


def open_store(
    path: str | Path, *, model: Any = None, store: TokenStore | None = None
) -> ActivationStore:
    """Open a complete store; with a model or a token store, only when it was made of that.

    Values are not read, so their digests are not compared: `verify` does.

    Raises:
        StoreError: There is none, it is not complete, or it was made of something else.
        DamagedError: The manifest was changed, or a file is missing or of another size.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise StoreError(f"there is no activation store at {path}; make one with `openbook cache`")
    manifest = storage.read_sealed(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise StoreError(f"{path}: is no {SCHEMA!r}, but {manifest.get('schema')!r}")
    if not manifest["finished"]:
        raise StoreError(
            f"{path} is not complete ({manifest['rows']} rows were to be written); the same "
            "command goes on with --resume"
        )
    _refuse_others(path, manifest, model, store)
    for number, shard in enumerate(manifest["shards"]):
        for name, listed in shard["files"].items():
            _check_size(path / shard_name(number) / name, listed["bytes"])
    return ActivationStore(path, manifest)


def verify_store(store: ActivationStore) -> None:
    """Read every file of a store and compare it with the manifest.

    Raises:
        DamagedError: Names the first file that differs.
    """
    fresh = open_store(store.path)
    for number, shard in enumerate(fresh.manifest["shards"]):
        folder = store.path / shard_name(number)
        # As a whole: a shard.json of another store is sealed too.
        if storage.read_sealed(folder / SHARD) != storage.seal(shard):
            raise DamagedError(f"{folder / SHARD}: is not what {MANIFEST} lists; it was changed")
        for name, listed in shard["files"].items():
            if storage.sha256_file(folder / name) != listed["sha256"]:
                raise DamagedError(
                    f"{folder / name}: its sha256 is not that of {MANIFEST}; it changed, write the "
                    "store again"
                )


def shard_name(number: int) -> str:
    """Folder of a shard."""
    return f"shard-{number:05d}"


def _refuse_others(
    path: Path, manifest: dict[str, Any], model: Any, store: TokenStore | None
) -> None:
    asked: dict[str, tuple[Any, Any]] = {}
    if model is not None:
        asked["model.weights_sha256"] = (
            identity.weights_sha256(model),
            manifest["model"]["weights_sha256"],
        )
    if store is not None:
        fingerprint = manifest["source"]["store_fingerprint"]
        asked["source.store_fingerprint"] = store.fingerprint, fingerprint
    for name, (given, found) in asked.items():
        if given != found:
            raise StoreError(f"{path} was made with {identity.difference(given, found, name)}")


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DamagedError(f"{path}: the file {state}, it was written with {expected}")


def _keys(
    documents: Integer[np.ndarray, " place"], offsets: Integer[np.ndarray, " place"]
) -> Int64[np.ndarray, " place"]:
    """One number a place, ascending as (document, offset) is."""
    return documents.astype(np.int64) << 32 | offsets.astype(np.int64)
