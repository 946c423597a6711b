"""Reading of compressed files in bounded memory, and an error if they are cut off or changed.

A file is unpacked into the reader's buffer, so a small file of many zeros takes no more memory than
another one. What other readers pass over is an error: a zstd or bzip2 file that ends early.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from train.errors import DamagedError
from train.storage.regular_files import open_foreign


__all__ = ["COMPRESSIONS", "open_uncompressed"]

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
BUFFER = 1 << 20
AT_ONCE = 1 << 16  # of compressed bytes
# What an xz file may ask for to be unpacked; `xz -9` asks for 65 MiB.
MOST_XZ_MEMORY = 1 << 28
_OneStream = lzma.LZMADecompressor | bz2.BZ2Decompressor


@contextmanager
def open_uncompressed(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading its bytes; the ending of its name says how they are compressed.

    Raises:
        DamagedError: There is no regular file, or the compressed data end early, are damaged, or
            need more than 256 MiB of memory to be unpacked.

    Examples:
        >>> import gzip
        >>> storage.write_bytes(folder / "a.txt.gz", gzip.compress(b"abc"))
        >>> with storage.open_uncompressed(folder / "a.txt.gz") as file:
        ...     file.read(2)
        ...
        b'ab'
    """
    file = _unpacked(path)
    try:
        yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise DamagedError(f"{path}: the compressed file is cut off or changed ({said})") from None
    finally:
        file.close()


def _unpacked(path: Path) -> io.BufferedReader:
    ending = path.suffix.lower()
    if ending == ".gz":
        open_foreign(path).close()  # refuses what is no regular file
        return io.BufferedReader(gzip.open(path, "rb"), BUFFER)  # type: ignore[arg-type]
    if ending == ".xz":
        return io.BufferedReader(_Streams(path, _xz), BUFFER)
    if ending == ".bz2":
        return io.BufferedReader(_Streams(path, bz2.BZ2Decompressor), BUFFER)
    if ending == ".zst":
        return io.BufferedReader(_Zstandard(path), BUFFER)
    return open_foreign(path)


def _xz() -> lzma.LZMADecompressor:
    # Not the older format, which has no mark at its beginning: zeros are empty streams of it.
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_XZ_MEMORY)


class _Streams(io.RawIOBase):
    """A file of one or more compressed streams; it raises EOFError if the last one is incomplete.

    Zeros between and behind the streams are padding.
    """

    def __init__(self, path: Path, begin: Callable[[], _OneStream]) -> None:
        self._file = open_foreign(path)
        self._begin = begin
        self._stream: _OneStream | None = begin()
        self._waiting = b""  # compressed bytes that the stream has not read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while self._stream is not None:
            content = self._next(self._stream, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
            if self._stream.eof:
                rest = self._stream.unused_data.lstrip(b"\0")
                while not rest and (more := self._file.read(AT_ONCE)):
                    rest = more.lstrip(b"\0")
                self._stream = self._begin() if rest else None
                self._waiting = rest
        return 0

    def _next(self, stream: _OneStream, most: int) -> bytes:
        if stream.eof:
            return b""
        packed, self._waiting = self._waiting, b""
        if stream.needs_input and not packed and not (packed := self._file.read(AT_ONCE)):
            raise EOFError("the last stream is not whole")
        try:
            return stream.decompress(packed, most)
        except (lzma.LZMAError, OSError) as error:
            said = str(error)
            if "Memory usage limit" in said:
                said = f"it asks for more than {MOST_XZ_MEMORY >> 20} MiB of memory"
            raise EOFError(said) from None

    def close(self) -> None:
        self._file.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """A zstd file of one or more frames; it raises EOFError if the last one is incomplete."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open_foreign(path)
        self._failure = zstandard.ZstdError
        # `stream_reader` stops silently in an incomplete frame, so frames are counted here.
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            self._file, read_size=AT_ONCE, read_across_frames=True, closefd=False
        )
        self._whole = _ends_with_a_frame(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            size = self._reader.readinto(buffer)
        except self._failure as error:
            raise EOFError(str(error)) from None
        if not size and not self._whole:
            raise EOFError("the last frame is not whole")
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _ends_with_a_frame(path: Path) -> bool:
    """Return whether a zstd file holds whole frames (RFC 8878, section 3.1), by their sizes."""
    import zstandard

    size = path.stat().st_size
    with open_foreign(path) as file:
        while (begin := file.tell()) < size:
            head = file.read(18)  # the longest header of a frame
            if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # skippable
                file.seek(begin + 8 + int.from_bytes(head[4:8], "little"))
                continue
            try:
                file.seek(begin + zstandard.frame_header_size(head))
                checksum = 4 * zstandard.get_frame_parameters(head).has_checksum
            except zstandard.ZstdError:
                return False
            last = False
            while not last:
                block = file.read(3)
                if len(block) < 3:
                    return False
                number = int.from_bytes(block, "little")
                last, kind = bool(number & 1), number >> 1 & 3
                file.seek(1 if kind == 1 else number >> 3, 1)  # kind 1: one byte, repeated
            file.seek(checksum, 1)
        return file.tell() == size
