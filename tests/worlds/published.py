"""Memory-mapped data sets as GPT-NeoX writes them, made of given sequences."""

import struct
from pathlib import Path

import numpy as np


def write_sequences(folder: Path, rows: np.ndarray, *, pieces: int = 0) -> Path:
    """Write `document.idx` and its data, whole or in pieces of equal size; return the index."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.asarray(rows, dtype="<u2")
    n, length = rows.shape
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, n, n + 1)
    lengths, places = np.full(n, length, "<i4"), np.arange(n, dtype="<i8") * length * 2
    index = folder / "document.idx"
    index.write_bytes(
        head + lengths.tobytes() + places.tobytes() + np.arange(n + 1, dtype="<i8").tobytes()
    )
    data = rows.tobytes()
    if not pieces:
        (folder / "document.bin").write_bytes(data)
        return index
    size = -(-len(data) // pieces)
    for number in range(pieces):
        part = data[number * size : (number + 1) * size]
        (folder / f"document-{number:05}-of-{pieces:05}.bin").write_bytes(part)
    return index
