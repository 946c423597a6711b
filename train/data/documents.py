"""The types `Document` and `Corpus`: texts with stable ids, in a fixed order."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from train.data.data_folder import FolderFiles
from train.data.readers import SkippedRow
from train.short_repr import short_repr


__all__ = ["Corpus", "Document"]


@dataclass(frozen=True)
class Document:
    """One text and its origin.

    Attributes:
        row: Number of the document in its shard, from 0.
        late: Whether a recipe may reserve it for a later part of training.
    """

    id: str
    text: str
    source: str
    shard: str
    row: int
    title: str = ""
    url: str = ""
    late: bool = False

    __repr__ = short_repr

    @property
    def sha256(self) -> str:
        """Hex sha256 of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        revision: Version of the content: a digest, a commit, or the seed of a generated corpus.
        read: Function that iterates over the documents from the beginning.
        rows: Function that iterates over the documents and the bad rows between them, for a corpus
            whose bad rows are left out; None for another one.
        files: The files of a folder that are read, and those that are not.
        n_documents: Number of documents, if it is known without reading them.
        tokenizer: Kind of tokenizer to use by default.
        vocab_size: Size of the vocabulary of a `bpe` tokenizer to use by default; None is 4096.
        layout: Layout of the token store to use by default.
        held_out: Share of documents to hold out by default.
        truth: Function that returns the truth table of a planted corpus.

    Examples:
        >>> documents = [data.Document("mine/0", "a b", "mine", "0", 0)]
        >>> corpus = data.Corpus("mine", "mine", "version 0", lambda: iter(documents))
        >>> [document.text for document in corpus.read()]
        ['a b']
    """

    name: str
    source: str
    revision: str
    read: Callable[[], Iterator[Document]]
    n_documents: int | None = None
    n_bytes: int | None = None
    tokenizer: str = "gpt2"
    vocab_size: int | None = None
    layout: str = "stream"
    held_out: float = 0.0
    truth: Callable[[], dict] | None = None
    rows: Callable[[], Iterator[Document | SkippedRow]] | None = None
    files: FolderFiles | None = None

    __repr__ = short_repr
