"""An index is whole, of this very store, or refused with the name of the file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_attribution.errors import IndexMismatch, IndexMissing
from data_attribution.token_index import builder
from train.data import open_store
from train.errors import DamagedError


pytestmark = pytest.mark.integration
TEXTS = ["a b a b c", "b c", "a", "c a b"]
FILES = (
    "shard-000.suffixes.u32", "shard-000.buckets.i64", "shard-000.keys.u64", "shard-000.json",
    "index.json",
)  # fmt: skip


def test_an_opened_index_is_the_one_that_was_built(make_store):
    store = make_store(TEXTS)
    built, opened = builder.build(store), builder.open(open_store(store.path))
    for one, other in zip(built.parts, opened.parts, strict=True):
        assert np.array_equal(one.suffixes, other.suffixes)
    assert sorted(path.name for path in (store.path / "index").iterdir()) == sorted(FILES)


def test_the_suffixes_are_sorted_by_token_id(make_store):
    store = make_store(TEXTS)
    (part,) = builder.build(store).parts
    tokens = store.tokens.tolist()
    assert part.suffixes.tolist() == sorted(range(len(tokens)), key=lambda at: tokens[at:])


def test_a_store_without_an_index_says_which_command_builds_it(make_store):
    with pytest.raises(IndexMissing, match="has no index yet; build it with `openbook index build"):
        builder.open(make_store(TEXTS))


def test_the_index_of_another_store_is_refused(make_store):
    store, other = make_store(TEXTS), make_store([*TEXTS, "c c"])
    builder.build(other)
    os.rename(other.path / "index", store.path / "index")
    with pytest.raises(IndexMismatch, match=f"of token store {other.fingerprint[:12]}"):
        builder.open(store)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_when_the_index_is_opened(make_store, name):
    store = make_store(TEXTS)
    builder.build(store)
    path = store.path / "index" / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedError, match=name):
        builder.open(store)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_when_the_index_is_opened(make_store, name):
    store = make_store(TEXTS)
    builder.build(store)
    (store.path / "index" / name).unlink()
    with pytest.raises(DamagedError, match=name):
        builder.open(store)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.99])
def test_one_flipped_bit_is_named_when_the_index_is_verified(make_store, name, where):
    store = make_store(TEXTS)
    builder.build(store)
    builder.verify(store)
    path = store.path / "index" / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=name):
        builder.verify(store)


def test_changed_tokens_are_not_indexed(make_store):
    store = make_store(TEXTS)
    path = store.path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match=r"tokens\.bin"):
        builder.build(store)
    assert not (store.path / "index").exists()


def test_an_older_index_is_replaced(make_store):
    store, other = make_store(TEXTS), make_store([*TEXTS, "c c"])
    builder.build(other)
    os.rename(other.path / "index", store.path / "index")
    assert builder.build(store).count("a b").count == 3


def test_progress_counts_the_tokens_of_the_store(make_store):
    store, seen = make_store(TEXTS), []
    builder.build(store, progress=lambda *report: seen.append(report))
    assert seen[-1] == ("sorting suffixes", store.n_tokens, store.n_tokens)


@pytest.mark.parametrize("moment", ["sort", "seal"])
def test_a_build_killed_at_any_moment_leaves_no_index_and_can_be_repeated(make_store, moment):
    store = make_store(TEXTS)
    code = f"""
import time
from pathlib import Path
from data_attribution.token_index import build, suffix_array
from train.data import open_store
from train.storage import atomic

def stall(*arguments):
    Path({str(store.path / "stalled")!r}).touch()
    time.sleep(240)

if {moment == "sort"}:
    suffix_array.buckets = stall  # the suffixes are written, the buckets are not
else:
    atomic.write_json = stall  # both are written, the manifest is not
build(open_store({str(store.path)!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(builder.__file__).parents[2])
    deadline = time.monotonic() + 240
    while not (store.path / "stalled").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(IndexMissing):
        builder.open(store)
    assert builder.build(store).count("a b").count == 3
    assert not list(store.path.glob(".*partial"))
