"""The order in which a published run read its tokens, from the index files that came with it.

GPT-NeoX and Megatron write token sequences into a memory-mapped data set: `NAME.idx` has the length
and the place of every sequence, and `NAME.bin`, or pieces `NAME-00000-of-00020.bin`, the tokens. In
the preshuffled data of Pythia the sequences are in the order of training: step s read sequences
s * batch to (s + 1) * batch - 1, each one token longer than the context.

Which document a token is from is not in the files, so nothing here names documents. `check` says
which claims of order hold for the files that are there, and which cannot be checked.

Layout of an index: the 9 bytes `MMIDIDX\\0\\0`, a version (u64, 1), a code of the type of tokens
(u8), the numbers of sequences and of documents (u64 each), then arrays of lengths (i32), of places
in bytes (i64) and of first sequences of documents (i64). Source: `megatron/data/indexed_dataset.py`
of GPT-NeoX.
"""

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from train import storage
from train.errors import DamagedError, TrainError
from train.progress import Progress
from train.short_repr import short_repr


__all__ = ["OrderClaim", "PublishedOrder", "open_published_order"]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Types of tokens by their code; others hold no token ids.
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
SHARD = re.compile(r"-(\d+)-of-(\d+)\.bin")
# Windows of tokens by which text is recognised wherever it is cut; about one in 256 is kept.
WINDOW, KEPT_BITS = 32, 8
MULTIPLIER = 0x9E3779B97F4A7C15
CHECKED_STEPS = 32


@dataclass(frozen=True)
class OrderClaim:
    """A claim about the order in which a run read its tokens.

    Attributes:
        verdict: `holds`, `fails`, or `cannot be checked`.
        says: What was found, with numbers.
    """

    claim: str
    verdict: str
    says: str


