"""Mutations of files: what a hostile or careless hand may leave where a reader expects a file.

Each function takes the content of a good file and a generator of random numbers, and returns the
content of a bad one. `CONTENTS` has them by the format of the file, and `PLACES` what else than a
file may lie at its path. A seed gives the same bytes every time.
"""

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from train import storage


__all__ = ["CONTENTS", "PLACES", "Payload", "adopt"]

Mutation = Callable[[bytes, Random], bytes]
MARK = '"@@here@@"'
# Values that no format holds at a place where another one is expected, as JSON writes them.
VALUES = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "fraction": "0.5",
    "1e400": "1e400",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "5,000 digits": "9" * 5000,
    "10^12": "1000000000000",
    "2^63": "9223372036854775808",
    "10^300": "1" + "0" * 300,
    "empty text": '""',
    "text": '"hostile"',
    "half a pair": '"\\ud800"',
    "parent": '"../../../../etc/passwd"',
    "absolute": '"/dev/zero"',
    "control": '"\\u001b[31m\\u0007\\u202e\\u0000\\n"',
    "long text": '"' + "a" * 100_000 + '"',
    "list": "[]",
    "object": "{}",
    "list of objects": "[{}]",
    "mixed list": '[1, "a", null, [1]]',
    "nested 100,000": "[" * 100_000 + "]" * 100_000,
    "nested 900": "[" * 900 + "]" * 900,
    "nested objects": '{"a": ' * 900 + "1" + "}" * 900,
}
FORMAT_SPECS = ("{a:>1000000000}", "{0.__class__}", "{a!r}", "{", "{a[0]}", "%(a)1000000000d")


class Payload:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.marker,))


# --- any bytes -----------------------------------------------------------------------------------


def truncated(content: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(max(len(content), 1))]


def flipped(content: bytes, draw: Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _line(content: bytes, draw: Random, new: bytes) -> bytes:
    lines = content.split(b"\n")
    lines.insert(draw.randrange(len(lines)), new)
    return b"\n".join(lines)


BYTES: dict[str, Mutation] = {
    "truncated": truncated,
    "flipped": flipped,
    "empty": lambda *_: b"",
    "zeros": lambda content, _: b"\0" * max(len(content), 64),
    "random": lambda content, draw: draw.randbytes(len(content) or 64),
    "overwritten": lambda content, draw: (
        content[: (at := draw.randrange(max(len(content), 1)))]
        + draw.randbytes(8)
        + content[at + 8 :]
    ),
    "huge number inside": lambda content, draw: (
        content[: (at := draw.randrange(max(len(content), 1)))]
        + struct.pack("<Q", draw.choice((10**12, 2**63 - 1, 2**64 - 1, 2**31)))
        + content[at + 8 :]
    ),
    "twice": lambda content, _: content + content,
    "longer": lambda content, draw: content + draw.randbytes(64),
    "white space": lambda *_: b" \n\t\n",
    "byte order mark": lambda content, _: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, _: content.decode("latin-1").encode("utf-16"),
    "git-lfs": lambda *_: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "HTML": lambda *_: b"<!DOCTYPE html><html><body>log in</body></html>",
    "pickle": lambda *_: pickle.dumps(Payload(Path("ran"))),
    "gzip": lambda content, _: gzip.compress(content, mtime=0),
}


# --- text ----------------------------------------------------------------------------------------

TEXT: dict[str, Mutation] = BYTES | {
    "latin-1": lambda content, draw: _line(content, draw, "caf\xe9".encode("latin-1")),
    "control characters": lambda content, draw: _line(content, draw, b"\x1b[31m\x07\x00\x0b\x0c"),
    "half a pair": lambda content, draw: _line(content, draw, b"\xed\xa0\x80"),
    "long line": lambda content, draw: _line(content, draw, b"a" * (2 << 20)),
    "line lost": lambda content, draw: b"\n".join(
        line for at, line in enumerate(content.split(b"\n")) if at != draw.randrange(9)
    ),
    "carriage returns": lambda content, _: content.replace(b"\n", b"\r\n"),
    "line separators": lambda content, draw: _line(content, draw, "a\u2028b\x85c".encode()),
}


# --- JSON ----------------------------------------------------------------------------------------


def _containers(value: Any) -> Iterator[Any]:
    """Every object and list inside a value with at least one entry, outermost first."""
    waiting = [value]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, dict | list) and one:
            yield one
            waiting += one.values() if isinstance(one, dict) else one[:40]


