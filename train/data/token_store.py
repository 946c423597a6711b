"""Token stores: one flat array of tokens, and a table that says which document each token is from.

`tokens.bin` begins with an end-of-text, and one follows every document. In the *stream* layout
documents lie end to end, as for GPT-2. In the *packed* layout whole documents lie in rows of one
length (`train.data.packing`), and the rest of a row is filled with end-of-text. In the *padded*
layout each row holds one example for tuning (`train.data.tuning`). One rule holds for all, so no
mask is stored: **a target that is an end-of-text directly after an end-of-text is padding and
carries no loss.** In a tuning store the prompt of each example carries none either.

Held-out documents are chosen by the hash of their text, so stores that hold out the same share hold
out the same texts, copies included. They begin at token `train_tokens`. Documents that the corpus
marks as late lie between `early_tokens` and `train_tokens`.

A store is written once, completely or not at all, and never changed. `store.json` is sealed and
holds the sha256 of every other file, and the first use of the tokens or of the table checks it
(`TokenStore.check_files`); `verify_store` names the file, and the document, that differs.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64, Integer

from train import storage
from train.data import tokenizers
from train.data.data_order import DocumentTable
from train.data.tokenizers import Tokenizer
from train.errors import DamagedError, StoreError, TokenizerError, nearest_path
from train.progress import Progress
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pyarrow

__all__ = ["StoredDocument", "TokenStore", "open_store", "verify_store"]

SCHEMA_VERSION = 1
TOKENS = "tokens.bin"
TABLE = "documents.parquet"
TOKENIZER = "tokenizer.json"
STORE_MANIFEST = "store.json"
TRUTH = "truth.json"
SKIPPED = "skipped.jsonl"
PROGRESS_EVERY = 1000
CHANGED = "it was changed"
DTYPES = ("<u2", "<u4")
SHAPE = {
    "layout": str,
    "row_length": (None, int),
    "tuning?": str,
    "example_length?": int,
    "fingerprint": str,
    "dtype": str,
    "eot": int,
    "vocab_size": int,
    "counts": {
        "tokens": int,
        "train_tokens": int,
        "early_tokens?": int,
        "documents": int,
        "train_documents": int,
        "respaced_documents": int,
    },
    "corpus": {"name": str},
    "files": {str: str},
    "sizes": {str: int},
    "tokenizer": {"sha256": str},
}


@dataclass(frozen=True)
class StoredDocument:
    """A row of the document table: `length` tokens from token `start`, without the end-of-text.

    In a tuning store the first `prompt_tokens` of them are the prompt.
    """

    index: int
    id: str
    start: int
    length: int
    sha256: str
    source: str
    shard: str
    row: int
    title: str
    url: str
    prompt_tokens: int = 0

    __repr__ = short_repr


@dataclass(frozen=True)
class TokenStore:
    """A token store on disk. Opening reads `store.json`; other files are read on first use.

    Raises:
        DamagedError: Raised by properties and methods if a file they read is damaged; the message
            names the file.

    Examples:
        >>> store.n_documents, store.n_tokens, store.layout
        (28993, 602113, 'packed')
        >>> store.text(28867)
        'runethi is governed from koreskul .'
        >>> store.document(28867).id
        'planted@seed 0/planted/144'
        >>> start = int(store.starts[28867])
        >>> store.document_at([start, start + 1]).tolist()
        [28867, 28867]
    """

    path: Path
    manifest: dict = field(repr=False, compare=False)

    @property
    def layout(self) -> str:
        """`stream`, `packed` or `padded`."""
        return self.manifest["layout"]

    @property
    def row_length(self) -> int | None:
        """Tokens per row of the packed and the padded layout; None for a stream."""
        return self.manifest["row_length"]

    @property
    def tuning(self) -> str | None:
        """Kind of the examples of a tuning store, `instructions` or `preferences`; else None."""
        return self.manifest.get("tuning")

    @property
    def fingerprint(self) -> str:
        """Identity of the store: sha256 over id, text hash, start and length of every document."""
        return self.manifest["fingerprint"]

    @property
    def identity(self) -> dict[str, str]:
        """Entries with which an artifact records its store: fingerprint, sha256 of the tokens."""
        return {"store": self.fingerprint, "tokens": self.manifest["files"][TOKENS]}

    @property
    def eot(self) -> int:
        """Id of end-of-text."""
        return self.manifest["eot"]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary; all token ids are below it."""
        return self.manifest["vocab_size"]

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including held-out ones, end-of-text and padding."""
        return self.manifest["counts"]["tokens"]

    @property
    def train_tokens(self) -> int:
        """First held-out token: equally the number of tokens that may be trained on."""
        return self.manifest["counts"]["train_tokens"]

    @property
    def early_tokens(self) -> int:
        """First token of the late documents, which end at `train_tokens`."""
        return self.manifest["counts"].get("early_tokens", self.train_tokens)

    @property
    def n_documents(self) -> int:
        """Number of documents in the table, held-out ones included."""
        return self.manifest["counts"]["documents"]

    @property
    def example_length(self) -> int | None:
        """Tokens for each response of an example with its prompt; None but in a tuning store."""
        return self.manifest.get("example_length")

    def window(self, n_ctx: int) -> int:
        """Return the targets of a window for a model with `n_ctx`: a row of a tuning store."""
        return self.manifest["row_length"] if self.tuning else n_ctx

    @cached_property
    def tokens(self) -> np.memmap:
        """All tokens, memory-mapped and read-only; their digest is checked first."""
        self._check_before_use(TOKENS)
        return _mapped_tokens(self)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " document"]:
        """First token of each document, ascending."""
        return self._column("start")

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " document"]:
        """Number of tokens of each document, without the end-of-text."""
        return self._column("length")

    @cached_property
    def table(self) -> DocumentTable:
        """`starts` and `lengths` as a table that can be searched by token."""
        return DocumentTable(self.starts, self.lengths)

    @cached_property
    def rows(self) -> Int64[np.ndarray, " document"]:
        """Row of each document in its shard; truth tables refer to documents by it."""
        return self._column("row")

    @cached_property
    def prompt_tokens(self) -> Int64[np.ndarray, " document"]:
        """Number of prompt tokens of each example of a tuning store."""
        return self._column("prompt_tokens")

    def carries_loss(self, offsets: Int64[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Return which tokens carry loss as targets, apart from the rule for padding.

        In a tuning store these are the tokens behind a prompt, in both halves of a preference.
        """
        if self.tuning is None:
            return np.ones(np.shape(offsets), dtype=bool)
        rows, places = np.divmod(np.asarray(offsets) - 1, self.manifest["row_length"])
        inside = (rows >= 0) & (rows < self.n_documents)
        prompts = self.prompt_tokens[np.where(inside, rows, 0)]
        return inside & (places % self.manifest["example_length"] >= prompts)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the store was built with."""
        found = tokenizers.load_tokenizer(self.path / TOKENIZER)
        if found.sha256 != self.manifest["tokenizer"]["sha256"]:
            raise DamagedError(
                f"{self.path / TOKENIZER}: not the tokenizer the store was built with"
            )
        return found

    @cached_property
    def truth(self) -> dict | None:
        """The truth table of a planted corpus; None for other corpora."""
        return None if self.tuning else self._truth

    @cached_property
    def tuning_truth(self) -> dict | None:
        """The truth table of a planted tuning set; None for other stores."""
        return self._truth if self.tuning else None

    @property
    def _truth(self) -> dict | None:
        if TRUTH not in self.manifest["files"]:
            return None
        _check_digest(self, TRUTH)
        return storage.read_foreign_json(self.path / TRUTH)

    def document(self, index: int) -> StoredDocument:
        """Return a row of the document table by its index in token order.

        Raises:
            StoreError: There is no such document.
        """
        self._check_index(index)
        firsts, group = self._groups
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        with _table_guard(self.table_path):
            (row,) = group(number).slice(index - int(firsts[number]), 1).to_pylist()
        return StoredDocument(index=index, **row)

    def text(self, index: int) -> str:
        """Return the text of a document, decoded from its tokens without padding.

        Raises:
            StoreError: There is no such document.
        """
        self._check_index(index)
        start, length = int(self.starts[index]), int(self.lengths[index])
        return decoded(self.tokens[start : start + length], self.tokenizer)

    def document_at(
        self, offsets: Integer[np.ndarray, "*shape"] | int | list[int]
    ) -> Int64[np.ndarray, "*shape"]:
        """Return the index of the document of each token; -1 for end-of-text and padding.

        Raises:
            StoreError: There is no such token.
        """
        offsets = np.asarray(offsets, dtype=np.int64)
        if offsets.size and not 0 <= offsets.min() <= offsets.max() < self.n_tokens:
            raise StoreError(
                f"tokens {offsets.min()} to {offsets.max()} were asked of a store with "
                f"{self.n_tokens} tokens"
            )
        owner = np.searchsorted(self.starts, offsets, side="right") - 1
        inside = (owner >= 0) & (offsets < self.starts[owner] + self.lengths[owner])
        return np.where(inside, owner, -1)

    @cached_property
    def table_path(self) -> Path:
        """Path of the document table, whose digest is checked first."""
        self._check_before_use(TABLE)
        return self.path / TABLE

    def check_files(self, *, anew: bool = False) -> None:
        """Check the digests of tokens and document table before something is computed from them.

        Properties and methods that read these files do so on first use. The digest of a file above
        8 MiB is taken once and remembered (`train.storage.digest_memory`).

        Args:
            anew: Hash every byte, whatever is remembered or was checked before.

        Raises:
            DamagedError: A digest differs from the one in store.json.
        """
        for name in (TABLE, TOKENS):
            if anew:
                _check_digest(self, name)
                self._checked.add(name)
            else:
                self._check_before_use(name)

    @cached_property
    def _checked(self) -> set[str]:
        """Names of the files whose digest was checked since the store was opened."""
        return set()

    def _check_before_use(self, name: str) -> None:
        if name not in self._checked:
            sha256 = self.manifest["files"][name]
            storage.check_once(self.path / name, sha256, STORE_MANIFEST, CHANGED)
            self._checked.add(name)

    def index_of(self, document_id: str) -> int:
        """Return the index of the document with an id, in time linear in the number of documents.

        The ids are read once and kept.

        Raises:
            StoreError: There is no such id.
        """
        import pyarrow.compute as pc

        index = pc.index(self._ids, document_id).as_py()
        if index < 0:
            first = self.document(0).id
            raise StoreError(f"no document {document_id!r} in {self.path}; ids look like {first!r}")
        return index

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_documents:
            raise StoreError(
                f"document {index} was asked of a store with {self.n_documents} documents"
            )

    def _column(self, name: str) -> Int64[np.ndarray, " document"]:
        import pyarrow.parquet as pq

        with _table_guard(self.table_path) as path:
            table = pq.read_table(path, columns=[name])
        return table.column(name).to_numpy().astype(np.int64)

    @cached_property
    def _ids(self) -> "pyarrow.ChunkedArray":
        import pyarrow.parquet as pq

        with _table_guard(self.table_path) as path:
            return pq.read_table(path, columns=["id"]).column("id")

    @cached_property
    def _groups(self) -> tuple[np.ndarray, Callable[[int], "pyarrow.Table"]]:
        """First document of each row group, and a function that reads a group (4 are cached)."""
        import pyarrow.parquet as pq

        with _table_guard(self.table_path) as path:
            file = pq.ParquetFile(path)
        sizes = [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
        return np.cumsum(sizes) - sizes, lru_cache(maxsize=4)(file.read_row_group)


def open_store(path: str | Path) -> TokenStore:
    """Open a store and check its seal and its files' sizes.

    The content of a file is checked before it is first used, and that of all by `verify_store`.

    Raises:
        StoreError: There is no store at `path`, or it has another schema version.
        DamagedError: `store.json` was changed, or a file is missing or has another size.

    Examples:
        >>> opened = data.open_store(store.path)
        >>> opened.n_documents, opened.n_tokens, opened.vocab_size
        (28993, 602113, 976)
    """
    path = Path(path)
    if not (path / STORE_MANIFEST).is_file():
        raise StoreError(
            f"there is no token store at {path}; make one with `openbook corpus build`"
            + nearest_path(path, "store.json")
        )
    manifest = storage.read_sealed(path / STORE_MANIFEST)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise StoreError(
            f"{path} is a token store of version {manifest.get('schema')!r:.40}, this reads "
            f"{SCHEMA_VERSION}; build it again"
        )
    storage.check_shape(manifest, SHAPE, path / STORE_MANIFEST)
    for name, size in manifest["sizes"].items():
        file = storage.listed_file(path / STORE_MANIFEST, name)
        storage.check_size(file, size, "build the store again")
    _check_counts(path / STORE_MANIFEST, manifest)
    return TokenStore(path, manifest)


def _check_counts(path: Path, manifest: storage.JsonObject) -> None:
    """Raise unless the counts of a store fit each other and the size of its tokens."""
    counts, width = manifest["counts"], manifest["row_length"]
    ordered = [0, manifest["counts"].get("early_tokens", 0), counts["train_tokens"]]
    ordered.append(counts["tokens"])
    size = manifest["sizes"].get(TOKENS, -1)
    fits = manifest["dtype"] in DTYPES and size == counts["tokens"] * int(manifest["dtype"][2:])
    fits &= ordered == sorted(ordered) and counts["documents"] >= 0
    fits &= 0 <= manifest["eot"] < manifest["vocab_size"] and (width is None or width > 0)
    for name in (TOKENS, TABLE):
        if name not in manifest["files"]:
            raise DamagedError(f"{path}: files does not list {name}; build the store again")
    if not fits:
        raise DamagedError(
            f"{path}: its counts, sizes and types contradict each other ({counts['tokens']} tokens "
            f"of type {manifest['dtype']!r:.20} in {size} bytes); build the store again"
        )


def verify_store(
    store: TokenStore, progress: Progress | None = None, *, texts: bool = True
) -> None:
    """Compare all files of a store with `store.json`, and every text with its own hash.

    Args:
        texts: False skips the comparison of texts, unless tokens.bin differs and the changed
            document must be named. If the caller knows the sha256 of `store.json`, this proves as
            much. Texts of a word-level store are compared only if no document lost its white space.

    Raises:
        DamagedError: A file differs; the message names it and, for tokens, the document.

    Examples:
        >>> data.verify_store(store, texts=False)
    """
    from train.data import store_writer

    fresh = open_store(store.path)
    for name in (TOKENIZER, TABLE, TRUTH, SKIPPED):
        if name in fresh.manifest["files"]:
            _check_digest(fresh, name)
    with _table_guard(store.path / TABLE):
        found = store_writer.fingerprint(store.path / TABLE)
    if found != fresh.fingerprint:
        raise DamagedError(f"{store.path / TABLE}: its fingerprint is not that of store.json")
    whole = storage.sha256_file(store.path / TOKENS) == fresh.manifest["files"][TOKENS]
    if texts or not whole:
        _check_texts(fresh, progress)
    if not whole:
        raise DamagedError(
            f"{store.path / TOKENS}: its sha256 is not that of store.json, though every document "
            "still reads the same; it changed between documents"
        )
    for manifest in sorted(store.path.glob(f"*/{storage.ARTIFACT_MANIFEST}")):
        _verify_artifact(manifest)


def _verify_artifact(manifest: Path) -> None:
    """Check the files of a folder that was computed from a store, whatever its kind."""
    content, remedy = storage.read_sealed(manifest), "build it again"
    storage.check_shape(content, {"files": {str: {"sha256": str}}}, manifest)
    for name, entry in content["files"].items():
        path = storage.listed_file(manifest, name)
        storage.check_digest(path, entry["sha256"], manifest.name, remedy)
    known = {*content["files"], manifest.name, storage.ARTIFACT_PLAN}
    # A part of an index lists its own files; put in place of the whole list, it omits itself.
    for path in sorted(manifest.parent.glob("*.json")):
        if path.name not in known and not path.name.startswith("."):
            raise DamagedError(f"{path}: {manifest.name} does not list this file; {remedy}")


def decoded(tokens: Integer[np.ndarray, " token"], tokenizer: Tokenizer) -> str:
    """Return the text of a document; of several end-of-texts in a row, one is decoded."""
    padding = (tokens == tokenizer.eot) & (np.append(-1, tokens[:-1]) == tokenizer.eot)
    return tokenizer.decode(tokens[~padding] if padding.any() else tokens)


@contextmanager
def _table_guard(path: Path) -> Iterator[Path]:
    """Turn errors of pyarrow while reading the table at `path` into a DamagedError."""
    import pyarrow

    try:
        yield path
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DamagedError(f"{path}: not readable as parquet ({reason}); it changed") from None


def _check_digest(store: TokenStore, name: str) -> None:
    sha256 = store.manifest["files"][name]
    storage.check_digest(store.path / name, sha256, STORE_MANIFEST, CHANGED)


def _mapped_tokens(store: TokenStore) -> np.memmap:
    return np.memmap(store.path / TOKENS, dtype=store.manifest["dtype"], mode="r")


def _check_texts(store: TokenStore, progress: Progress | None) -> None:
    if store.manifest["counts"]["respaced_documents"]:
        return
    tokens = _mapped_tokens(store)  # Not `store.tokens`, which would refuse without a document.
    for index, (document_id, sha256) in enumerate(_ids_and_hashes(store)):
        if _text_sha256(store, tokens, index) != sha256:
            raise DamagedError(
                f"{store.path / TOKENS}: document {index} ({document_id}) is not the text that was "
                "built in; its tokens changed"
            )
        if progress and index % PROGRESS_EVERY == 0:
            progress("verifying documents", index, store.n_documents)


def _text_sha256(store: TokenStore, tokens: np.memmap, index: int) -> str:
    start, length = int(store.starts[index]), int(store.lengths[index])
    try:
        text = decoded(tokens[start : start + length], store.tokenizer)
        return hashlib.sha256(text.encode()).hexdigest()
    except TokenizerError:
        return "tokens outside the vocabulary"


def _ids_and_hashes(store: TokenStore) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(store.table_path) as file:
        for batch in file.iter_batches(columns=["id", "sha256"]):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
