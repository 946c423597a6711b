"""What is kept in a store is whole or the older one, whenever a build is killed; one at a time."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_attribution.errors import AttributionError, IndexMissing
from data_attribution.lexical import inverted_index
from data_attribution.token_index import TokenIndex, builder, shard_files
from tests.data_attribution.held_index import index_of
from train import storage
from train.errors import DamagedError
from train.storage import atomic, digest_memory


TEXTS = [f"a b w{k}" for k in range(12)]
KINDS = {
    "index": SimpleNamespace(
        artifact_of=builder.artifact_of,
        build=builder.build,
        open=builder.open,
        verify=builder.verify,
    ),
    "bm25": SimpleNamespace(
        artifact_of=inverted_index.artifact_of,
        build=inverted_index.build_inverted_index,
        open=inverted_index.open_inverted_index,
        verify=inverted_index.verify_inverted_index,
    ),
}


class Killed(BaseException):
    """Stands for kill -9: nothing that would change the disk is done after it."""


def killed_after(monkeypatch, steps: int, build) -> bool:
    """Build, and be killed when so many steps of installing are done; False when that is all."""
    install, done = atomic.replace_folder, []

    def counted(call):
        def step(*arguments, **options):
            if len(done) == steps:
                raise Killed
            done.append(call)
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as patch:

        def installed(ready, path):
            for place, name in ((os, "replace"), (shutil, "rmtree"), (atomic, "sync_folder")):
                patch.setattr(place, name, counted(getattr(place, name)))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            install(ready, path)

        patch.setattr(atomic, "replace_folder", installed)
        try:
            build()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("steps", range(12))
def test_an_index_that_is_killed_while_it_is_installed_is_not_sorted_again(
    make_store, monkeypatch, steps
):
    store = make_store(TEXTS)
    builder.build(store)
    killed = killed_after(monkeypatch, steps, lambda: builder.build(store, shards=3))
    # Fewer steps where the system can exchange two names at once.
    assert killed or steps > 6
    assert not killed or steps < 11
    there = (store.path / "index").is_dir()
    if there:
        assert len(builder.open(store).parts) in (1, 3)
        builder.verify(store)
    unfinished = (store.path / ".index.partial").is_dir()
    assert there or unfinished
    sort, names = shard_files.sort, []
    monkeypatch.setattr(
        shard_files, "sort", lambda task: (names.append(task.shard.name), sort(task))
    )
    if unfinished:
        assert len(builder.build(store).parts) == 3
        assert names == []
    assert builder.build(store).count("a b").count == 12
    assert not list(store.path.glob(".index*"))
    assert not (store.path / "index/plan.json").exists()


@pytest.mark.parametrize("steps", range(12))
def test_a_bm25_index_that_is_killed_while_it_is_installed_leaves_one_that_answers(
    make_store, monkeypatch, steps
):
    store = make_store(TEXTS)
    inverted_index.build_inverted_index(store)
    killed = killed_after(
        monkeypatch, steps, lambda: inverted_index.build_inverted_index(store, memory=1)
    )
    assert killed or steps > 5
    assert not killed or steps < 11
    with storage.lock_artifact(inverted_index.artifact_of(store)):  # as the next build does
        assert len(inverted_index.open_inverted_index(store).segments) in (1, 12)
    inverted_index.verify_inverted_index(store)
    assert inverted_index.build_inverted_index(store).n_entries == 36
    assert not list(store.path.glob(".bm25*"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_older_one_is_there_until_the_new_one_is_whole(make_store, monkeypatch, kind):
    store = make_store(TEXTS)
    KINDS[kind].build(store)
    before = {path.name: path.read_bytes() for path in (store.path / kind).iterdir()}
    monkeypatch.setattr(atomic, "seal", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        KINDS[kind].build(store)
    assert {path.name: path.read_bytes() for path in (store.path / kind).iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_builds_at_a_time(make_store, kind):
    store = make_store(TEXTS)
    with storage.lock_artifact(KINDS[kind].artifact_of(store)):
        with pytest.raises(AttributionError, match="is being built by another process; wait"):
            KINDS[kind].build(store)
        with pytest.raises(IndexMissing):
            KINDS[kind].open(store)
    KINDS[kind].build(store)
    (store.path / f".{kind}.lock").touch()  # left by a killed process, whose lock went with it
    KINDS[kind].build(store)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("index", "shard-000.buckets.i64"), ("index", "shard-000.keys.u64"),
        ("index", "shard-000.json"), ("index", "shard-000.suffixes.u32"),
        ("bm25", "offsets.u32"), ("bm25", "documents.u16"), ("bm25", "counts.u8"),
    ],
)  # fmt: skip
def test_a_flipped_bit_is_named_when_the_folder_is_opened(make_store, monkeypatch, kind, name):
    store = make_store(TEXTS)
    KINDS[kind].build(store)
    path = store.path / kind / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for largest in (1 << 23, len(content) - 1):  # as a small file, and as a large one
        monkeypatch.setattr(digest_memory, "HASHED", largest)
        for check in (KINDS[kind].open, KINDS[kind].verify):
            with pytest.raises(DamagedError, match=f"{name}: its sha256 is not the one in index"):
                check(store)


@pytest.mark.parametrize(
    ("ask", "bit"),
    [("find", 1), ("find", 31), ("occurrences", 1), ("occurrences", 31), ("next_tokens", 31)],
)
def test_a_place_where_the_query_does_not_stand_is_refused_not_shown(ask, bit):
    """As in a large file of suffixes that has decayed since its digest was remembered."""
    index = index_of([[1, 2, 3, 4, 5, 6]] * 20, vocab_size=7)
    (part,) = index.parts
    low, high = part.find([3, 4])
    refused = 0
    for rank in range(low, high):
        suffixes = part.suffixes.copy()
        suffixes[rank] ^= np.uint32(1 << bit)
        changed = replace(part, suffixes=suffixes)
        if changed.find([3, 4]) != (low, high):
            continue  # the search itself was misled, which nothing but hashing would notice
        refused += 1
        asked = TokenIndex(index.store, "none", (changed,))
        with pytest.raises(DamagedError, match="`openbook index verify STORE` names the file"):
            getattr(asked, ask)([np.array([3, 4])] if ask == "occurrences" else [3, 4])
    assert refused > (high - low) // 2