def _place(value: Any, draw: Random) -> tuple[Any, Any]:
    """A container and one of its keys, the outer ones as likely as all inner ones together."""
    found = list(_containers(value))
    container = draw.choice((found[0], draw.choice(found)))
    keys = list(container) if isinstance(container, dict) else range(len(container))
    return container, draw.choice(list(keys))


def _changed(content: bytes, draw: Random, change: Callable[[Any, Any], None]) -> bytes:
    value = json.loads(content)
    with contextlib.suppress(IndexError):  # nothing is inside
        change(*_place(value, draw))
    return json.dumps(value).encode()


def _replaced(raw: str) -> Mutation:
    def mutation(content: bytes, draw: Random) -> bytes:
        def put(container: Any, key: Any) -> None:
            container[key] = MARK.strip('"')

        return _changed(content, draw, put).replace(MARK.encode(), raw.encode())

    return mutation


def _deleted(container: Any, key: Any) -> None:
    del container[key]


def _renamed(container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container["../" + key] = container.pop(key)
    else:
        container.insert(0, container[key])


def _emptied(container: Any, key: Any) -> None:
    if isinstance(container[key], list | dict):
        container[key].clear()
    else:
        container.clear()


def _duplicated(content: bytes, draw: Random) -> bytes:
    value = json.loads(content)
    if not isinstance(value, dict) or not value:
        return content + content
    key = draw.choice(list(value))
    return b"{" + json.dumps(key).encode() + b": 7, " + json.dumps(value).encode()[1:]


JSON_ONLY: dict[str, Mutation] = {
    **{f"value {name}": _replaced(raw) for name, raw in VALUES.items()},
    "key deleted": lambda content, draw: _changed(content, draw, _deleted),
    "key renamed": lambda content, draw: _changed(content, draw, _renamed),
    "part emptied": lambda content, draw: _changed(content, draw, _emptied),
    "key twice": _duplicated,
    **{f"whole {name}": lambda *_, raw=raw: raw.encode() for name, raw in VALUES.items()},
}
JSON = TEXT | JSON_ONLY


def sealed(mutation: Mutation) -> Mutation:
    """Seal what a mutation leaves, if a sealed file can hold it."""

    def resealed(content: bytes, draw: Random) -> bytes:
        changed = mutation(content, draw)
        return _sealed(changed)

    return resealed


def _sealed(content: bytes) -> bytes:
    try:
        value = json.loads(content)
        return storage.canonical_json(storage.seal(value)).encode()
    except (ValueError, RecursionError, AttributeError, TypeError):
        return content


SEALED = TEXT | {f"sealed {name}": sealed(one) for name, one in JSON_ONLY.items()}


# --- lines of JSON -------------------------------------------------------------------------------


def _in_a_line(mutation: Mutation) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutation(lines[at], draw)
        return b"\n".join(lines) + b"\n"

    return changed


def _chained(mutation: Mutation) -> Mutation:
    """Chain all lines anew, if a chained file can hold what a mutation leaves."""

    def changed(content: bytes, draw: Random) -> bytes:
        bad = _in_a_line(mutation)(content, draw)
        before, lines = "", []
        try:
            for line in bad.splitlines():
                row = {key: value for key, value in json.loads(line).items() if key != "chain"}
                text = before + json.dumps(row, sort_keys=True)
                before = hashlib.sha256(text.encode()).hexdigest()[:16]
                lines.append(json.dumps({**row, "chain": before}, sort_keys=True))
        except (ValueError, RecursionError, AttributeError, TypeError):
            return bad
        return ("\n".join(lines) + "\n").encode()

    return changed


LINES = TEXT | {f"line {name}": _in_a_line(one) for name, one in JSON_ONLY.items()}
CHAINED = TEXT | {f"chained {name}": _chained(one) for name, one in JSON_ONLY.items()}


# --- TOML ----------------------------------------------------------------------------------------

TOML_VALUES = {
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "10^12": "1_000_000_000_000",
    "2^63": "9223372036854775808",
    "5,000 digits": "9" * 5000,
    "1e400": "1e400",
    "nan": "nan",
    "inf": "-inf",
    "date": "1979-05-27T07:32:00Z",
    "empty text": '""',
    "text": '"hostile"',
    "control": '"\\u001b[31m\\u0007"',
    "list": "[]",
    "mixed list": '[1, "a", [2]]',
    "table": "{a = 1}",
    "nested 100,000": "[" * 100_000 + "]" * 100_000,
    "nested 200": "[" * 200 + "]" * 200,
    "parent": '"../../../../etc/passwd"',
    "absolute": '"/dev/zero"',
    **{f"format {number}": json.dumps(text) for number, text in enumerate(FORMAT_SPECS)},
    **{f"formats {number}": json.dumps([text]) for number, text in enumerate(FORMAT_SPECS)},
}


def _toml_value(raw: str) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        lines = content.decode().splitlines()
        at = draw.choice([n for n, line in enumerate(lines) if "=" in line])
        lines[at] = f"{lines[at].partition('=')[0]}= {raw}"
        return "\n".join(lines).encode()

    return changed


def _toml_line(change: Callable[[str], str]) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        lines = content.decode().splitlines()
        at = draw.choice([n for n, line in enumerate(lines) if line.strip()])
        lines[at] = change(lines[at])
        return "\n".join(lines).encode()

    return changed


TOML = TEXT | {
    **{f"value {name}": _toml_value(raw) for name, raw in TOML_VALUES.items()},
    "line deleted": _toml_line(lambda _: ""),
    "key twice": _toml_line(lambda line: f"{line}\n{line}"),
    "key renamed": _toml_line(lambda line: f"x{line}"),
    "key dotted": _toml_line(lambda line: "a." * 2000 + line),
    "deep tables": lambda content, _: b"[" + b"a." * 5000 + b"a]\n" + content,
}


# --- safetensors ---------------------------------------------------------------------------------


def _with_header(mutation: Mutation) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = mutation(content[8 : 8 + size], draw)
        return len(header).to_bytes(8, "little") + header + content[8 + size :]

    return changed


def _one_tensor(change: Callable[[dict[str, Any]], None]) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        header = json.loads(content)
        change(header[draw.choice([name for name in header if name != "__metadata__"])])
        return json.dumps(header).encode()

    return _with_header(changed)


def _values(fill: bytes) -> Mutation:
    def changed(content: bytes, draw: Random) -> bytes:
        begin = 8 + int.from_bytes(content[:8], "little")
        at = begin + 4 * draw.randrange(max((len(content) - begin) // 4, 1))
        return content[:at] + fill + content[at + 4 :]

    return changed


SAFETENSORS = BYTES | {
    **{f"header {name}": _with_header(one) for name, one in JSON_ONLY.items()},
    "long header": lambda content, _: struct.pack("<Q", 10**12) + content[8:],
    "negative header": lambda content, _: struct.pack("<q", -1) + content[8:],
    "header of 90 MB": lambda content, _: (
        struct.pack("<Q", 90 << 20) + b" " * (90 << 20) + content[8:]
    ),
    "unknown type": _one_tensor(lambda one: one.update(dtype="F7")),
    "type of integers": _one_tensor(lambda one: one.update(dtype="I32")),
    "type of truths": _one_tensor(lambda one: one.update(dtype="BOOL")),
    "huge shape": _one_tensor(lambda one: one.update(shape=[10**12])),
    "overflowing shape": _one_tensor(lambda one: one.update(shape=[2**32, 2**32])),
    "empty shape": _one_tensor(lambda one: one.update(shape=[])),
    "no elements": _one_tensor(lambda one: one.update(shape=[0, 10**12])),
    "overlapping": _one_tensor(lambda one: one.update(data_offsets=[0, 4])),
    "not a number": _values(struct.pack("<f", float("nan"))),
    "infinite": _values(struct.pack("<f", float("inf"))),
}


# --- arrays of numpy -----------------------------------------------------------------------------


def _npy(header: str) -> Mutation:
    def changed(content: bytes, _: Random) -> bytes:
        text = header.encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + content[80:]

    return changed


def _objects(*_: object) -> bytes:
    held = io.BytesIO()
    np.save(held, np.array([Payload(Path("ran"))], dtype=object), allow_pickle=True)
    return held.getvalue()


NPY = BYTES | {
    "objects": _objects,
    "huge shape": _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"),
    "negative": _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, 4), }"),
    "unknown type": _npy("{'descr': '<q7', 'fortran_order': False, 'shape': (3,), }"),
    "texts": _npy("{'descr': '<U9', 'fortran_order': False, 'shape': (1, 1), }"),
    "fields": _npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1, 2), }"),
    "nested": _npy("(" * 5000 + ")" * 5000),
    "flat": _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (), }"),
    "archive": lambda *_: _zip({"a.npy": b"\0" * 100}),
}


