"""The builder of token stores: it encodes a corpus into one token file and one document table.

The main thread reads documents in batches of about a million characters, a pool of threads encodes
and hashes them, and the results are appended in the order of the corpus. Byte-pair encoding and
hashing release Python's lock; word-level encoding does not, and gains little from a second thread.

Only a few batches are in memory at any time, whatever the size of the corpus: tokens are written to
a file, table rows to parquet row groups. Late and held-out documents are collected in their own
files and appended at the end. Only the packed layout, which is meant for small corpora, keeps its
table in memory (about 300 bytes per document), because packing needs all documents.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from train import storage
from train.data import token_store, tokenizers
from train.data.documents import Corpus, Document
from train.data.store_writer import Lot, Region, fingerprint, lay_rows
from train.data.tokenizers import Tokenizer
from train.errors import CorpusError, StoreError, TokenizerError, nearest
from train.progress import Progress


__all__ = ["build_store"]

LAYOUTS = ("stream", "packed")
# The context of the planted recipe, the one packed corpus we ship.
ROW_LENGTH = 64
# Default size of a byte-level vocabulary trained on the corpus.
BPE_VOCABULARY = 4096
SHORT_VOCABULARY = 1 << 16  # up to this size, ids take two bytes


@dataclass(frozen=True)
class Choices:
    """The arguments of a build.

    Raises:
        StoreError: The arguments are impossible or contradict each other.
    """

    tokenizer: str | Tokenizer
    vocab_size: int | None
    layout: str
    row_length: int | None
    held_out: float
    seed: int
    threads: int | None
    batch_letters: int

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise StoreError(f"there is no layout {self.layout!r}{nearest(self.layout, LAYOUTS)}")
        if self.layout == "stream" and self.row_length is not None:
            raise StoreError(f"row_length={self.row_length} was given, but a stream has no rows")
        if self.row_length is not None and self.row_length < 2:
            raise StoreError(f"a row of {self.row_length} holds no document with its end-of-text")
        kind = self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer.kind
        if kind not in tokenizers.KINDS:
            raise StoreError(f"there is no tokenizer {kind!r}{nearest(kind, tokenizers.KINDS)}")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise StoreError(
                f"vocab_size={self.vocab_size} was given for {kind}; only a bpe that is trained on "
                "the corpus learns to a chosen size"
            )
        if not 0 <= self.held_out < 1:
            raise StoreError(f"held_out={self.held_out} is no share of documents within [0, 1)")
        if self.threads is not None and self.threads < 1:
            raise StoreError(f"threads={self.threads} were asked for; at least one is needed")
        if self.batch_letters < 1:
            raise StoreError(f"a batch of {self.batch_letters} letters is empty; give 1 or more")


@dataclass(frozen=True)
class _Plan:
    """The resolved settings of a build; `row_length` is None for the stream layout."""

    tokenizer: Tokenizer
    dtype: np.dtype
    row_length: int | None
    held_out: float
    seed: int
    threads: int
    batch_letters: int


@dataclass
class Counts:
    """The counts of a build, written to store.json as `counts`.

    Attributes:
        train_tokens: Number of tokens before the held-out documents.
        early_tokens: Number of tokens before the late documents.
        empty_dropped: Documents without tokens, which are left out.
        literal_eot_documents: Documents whose text contains the text of end-of-text.
        respaced_documents: Documents of a word-level store whose white space is lost.
        skipped_rows: Bad rows that were left out and are listed in skipped.jsonl; None, and not in
            store.json, if the first one would have ended the build.
    """

    documents: int = 0
    tokens: int = 0
    train_documents: int = 0
    train_tokens: int = 0
    late_documents: int = 0
    early_tokens: int = 0
    empty_dropped: int = 0
    literal_eot_documents: int = 0
    respaced_documents: int = 0
    skipped_rows: int | None = None

    def to_dict(self) -> dict[str, int]:
        """Return the counts that are in store.json."""
        return {name: number for name, number in asdict(self).items() if number is not None}


@dataclass(frozen=True)
class _Encoded:
    early: Lot
    late: Lot
    held_out: Lot
    empty: int
    literal_eot: int
    respaced: int


def build_store(
    corpus: Corpus,
    *,
    out: str | Path,
    tokenizer: str | Tokenizer | None = None,
    vocab_size: int | None = None,
    layout: str | None = None,
    row_length: int | None = None,
    held_out: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    batch_letters: int = 1 << 20,
    progress: Progress | None = None,
) -> token_store.TokenStore:
    """Encode a corpus into a new token store at `out`; the folder appears when it is complete.

    With the stream layout memory does not grow with the corpus; with the packed layout the document
    table is in memory during the build. A byte-level vocabulary (`tokenizer="bpe"`) is first
    learned from up to 100 MB of the documents that are not held out. A word-level vocabulary takes
    the words of all documents, held-out ones included, because other words cannot be encoded. If
    the corpus leaves bad rows out, the store lists them with their reasons in skipped.jsonl.

    Args:
        tokenizer: `gpt2`, `bpe`, `word`, or a tokenizer; default: the corpus's.
        vocab_size: Size of the vocabulary, for `bpe` only; default: the corpus's, else 4096.
        layout: `stream` or `packed`; default: the corpus's.
        row_length: Tokens per row of the packed layout: the context of the model that will read
            it; default: 64.
        held_out: Share of documents, chosen by the hash of their text, to keep out of training;
            default: the corpus's, 0 for most.
        seed: Random seed of the packing.
        threads: Threads that encode; default: all available cores.
        batch_letters: Letters of text that a thread encodes at a time; `threads + 2` such batches
            are in memory.

    Raises:
        StoreError: `out` exists or is being built, the choices contradict each other, all documents
            are held out, or one is longer than a row.
        TokenizerError: The tokenizer cannot be made, or cannot encode a document.
        CorpusError: There is no document with text.
        DiskError: The disk is full.

    Examples:
        >>> storage.write_text(folder / "mine.jsonl", '{"text": "a b a"}')
        >>> corpus = data.open_corpus(folder / "mine.jsonl")
        >>> mine = data.build_store(corpus, out=folder / "mine", tokenizer="word")
        >>> mine.n_documents, mine.tokens.tolist(), mine.tokenizer.decode(mine.tokens)
        (1, [0, 1, 2, 1, 0], '<eot> a b a <eot>')
    """
    choices = Choices(
        tokenizer=tokenizer or corpus.tokenizer,
        vocab_size=vocab_size,
        layout=layout or corpus.layout,
        row_length=row_length,
        held_out=corpus.held_out if held_out is None else held_out,
        seed=seed,
        threads=threads,
        batch_letters=batch_letters,
    )
    _build(corpus, choices, out=Path(out), progress=progress)
    return token_store.open_store(out)


def _build(corpus: Corpus, choices: Choices, *, out: Path, progress: Progress | None) -> None:
    """Write a complete token store at `out`, or nothing.

    Raises:
        StoreError: `out` exists or is being built, all documents are held out, or one is longer
            than a row.
        CorpusError: There is no document with text.
        DiskError: The disk is full.
    """
    _refuse_existing(out)
    refusal = StoreError(f"{out} is being built by another process; wait for it")
    with storage.hold_build_lock(out, refusal):
        _refuse_existing(out)
        with storage.new_folder(out, locked=True) as folder:
            plan = _plan(corpus, choices)
            counts = _write(folder, corpus, plan, progress)
            plan.tokenizer.save(folder / token_store.TOKENIZER)
            if corpus.truth is not None:
                storage.write_json(folder / token_store.TRUTH, corpus.truth())
            content = storage.seal(_manifest(folder, corpus, choices, plan, counts))
            storage.write_json(folder / token_store.STORE_MANIFEST, content)


def _plan(corpus: Corpus, choices: Choices) -> _Plan:
    tokenizer = _tokenizer(corpus, choices)
    return _Plan(
        tokenizer=tokenizer,
        dtype=np.dtype("<u2" if tokenizer.vocab_size <= SHORT_VOCABULARY else "<u4"),
        row_length=None if choices.layout == "stream" else choices.row_length or ROW_LENGTH,
        held_out=choices.held_out,
        seed=choices.seed,
        threads=choices.threads or _cores(),
        batch_letters=choices.batch_letters,
    )


def _tokenizer(corpus: Corpus, choices: Choices) -> Tokenizer:
    if isinstance(choices.tokenizer, Tokenizer):
        return choices.tokenizer
    if choices.tokenizer == "gpt2":
        return tokenizers.gpt2_tokenizer()
    if choices.tokenizer == "word":
        # Words of held-out documents too: a word outside the vocabulary cannot be encoded.
        return tokenizers.train_words(document.text for document in corpus.read())
    # Held-out documents must not influence the vocabulary with which they are evaluated.
    read = (one.text for one in corpus.read() if not _is_held_out(one.sha256, choices.held_out))
    vocab_size = choices.vocab_size or corpus.vocab_size or BPE_VOCABULARY
    return tokenizers.train_bpe(read, vocab_size)


def _is_held_out(sha256: str, share: float) -> bool:
    """Return whether a text is held out, by its hash alone, so that copies are treated alike."""
    return int(sha256[:16], 16) / 2**64 < share


def _cores() -> int:
    """Return the number of cores this process may use; in a container fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _manifest(
    folder: Path, corpus: Corpus, choices: Choices, plan: _Plan, counts: Counts
) -> dict[str, object]:
    files = sorted(folder.iterdir())
    tokenizer = plan.tokenizer
    return {
        "schema": token_store.SCHEMA_VERSION,
        "layout": choices.layout,
        "row_length": plan.row_length,
        "dtype": plan.dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "tokenizer": {name: getattr(tokenizer, name) for name in ("kind", "sha256", "vocab_size")},
        "corpus": {name: getattr(corpus, name) for name in ("name", "source", "revision")},
        "seed": plan.seed,
        "held_out": plan.held_out,
        "counts": counts.to_dict(),
        "files": {file.name: storage.sha256_file(file) for file in files},
        "sizes": {file.name: file.stat().st_size for file in files},
        "fingerprint": fingerprint(folder / token_store.TABLE),
    }


