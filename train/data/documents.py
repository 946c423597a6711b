"""What a corpus is: documents with ids that stay, in a fixed order."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


__all__ = ["Corpus", "Document"]


@dataclass(frozen=True)
class Document:
    """One text, and where it came from.

    Attributes:
        row: Counts from 0 inside its shard.
        late: Whether a recipe may read it in a later part of training only.
    """

    id: str
    text: str
    source: str
    shard: str
    row: int
    title: str = ""
    url: str = ""
    late: bool = False

    @property
    def sha256(self) -> str:
        """Hex sha256 of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; `read` starts anew each time it is called."""

    name: str
    source: str
    revision: str
    read: Callable[[], Iterator[Document]]
    n_documents: int | None = None
    n_bytes: int | None = None
    tokenizer: str = "gpt2"
    layout: str = "stream"
    truth: Callable[[], dict] | None = None
