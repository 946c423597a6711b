"""A document has one id and one text, wherever it lies and however often it is read."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from train.data import Document, SkippedRow, open_corpus
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


def _zeros_in_zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


WRITERS = {
    "jsonl": _jsonl,
    "gz": _packed(".gz", gzip.compress),
    "xz": _packed(".xz", lzma.compress),
    "bz2": _packed(".bz2", lambda content: bz2.compress(content[:50]) + bz2.compress(content[50:])),
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


def _zeros(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            file.truncate(1 << 40)  # which nobody hashes
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
     "bad.parquet: row 1 is not UTF-8 in field 'text'"),
    ("half a surrogate pair", _line(b'{"text": "a\\ud800"}'), DamagedError,
     "line 2 is not UTF-8: half a surrogate pair at letter 1"),
    ("a line that is no JSON", _line(b'{"text": "a'), CorpusError,
     "line 2 is not readable as JSON .Unterminated string starting at, at letter 10.; expected"),
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
        "line 2 is not readable as JSON .*too many digits",
    ),
    ("a bzip2 file that ends early", _cut("bz2"), DamagedError, "cut.jsonl.bz2: .*cut off or chan"),
    ("a zstd file that ends early", _cut("zst"), DamagedError, "cut.jsonl.zst: .*cut off or cha"),
    ("a parquet file that ends early", _cut("parquet"), DamagedError, "cut.parquet: not readable"),
    ("a gzip file that is none", _file("bad.jsonl.gz", b"plain"), DamagedError, "cut off or chang"),
    ("an xz file that is none", _file("bad.jsonl.xz", b"plain"), DamagedError, "cut off or chang"),
    ("a bzip2 file that is none", _file("bad.txt.bz2", b"plain"), DamagedError, "cut off or chang"),
    ("a zstd file that is none", _file("bad.jsonl.zst", b"plain"), DamagedError, "cut off or chan"),
    ("a file that was never written", _zeros("bad.jsonl"), DamagedError, "begins with 64 zero by"),
    ("the same, packed", _zeros("bad.jsonl.xz"), DamagedError, "begins with 64 zero bytes"),
    ("an unknown type of file", _file("picture.png", b""), CorpusError,
     "unknown file type '.png'; known are .jsonl"),
    ("nothing at all", lambda folder: folder / "absent.jsonl", CorpusError, "there is nothing at"),
    ("a folder without files", lambda folder: folder, CorpusError,
     "no files of a known type .*: it is empty"),
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
        file.write(b'{"text": "')
        file.truncate(1 << 30)  # zeros up to a gigabyte, which take no room
    with pytest.raises(CorpusError, match="line 1 is longer than 1 MiB"):
        _read(tmp_path / "endless.jsonl", max_document_bytes=1000)


def test_a_hundred_megabytes_in_one_document_are_refused_by_default(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    path.write_bytes(b'{"text": "' + b"word " * 20_000_000 + b'"}\n')
    with pytest.raises(CorpusError, match=r"line 1 has 95\.4 MiB of text, more than 64"):
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


# --- bad rows, dotted fields, standard input -----------------------------------------------------

MIXED = b"".join(
    line + b"\n"
    for line in (
        b'{"text": "one"}',
        b'{"text": null}',
        b'{"body": "two"}',
        b'{"text": ["three"]}',
        b'{"text": "fo',
        b'{"text": "caf\xe9"}',
        b'{"text": "a\\ud800"}',
        b'{"text": "b", "title": "\\ud800"}',
        b'"text"',
        b'{"text": "' + b"long" * 1000 + b'"}',
        b'{"text": "last"}',
    )
)
REASONS = [
    "has a NoneType as field 'text'; its fields are text",
    "has no field 'text'; its fields are body",
    "has a list as field 'text'",
    "is not readable as JSON",
    "is not UTF-8 (byte 0xe9",
    "is not UTF-8: half a surrogate pair at letter 1",
    "is not UTF-8: half a surrogate pair at letter 0 in its title or url",
    "holds a str; expected one object a line",
    "has 0.0 MiB of text, more than",
]


def test_bad_rows_are_left_out_in_their_places_with_their_reasons(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(MIXED)
    corpus = open_corpus(tmp_path / "a.jsonl", skip_bad=True, max_document_bytes=2000)
    assert corpus.rows is not None
    first, *bad, last = corpus.rows()
    assert [(one.row, one.text) for one in corpus.read()] == [(0, "one"), (10, "last")]
    assert [first, last] == list(corpus.read())
    assert [one.line for one in bad if isinstance(one, SkippedRow)] == list(range(2, 11))
    for one, reason in zip(bad, REASONS, strict=True):
        assert isinstance(one, SkippedRow)
        assert one.reason.startswith(reason)
        assert one.file == "a.jsonl"


def test_without_leaving_out_the_first_bad_row_ends_the_reading(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(MIXED)
    corpus = open_corpus(tmp_path / "a.jsonl")
    assert corpus.rows is None
    with pytest.raises(CorpusError, match=r"a\.jsonl: line 2 has a NoneType as field 'text'"):
        list(corpus.read())


def test_a_line_that_is_too_long_is_left_out_and_the_next_one_is_read(tmp_path: Path):
    line = b'{"text": "' + b"x" * (3 << 20) + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(line + b'{"text": "next"}\n')
    corpus = open_corpus(tmp_path / "a.jsonl", skip_bad=True, max_document_bytes=1000)
    assert [(one.row, one.text) for one in corpus.read()] == [(1, "next")]


def test_bad_rows_of_parquet_and_whole_text_files_are_left_out(tmp_path: Path):
    _parquet_bytes(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    corpus = open_corpus(tmp_path, skip_bad=True)
    assert corpus.rows is not None
    bad = [one for one in corpus.rows() if isinstance(one, SkippedRow)]
    assert [(one.file, one.row, one.line) for one in bad] == [
        ("a.txt", None, None),
        ("bad.parquet", 1, None),
    ]
    assert [one.text for one in corpus.read()] == ["good"]


def test_a_limit_counts_documents_and_not_bad_rows(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(MIXED)
    corpus = open_corpus(tmp_path / "a.jsonl", skip_bad=True, limit=2)
    assert [one.row for one in corpus.read()] == [0, 9]


def test_a_file_that_is_cut_off_is_no_bad_row(tmp_path: Path):
    path = _cut("gz")(tmp_path)
    with pytest.raises(DamagedError, match="cut off or changed"):
        list(open_corpus(path, skip_bad=True).read())


def _nested_saved(folder: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    rows = {"meta": [{"text": "a", "id": 1}, {"text": "b", "id": 2}], "title": ["A", "B"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _nested_parquet(folder: Path) -> Path:
    meta = [{"text": "a", "id": 1}, {"text": "b", "id": 2}]
    pq.write_table(pa.table({"meta": meta, "title": ["A", "B"]}), folder / "a.parquet")
    return folder / "a.parquet"


def _nested_lines(folder: Path) -> Path:
    rows = [{"meta": {"text": text}, "title": text.upper()} for text in "ab"]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "a.jsonl"


@pytest.mark.parametrize("write", [_nested_lines, _nested_parquet, _nested_saved])
def test_a_dotted_field_is_a_field_inside_another_one(
    write: Callable[[Path], Path], tmp_path: Path
):
    path = write(tmp_path)
    documents = _read(path, text_field="meta.text")
    assert [(one.text, one.title) for one in documents] == [("a", "A"), ("b", "B")]
    assert "#meta.text/" in documents[0].id
    with pytest.raises(CorpusError, match=r"no field 'meta.body'; its fields are .*meta.text"):
        _read(path, text_field="meta.body")


def test_a_field_of_the_dotted_name_goes_before_one_inside_another(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"meta.text": "flat", "meta": {"text": "nested"}}\n')
    assert [one.text for one in _read(tmp_path / "a.jsonl", text_field="meta.text")] == ["flat"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (LINES, TEXTS),
        (b"\xef\xbb\xbf \n" + LINES, TEXTS),
        (b"Plain text.\nTwo lines.\n", ["Plain text.\nTwo lines.\n"]),
        (b'["a list"]\n', ['["a list"]\n']),
    ],
)
def test_standard_input_is_lines_of_json_or_one_text(
    content: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    corpus = open_corpus("-")
    documents = list(corpus.read())
    assert [one.text for one in documents] == texts
    assert list(corpus.read()) == documents
    assert corpus.revision == hashlib.sha256(content).hexdigest()
    assert documents[0].id.startswith(f"stdin@{corpus.revision[:12]}/0/")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "standard input is empty"),
        (b'{"text": "a"}\n{"text"\n', "standard input: line 2 is not readable as JSON"),
        (b"caf\xe9", "standard input is not UTF-8"),
    ],
)
def test_bad_standard_input_is_named(content: bytes, line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(TrainError, match=line):
        list(open_corpus("-").read())


# --- folders of data files -----------------------------------------------------------------------


def _folder(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n')
    return folder


def test_a_folder_follows_the_convention_of_the_hub(tmp_path: Path):
    names = "README.md data/b.jsonl a.txt .git/config __pycache__/a.txt c.PNG dataset_infos.json"
    corpus = open_corpus(_folder(tmp_path, names + " NEWS.Debian.gz no-ending"))
    assert corpus.files is not None
    assert corpus.files.taken == ("a.txt", "data/b.jsonl")
    assert corpus.files.left == {
        "hidden": (".git/config", "__pycache__/a.txt"),
        "of an unknown type": ("NEWS.Debian.gz", "c.PNG", "no-ending"),
        "a data card": ("README.md",),
        "a description of the data": ("dataset_infos.json",),
    }
    assert str(corpus.files).startswith("2 files taken (1 jsonl, 1 text); 2 left, hidden: .git/")
    assert "3 left, of an unknown type: NEWS.Debian.gz, c.PNG, no-ending" in str(corpus.files)
    assert [one.shard for one in corpus.read()] == ["a.txt", "data/b.jsonl"]


def test_a_link_to_nothing_and_a_pipe_are_left(tmp_path: Path):
    _folder(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "c.txt")
    corpus = open_corpus(tmp_path)
    assert corpus.files is not None
    assert corpus.files.left == {"no regular file": ("b.txt", "c.txt")}


def test_a_card_that_is_named_is_a_document(tmp_path: Path):
    assert len(_read(_folder(tmp_path, "README.md") / "README.md")) == 1
    with pytest.raises(CorpusError, match=r"no files of a known type .*1 left, a data card"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("train.jsonl test.jsonl dev.jsonl", "train.jsonl"),
        ("data/train-00000-of-00001.jsonl data/validation-00000-of-00001.jsonl other.txt",
         "data/train-00000-of-00001.jsonl other.txt"),
        ("training/a.txt evaluation/a.txt", "training/a.txt"),
        ("test.jsonl dev.jsonl", "dev.jsonl test.jsonl"),  # no train: all of it was asked for
        ("strain.txt latest.txt", "latest.txt strain.txt"),
    ],
)  # fmt: skip
def test_the_splits_for_evaluation_are_left_beside_a_split_train(
    names: str, taken: str, tmp_path: Path
):
    corpus = open_corpus(_folder(tmp_path, names))
    assert corpus.files is not None
    assert corpus.files.taken == tuple(taken.split())
    assert all("of the split" in reason for reason in corpus.files.left)


def test_names_of_many_files_that_are_left_are_counted(tmp_path: Path):
    names = " ".join(f"{number:02}.png" for number in range(30))
    corpus = open_corpus(_folder(tmp_path, f"a.txt {names}"))
    shown = ", ".join(f"{number:02}.png" for number in range(8))
    assert str(corpus.files).endswith(f"30 left, of an unknown type: {shown} and 22 more")


# --- bombs ---------------------------------------------------------------------------------------

LIMITED = """
import re, resource, sys
from pathlib import Path
from train.data import open_corpus
import pyarrow.parquet  # its libraries are mapped before the limit is set
pyarrow.set_cpu_count(1)
mapped = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (mapped + (400 << 20),) * 2)
print(sum(len(document.text) for document in open_corpus(Path(sys.argv[1])).read()))
"""
ROWS, LONG = 80, "a" * (8 << 20)


def _repeats(folder: Path) -> Path:
    """One long text, which 80 rows name: decoded together they are 671 MB."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), [LONG])
    table = pa.table({"text": rows})
    pq.write_table(table, folder / "bomb.parquet", compression="zstd", store_schema=False)
    return folder / "bomb.parquet"


