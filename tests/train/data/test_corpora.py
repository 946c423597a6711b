"""A document has one id and one text, wherever it lies and however often it is read."""

import gzip
import hashlib
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from train.data import Document, open_corpus
from train.errors import CorpusError, DamagedError, TrainError


TEXTS = ["The first.", "Der zweite, mit ä.", "", "third\nand last <|endoftext|>"]
LINES = "".join(
    json.dumps({"text": text, "title": f"Title {row}", "other": row}) + "\n"
    for row, text in enumerate(TEXTS)
).encode()


def _jsonl(path: Path) -> Path:
    path.write_bytes(LINES)
    return path


def _packed(ending: str, pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path = path.with_name(path.name + ending)
        path.write_bytes(pack(LINES))
        return path

    return write


def _parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    titles = [f"Title {row}" for row in range(len(TEXTS))]
    pq.write_table(pa.table({"text": TEXTS, "title": titles}), path, row_group_size=2)
    return path


def _saved(path: Path) -> Path:
    import datasets

    path = path.with_suffix("")
    titles = [f"Title {row}" for row in range(len(TEXTS))]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": TEXTS, "title": titles}).save_to_disk(str(path))
    return path


def _zstd(content: bytes) -> bytes:
    """Two frames, as when files are joined."""
    frames = (content[:50], content[50:])
    return b"".join(zstandard.ZstdCompressor().compress(frame) for frame in frames)


WRITERS = {
    "jsonl": _jsonl,
    "gz": _packed(".gz", gzip.compress),
    "xz": _packed(".xz", lzma.compress),
    "zst": _packed(".zst", _zstd),
    "parquet": _parquet,
    "saved": _saved,
}


def _read(source: Path, **choices: object) -> list[Document]:
    return list(open_corpus(source, **choices).read())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_documents_come_from_every_format(kind: str, tmp_path: Path):
    corpus = open_corpus(WRITERS[kind](tmp_path / "letters.jsonl"))
    documents = list(corpus.read())
    assert [document.text for document in documents] == TEXTS
    assert [document.title for document in documents] == [f"Title {row}" for row in range(4)]
    assert [document.row for document in documents] == [0, 1, 2, 3]
    assert list(corpus.read()) == documents
    assert corpus.name == "letters"


def test_an_id_is_source_revision_shard_and_row(tmp_path: Path):
    path = _jsonl(tmp_path / "letters.jsonl")
    revision = hashlib.sha256(LINES).hexdigest()
    corpus = open_corpus(path)
    assert corpus.revision == revision
    assert [document.id for document in corpus.read()] == [
        f"letters.jsonl@{revision[:12]}/0/{row}" for row in range(4)
    ]


def test_the_place_of_a_file_is_no_part_of_an_id(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    here, there = tmp_path / "a.jsonl", tmp_path / "elsewhere" / "a.jsonl"
    assert _read(_jsonl(here)) == _read(_jsonl(there))
    assert str(tmp_path) not in open_corpus(here).source


def test_the_hash_of_a_document_is_of_its_text():
    document = Document("id", "ä", "source", "0", 0)
    assert document.sha256 == hashlib.sha256("ä".encode()).hexdigest()


def test_a_blank_line_is_no_document_but_counts_as_a_row(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}')
    assert [(one.row, one.text) for one in _read(tmp_path / "a.jsonl")] == [(0, "one"), (2, "two")]


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "play.txt.gz").write_bytes(gzip.compress(b"Enter\r\nHamlet.\n"))
    (document,) = _read(tmp_path / "play.txt.gz")
    assert document.text == "Enter\r\nHamlet.\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(name: str, tmp_path: Path):
    content = b'{"text": "once"}\n' if name.endswith("l") else b"once"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert [one.text for one in _read(tmp_path / name)] == ["once"]


@pytest.mark.parametrize("ending", [".JSONL.GZ", ".jsonl.Gz", ".Jsonl.GZ"])
def test_endings_are_read_without_case(ending: str, tmp_path: Path):
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(b'{"text": "once"}\n'))
    assert [one.text for one in _read(tmp_path / f"a{ending}")] == ["once"]


def test_the_name_that_was_given_decides_and_not_that_of_a_links_target(tmp_path: Path):
    (tmp_path / "blob").write_text('{"text": "once"}\n')
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "blob")
    (document,) = _read(tmp_path / "a.jsonl")
    assert (document.text, document.source) == ("once", "a.jsonl")


