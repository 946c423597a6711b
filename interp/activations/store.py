"""Activation store on disk, read by row or by document and offset.

    store/ manifest.json         sealed: model, source, sites, dtype, shards with their sha256
           shard-00000/          complete, with all sites, or absent
             rows.bin            a record of `interp.activations.windows.ROW` for every row
             <site>.bin          [row, ...] raw little endian; bf16 as the two bytes of a uint16
             shard.json          sealed: sha256 and size of each file

All files are memory-mapped, and each block of 256 KiB is compared with its digest when it is first
read (`train.storage.block_digests`). Reading a range of rows or a set of (document, offset) touches
only the blocks of these values and, for a search by document, the row records of the shards that
contain them. Hits of the token index hold the same document and offset. Stores are written by
`interp.activations.writer`; an incomplete store cannot be opened.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
from train.progress import Progress


if TYPE_CHECKING:
    import pandas

__all__ = [
    "DTYPES", "MANIFEST", "ROWS", "SCHEMA", "SHARD", "ActivationStore", "open_store", "shard_name",
    "verify_store",
]  # fmt: skip

SCHEMA = "openbook.activations/1"
MANIFEST, SHARD, ROWS = "manifest.json", "shard.json", "rows.bin"
REMEDY = "write the store again"
# numpy has no bf16, so its two bytes are stored as uint16 and reinterpreted by torch when read.
DTYPES = {
    "bf16": (torch.bfloat16, np.dtype("<u2")),
    "fp16": (torch.float16, np.dtype("<f2")),
    "fp32": (torch.float32, np.dtype("<f4")),
}
SHAPE = {
    "finished": bool,
    "rows": int,
    "bytes": int,
    "dtype": str,
    "model": {"weights_sha256": str},
    "source": object,
    "sites": [{"name": str, "hook": str, "shape": [int]}],
    "shards": [
        {
            "rows": int,
            "places": (None, [[int]]),
            "files": {str: {"bytes": int, "sha256": str}},
        }
    ],
}


@dataclass(frozen=True)
class ActivationStore:
    """Complete activation store. Opening it reads only the manifest and the file sizes.

    Examples:
        >>> windows = activations.document_windows(store, context=64, documents=[28867])
        >>> stored = activations.write_store(model, windows, sites=["L1.mlp"], out=folder / "new")
        >>> stored.sites, stored.shape("L1.mlp")
        (['blocks.1.hook_mlp_out'], (128,))
        >>> tuple(stored.at("L1.mlp", [28867, 28867], [0, 1]).shape)
        (2, 128)
        >>> stored.to_frame().columns.tolist()
        ['window', 'pos', 'token', 'document', 'offset', 'position']
    """

    path: Path
    manifest: storage.JsonObject = field(repr=False, compare=False)

    @property
    def sites(self) -> list[str]:
        """Names of the stored sites, in the order in which they were requested."""
        return [one["name"] for one in self.manifest["sites"]]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values on disk, in which they are also returned."""
        return DTYPES[self.manifest["dtype"]][0]

    @property
    def n_bytes(self) -> int:
        """Size of values and rows on disk, in bytes."""
        return self.manifest["bytes"]

    @property
    def by_block(self) -> bool:
        """False for a store of an earlier version, which has no digests by block.

        Each of its files is checked as a whole before it is first read.
        """
        return all("xxh3" in one for shard in self._shards for one in shard["files"].values())

    def __len__(self) -> int:
        return self.manifest["rows"]

    def shape(self, site: str) -> tuple[int, ...]:
        """Return the shape of one row of a site, such as (d_model,) or (head, d_head)."""
        return tuple(self.manifest["sites"][self.sites.index(self._site(site))]["shape"])

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the records of the rows [start, stop), with the fields of `windows.ROW`.

        These are window, pos, token, document, offset and position.

        Raises:
            StoreError: There are no such rows.
        """
        parts = [self._rows(*piece) for piece in self._pieces(start, stop)]
        return np.concatenate(parts)

    def read(self, site: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the values of the rows [start, stop), [row, ...]; nothing else is read.

        Raises:
            StoreError: There is no such site or row.
        """
        name = self._site(site)
        pieces = self._pieces(start, stop)
        parts = []
        for shard, low, high in pieces:
            held = self._values(name, shard)
            self._digests(shard, f"{name}.bin").check(held, low, high)
            parts.append(np.array(held[low:high]))
        return self._tensor(np.concatenate(parts))

    def at(
        self,
        site: str,
        documents: Integer[np.ndarray, " place"] | Sequence[int],
        offsets: Integer[np.ndarray, " place"] | Sequence[int],
    ) -> Tensor:
        """Return the values at tokens of documents, [place, ...].

        For a hit of the token index: `at(site, [hit.document], [hit.offset])`.

        Raises:
            StoreError: A token is not in the store, or there is no such site.
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
        """Return the values of rows by number, in the order given, [place, ...].

        Raises:
            StoreError: There is no such site or row.
        """
        name, rows = self._site(site), np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise StoreError(
                f"rows {rows.min()} to {rows.max()} were asked of {len(self)} rows in {self.path}"
            )
        values = np.empty((len(rows), *self.shape(name)), DTYPES[self.manifest["dtype"]][1])
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            here = shards == shard
            held, wanted = self._values(name, shard), rows[here] - self._first_rows[shard]
            self._digests(shard, f"{name}.bin").check_rows(held, wanted)
            values[here] = held[wanted]
        return self._tensor(values)

    def find(
        self,
        documents: Integer[np.ndarray, " place"] | Sequence[int],
        offsets: Integer[np.ndarray, " place"] | Sequence[int],
    ) -> Int64[np.ndarray, " place"]:
        """Find the rows of tokens of documents; -1 for tokens that are not in the store.

        Raises:
            StoreError: The store was made from prompts, which have no documents.
        """
        if self.manifest["source"]["kind"] == "prompts":
            raise StoreError(f"{self.path} was made of prompts, which are no documents; use window")
        wanted = _keys(np.asarray(documents), np.asarray(offsets))
        found = np.full(len(wanted), -1, dtype=np.int64)
        for shard, one in enumerate(self._shards):
            if one["places"] is None:
                continue
            # Rows ascend by document and offset, so a shard holds keys between its first and last.
            low, high = _keys(*np.array(one["places"]).T)
            here = np.flatnonzero((wanted >= low) & (wanted <= high))
            if len(here):
                found[here] = self._search(shard, wanted[here])
        return found

    def window(self, window: int) -> tuple[int, int]:
        """Return the first row of a window and the row after its last.

        In a store made from prompts, window i is prompt i.

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

    def to_frame(self, start: int = 0, stop: int | None = None) -> "pandas.DataFrame":
        """Return the records of the rows [start, stop) as a pandas frame."""
        import pandas

        return pandas.DataFrame(self.rows(start, stop))

    @property
    def _shards(self) -> list[storage.JsonObject]:
        return self.manifest["shards"]

    @cached_property
    def _first_rows(self) -> Int64[np.ndarray, " shard"]:
        counts = np.array([one["rows"] for one in self._shards], dtype=np.int64)
        return np.cumsum(counts) - counts

    def _pieces(self, start: int, stop: int | None) -> Iterator[tuple[int, int, int]]:
        """Split the rows [start, stop) into pieces (shard, first, last + 1), counted in the shard.

        Raises:
            StoreError: There are no such rows.
        """
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

    def _rows(self, shard: int, low: int = 0, high: int | None = None) -> np.ndarray:
        rows = np.memmap(self._file(shard, ROWS), dtype=ROW, mode="r")
        self._digests(shard, ROWS).check(rows, low, len(rows) if high is None else high)
        return rows[low:high]

    @cached_property
    def _checked(self) -> dict[tuple[int, str], storage.BlockCheck]:
        return {}

    def _digests(self, shard: int, name: str) -> storage.BlockCheck:
        if (shard, name) not in self._checked:
            path, entry = self._file(shard, name), self._shards[shard]["files"][name]
            self._checked[shard, name] = storage.BlockCheck(path, entry, MANIFEST, REMEDY)
        return self._checked[shard, name]

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
        """Return the stored name of a site, given by its hook point or as a component.

        Raises:
            StoreError: The site is not in the store.
        """
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
    path: str | Path, *, model: object = None, store: TokenStore | None = None
) -> ActivationStore:
    """Open a complete activation store.

    If a model or token store is given, check that the activation store was made with it. Values are
    not read, so their digests are not checked: reading does that block by block, and `verify_store`
    for all of them.

    Raises:
        StoreError: There is no store, it is incomplete, or it was made with another model or token
            store.
        DamagedError: The manifest was changed, or a file is missing or has another size.

    Examples:
        >>> _ = activations.write_store(model, ioi.clean, sites=["L1.mlp"], out=folder / "new")
        >>> activations.open_store(folder / "new", model=model).sites
        ['blocks.1.hook_mlp_out']
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise StoreError(f"there is no activation store at {path}; make one with `openbook cache`")
    manifest = storage.read_sealed(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise StoreError(f"{path}: is no {SCHEMA!r}, but {storage.held_kind(manifest)}")
    storage.check_shape(manifest, SHAPE, path / MANIFEST)
    if not manifest["finished"]:
        raise StoreError(
            f"{path} is not complete ({manifest['rows']} rows were to be written); the same "
            "command goes on with --resume"
        )
    _refuse_others(path, manifest, model, store)
    for number, shard in enumerate(manifest["shards"]):
        _check_shard(path, manifest, number, shard)
    if (n_rows := sum(shard["rows"] for shard in manifest["shards"])) != manifest["rows"]:
        raise DamagedError(
            f"{path / MANIFEST}: {manifest['rows']} rows, and its shards have {n_rows}"
        )
    return ActivationStore(path, manifest)


def _check_shard(
    path: Path, manifest: storage.JsonObject, number: int, shard: storage.JsonObject
) -> None:
    """Raise unless the files of a shard have the sizes that its rows and the sites' shapes need."""
    bytes_a_row = {ROWS: ROW.itemsize}
    for site in manifest["sites"]:
        width = DTYPES[manifest["dtype"]][1].itemsize
        bytes_a_row[f"{site['name']}.bin"] = math.prod(site["shape"]) * width
    for name, needed in bytes_a_row.items():
        size = shard["files"].get(name, {}).get("bytes")
        if size != shard["rows"] * needed:
            raise DamagedError(
                f"{path / MANIFEST}: {name} of shard {number} has {size} bytes, and "
                f"{shard['rows']} rows of {needed} are listed"
            )
    for name, listed in shard["files"].items():
        storage.listed_file(path / MANIFEST, name)  # refuses names of other folders
        storage.check_size(path / shard_name(number) / name, listed["bytes"], REMEDY)


