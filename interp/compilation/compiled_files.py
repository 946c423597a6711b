"""The files of compiled programs, from a folder or out of a tar, which is never unpacked.

Members are read into memory, so no name, link or device in an archive can touch the disk.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from train.errors import DamagedError


__all__ = ["contents"]

# Of the tar's members these are read and no other; the largest is 38 MB.
MEMBER = re.compile(r"(?:.*/)?(case_\d+)\.(json|safetensors)")
LARGEST = 256 * 2**20


def contents(path: Path, wanted: set[str] | None) -> dict[str, dict[str, bytes]]:
    """Name -> kind of file ("json", "safetensors") -> content.

    Args:
        path: A folder, or a tar of one.
        wanted: Names whose content is kept, of the others only the name; None: all.

    Raises:
        DamagedError: It cannot be read, or holds no program.
    """
    found: dict[str, dict[str, bytes]] = {}
    files = _folder(path) if path.is_dir() else _tar(path)
    for name, kind, content in files:
        if wanted is None or name in wanted:
            found.setdefault(name, {})[kind] = content
        else:
            found.setdefault(name, {})
    if not found:
        raise DamagedError(f"{path}: holds no case_N.json and case_N.safetensors")
    return found


def _folder(path: Path) -> Iterator[tuple[str, str, bytes]]:
    for file in sorted(path.rglob("case_*")):
        if (named := MEMBER.fullmatch(file.name)) and file.is_file():
            yield named[1], named[2], file.read_bytes()


def _tar(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                named = MEMBER.fullmatch(member.name)
                file = archive.extractfile(member) if named and member.isreg() else None
                if file is None or named is None:
                    continue
                if member.size > LARGEST:
                    raise DamagedError(f"{path}: {member.name} is {member.size:,} bytes")
                yield named[1], named[2], file.read()
    except FileNotFoundError:
        raise DamagedError(f"{path}: the file is missing") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedError(f"{path}: not readable as a tar ({error})") from None
