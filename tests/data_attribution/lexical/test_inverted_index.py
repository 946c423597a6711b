"""The inverted file holds what counting each document by hand finds, or is refused by name."""

import os
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_attribution import lexical
from data_attribution.errors import IndexMismatch, IndexMissing
from data_attribution.lexical import inverted_index
from train.data import TokenStore, open_store, verify_store
from train.errors import DamagedError, DiskError


TEXTS = ["a b a b c", "b c", "a", "c a b", "a " * 300 + "b"]
FILES = (*inverted_index.FILES, "index.json")


def counted(store) -> dict[int, dict[int, int]]:
    """Token to document to count, one document after the other."""
    found: dict[int, dict[int, int]] = {}
    for document in range(store.n_documents):
        start = int(store.starts[document])
        if start < store.train_tokens:
            tokens = store.tokens[start : start + int(store.lengths[document])]
            for token, n in Counter(tokens.tolist()).items():
                found.setdefault(token, {})[document] = n
    return found


def read(found: lexical.InvertedIndex) -> dict[int, dict[int, int]]:
    """The same out of the file."""
    tokens = list(range(found.store.vocab_size))
    rows: dict[int, dict[int, int]] = {}
    for held in found.held(tokens):
        for token, low, high in zip(tokens, held.edges, held.edges[1:], strict=False):
            for document, n in zip(
                held.documents[low:high].tolist(), held.counts[low:high].tolist(), strict=True
            ):
                rows.setdefault(token, {})[document + held.first] = n
    return rows


@pytest.mark.parametrize("layout", [{}, {"layout": "packed", "row_length": 8}])
@pytest.mark.parametrize("memory", [1, 32 * 7, inverted_index.MEMORY])
def test_every_count_is_the_one_counted_by_hand_however_small_the_segments(
    make_store, layout, memory
):
    texts = TEXTS if not layout else TEXTS[:-1]
    store = make_store(texts, **layout)
    found = lexical.build_inverted_index(store, memory=memory)
    assert read(found) == counted(store)
    assert (len(found.segments) > 1) == (memory < inverted_index.MEMORY)
    frequency = [len(counted(store).get(token, {})) for token in range(store.vocab_size)]
    assert found.frequency(range(store.vocab_size)).tolist() == frequency


@pytest.mark.parametrize("memory", [1, 32 * 500, inverted_index.MEMORY])
def test_counts_too_large_for_a_byte_are_kept_apart_for_each_document(make_store, memory):
    store = make_store(["a " * 300 + "b " * 255, "b", "b " * 254 + "c", "c a " * 260, "b " * 400])
    found = lexical.build_inverted_index(store, memory=memory)
    assert read(found) == counted(store)
    assert sorted(found.times.tolist()) == [255, 260, 260, 300, 400]


def test_held_out_documents_are_not_in_it(tiny_store):
    lexical.build_inverted_index(tiny_store)
    found = lexical.open_inverted_index(open_store(tiny_store.path))
    assert read(found) == counted(tiny_store)
    assert max(max(row) for row in read(found).values()) < tiny_store.n_documents - 1


# Each call of `make_store` makes another store.
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.lists(st.sampled_from("abcd"), min_size=1, max_size=600).map(" ".join),
        min_size=1, max_size=6,
    ),
    most=st.integers(1, 2000),
)  # fmt: skip
def test_any_corpus_is_counted_right(make_store, texts, most):
    store = make_store(texts)
    assert read(lexical.build_inverted_index(store, memory=32 * most)) == counted(store)


def test_token_ids_of_32_bits_and_65535_are_counted(make_store, monkeypatch):
    store = make_store(TEXTS)
    tokens = np.where(store.tokens == store.eot, store.eot, 65535 - store.tokens.astype(np.uint32))
    vars(store)["tokens"] = tokens
    store.manifest["vocab_size"] = 70_000
    # The file on disk is that of the smaller vocabulary, so it does not match the manifest.
    monkeypatch.setattr(TokenStore, "check_files", lambda store, anew: None)
    index = lexical.build_inverted_index(store)
    assert index.n_entries == sum(map(len, counted(store).values()))
    assert read(index) == counted(store)


def test_a_segment_never_has_more_documents_than_two_bytes_can_name():
    bounds = inverted_index.segment_bounds(np.ones(200_000, np.int64), 1 << 24)
    assert [stop - first for first, stop in bounds] == [65_536, 65_536, 65_536, 3_392]