@dataclass(frozen=True, eq=False)
class PublishedOrder:
    """Token sequences in the order in which a run read them.

    Attributes:
        path: The index file.
        batch: Sequences of a step.
        dtype: Type of a token in the files.
        lengths: Tokens of each sequence.
        places: Place of each sequence in the data, in bytes.
        n_documents: Documents that the index counts; it counts each sequence as one if the files
            do not say where documents begin.
    """

    path: Path
    batch: int
    dtype: np.dtype
    lengths: np.ndarray
    places: np.ndarray
    n_documents: int

    __repr__ = short_repr

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        """Number of whole steps."""
        return self.n_sequences // self.batch

    @property
    def n_bytes(self) -> int:
        """Size of the data in bytes, as the index says."""
        return int(self.places[-1]) + int(self.lengths[-1]) * self.dtype.itemsize

    @cached_property
    def pieces(self) -> tuple[tuple[Path, int], ...]:
        """The files of the data and the byte at which each begins, also of files that lack.

        Raises:
            DamagedError: Their sizes do not add up to that of the index.
        """
        whole = self.path.with_suffix(".bin")
        if whole.is_file():
            return self._fitting([whole], whole.stat().st_size, whole.stat().st_size)
        named = sorted(self.path.parent.glob(f"{self.path.stem}-*-of-*.bin"))
        found = {int(m[1]): path for path in named if (m := SHARD.search(path.name))}
        if not found:
            return ((whole, 0),)
        digits, count = SHARD.search(named[0].name).groups()  # type: ignore[union-attr]
        names = [
            self.path.with_name(f"{self.path.stem}-{one:0{len(digits)}}-of-{count}.bin")
            for one in range(int(count))
        ]
        last = names[-1].stat().st_size if names[-1].is_file() else None
        sizes = {path.stat().st_size for path in found.values() if path != names[-1]}
        if len(sizes) > 1:
            raise DamagedError(f"{named[0]}: pieces have {min(sizes):,} and {max(sizes):,} bytes")
        each = min(sizes) if sizes else (self.n_bytes - (last or 0)) // max(len(names) - 1, 1)
        return self._fitting(names, each, last)

    def _fitting(
        self, names: Sequence[Path], each: int, last: int | None
    ) -> tuple[tuple[Path, int], ...]:
        before = each * (len(names) - 1)
        total = self.n_bytes if last is None else before + last
        if total != self.n_bytes or before > self.n_bytes:
            raise DamagedError(
                f"{names[0]}: {len(names)} files of {total:,} bytes, and {self.path.name} says "
                f"{self.n_bytes:,}"
            )
        return tuple((path, each * number) for number, path in enumerate(names))

    def tokens_read(self, step: int) -> Int64[np.ndarray, "sequence pos"]:
        """Return the sequences that a step read: inputs, and the last target of each.

        Raises:
            TrainError: There is no such step, or a file with its tokens lacks.
            DamagedError: Its sequences differ in length, or their places are none.
        """
        if not 0 <= step < self.n_steps:
            raise TrainError(f"{self.path}: no step {step}; it has steps 0 to {self.n_steps - 1}")
        rows = slice(step * self.batch, (step + 1) * self.batch)
        lengths, places = np.asarray(self.lengths[rows]), np.asarray(self.places[rows])
        if (
            (lengths != max(int(lengths[0]), 1)).any()
            or places[0] < 0
            or (np.diff(places) != lengths[:-1].astype(np.int64) * self._width).any()
        ):
            raise DamagedError(
                f"{self.path}: the sequences of step {step} have {lengths.min()} to "
                f"{lengths.max()} tokens and do not lie one after another"
            )
        raw = self._bytes(int(places[0]), int(places[-1]) + int(lengths[-1]) * self._width)
        return np.frombuffer(raw, self.dtype).astype(np.int64).reshape(self.batch, -1)

    @property
    def _width(self) -> int:
        return self.dtype.itemsize

    def _bytes(self, start: int, stop: int) -> bytes:
        parts = []
        ends = [*(begin for _, begin in self.pieces[1:]), self.n_bytes]
        for (path, begin), end in zip(self.pieces, ends, strict=True):
            first, last = max(start, begin), min(stop, end)
            if first >= last:
                continue
            if not path.is_file():
                raise TrainError(f"{path}: the file is missing, and the step reads from it")
            with storage.open_foreign(path) as file:
                file.seek(first - begin)
                parts.append(file.read(last - first))
        raw = b"".join(parts)
        if len(raw) != stop - start:
            raise DamagedError(f"{self.path}: {len(raw):,} of {stop - start:,} bytes are there")
        return raw

    def steps_there(self) -> list[int]:
        """Return the steps whose tokens are in files that are there."""
        ends = [*(begin for _, begin in self.pieces[1:]), self.n_bytes]
        there = np.zeros(self.n_steps, dtype=bool)
        starts = np.asarray(self.places[: self.n_steps * self.batch : self.batch])
        stops = np.append(starts[1:], self.n_bytes) if len(starts) else starts
        there[:] = True
        for (path, begin), end in zip(self.pieces, ends, strict=True):
            if not path.is_file():
                there &= (stops <= begin) | (starts >= end)
        return np.flatnonzero(there).tolist()

    def check(
        self,
        *,
        d_vocab: int | None = None,
        n_ctx: int | None = None,
        eot: int = 0,
        n_steps: int = CHECKED_STEPS,
        progress: Progress | None = None,
    ) -> tuple[OrderClaim, ...]:
        """Return which claims of order hold, with `n_steps` steps read, evenly spread.

        Args:
            d_vocab: Size of the vocabulary of the model; None: not known.
            n_ctx: Length of its context; None: not known.
            eot: Token that ends a document, if the data has one.
        """
        lengths = np.asarray(self.lengths)
        there = self.steps_there()
        at = np.unique(np.linspace(0, len(there) - 1, min(n_steps, len(there))).round().astype(int))
        steps = [there[one] for one in at.tolist()] if there else []
        ends, largest, marks = 0, -1, []
        for number, step in enumerate(steps):
            tokens = self.tokens_read(step)
            ends += int((tokens == eot).sum())
            largest = max(largest, int(tokens.max()))
            marks.append(fingerprints(tokens.ravel()))
            if progress:
                progress("reading steps", number + 1, len(steps))
        read = f"{len(steps)} of {self.n_steps} steps read"
        found = (
            _equal_lengths(lengths, n_ctx),
            _all_there(len(there), self.n_steps, self.n_sequences % self.batch),
            _inside(largest, d_vocab),
            _separated(ends, eot),
            _once(marks),
            WEIGHTS,
        )
        return tuple(
            OrderClaim(claim, verdict, f"{says} ({read})" if sampled else says)
            for claim, verdict, says, sampled in found
        )