# --- compressed files ----------------------------------------------------------------------------

BOMB_BYTES, PIECE = 3 << 30, 1 << 24  # more than the limit of memory


def _zip(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


def _pieces() -> Iterator[bytes]:
    piece = b" " * PIECE
    for _ in range(BOMB_BYTES // len(piece)):
        yield piece


def gzip_bomb() -> bytes:
    """Many members one behind the other, as `cat` makes them: one is quick to write."""
    return gzip.compress(b" " * PIECE, 1, mtime=0) * (BOMB_BYTES // PIECE)


def xz_bomb() -> bytes:
    return lzma.compress(b" " * PIECE, preset=0) * (BOMB_BYTES // PIECE)


def zstd_bomb() -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join([*(packer.compress(piece) for piece in _pieces()), packer.flush()])


def zip_bomb() -> bytes:
    held = io.BytesIO()
    with (
        zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("data/bomb.jsonl", "w", force_zip64=True) as file,
    ):
        for piece in _pieces():
            file.write(piece)
    return held.getvalue()


def parquet_bomb() -> bytes:
    """A table of a few kilobytes whose column, a dictionary of one text, takes 4 GB."""
    import pyarrow
    import pyarrow.parquet as pq

    held = io.BytesIO()
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(4096, dtype=np.int32)), pyarrow.array(["a" * (1 << 20)])
    )
    pq.write_table(pyarrow.table({"text": texts}), held, compression="zstd")
    return held.getvalue()


BOMBS = {
    "gz": gzip_bomb, "xz": xz_bomb, "zst": zstd_bomb, "zip": zip_bomb, "parquet": parquet_bomb
}  # fmt: skip


def _packed(
    inner: dict[str, Mutation], pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> dict[str, Mutation]:
    """Mutations of what a compressed file holds, and of its own bytes."""

    def inside(mutation: Mutation) -> Mutation:
        return lambda content, draw: pack(mutation(unpack(content), draw))

    return BYTES | {f"packed {name}": inside(one) for name, one in inner.items()}


def _zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def _unzstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(content)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


# --- pickles, and zip files of them ---------------------------------------------------------------


def _pickled(make: Callable[[dict[str, Any], Random], object]) -> Mutation:
    """A checkpoint of torch whose content was changed and written again."""

    def changed(content: bytes, draw: Random) -> bytes:
        import torch

        saved = torch.load(io.BytesIO(content), weights_only=True)
        held = io.BytesIO()
        torch.save(make(saved, draw), held)
        return held.getvalue()

    return changed


def _argument(value: object) -> Mutation:
    def change(saved: dict[str, Any], draw: Random) -> dict[str, Any]:
        args = saved["model_args"]
        return {**saved, "model_args": {**args, draw.choice(list(args)): value}}

    return _pickled(change)


def _weight(make: Callable[[Any], object]) -> Mutation:
    def change(saved: dict[str, Any], draw: Random) -> dict[str, Any]:
        weights = dict(saved["model"])
        name = draw.choice(list(weights))
        return {**saved, "model": {**weights, name: make(weights[name])}}

    return _pickled(change)


def _expanded(one: Any) -> object:
    import torch

    return torch.zeros(1).expand(10**12)


def _meta(one: Any) -> object:
    import torch

    return torch.zeros(10**12, device="meta")


def _sparse(one: Any) -> object:
    import torch

    return torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**6, 10**6))


TORCH = BYTES | {
    "payload": _pickled(lambda saved, _: {**saved, "extra": Payload(Path("ran"))}),
    "payload alone": lambda *_: pickle.dumps({"model": Payload(Path("ran"))}, protocol=2),
    "no dictionary": _pickled(lambda *_: [1, 2]),
    "part lost": _pickled(lambda saved, draw: {"model": saved["model"]}),
    "part null": _pickled(
        lambda saved, draw: {**saved, draw.choice(("model", "model_args")): None}
    ),
    **{
        f"argument {value!r:.24}": _argument(value)
        for value in (0, -1, 10**12, 10**400, True, None, 0.5, float("nan"), "a" * 5000, [], {})
    },
    "weight expanded": _weight(_expanded),
    "weight on meta": _weight(_meta),
    "weight sparse": _weight(_sparse),
    "weight of integers": _weight(lambda one: one.long()),
    "weight of truths": _weight(lambda one: one > 0),
    "weight complex": _weight(lambda one: one.cfloat()),
    "weight not a number": _weight(lambda one: one * float("nan")),
    "weight flat": _weight(lambda one: one.flatten()),
    "weight empty": _weight(lambda one: one[:0]),
    "weight text": _weight(lambda one: "hostile"),
    "odd name": _pickled(lambda saved, _: {**saved, "model": {7: saved["model"]}}),
    "zip of nothing": lambda *_: _zip({"a/data.pkl": b"", "a/version": b"3"}),
}


# --- GGUF ----------------------------------------------------------------------------------------


def _number_at(at: int, value: int) -> Mutation:
    return lambda content, _: content[:at] + struct.pack("<Q", value) + content[at + 8 :]


def _after_a_name(number: int) -> Mutation:
    """A huge number behind one of the names in a GGUF, where a type, a length or a size stands."""

    def changed(content: bytes, draw: Random) -> bytes:
        names = (b"llama.block_count", b"llama.embedding_length", b"tokenizer.ggml.tokens",
                 b"tokenizer.ggml.merges", b"token_embd.weight", b"blk.0.attn_q.weight",
                 b"general.architecture", b"llama.context_length")  # fmt: skip
        name = draw.choice(names)
        at = content.find(name) + len(name) + draw.choice((0, 4, 8, 12, 16))
        size = draw.choice((4, 8))
        return content[:at] + number.to_bytes(8, "little")[:size] + content[at + size :]

    return changed


GGUF = BYTES | {
    "version": lambda content, draw: content[:4] + draw.randbytes(4) + content[8:],
    "many tensors": _number_at(8, 10**12),
    "many keys": _number_at(16, 10**12),
    "most keys": _number_at(16, 2**64 - 1),
    **{f"{number} behind a name": _after_a_name(number) for number in (0, 99, 10**12, 2**64 - 1)},
    "name changed": lambda content, draw: content.replace(b"llama.", draw.randbytes(5) + b".", 1),
}

CONTENTS: dict[str, dict[str, Mutation]] = {
    "bytes": BYTES,
    "text": TEXT,
    "json": JSON,
    "sealed": SEALED,
    "lines": LINES,
    "chained": CHAINED,
    "toml": TOML,
    "safetensors": SAFETENSORS,
    "npy": NPY,
    "torch": TORCH,
    "gguf": GGUF,
    "json.xz": _packed(JSON, lzma.compress, lzma.decompress),
    "lines.gz": _packed(LINES, _gzip, gzip.decompress),
    "lines.xz": _packed(LINES, lzma.compress, lzma.decompress),
    "lines.zst": _packed(LINES, _zstd, _unzstd),
    "text.gz": _packed(TEXT, _gzip, gzip.decompress),
    "text.zst": _packed(TEXT, _zstd, _unzstd),
    "text.xz": _packed(TEXT, lzma.compress, lzma.decompress),
}


# --- other things at a path ----------------------------------------------------------------------


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": _link("nothing-there"),
    "link to zeros": _link("/dev/zero"),
    "link to null": _link("/dev/null"),
    "link to its folder": _link("."),
    "1 TB of nothing": _sparse_file,
}


# --- digests -------------------------------------------------------------------------------------


def adopt(folder: Path, path: Path, before: bytes) -> None:
    """Write the new digest and size of a changed file where the sealed files of a folder name it.

    A hostile hand does this too; a reader that trusts a seal then reads what it did not write.
    """
    waiting = [(path, before)]
    while waiting:
        changed, old = waiting.pop()
        was = {"sha": hashlib.sha256(old).hexdigest(), "bytes": len(old)}
        new = changed.read_bytes()
        now = {"sha": hashlib.sha256(new).hexdigest(), "bytes": len(new)}
        for listing in sorted(folder.rglob("*.json")):
            if listing == path or listing.is_symlink() or not listing.is_file():
                continue
            content = listing.read_bytes()
            if was["sha"].encode() not in content:
                continue
            value = json.loads(content)
            for one in _containers(value):
                if isinstance(one, dict) and one.get("sha256") == was["sha"] and "bytes" in one:
                    one["bytes"] = now["bytes"]
            text = json.dumps(value).replace(str(was["sha"]), str(now["sha"]))
            value = json.loads(text)
            if "digest" in value:
                value = storage.seal(value)
            listing.write_text(storage.canonical_json(value), encoding="utf-8")
            waiting.append((listing, content))
