"""A build ends in a whole store or in nothing at all, however it ends."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import disks
from train.data import (
    Corpus,
    Document,
    TokenStore,
    build_store,
    open_corpus,
    open_store,
    train_words,
    verify_store,
)
from train.errors import CorpusError, DamagedError, DiskError, StoreError, TokenizerError


pytestmark = pytest.mark.integration
# A builder that never comes to the end of its corpus.
ENDLESS = """
import itertools, sys
from pathlib import Path
from train.data import build_store
from train.data import train_words
from train.data import Corpus
from train.data import Document

def read():
    for row in itertools.count():
        yield Document(f"endless@0/0/{row}", "the cat sat on the mat " * 50, "endless", "0", row)

def progress(what, done, total):
    print(done, flush=True)

words = train_words(["the cat sat on mat"])
corpus = Corpus("endless", "endless", "0", read)
build_store(
    corpus, out=sys.argv[1], tokenizer=words, held_out=0.2, threads=2, progress=progress
)
"""


def _corpus(texts: Sequence[str]) -> Corpus:
    documents = [Document(f"t@0/0/{row}", text, "t", "0", row) for row, text in enumerate(texts)]
    return Corpus("t", "test", "0", lambda: iter(documents), len(documents), tokenizer="word")


@contextmanager
def _endless_build(out: Path, after: int) -> Iterator[subprocess.Popen]:
    """Another process in the middle of building `out`; killed without warning at the end."""
    command = [sys.executable, "-c", ENDLESS, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while int(process.stdout.readline() or after) < after:
                pass
            assert process.poll() is None
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("after", [1, 20_000])
def test_a_killed_build_leaves_no_store_and_the_next_one_succeeds(after: int, tmp_path: Path):
    out = tmp_path / "store"
    with _endless_build(out, after):
        pass
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {".store.partial", ".store.lock"}
    store = build_store(_corpus(["the cat"]), out=out)
    verify_store(store)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_second_build_of_the_same_store_is_refused(tmp_path: Path):
    out = tmp_path / "store"
    with _endless_build(out, 1):
        with pytest.raises(StoreError, match="is being built by another process") as found:
            build_store(_corpus(["the cat"]), out=out)
        assert found.value.exit_code == 2
        assert "\n" not in str(found.value)
        # The first one goes on undisturbed, and another store beside it is nobody's concern.
        assert (tmp_path / ".store.partial" / "tokens.bin").exists()
        build_store(_corpus(["the cat"]), out=tmp_path / "other")


def test_what_exists_is_never_written_over(tmp_path: Path):
    build_store(_corpus(["the cat"]), out=tmp_path / "store")
    with pytest.raises(StoreError, match="store exists already; choose another place"):
        build_store(_corpus(["a dog"]), out=tmp_path / "store")
    assert open_store(tmp_path / "store").text(0) == "the cat"


@pytest.mark.parametrize(
    ("texts", "line"),
    [([], "there are none"), (["", ""], "all 2 are empty"), (["  ", "\n"], "all 2 are empty")],
)
def test_a_corpus_without_text_is_refused(texts: list[str], line: str, tmp_path: Path):
    with pytest.raises(CorpusError, match=f"test holds no document with text in it: {line}"):
        build_store(_corpus(texts), out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["stream", "packed"])
@pytest.mark.parametrize("kind", ["gpt2", "bpe", "word"])
def test_an_error_of_the_corpus_leaves_nothing(kind: str, layout: str, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    lines = b"".join(b'{"text": "line number %d"}\n' % row for row in range(2000))
    path.write_bytes(lines + b'{"text": "caf\xe9"}\n')
    with pytest.raises(DamagedError, match=r"bad.jsonl: line 2001 is not UTF-8"):
        build_store(open_corpus(path), out=tmp_path / "store", tokenizer=kind, layout=layout)
    assert [one.name for one in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_document_longer_than_its_row_is_named(tmp_path: Path):
    texts = ["the cat", "the " * 63, "the " * 64]
    with pytest.raises(StoreError, match=r"document t@0/0/2 has 64 tokens; a row of 64 holds"):
        build_store(_corpus(texts), out=tmp_path / "store", layout="packed")
    build_store(_corpus(texts[:2]), out=tmp_path / "store", layout="packed")


def test_a_word_that_is_not_in_the_vocabulary_is_named_with_its_document(tmp_path: Path):
    words = train_words(["the cat"])
    with pytest.raises(TokenizerError, match="document t@0/0/1: the word 'dog' is not in the voc"):
        build_store(_corpus(["the cat", "the dog"]), out=tmp_path / "store", tokenizer=words)
    assert list(tmp_path.iterdir()) == []


def test_holding_everything_out_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="sets all 2 documents of test aside"):
        build_store(_corpus(["the cat", "a"]), out=tmp_path / "store", held_out=0.9999)


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"layout": "pakced"}, "there is no layout 'pakced', did you mean 'packed'"),
        ({"row_length": 64}, "a stream has no rows"),
        ({"layout": "packed", "row_length": 1}, "a row of 1 holds no document"),
        ({"tokenizer": "gpt3"}, "there is no tokenizer 'gpt3', did you mean 'gpt2'"),
        ({"vocab_size": 500}, "vocab_size=500 was given for word"),
        ({"held_out": 1.0}, "held_out=1.0 is no share"),
        ({"threads": 0}, "threads=0 were asked for"),
        ({"batch_letters": 0}, "a batch of 0 letters is empty; give 1 or more"),
        ({"tokenizer": "bpe", "vocab_size": 5000}, "ask for at most that"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(
    choices: dict[str, Any], line: str, tmp_path: Path
):
    with pytest.raises(StoreError, match=line):
        build_store(_corpus(["the cat"]), out=tmp_path / "store", **choices)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_documents(tmp_path: Path):
    seen: list[tuple[str, int, int | None]] = []
    build_store(
        _corpus(["a", "b", " "]),
        out=tmp_path / "s",
        batch_letters=1,
        progress=lambda *one: seen.append(one),
    )
    assert seen == [("encoding documents", done, 3) for done in (1, 2, 3)]


def test_a_few_batches_are_in_memory_whatever_the_corpus(tmp_path: Path):
    """Read and not yet written: at most one batch for each thread and a few more."""
    read: list[int] = []
    lead: list[int] = []

    def documents() -> Iterator[Document]:
        for row in range(100):
            read.append(row)
            yield Document(f"t/{row}", f"x{row}", "t", "0", row)

    store = build_store(
        Corpus("t", "test", "0", documents),
        out=tmp_path / "store",
        tokenizer=train_words([f"x{row}" for row in range(100)]),
        threads=3,
        batch_letters=1,  # a batch a document
        progress=lambda what, done, total: lead.append(len(read) - (done - 1)),
    )
    assert [store.text(row) for row in range(100)] == [f"x{row}" for row in range(100)]
    assert len(lead) == 100
    assert max(lead) <= 3 + 2


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", request.param) as place:
        yield place


@pytest.mark.parametrize(
    ("small_disk", "layout"),
    [
        ("2m", "stream"),  # full while tokens are written
        ("7m", "stream"),  # full while the table is written too: tokens.bin has 4.9 MB
        ("11m", "packed"),  # full while rows are laid beside the stream they come from
        ("2m", "packed"),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(small_disk: Path, layout: str):
    documents = (
        Document(f"t/{os.urandom(80).hex()}", "the cat sat " * 20, "t", "0", row)
        for row in range(40_000)
    )
    words = train_words(["the cat sat"])
    corpus = Corpus("t", "t", "0", lambda: documents)
    with pytest.raises(DiskError, match=r"the disk is full while writing .*MiB left") as found:
        build_store(corpus, out=small_disk / "store", tokenizer=words, layout=layout)
    assert found.value.exit_code == 4
    assert "\n" not in str(found.value)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_disk_too_small_for_the_tokenizer_leaves_nothing(small_disk: Path):
    with pytest.raises(DiskError, match=re.escape("the disk is full")):
        build_store(_corpus(["the cat"]), out=small_disk / "store", tokenizer="gpt2")
    assert list(small_disk.iterdir()) == []


# --- rows that are left out ----------------------------------------------------------------------

MIXED = '{"text": "a b"}\n{"text": null}\n{"text"\n{"text": "c"}\n'


def _skipping(folder: Path, out: str, **options: Any) -> TokenStore:
    (folder / "mine.jsonl").write_text(MIXED)
    corpus = open_corpus(folder / "mine.jsonl", skip_bad=True)
    return build_store(corpus, out=folder / out, tokenizer="word", **options)


def test_rows_that_are_left_out_are_counted_and_listed_in_the_store(tmp_path: Path):
    store = _skipping(tmp_path, "store")
    assert [store.text(0), store.text(1)] == ["a b", "c"]
    assert store.manifest["counts"]["skipped_rows"] == 2
    listed = [json.loads(line) for line in (store.path / "skipped.jsonl").read_text().splitlines()]
    assert listed == [
        {
            "file": "mine.jsonl",
            "row": 1,
            "line": 2,
            "reason": "has a NoneType as field 'text'; its fields are text: choose one that holds "
            "text with --text-field",
        },
        {
            "file": "mine.jsonl",
            "row": 2,
            "line": 3,
            "reason": "is not readable as JSON (Expecting ':' delimiter, at letter 8); expected "
            "one object a line",
        },
    ]


def test_a_build_that_leaves_rows_out_writes_the_same_bytes_each_time(tmp_path: Path):
    one, other = (_skipping(tmp_path, name, threads=n) for name, n in (("a", 1), ("b", 3)))
    names = sorted(file.name for file in one.path.iterdir())
    assert "skipped.jsonl" in names
    for name in names:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_the_list_of_rows_that_were_left_out_is_verified(tmp_path: Path):
    store = _skipping(tmp_path, "store")
    verify_store(store)
    listed = store.path / "skipped.jsonl"
    listed.write_bytes(listed.read_bytes().replace(b"NoneType", b"noneType"))
    with pytest.raises(DamagedError, match=r"skipped\.jsonl"):
        verify_store(store)


def test_a_store_without_bad_rows_is_the_same_but_for_its_list(tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text('{"text": "a b"}\n')
    plain, skipping = (
        build_store(
            open_corpus(tmp_path / "mine.jsonl", skip_bad=skip_bad),
            out=tmp_path / str(skip_bad),
            tokenizer="word",
        )
        for skip_bad in (False, True)
    )
    assert plain.fingerprint == skipping.fingerprint
    assert "skipped_rows" not in plain.manifest["counts"]
    assert skipping.manifest["counts"]["skipped_rows"] == 0
    assert (skipping.path / "skipped.jsonl").read_bytes() == b""


def test_a_corpus_of_bad_rows_alone_is_refused_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    corpus = open_corpus(tmp_path / "mine.jsonl", skip_bad=True)
    with pytest.raises(CorpusError, match="1 are empty and 1 are bad rows"):
        build_store(corpus, out=tmp_path / "store", tokenizer=train_words(["a"]))
    assert not (tmp_path / "store").exists()