def _prefixes(folder: Path) -> Path:
    """The same text as the prefix of every row (DELTA_BYTE_ARRAY)."""
    pq.write_table(
        pa.table({"text": [LONG] * ROWS}),
        folder / "bomb.parquet",
        compression="zstd",
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY"},
    )
    return folder / "bomb.parquet"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits memory as Linux does")
@pytest.mark.integration
@pytest.mark.parametrize("write", [_repeats, _prefixes])
def test_many_rows_of_one_long_text_take_the_memory_of_one(
    write: Callable[[Path], Path], tmp_path: Path
):
    path = write(tmp_path)
    assert path.stat().st_size < 100_000
    command = [sys.executable, "-c", LIMITED, str(path)]
    # Without it pyarrow reserves a gigabyte of addresses, which count for the limit.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(ROWS * len(LONG)), done.stderr[-400:]


def test_a_parquet_file_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.data.readers.LEAST_UNPACKED", 1 << 20)
    path = tmp_path / "bomb.parquet"
    table = pa.table({"text": [LONG], "other": ["b"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(CorpusError, match=r"'text' unpack to 8\.4 MB, and at most 1\.0 MB"):
        _read(path)
    assert len(_read(path, text_field="other")) == 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, _zeros_in_zstd])
def test_compressed_zeros_take_no_more_memory_than_a_document_may(
    pack: Callable[[bytes], bytes], tmp_path: Path
):
    import tracemalloc

    endings = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz", _zeros_in_zstd: "zst"}
    path = tmp_path / f"a.txt.{endings[pack]}"
    path.write_bytes(pack(bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(CorpusError, match="larger than 1 MiB"):
        _read(path, max_document_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_xz_file_that_asks_for_much_memory_is_refused(tmp_path: Path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"a", filters=filters))
    with pytest.raises(DamagedError, match=r"a\.txt\.xz: .*asks for more than 256 MiB of memory"):
        _read(tmp_path / "a.txt.xz")