def test_a_zstd_file_of_zeros_takes_no_more_memory_than_a_line_may(tmp_path: Path):
    import tracemalloc

    zeros = zstandard.ZstdCompressor().compress(bytes(200_000_000))
    (tmp_path / "a.txt.zst").write_bytes(zeros)
    tracemalloc.start()
    with pytest.raises(CorpusError, match="larger than"):
        _read(tmp_path / "a.txt.zst", max_document_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kept", [1, 5, 9, 40, -1, -4, -5])
def test_a_zstd_file_that_was_cut_anywhere_is_refused(kept: int, tmp_path: Path):
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(5000))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    (tmp_path / "whole.jsonl.zst").write_bytes(packed + skippable + packed)
    assert len(_read(tmp_path / "whole.jsonl.zst")) == 10_000
    (tmp_path / "cut.jsonl.zst").write_bytes(packed + skippable + packed[:kept])
    with pytest.raises(DamagedError, match="cut off or changed"):
        _read(tmp_path / "cut.jsonl.zst")


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path):
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "two.md").write_text("two")
    (folder / "a.txt").write_text("one")
    (folder / "c.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    (folder / ".hidden.png").write_bytes(b"\xff")
    corpus = open_corpus(folder)
    documents = list(corpus.read())
    assert [document.text for document in documents] == ["one", "two", "three", "four"]
    assert documents[1].id == f"books@{corpus.revision[:12]}/b/two.md/0"
    (folder / "a.txt").write_text("changed")
    assert open_corpus(folder).revision != corpus.revision


@pytest.mark.parametrize("kind", WRITERS)
def test_a_limit_reads_the_first_documents(kind: str, tmp_path: Path):
    source = WRITERS[kind](tmp_path / "letters.jsonl")
    assert [document.text for document in _read(source, limit=2)] == TEXTS[:2]


def test_another_field_can_hold_the_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "one", "url": "u"}\n')
    (document,) = _read(tmp_path / "a.jsonl", text_field="content")
    assert (document.text, document.url) == ("one", "u")


def test_one_id_never_names_two_texts_of_one_row(tmp_path: Path):
    """Two fields of the same bytes: the file's hash alone would name both alike."""
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}\n')
    text, body = (open_corpus(tmp_path / "a.jsonl", text_field=one) for one in ("text", "body"))
    assert body.revision == f"{text.revision}#body"
    ids = [next(iter(corpus.read())).id for corpus in (text, body)]
    sha = text.revision[:12]
    assert ids == [f"a.jsonl@{sha}/0/0", f"a.jsonl@{sha}#body/0/0"]


def test_openwebtext_reads_local_copies_of_its_parquet_layout(tmp_path: Path):
    for shard in range(2):
        texts = [f"page {shard} {row}" for row in range(300)]
        path = tmp_path / f"train-0000{shard}-of-00002.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    corpus = open_corpus("openwebtext", data_files=str(tmp_path / "train-*.parquet"))
    documents = list(corpus.read())
    assert (corpus.n_documents, len(documents)) == (600, 600)
    assert documents[450].text == "page 1 150"
    assert documents[450].id == (
        f"openwebtext@{corpus.revision[:12]}/train-00001-of-00002.parquet/150"
    )


def test_openwebtext_out_of_reach_asks_for_local_copies():
    with pytest.raises(CorpusError, match=r"cannot be reached .*--data-files"):
        open_corpus("openwebtext")


def test_the_planted_corpus_is_opened_by_name():
    corpus = open_corpus("planted", seed=0)
    assert (corpus.tokenizer, corpus.layout, corpus.revision) == ("word", "packed", "seed 0")
    with pytest.raises(CorpusError, match="truth table speaks of all of it"):
        open_corpus("planted", limit=5)