def open_published_order(index: str | Path, *, batch: int = 1024) -> PublishedOrder:
    """Open the index of a memory-mapped data set; the arrays stay on disk.

    Args:
        batch: Sequences of a step; 1,024 in all runs of Pythia.

    Raises:
        TrainError: `batch` is below 1, or no step is whole.
        DamagedError: The file is missing, is no such index, or is cut off.

    Examples:
        >>> import struct
        >>> index = folder / "document.idx"
        >>> head = struct.pack("<9sQBQQ", b"MMIDIDX", 1, 8, 2, 0)  # 2 sequences of 3 tokens
        >>> _ = index.write_bytes(head + struct.pack("<2i2q", 3, 3, 0, 6))
        >>> _ = (folder / "document.bin").write_bytes(struct.pack("<6H", 5, 6, 7, 8, 9, 4))
        >>> data.open_published_order(index, batch=1).tokens_read(1).tolist()
        [[8, 9, 4]]
    """
    path = Path(index)
    with storage.open_foreign(path) as file:
        head, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    if len(head) < HEADER.size or head[:9] != MAGIC:
        raise DamagedError(f"{path}: begins with {head[:9]!r}, an index with {MAGIC!r}")
    _, version, code, n, n_documents = HEADER.unpack(head)
    if version != 1 or code not in TYPES:
        raise DamagedError(
            f"{path}: version {version} and type {code}; version 1 and types "
            f"{', '.join(map(str, TYPES))} are known"
        )
    expected = HEADER.size + 12 * n + 8 * n_documents
    if size != expected or not n:
        raise DamagedError(f"{path}: {size:,} bytes, and {n:,} sequences need {expected:,}")
    if not 1 <= batch <= n:
        raise TrainError(f"{path}: a batch of {batch} of {n:,} sequences; give 1 to {n:,}")
    lengths = np.memmap(path, "<i4", mode="r", offset=HEADER.size, shape=(n,))
    places = np.memmap(path, "<i8", mode="r", offset=HEADER.size + 4 * n, shape=(n,))
    return PublishedOrder(path, batch, np.dtype(TYPES[code]), lengths, places, n_documents)


def fingerprints(tokens: Int64[np.ndarray, " pos"]) -> UInt64[np.ndarray, " window"]:
    """Return hashes of some windows of 32 tokens, which are chosen by their content.

    The same text gives the same hashes wherever a sequence is cut.
    """
    value = tokens.astype(np.uint64) + np.uint64(1)
    factor, width = np.uint64(MULTIPLIER), 1
    with np.errstate(over="ignore"):
        while width < WINDOW:
            if len(value) <= width:
                return value[:0]
            value = value[:-width] * factor + value[width:]
            factor, width = factor * factor, 2 * width
        mixed = (value ^ (value >> np.uint64(29))) * np.uint64(MULTIPLIER)
    return np.unique(mixed[mixed >> np.uint64(64 - KEPT_BITS) == 0])


# --- claims: name, verdict, what was found, whether it was found in the steps that were read ------

_Found = tuple[str, str, str, bool]
WEIGHTS: _Found = (
    "the checkpoints were trained on these tokens in this order",
    "cannot be checked",
    "weights do not show what they read, and there is no ledger of losses",
    False,
)


def _equal_lengths(lengths: np.ndarray, n_ctx: int | None) -> _Found:
    short, long = int(lengths.min()), int(lengths.max())
    says = f"{len(lengths):,} sequences of {short}" + (f" to {long}" if short != long else "")
    says += " tokens" if n_ctx is None else f" tokens, for a context of {n_ctx}"
    fits = short == long and (n_ctx is None or long == n_ctx + 1)
    claim = "every sequence is one token longer than the context"
    return claim, "holds" if fits else "fails", says, False


def _all_there(there: int, n_steps: int, rest: int) -> _Found:
    says = f"{there:,} of {n_steps:,} steps are in the files" + (
        f"; the last {rest} sequences fill no step" if rest else ""
    )
    return (
        "the tokens of every step are there",
        "holds" if there == n_steps else "fails",
        says,
        False,
    )


def _inside(largest: int, d_vocab: int | None) -> _Found:
    claim = "every token is in the vocabulary of the model"
    if d_vocab is None or largest < 0:
        return claim, "cannot be checked", "the size of the vocabulary is not known", False
    return (
        claim,
        "holds" if largest < d_vocab else "fails",
        f"largest token {largest}, vocabulary of {d_vocab}",
        True,
    )


def _separated(ends: int, eot: int) -> _Found:
    claim = "documents are separated, so that a token can be traced to its document"
    if ends:
        return claim, "cannot be checked", f"{ends} tokens are {eot}, which may end documents", True
    return claim, "fails", f"no token is {eot}, which would end a document", True


def _once(marks: list[np.ndarray]) -> _Found:
    claim = "no text is read twice (a single epoch)"
    found = np.concatenate(marks) if marks else np.zeros(0, np.uint64)
    if len(marks) < 2 or not len(found):
        return claim, "cannot be checked", "too few steps are there to compare", True
    again = len(found) - len(np.unique(found))
    says = (
        f"{again} of {len(found)} windows of {WINDOW} tokens occur in another step as well (a "
        "second epoch repeats most of them, duplicates in the corpus some)"
    )
    return claim, "fails" if again else "holds", says, True
