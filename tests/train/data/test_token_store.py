"""A store knows which document each token came from, and notices when one bit of it changes."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import storage
from train.data import (
    Corpus,
    Document,
    TokenStore,
    build_store,
    document_sha256s,
    gpt2_tokenizer,
    open_store,
    train_bpe,
    verify_store,
)
from train.data.store_writer import ROWS_PER_GROUP
from train.errors import DamagedError, StoreError


TEXTS = [
    "The cat sat on the mat.",
    "",
    "the text <|endoftext|> is a text",
    "Ein Mädchen aß Äpfel.",
    "   ",
    "the cat and the mat " * 20,
]
TOKENIZERS = {
    "gpt2": gpt2_tokenizer(),
    "bpe": train_bpe(TEXTS, 280),
}
texts_of_documents = st.lists(st.text("ab <|eot>ä\n", max_size=30), min_size=1, max_size=40).filter(
    lambda texts: any(text.split() for text in texts)
)


def _corpus(texts: Sequence[str], **fields: Any) -> Corpus:
    documents = [
        Document(f"test@0/0/{row}", text, "test", "0", row, title=f"Title {row}")
        for row, text in enumerate(texts)
    ]
    return Corpus("test", "test", "0", lambda: iter(documents), len(documents), **fields)


def _build(texts: Sequence[str], out: Path, kind: str = "gpt2", **choices) -> TokenStore:
    chosen = TOKENIZERS.get(kind, kind)
    return build_store(_corpus(texts), out=out, tokenizer=chosen, threads=2, **choices)


def test_a_stream_is_documents_each_between_two_separators(tmp_path: Path):
    store = _build(["b a", "", "c", "a"], tmp_path / "s", kind="word")
    # ids: 0 <eot>, 1 a, 2 b, 3 c
    assert store.tokens.tolist() == [0, 2, 1, 0, 3, 0, 1, 0]
    assert store.starts.tolist() == [1, 4, 6]
    assert store.lengths.tolist() == [2, 1, 1]
    assert store.document_at(np.arange(8)).tolist() == [-1, 0, 0, -1, 1, -1, 2, -1]
    assert store.manifest["counts"] == {
        "documents": 3,
        "tokens": 8,
        "train_documents": 3,
        "train_tokens": 8,
        "late_documents": 0,
        "early_tokens": 8,
        "empty_dropped": 1,
        "literal_eot_documents": 0,
        "respaced_documents": 0,
    }


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "word"])
@pytest.mark.parametrize("layout", ["stream", "packed"])
@settings(max_examples=12)
@given(texts=texts_of_documents, held_out=st.sampled_from([0.0, 0.4]))
def test_every_token_belongs_to_exactly_the_document_the_table_says(
    kind: str, layout: str, texts: list[str], held_out: float, tmp_path_factory
):
    texts = [*texts, "ab"]
    texts = [text.replace("<eot>", "") for text in texts]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    if all(int(sha[:16], 16) / 2**64 < held_out for sha in hashes):
        held_out = 0.0
    out = tmp_path_factory.mktemp("stores") / "s"
    row_length = 128 if layout == "packed" else None
    choices = {"layout": layout, "row_length": row_length, "held_out": held_out}
    store = _build(texts, out, kind, **choices)
    verify_store(store)
    owner = store.document_at(np.arange(store.n_tokens))
    # Nothing is lost, nothing is owned twice, what nobody owns is end-of-text.
    assert np.bincount(owner[owner >= 0]).tolist() == store.lengths.tolist()
    assert (store.tokens[owner < 0] == store.eot).all()
    assert store.tokens[0] == store.eot
    read = sorted(store.document(index).row for index in range(store.n_documents))
    kept = [row for row, text in enumerate(texts) if (text.split() if kind == "word" else text)]
    assert read == kept
    for index in range(store.n_documents):
        document = store.document(index)
        ids = store.tokens[owner == index]
        assert document.index == index == store.index_of(document.id)
        assert store.tokenizer.decode(ids) == store.text(index)
        original = texts[document.row]
        assert store.text(index) == (" ".join(original.split()) if kind == "word" else original)
        assert document.sha256 == hashes[document.row]
        aside = int(document.sha256[:16], 16) / 2**64 < held_out
        assert (document.start >= store.train_tokens) == aside
        assert store.tokens[document.start - 1] == store.eot
        assert store.tokens[document.start + document.length] == store.eot


def test_held_out_texts_have_no_say_in_a_trained_vocabulary(tmp_path: Path):
    """Held-out texts of letters of their own: a vocabulary that had read them would know them."""
    aside = [f"zq{n}zq" for n in range(400) if _share(f"zq{n}zq") < 0.5]
    kept = [f"ab{n}ab cd" for n in range(400) if _share(f"ab{n}ab cd") >= 0.5]
    choices = {"tokenizer": "bpe", "vocab_size": 300, "held_out": 0.5}
    both = build_store(_corpus(kept + aside), out=tmp_path / "both", **choices)
    alone = build_store(_corpus(kept), out=tmp_path / "alone", **choices)
    assert both.tokenizer.sha256 == alone.tokenizer.sha256
    assert both.n_documents - alone.n_documents == len(aside)
    words = build_store(
        _corpus(kept + aside), out=tmp_path / "words", tokenizer="word", held_out=0.5
    )
    assert words.text(words.n_documents - 1) in aside


def _share(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64


@pytest.mark.parametrize("layout", ["stream", "packed"])
def test_late_documents_lie_between_the_others_and_the_held_out_ones(layout: str, tmp_path: Path):
    texts = [f"w{row} a b" for row in range(60)]
    corpus = _corpus(texts)
    documents = [replace(one, late=one.row % 4 == 1) for one in corpus.read()]
    corpus = replace(corpus, read=lambda: iter(documents), layout=layout)
    store = build_store(corpus, out=tmp_path / "s", tokenizer="word", held_out=0.2)
    rows = store.rows
    aside = {row for row in range(60) if int(documents[row].sha256[:16], 16) / 2**64 < 0.2}
    assert aside & set(range(1, 60, 4)), "a late document may be held out"
    for index, start in enumerate(store.starts.tolist()):
        row = int(rows[index])
        assert (start >= store.train_tokens) == (row in aside)
        if row not in aside:
            assert (start >= store.early_tokens) == (row % 4 == 1)
        assert store.text(index) == texts[row]
    assert store.manifest["counts"]["late_documents"] == len(set(range(1, 60, 4)) - aside)
    if layout == "packed":
        assert store.row_length
        assert (store.early_tokens - 1) % store.row_length == 0
    verify_store(store)


def test_a_store_of_an_earlier_version_has_no_late_documents(tmp_path: Path):
    store = _build(["a b", "c"], tmp_path / "s", kind="word")
    del store.manifest["counts"]["early_tokens"]
    assert store.early_tokens == store.train_tokens


def test_documents_are_held_out_by_their_text(tmp_path: Path):
    texts = [f"document number {number}" for number in range(400)]
    store = _build(texts, tmp_path / "s", held_out=0.25)
    held = {store.text(index) for index in range(400) if store.starts[index] >= store.train_tokens}
    assert len(held) == 400 - store.manifest["counts"]["train_documents"]
    assert 70 < len(held) < 130
    # Another store with the same texts among others holds out the same ones.
    other = _build([*reversed(texts), "one more"], tmp_path / "t", held_out=0.25)
    again = {other.text(i) for i in range(401) if other.starts[i] >= other.train_tokens}
    assert again - {"one more"} == held


def test_a_packed_store_keeps_documents_whole_in_their_rows(tmp_path: Path):
    texts = [f"document {'very ' * (number % 9)}small {number}" for number in range(500)]
    store = _build(texts, tmp_path / "s", layout="packed", row_length=32, held_out=0.1)
    rows = store.tokens[1:].reshape(-1, 32)
    assert (rows[:, -1] == store.eot).all()
    first, last = store.starts - 1, store.starts - 1 + store.lengths
    np.testing.assert_array_equal(first // 32, last // 32)
    assert (store.train_tokens - 1) % 32 == 0
    assert sorted(store.text(index) for index in range(500)) == sorted(texts)


def test_threads_and_batches_change_no_byte(tmp_path: Path):
    texts = [f"document {number} " * (number % 7) for number in range(300)]
    one = build_store(_corpus(texts), out=tmp_path / "one", threads=1, held_out=0.2)
    many = build_store(
        _corpus(texts), out=tmp_path / "many", threads=4, held_out=0.2, batch_letters=100
    )
    assert one.fingerprint == many.fingerprint
    assert (one.tokens == many.tokens).all()
    assert [one.document(i) for i in range(3)] == [many.document(i) for i in range(3)]


def test_many_row_groups_read_as_one_table(tmp_path: Path):
    texts = [f"document {number}" for number in range(3 * ROWS_PER_GROUP)]
    store = _build(texts, tmp_path / "s", held_out=0.3, batch_letters=1000)
    assert pq.ParquetFile(tmp_path / "s" / "documents.parquet").num_row_groups > 3
    for index in range(0, len(texts), 131):
        assert texts[store.document(index).row] == store.text(index)
    verify_store(store)


def test_the_fingerprint_is_of_ids_hashes_places_and_lengths(tmp_path: Path):
    store = _build(TEXTS, tmp_path / "s")
    rows = [store.document(index) for index in range(store.n_documents)]
    lines = "".join(f"{one.id} {one.sha256} {one.start} {one.length}\n" for one in rows)
    assert store.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_the_letters_of_the_separator_are_text_and_are_counted(tmp_path: Path):
    store = _build(TEXTS, tmp_path / "s")
    assert store.manifest["counts"]["literal_eot_documents"] == 1
    assert store.text(1) == "the text <|endoftext|> is a text"


def test_ids_take_two_bytes_when_the_vocabulary_allows(tmp_path: Path):
    assert _build(TEXTS, tmp_path / "s").tokens.dtype == np.dtype("<u2")
    words = " ".join(f"w{number}" for number in range(65_536))
    large = _build([words], tmp_path / "t", kind="word")
    assert large.tokens.dtype == np.dtype("<u4")
    assert large.text(0) == words


def test_the_truth_of_a_corpus_travels_with_its_store(tmp_path: Path):
    corpus = _corpus(TEXTS, truth=lambda: {"facts": [1, 2]})
    assert build_store(corpus, out=tmp_path / "s").truth == {"facts": [1, 2]}
    assert _build(TEXTS, tmp_path / "t").truth is None


def test_a_vocabulary_is_trained_on_the_corpus(tmp_path: Path):
    trained = build_store(_corpus(TEXTS), out=tmp_path / "t", tokenizer="bpe", vocab_size=270)
    assert (trained.vocab_size, trained.tokenizer.kind) == (270, "bpe")
    assert trained.text(0) == TEXTS[0]


def test_opening_reads_nothing_but_the_statement(tmp_path: Path):
    store = _build(TEXTS, tmp_path / "s")
    opened = open_store(tmp_path / "s")
    assert opened == store
    assert set(vars(opened)) == {"path", "manifest"}


@pytest.mark.parametrize("offsets", [[-1], [0, 10**6]])
def test_a_token_outside_the_store_has_no_document(offsets: list[int], tmp_path: Path):
    with pytest.raises(StoreError, match="were asked of a store with"):
        _build(TEXTS, tmp_path / "s").document_at(offsets)


def test_a_document_that_is_not_there_is_refused(tmp_path: Path):
    store = _build(TEXTS, tmp_path / "s")
    with pytest.raises(StoreError, match="document 5 was asked of a store with 5 documents"):
        store.document(5)
    with pytest.raises(StoreError, match=r"no document 'x'.*ids look like 'test@0/0/0'"):
        store.index_of("x")


def test_no_store_is_told_from_a_damaged_one(tmp_path: Path):
    with pytest.raises(StoreError, match="there is no token store at"):
        open_store(tmp_path)
    store = _build(TEXTS, tmp_path / "s")
    (store.path / "tokens.bin").write_bytes(b"12")
    with pytest.raises(DamagedError, match=r"tokens.bin: the file has 2 bytes"):
        open_store(store.path)
    (store.path / "tokens.bin").unlink()
    with pytest.raises(DamagedError, match=r"tokens.bin: the file is missing"):
        open_store(store.path)


# --- damage --------------------------------------------------------------------------------------

FILES = ["tokens.bin", "documents.parquet", "tokenizer.json", "truth.json", "store.json"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    corpus = _corpus(
        [*TEXTS, *(f"document {n} of many" for n in range(200))], truth=lambda: {"a": 1}
    )
    return build_store(corpus, out=tmp_path_factory.mktemp("sound") / "s")


def _verified(path: Path) -> None:
    verify_store(open_store(path))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_anywhere_is_found_and_its_file_named(
    name: str, seed: int, sound: TokenStore, tmp_path: Path
):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    bit = int(np.random.Generator(np.random.PCG64(seed)).integers(len(content) * 8))
    content[bit // 8] ^= 1 << bit % 8
    (copy / name).write_bytes(content)
    with pytest.raises(DamagedError, match=name) as found:
        _verified(copy)
    assert found.value.exit_code == 3
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("tokens.bin", lambda store: store.tokens),
        ("tokens.bin", lambda store: store.text(3)),
        ("documents.parquet", lambda store: store.starts),
        ("documents.parquet", lambda store: store.document(3)),
        ("documents.parquet", lambda store: store.index_of("test@0/0/3")),
        ("documents.parquet", lambda store: next(document_sha256s(store))),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_refused_before_its_file_is_used(
    name: str, use: Callable, seed: int, sound: TokenStore, tmp_path: Path
):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    use(open_store(copy))
    content = bytearray((copy / name).read_bytes())
    bit = int(np.random.default_rng(seed).integers(len(content) * 8))
    content[bit // 8] ^= 1 << bit % 8
    (copy / name).write_bytes(content)
    opened = open_store(copy)
    with pytest.raises(DamagedError, match=f"{name}: its sha256 is not the one in store.json"):
        use(opened)
    with pytest.raises(DamagedError, match=name):
        opened.check_files()


def test_check_files_hashes_anew_what_is_open_already(sound: TokenStore, tmp_path: Path):
    copy = open_store(shutil.copytree(sound.path, tmp_path / "copy"))
    assert len(copy.tokens) == copy.n_tokens
    _edit(copy.path, at=int(sound.starts[7]) + 1)
    with pytest.raises(DamagedError, match=r"tokens\.bin"):
        copy.check_files(anew=True)


def test_another_sealed_file_in_place_of_the_manifest_is_refused(sound: TokenStore, tmp_path: Path):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    storage.write_json(copy / "store.json", storage.seal({"schema": 1, "files": {}}))
    with pytest.raises(DamagedError, match=r"store\.json: layout is missing"):
        open_store(copy)


@pytest.mark.parametrize("name", ["tokens.bin", "documents.parquet"])
def test_a_manifest_that_lists_no_digest_of_a_file_is_refused(
    name: str, sound: TokenStore, tmp_path: Path
):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    manifest = json.loads((copy / "store.json").read_text())
    del manifest["files"][name]
    storage.write_json(copy / "store.json", storage.seal(manifest))
    with pytest.raises(DamagedError, match=rf"store\.json: files does not list {name}"):
        open_store(copy)


def test_an_edited_document_is_named(sound: TokenStore, tmp_path: Path):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    _edit(copy, at=int(sound.starts[7]) + 1)
    with pytest.raises(DamagedError, match=r"tokens.bin: document 7 .test@0/0/8. is not the text"):
        _verified(copy)


def test_an_edited_document_is_named_though_the_digests_were_made_again(
    sound: TokenStore, tmp_path: Path
):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    _edit(copy, at=int(sound.starts[7]) + 1)
    manifest = json.loads((copy / "store.json").read_text())
    manifest["files"]["tokens.bin"] = storage.sha256_file(copy / "tokens.bin")
    storage.write_json(copy / "store.json", storage.seal(manifest))
    with pytest.raises(DamagedError, match=r"document 7 .test@0/0/8. is not the text"):
        _verified(copy)


def test_an_edited_table_is_found_though_the_digests_were_made_again(
    sound: TokenStore, tmp_path: Path
):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    table = pq.read_table(copy / "documents.parquet")
    ids = ["another", *table.column("id").to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.schema.field("id"), [ids]), copy / "documents.parquet")
    manifest = json.loads((copy / "store.json").read_text())
    manifest["files"]["documents.parquet"] = storage.sha256_file(copy / "documents.parquet")
    manifest["sizes"]["documents.parquet"] = (copy / "documents.parquet").stat().st_size
    storage.write_json(copy / "store.json", storage.seal(manifest))
    with pytest.raises(DamagedError, match=r"documents.parquet: its fingerprint"):
        _verified(copy)


def test_a_changed_separator_is_found(sound: TokenStore, tmp_path: Path):
    copy = Path(shutil.copytree(sound.path, tmp_path / "copy"))
    _edit(copy, at=int(sound.starts[7]) - 1)
    with pytest.raises(DamagedError, match=r"tokens.bin: .*between documents"):
        _verified(copy)


def test_another_tokenizer_in_its_place_is_refused_when_it_is_used(tmp_path: Path):
    store = _build(TEXTS, tmp_path / "s")
    TOKENIZERS["bpe"].save(store.path / "tokenizer.json")
    with pytest.raises(DamagedError, match=r"tokenizer.json: not the tokenizer"):
        _ = dataclasses.replace(store).tokenizer


def _edit(path: Path, at: int) -> None:
    tokens = np.memmap(path / "tokens.bin", dtype="<u2", mode="r+")
    tokens[at] = 262 if tokens[at] != 262 else 257
    tokens.flush()