def test_an_entry_takes_three_bytes(make_store):
    store = make_store([f"w{k % 7} x{k}" for k in range(1000)])
    found = lexical.build_inverted_index(store)
    sizes = {name: (store.path / "bm25" / name).stat().st_size for name in inverted_index.FILES}
    assert sizes["documents.u16"] + sizes["counts.u8"] == 3 * found.n_entries == 6000


def test_a_store_without_one_says_which_command_builds_it(make_store):
    store = make_store(TEXTS)
    assert lexical.find_inverted_index(store) is None
    with pytest.raises(IndexMissing, match="has no BM25 index yet; build it with `openbook index"):
        lexical.open_inverted_index(store)


def test_that_of_another_store_is_refused(make_store):
    store, other = make_store(TEXTS), make_store([*TEXTS, "c c"])
    lexical.build_inverted_index(other)
    os.rename(other.path / "bm25", store.path / "bm25")
    with pytest.raises(IndexMismatch, match=f"of token store {other.fingerprint[:12]}"):
        lexical.find_inverted_index(store)
    assert lexical.build_inverted_index(store).n_entries == 11


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_named_when_it_is_opened(make_store, name):
    store = make_store(TEXTS)
    lexical.build_inverted_index(store)
    path = store.path / "bm25" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=name):
        lexical.open_inverted_index(store)
    path.unlink()
    with pytest.raises(DamagedError, match=name):
        lexical.open_inverted_index(store)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_named_when_it_is_verified(make_store, name):
    store = make_store(TEXTS)
    lexical.build_inverted_index(store)
    lexical.verify_inverted_index(store)
    path = store.path / "bm25" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=name):
        lexical.verify_inverted_index(store)
    with pytest.raises(DamagedError, match=name):
        verify_store(store)


def test_changed_tokens_are_not_counted_and_nothing_is_left(make_store):
    store = make_store(TEXTS)
    path = store.path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match=r"tokens\.bin"):
        lexical.build_inverted_index(store)
    assert not list(store.path.glob("*bm25*"))


def test_a_build_that_is_interrupted_leaves_nothing_and_can_be_repeated(make_store):
    store = make_store(TEXTS)

    def stop(what, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lexical.build_inverted_index(store, memory=1, progress=stop)
    assert not list(store.path.glob("*bm25*"))
    assert not list(store.path.glob(".*partial"))
    told = []
    lexical.build_inverted_index(store, progress=lambda *report: told.append(report))
    assert told[-1] == ("counting tokens of documents", 5, 5)


def test_what_a_killed_build_left_is_no_index_and_is_cleared_away(make_store):
    store = make_store(TEXTS)
    left = store.path / ".bm25.partial"
    left.mkdir()
    (left / "documents.u16").write_bytes(b"half")
    assert lexical.find_inverted_index(store) is None
    assert lexical.build_inverted_index(store).n_entries == 11
    assert not left.exists()


def test_a_full_disk_ends_in_one_line_and_leaves_the_older_index(make_store, tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    made = make_store(
        [" ".join(f"w{k}" for k in range(start, start + 200)) for start in range(400)]
    )
    size = sum(path.stat().st_size for path in made.path.iterdir()) // 1024 + 200
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        store = open_store(shutil.copytree(made.path, place / "store"))
        older = shutil.copytree(
            lexical.build_inverted_index(make_store(TEXTS)).store.path / "bm25", tmp_path / "o"
        )
        shutil.copytree(older, store.path / "bm25")
        with pytest.raises(DiskError, match=r"the disk is full while writing .*bm25: .*MiB left"):
            lexical.build_inverted_index(store, memory=32 * 10_000)
        assert (store.path / "bm25" / "index.json").read_bytes() == (
            older / "index.json"
        ).read_bytes()
        assert not list(store.path.glob(".*partial"))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_command_says_what_it_kept(openbook, make_store):
    store = make_store(TEXTS)
    built = openbook("index", "bm25", store.path)
    assert (built.code, built.err) == (0, "")
    size = sum(path.stat().st_size for path in (store.path / "bm25").iterdir())
    assert built.out == (
        f"11 pairs of a token and a document that contains it, {size:,} bytes: "
        f"{store.path / 'bm25'}\n"
    )
    (store.path / "bm25" / "index.json").write_text("{}")
    assert lexical.build_inverted_index(store).n_entries == 11