def _write(folder: Path, corpus: Corpus, plan: _Plan, progress: Progress | None) -> Counts:
    """Write tokens and table, and return the counts.

    A stream is written directly. For packed rows each region is first written as a stream, which
    `lay_rows` then reads.
    """
    counts, ends = Counts(), []
    eot = plan.tokenizer.eot
    final = (folder / token_store.TOKENS, folder / token_store.TABLE)
    packed = plan.row_length is not None
    first = (folder / "train.bin", folder / "train.parquet") if packed else final
    with (
        Region(*first, plan.dtype, opened_with=None if packed else eot) as early,
        Region(folder / "late.bin", folder / "late.parquet", plan.dtype) as late,
        Region(folder / "held_out.bin", folder / "held_out.parquet", plan.dtype) as held_out,
    ):
        documents = _kept(folder, corpus, counts) if corpus.rows else corpus.read()
        batches = _batches(documents, plan.batch_letters)
        for encoded in _in_order(batches, partial(_encode, plan), plan.threads):
            early.append(encoded.early)
            late.append(encoded.late)
            held_out.append(encoded.held_out)
            _count(counts, encoded)
            if progress:
                read = counts.documents + counts.empty_dropped
                progress("encoding documents", read, corpus.n_documents)
        _check(corpus, counts, plan.held_out)
        if plan.row_length is None:
            ends.append(early.end)
            for region in (late, held_out):
                region.close()
                early.extend(region)
                ends.append(early.end)
    if plan.row_length is not None:
        with Region(*final, plan.dtype, opened_with=eot) as rows:
            for region in (early, late, held_out):
                lay_rows(rows, region, row_length=plan.row_length, eot=eot, seed=plan.seed)
                ends.append(rows.end)
        early.remove()
    counts.early_tokens, counts.train_tokens, counts.tokens = ends
    late.remove()
    held_out.remove()
    return counts


