"""Data files of a folder, chosen as the Hugging Face hub chooses them.

Taken are the files of a known type (`train.data.readers`). Left are hidden files, files of another
type, and those that `datasets` leaves, among them README.md, the data card. If some files are of
the split `train`, those of the splits `validation` and `test` are left too: a folder or a file is
of the split whose name is a part of its own name between "-", ".", "_", " " and digits. Unlike in
`datasets`, files of several types are read together, and a file of no split is taken.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from train.data import readers
from train.errors import CorpusError
from train.progress import count
from train.short_repr import short_repr


__all__ = ["FolderFiles", "data_files", "split_of"]

# FILES_TO_IGNORE and SPLIT_KEYWORDS of datasets 5 (src/datasets/data_files.py).
CARDS = ("readme.md",)
DESCRIPTIONS = (
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
)
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder: those that are read, and for each reason those that are left.

    The names are relative to the folder and sorted.
    """

    taken: tuple[str, ...]
    left: Mapping[str, tuple[str, ...]]

    __repr__ = short_repr

    def __str__(self) -> str:
        kinds = Counter(str(readers.known_kind(name)) for name in self.taken)
        parts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        taken = f"{count(len(self.taken), 'file')} taken ({parts})"
        return "; ".join([taken, *(_left(reason, names) for reason, names in self.left.items())])


def data_files(folder: Path) -> FolderFiles:
    """Return which files of a folder hold its documents, and why the others do not.

    Raises:
        CorpusError: None does.

    Examples:
        >>> from train.data.data_folder import data_files
        >>> (folder / "mine").mkdir()
        >>> for name in ("README.md", "a.jsonl", "b.png"):
        ...     storage.write_text(folder / "mine" / name, "")
        ...
        >>> print(data_files(folder / "mine"))
        1 file taken (1 jsonl); 1 left, a data card: README.md; 1 left, of an unknown type: b.png
    """
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())
    reasons = {
        name: _reason(name) if (folder / name).is_file() else "no regular file" for name in names
    }
    splits = {name: split_of(name) for name, reason in reasons.items() if not reason}
    if "train" in splits.values():
        reasons |= {
            name: f"of the split {split}, and there is a split train"
            for name, split in splits.items()
            if split not in ("", "train")
        }
    by_reason: dict[str, list[str]] = {"": []}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name.as_posix())
    taken, left = by_reason.pop(""), {why: tuple(some) for why, some in by_reason.items()}
    if not taken:
        seen = "; ".join(_left(*one) for one in left.items()) or "it is empty"
        raise CorpusError(
            f"the folder {folder} holds no files of a known type ({', '.join(readers.KINDS)}), so "
            f"there are no documents in it: {seen}"
        )
    return FolderFiles(tuple(taken), left)


def _reason(name: Path) -> str:
    """Return why a file is left for its name alone; empty if it is taken."""
    if any(part.startswith((".", "__")) for part in name.parts):
        return "hidden"
    if name.name.lower() in CARDS:
        return "a data card"
    if name.name in DESCRIPTIONS:
        return "a description of the data"
    return "" if readers.known_kind(name.name) else "of an unknown type"


def split_of(name: Path) -> str:
    """Return the split that a path in a folder belongs to, by its folders and then its own name.

    Examples:
        >>> from pathlib import Path
        >>> from train.data.data_folder import split_of
        >>> split_of(Path("data/test-00000-of-00001.parquet")), split_of(Path("latest.txt"))
        ('test', '')
    """
    for part in name.parts:
        words = re.split(r"[-._ 0-9]", part)
        for split, keywords in SPLITS.items():
            if any(word in keywords for word in words):
                return split
    return ""


def _left(reason: str, names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,} left, {reason}: {', '.join(names[:SHOWN])}{more}"
