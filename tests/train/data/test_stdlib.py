"""The standard library is one corpus on every machine with the same sources, and no other."""

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from train.data import build_store, open_corpus, open_store
from train.data import stdlib as stdlib_module
from train.data.stdlib import stdlib_corpus
from train.errors import CorpusError, DamagedError


MODULES = {
    "json/__init__.py": b"from .decoder import decode\n",
    "json/decoder.py": b"def decode(text):\r\n    return text\r\n",
    "abc.py": b"\xef\xbb\xbfclass ABC:\n    pass\n",
    "cafe.py": "# -*- coding: latin-1 -*-\nname = 'café'\n".encode("latin-1"),
}
NO_DOCUMENTS = (
    *("json/tests/test_decoder.py", "test/support.py", "__pycache__/abc.py", "config-3.11/a.py"),
    *("site-packages/numpy/core.py", "_sysconfigdata__linux.py", "sitecustomize.py", "notes.txt"),
    *("ctypes/util.py", "sysconfig.py", "sysconfig/__init__.py", "encodings/cp037.py"),
)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "python3.11"
    for name, content in {**MODULES, **dict.fromkeys(NO_DOCUMENTS, b"x = 1\n")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_documents_are_the_modules_that_a_machine_does_not_change(library):
    corpus = stdlib_corpus(folder=library, version="3.11.7")
    documents = list(corpus.read())
    assert [document.id for document in documents] == [
        "stdlib@3.11.7/abc.py",
        "stdlib@3.11.7/cafe.py",
        "stdlib@3.11.7/json/__init__.py",
        "stdlib@3.11.7/json/decoder.py",
    ]
    assert documents[0].text == "class ABC:\n    pass\n"
    assert documents[1].text.endswith("name = 'café'\n")
    assert documents[3].text == "def decode(text):\n    return text\n"
    assert [document.title for document in documents] == ["abc", "cafe", "json", "json.decoder"]
    assert documents[3].url == "https://github.com/python/cpython/blob/v3.11.7/Lib/json/decoder.py"
    assert (corpus.n_documents, "PSF-2.0" in corpus.source) == (4, True)
    assert corpus.n_bytes == sum(len(document.text.encode()) for document in documents)


def test_the_revision_is_the_version_and_the_digest_of_names_and_texts(library, tmp_path):
    corpus = stdlib_corpus(folder=library, version="3.11.7")
    lines = "\n".join(f"{document.shard} {document.sha256}" for document in corpus.read())
    assert corpus.revision == f"3.11.7 {hashlib.sha256(lines.encode()).hexdigest()}"
    library.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "_sysconfigdata__linux.py").write_text("x = 2\n")
    moved = stdlib_corpus(corpus.revision, folder=tmp_path / "elsewhere", version="3.11.7")
    assert moved.revision == corpus.revision


def test_another_version_is_refused_with_both_versions(library):
    revision = stdlib_corpus(folder=library, version="3.11.7").revision
    message = "library of Python 3.11.7 is needed, and this is Python 3.12.1; run openbook with"
    for needed in (revision, "3.11.7"):
        with pytest.raises(CorpusError, match=message):
            stdlib_corpus(needed, folder=library, version="3.12.1")
    running = platform.python_version()
    with pytest.raises(CorpusError, match=f"Python 2.7.18 is needed, and this is Python {running}"):
        open_corpus("stdlib", revision="2.7.18")


def _patched(library: Path) -> None:
    (library / "abc.py").write_text("class ABC:\n    patched = True\n")


def _renamed(library: Path) -> None:
    (library / "abc.py").rename(library / "abd.py")


@pytest.mark.parametrize("change", [_patched, _renamed])
def test_a_changed_file_of_the_same_version_is_seen(library, change: Callable[[Path], None]):
    revision = stdlib_corpus(folder=library, version="3.11.7").revision
    change(library)
    assert stdlib_corpus("3.11.7", folder=library, version="3.11.7").revision != revision
    with pytest.raises(CorpusError, match=r"with digest [0-9a-f]{12}\.\.\. is needed, and"):
        stdlib_corpus(revision, folder=library, version="3.11.7")


def test_a_file_that_cannot_be_decoded_is_named(library):
    (library / "cafe.py").write_bytes(b"name = '\xe9'\n")
    with pytest.raises(DamagedError, match=r"cafe\.py cannot be decoded"):
        stdlib_corpus(folder=library)


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="holds no sources of Python's standard library"):
        stdlib_corpus(folder=tmp_path)


@pytest.mark.parametrize(
    ("chosen", "kind", "size"),
    [
        ({}, "bpe", 512),
        ({"vocab_size": 300}, "bpe", 300),
        ({"tokenizer": "bpe", "vocab_size": 300}, "bpe", 300),
        ({"tokenizer": "gpt2"}, "gpt2", 50257),
    ],
)
def test_a_store_of_the_running_library_has_small_byte_pairs(tmp_path, chosen, kind, size):
    corpus = open_corpus("stdlib", limit=12)
    store = build_store(corpus, out=tmp_path / "store", threads=1, **chosen)
    assert (store.tokenizer.kind, store.vocab_size, store.layout) == (kind, size, "stream")
    first = next(corpus.read())
    assert first.id == f"stdlib@{platform.python_version()}/__future__.py"
    assert store.text(store.index_of(first.id)) == first.text
    about = store.manifest["corpus"]
    assert (about["name"], about["revision"]) == ("stdlib", corpus.revision)
    assert store.manifest["held_out"] == 0.1


def test_the_command_builds_a_store_that_holds_files_out(library, tmp_path, monkeypatch, openbook):
    for number in range(100):
        (library / f"module_{number}.py").write_text(f"number_{number} = {number}\n" * 9)
    monkeypatch.setattr(stdlib_module.sysconfig, "get_path", {"stdlib": str(library)}.get)
    build = ("corpus", "build", "stdlib", "--vocab-size", 270, "--threads", 1, "--out")
    assert "PSF-2.0" in openbook(*build, tmp_path / "store").out
    store = open_store(tmp_path / "store")
    assert 0 < store.n_documents - store.manifest["counts"]["train_documents"] < 25
    assert openbook(*build, tmp_path / "all", "--held-out", 0).code == 0
    assert open_store(tmp_path / "all").manifest["counts"]["train_documents"] == 104