def _kept(folder: Path, corpus: Corpus, counts: Counts) -> Iterator[Document]:
    """Yield the documents of a corpus, and write and count the bad rows between them."""
    assert corpus.rows is not None
    counts.skipped_rows = 0
    with (folder / token_store.SKIPPED).open("w", encoding="ascii") as file:
        for one in corpus.rows():
            if isinstance(one, Document):
                yield one
            else:
                counts.skipped_rows += 1
                file.write(one.json_line())


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise StoreError(f"{out} exists already; choose another place or remove it")


# --- encoding ------------------------------------------------------------------------------------


def _in_order(
    batches: Iterable[list[Document]], encode: Callable[[list[Document]], _Encoded], threads: int
) -> Iterator[_Encoded]:
    """Yield encoded batches in their order, at most `threads + 2` in memory."""
    waiting: deque[Future[_Encoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(encode, batch))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(documents: Iterable[Document], n_letters: int) -> Iterator[list[Document]]:
    batch, letters = [], 0
    for document in documents:
        batch.append(document)
        letters += len(document.text)
        if letters >= n_letters:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def _encode(plan: _Plan, documents: list[Document]) -> _Encoded:
    tokenizer = plan.tokenizer
    rows = _rows(plan, documents)
    shas = [document.sha256 for document in documents]
    filled = [index for index, row in enumerate(rows) if len(row)]
    aside = {index for index in filled if _is_held_out(shas[index], plan.held_out)}
    texts = [document.text for document in documents]
    words = tokenizer.kind == "word"
    late = [one for one in filled if documents[one].late and one not in aside]
    early = [one for one in filled if not documents[one].late and one not in aside]
    return _Encoded(
        early=_lot(plan, documents, rows, shas, early),
        late=_lot(plan, documents, rows, shas, late),
        held_out=_lot(plan, documents, rows, shas, sorted(aside)),
        empty=len(rows) - len(filled),
        literal_eot=sum(tokenizer.eot_text in text for text in texts),
        # Word-level tokens do not keep white space, so decoding does not give back such a text.
        respaced=sum(" ".join(text.split()) != text for text in texts) if words else 0,
    )


def _rows(plan: _Plan, documents: list[Document]) -> list[np.ndarray]:
    try:
        rows = plan.tokenizer.encode_batch([document.text for document in documents])
    except TokenizerError:
        # A rare case: encode the documents one by one to find out which of them it is.
        for document in documents:
            try:
                plan.tokenizer.encode(document.text)
            except TokenizerError as error:
                raise TokenizerError(f"document {document.id}: {error}") from None
        raise
    for document, row in zip(documents, rows, strict=True):
        if plan.row_length is not None and len(row) >= plan.row_length:
            raise StoreError(
                f"document {document.id} has {len(row)} tokens; a row of {plan.row_length} holds "
                f"at most {plan.row_length - 1} and no document is cut: choose a longer row or the "
                "stream layout"
            )
    return rows


def _lot(
    plan: _Plan,
    documents: Sequence[Document],
    rows: Sequence[np.ndarray],
    shas: Sequence[str],
    chosen: Sequence[int],
) -> Lot:
    end = np.array([plan.tokenizer.eot], dtype=np.uint32)
    parts = [part for index in chosen for part in (rows[index], end)]
    some = [documents[index] for index in chosen]
    columns = {
        name: [getattr(document, name) for document in some]
        for name in ("id", "source", "shard", "row", "title", "url")
    }
    return Lot(
        tokens=np.concatenate(parts).astype(plan.dtype) if parts else np.empty(0, plan.dtype),
        lengths=np.array([len(rows[index]) for index in chosen], dtype=np.int64),
        columns={**columns, "sha256": [shas[index] for index in chosen]},
    )


def _count(counts: Counts, encoded: _Encoded) -> None:
    counts.late_documents += len(encoded.late.lengths)
    counts.train_documents += len(encoded.early.lengths) + len(encoded.late.lengths)
    counts.documents += sum(
        len(lot.lengths) for lot in (encoded.early, encoded.late, encoded.held_out)
    )
    counts.empty_dropped += encoded.empty
    counts.literal_eot_documents += encoded.literal_eot
    counts.respaced_documents += encoded.respaced


def _check(corpus: Corpus, counts: Counts, held_out: float) -> None:
    if not counts.documents:
        numbers = {"are empty": counts.empty_dropped, "are bad rows": counts.skipped_rows}
        found = " and ".join(f"{n} {what}" for what, n in numbers.items() if n)
        found = "there are none" if not found else f"all {found}" if " and " not in found else found
        raise CorpusError(f"{corpus.source} holds no document with text in it: {found}")
    if not counts.train_documents:
        raise StoreError(
            f"held_out={held_out} sets all {counts.documents} documents of {corpus.source} aside "
            "and leaves none to train on; hold out less"
        )