def _line(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "bad.jsonl").write_bytes(b'{"text": "good"}\n' + content + b"\n")
        return folder / "bad.jsonl"

    return write


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _cut(writer: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = WRITERS[writer](folder / "cut.jsonl")
        path.write_bytes(path.read_bytes()[:-9])
        return path

    return write


def _parquet_bytes(folder: Path) -> Path:
    binary = pa.array([b"good", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": binary}), folder / "bad.parquet")
    return folder / "bad.parquet"


BAD = [
    ("bytes of another encoding", _line(b'{"text": "caf\xe9"}'), DamagedError,
     "bad.jsonl: line 2 is not UTF-8 .byte 0xe9 at offset 13"),
    ("the same in a text file", _file("bad.txt", b"caf\xe9"), DamagedError,
     "bad.txt is not UTF-8"),
    ("the same in parquet", _parquet_bytes, DamagedError,
     "bad.parquet: row 1, field 'text' is not UTF-8"),
    ("half a surrogate pair", _line(b'{"text": "a\\ud800"}'), DamagedError,
     "line 2 is not UTF-8: half a surrogate pair at letter 1"),
    ("a line that is no JSON", _line(b'{"text": "a'), CorpusError, "line 2 is not JSON"),
    ("a line that is no object", _line(b'"text"'), CorpusError, "line 2 holds a str; expected"),
    ("a line without the field", _line(b'{"body": 1, "id": 2}'), CorpusError,
     "line 2 has no field 'text'; its fields are body, id: .*--text-field"),
    ("a field that is no text", _line(b'{"text": null}'), CorpusError,
     "line 2 has a NoneType as field 'text'"),
    ("a gzip file that ends early", _cut("gz"), DamagedError, "cut.jsonl.gz: .*cut off or changed"),
    ("an xz file that ends early", _cut("xz"), DamagedError, "cut.jsonl.xz: .*cut off or changed"),
    (
        "a number of too many digits",
        _line(b'{"text": "a", "n": ' + b"9" * 5000 + b"}"),
        CorpusError,
        "line 2 is not JSON .*too many digits",
    ),
    ("a zstd file that ends early", _cut("zst"), DamagedError, "cut.jsonl.zst: .*cut off or cha"),
    ("a parquet file that ends early", _cut("parquet"), DamagedError, "cut.parquet: not readable"),
    ("a gzip file that is none", _file("bad.jsonl.gz", b"plain"), DamagedError, "cut off or chang"),
    ("a zstd file that is none", _file("bad.jsonl.zst", b"plain"), DamagedError, "cut off or chan"),
    ("an unknown type of file", _file("picture.png", b""), CorpusError,
     "unknown file type '.png'; known are .jsonl"),
    ("nothing at all", lambda folder: folder / "absent.jsonl", CorpusError, "there is nothing at"),
    ("a folder without files", lambda folder: folder, CorpusError, "holds no files"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "error", "line"), [one[1:] for one in BAD], ids=[one[0] for one in BAD]
)
def test_bad_input_is_refused_in_one_line(
    write: Callable[[Path], Path], error: type[TrainError], line: str, tmp_path: Path
):
    with pytest.raises(error, match=line) as found:
        _read(write(tmp_path))
    assert "\n" not in str(found.value)
    assert found.value.exit_code == (3 if error is DamagedError else 2)


def test_a_parquet_file_without_the_field_names_its_fields(tmp_path: Path):
    path = _parquet(tmp_path / "letters.jsonl")
    with pytest.raises(CorpusError, match="no field 'body'; its fields are text, title"):
        _read(path, text_field="body")


@pytest.mark.parametrize("name", ["large.jsonl", "large.txt", "large.parquet"])
def test_a_document_larger_than_allowed_is_refused_by_name(name: str, tmp_path: Path):
    text = "ä" * 1000
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": ["small", text]}), tmp_path / name)
    else:
        content = (
            text if name.endswith("txt") else '{"text": "small"}\n' + json.dumps({"text": text})
        )
        (tmp_path / name).write_text(content)
    assert _read(tmp_path / name, max_document_bytes=2000)[-1].text == text
    with pytest.raises(CorpusError, match=rf"{name}.*--max-document-mb") as found:
        _read(tmp_path / name, max_document_bytes=1999)
    assert found.value.exit_code == 2


def test_a_line_is_not_read_further_than_a_document_may_be_long(tmp_path: Path):
    with (tmp_path / "endless.jsonl").open("wb") as file:
        file.truncate(1 << 30)  # a gigabyte of zeros that take no room
    with pytest.raises(CorpusError, match="line 1 is longer than 1 MiB"):
        _read(tmp_path / "endless.jsonl", max_document_bytes=1000)


def test_a_hundred_megabytes_in_one_document_are_refused_by_default(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    path.write_bytes(b'{"text": "' + b"word " * 20_000_000 + b'"}\n')
    with pytest.raises(CorpusError, match=r"line 1: the document has 95\.4 MiB, more than 64"):
        _read(path)


def test_a_saved_dataset_with_splits_asks_for_one(tmp_path: Path):
    import datasets

    one = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(CorpusError, match="holds the splits test, train: open one"):
        open_corpus(tmp_path / "both")
    assert len(_read(tmp_path / "both" / "train")) == 4


@pytest.mark.parametrize(
    ("source", "choices", "line"),
    [
        ("plantd", {}, "did you mean 'planted'"),
        ("planted", {"data_files": "a.parquet"}, "belong to the source openwebtext"),
        ("openwebtext", {"data_files": "absent-*.parquet"}, "nothing matches 'absent-"),
        ("planted", {"limit": 0}, "must be at least 1"),
    ],
)
def test_a_mistaken_call_is_refused(source: str, choices: dict, line: str):
    with pytest.raises(CorpusError, match=line):
        open_corpus(source, **choices)


@pytest.mark.parametrize("module", ["corpora", "tokenizers", "token_store", "store_builder"])
def test_importing_is_light(module: str):
    heavy = "{'torch', 'transformer_lens', 'datasets', 'transformers', 'tokenizers', 'tiktoken'}"
    probe = f"import sys, train.data.{module}; print({heavy} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"