def verify_store(store: ActivationStore, progress: Progress | None = None) -> None:
    """Read every file of a store and compare it with the manifest.

    Raises:
        DamagedError: A file differs; the error names the first one.

    Examples:
        >>> stored = activations.write_store(model, ioi.clean, sites=["L1.mlp"], out=folder / "new")
        >>> activations.verify_store(stored)
    """
    fresh = open_store(store.path)
    for number, shard in enumerate(fresh.manifest["shards"]):
        folder = store.path / shard_name(number)
        # Compare the whole content: the shard.json of another store would have a valid seal too.
        if storage.read_sealed(folder / SHARD) != storage.seal(shard):
            raise DamagedError(f"{folder / SHARD}: is not what {MANIFEST} lists; it was changed")
        for name, listed in shard["files"].items():
            if progress:
                progress(f"verifying shard {number}", number, len(fresh.manifest["shards"]))
            storage.check_digest(folder / name, listed["sha256"], MANIFEST, REMEDY)


def shard_name(number: int) -> str:
    """Return the folder name of a shard."""
    return f"shard-{number:05d}"


def _refuse_others(
    path: Path, manifest: storage.JsonObject, model: object, store: TokenStore | None
) -> None:
    asked: dict[str, tuple[object, object]] = {}
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


def _keys(
    documents: Integer[np.ndarray, " place"], offsets: Integer[np.ndarray, " place"]
) -> Int64[np.ndarray, " place"]:
    """Combine document and offset into one number, which sorts like (document, offset)."""
    return documents.astype(np.int64) << 32 | offsets.astype(np.int64)
