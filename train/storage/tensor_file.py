"""Safetensors files read piece by piece, so that no whole file lies in memory beside its model.

A safetensors file is the length of a header in 8 bytes, the header (a JSON object with the type,
the shape and the place of every tensor), and the numbers. The library checks the header; the
numbers are read from the file and not mapped, because mapped pages count as memory until the whole
file is closed.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.errors import DamagedError
from train.short_repr import short_repr
from train.storage.foreign_files import parse_json, stand_in
from train.storage.regular_files import open_foreign


__all__ = ["TensorEntry", "TensorFile", "write_tensors"]

PIECE = 1 << 22  # bytes that are read at a time; small enough for the processor's cache
LONGEST_MARK = 64  # bytes by which a file that stands in for another one is known
LENGTH = 8  # bytes that say how long the header is
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
        begin: Place of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    __repr__ = short_repr

    @property
    def n_bytes(self) -> int:
        """Bytes of its numbers."""
        return prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """An open safetensors file; to be used in a `with` block.

    Attributes:
        path: The file.
        header: The bytes before the first tensor.
        entries: What they say of each tensor, by name, in the order of the file.

    Raises:
        DamagedError: The file is missing, stands in for another one, or is not safetensors.

    Examples:
        >>> from safetensors.torch import save_file
        >>> save_file({"a": torch.arange(6.0).reshape(2, 3)}, folder / "a.safetensors")
        >>> with storage.TensorFile(folder / "a.safetensors") as file:
        ...     print(file.entries["a"].shape, list(file.pieces("a")))
        ...
        (2, 3) [(0, tensor([[0., 1., 2.],
                [3., 4., 5.]]))]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_foreign(path)
        try:
            self.header = self._read_header()
            self.entries = self._read_entries()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a tensor some rows at a time, each time with the number of the first row.

        A tensor without axes is one row. The memory of a piece is used again for the next one.

        Raises:
            DamagedError: The file ends before the tensor does.
        """
        entry = self.entries[name]
        rows, *width = entry.shape or (1,)
        row = prod(width) * entry.dtype.itemsize
        most = max(1, PIECE // max(1, row))
        memory = torch.empty((min(rows, most), *width), dtype=entry.dtype, device="cpu")
        content = bytes_of(memory)
        for first in range(0, rows, most):
            n_rows = min(most, rows - first)
            self._read(entry.begin + first * row, content[: n_rows * row], name)
            yield first, memory[:n_rows]

    def bytes_into(self, tensor: Tensor, name: str) -> Iterator[memoryview]:
        """Read a tensor into a contiguous one of its type and shape in the memory of the CPU.

        Yields the bytes as they come.

        Raises:
            DamagedError: The file ends before the tensor does.
        """
        content = bytes_of(tensor)
        for first in range(0, len(content), PIECE):
            piece = content[first : first + PIECE]
            self._read(self.entries[name].begin + first, piece, name)
            yield piece

    def _read(self, begin: int, content: memoryview, name: str) -> None:
        self._file.seek(begin)
        if self._file.readinto(content) != len(content):  # it reads on until the file ends
            raise DamagedError(f"{self.path}: it ends within {name}; it was changed meanwhile")

    def _read_header(self) -> bytes:
        begin = self._file.read(LONGEST_MARK)
        if said := stand_in(begin):
            raise DamagedError(f"{self.path}: {said}")
        n_header, size = (
            int.from_bytes(begin[:LENGTH], "little"),
            os.fstat(self._file.fileno()).st_size,
        )
        if not 0 < n_header <= size - LENGTH:  # before the whole file is mapped
            raise DamagedError(
                f"{self.path}: not readable as safetensors (a header of {n_header:,} bytes in a "
                f"file of {size:,})"
            )
        try:
            with safe_open(self.path, framework="pt"):  # checks the header and the file's size
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"{self.path}: not readable as safetensors ({error})") from None
        self._file.seek(0)
        return self._file.read(LENGTH + int.from_bytes(begin[:LENGTH], "little"))

    def _read_entries(self) -> dict[str, TensorEntry]:
        content = parse_json(self.header[LENGTH:], self.path)
        content.pop("__metadata__", None)
        for name, one in content.items():
            if one["dtype"] not in TYPES:
                raise DamagedError(f"{self.path}: {name} holds {one['dtype']}, which is not read")
        entries = {
            name: TensorEntry(
                TYPES[one["dtype"]],
                tuple(one["shape"]),
                len(self.header) + one["data_offsets"][0],
            )
            for name, one in content.items()
        }
        # A tensor without numbers lies where the next one begins.
        return dict(sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].n_bytes)))


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    numbers: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file of fp32 tensors, of which one at a time is asked for by its name.

    The bytes are those that the library writes. The caller sees to it that nobody reads a file that
    is not finished, as `new_folder` does.

    Raises:
        DamagedError: A tensor has another shape.

    Examples:
        >>> path = folder / "b.safetensors"
        >>> storage.write_tensors(path, {"a": (2,)}, lambda name: torch.ones(2), {"format": "pt"})
        >>> from safetensors.torch import load_file
        >>> load_file(path)
        {'a': tensor([1., 1.])}
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in sorted(shapes):
        end = begin + prod(shapes[name]) * torch.float32.itemsize
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text)
        for name in sorted(shapes):
            one = numbers(name)
            if one.shape != shapes[name]:
                raise DamagedError(
                    f"{path.name}: {name} has shape {tuple(one.shape)}, not {shapes[name]}"
                )
            file.write(bytes_of(one.detach().contiguous()))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, which can be written into."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
