"""`openbook index`: what it builds, what it says beforehand, and what it refuses in one line."""

import json
import os
import shutil

import pytest

from data_attribution import token_index
from tests.worlds.commands import refused
from train.data import open_store
from train.storage import digest_memory


@pytest.fixture
def path(lookup_store, tmp_path):
    shutil.copytree(lookup_store.path, tmp_path / "store", ignore=shutil.ignore_patterns("index"))
    return tmp_path / "store"


def test_shards_are_built_as_asked_for_and_verified(openbook, path):
    built = openbook("index", "build", path, "--shards", 4, "--workers", 2)
    assert (built.code, built.err) == (0, "")
    assert built.out == f"961 tokens sorted by pydivsufsort in 4 shards: {path / 'index'}\n"
    said = openbook("index", "verify", path)
    assert said.out == "the index of 961 tokens in 4 shards is intact\n"
    assert openbook("index", "count", path, "k3 is").out == "20\t0 held out\t'k3 is'\n"
    openbook("index", "bm25", path)
    both = openbook("index", "verify", path)
    assert both.out == "the index of 961 tokens in 4 shards and the BM25 index are intact\n"


def test_find_counts_what_count_counts_and_keeps_apart_what_is_held_out(openbook, make_store):
    store = make_store([f"a w{k}" for k in range(20)], held_out=0.3)
    token_index.build(store)
    counted = json.loads(openbook("index", "count", store.path, "a", "--json").out)
    found = json.loads(openbook("index", "find", store.path, "a", "--limit", 3, "--json").out)
    assert len(found.pop("hits")) == 3
    assert found == counted
    assert counted["held_out"] > 0
    assert counted["count"] + counted["held_out"] == 20
    shown = openbook("index", "find", store.path, "a", "--limit", 3).out.splitlines()[0]
    apart = f"{counted['count']} occurrences and {counted['held_out']} held out"
    assert shown == f"{apart}, 3 documents shown"


def test_the_documents_of_spans_are_drawn_by_a_seed(openbook, path):
    openbook("index", "build", path)
    first, again, other = (
        json.loads(openbook("index", "spans", path, "k3 is", "--minimum", 2, *seed, "--json").out)
        for seed in ((), ("--seed", 0), ("--seed", 7))
    )
    assert first == again
    assert {hit["document"] for hit in first["spans"][0]["hits"]} != {
        hit["document"] for hit in other["spans"][0]["hits"]
    }


def test_the_plan_of_a_store_says_what_its_index_then_takes(openbook, path):
    said = json.loads(openbook("index", "plan", path, "--shards", 2, "--json").out)
    openbook("index", "build", path, "--shards", 2)
    taken = sum(one.stat().st_size for one in (path / "index").iterdir())
    assert 0 <= said["disk"] - taken < 3 * 4096
    assert (said["shards"], said["tokens"]) == (2, 961)
    assert 0 < said["seconds"] < 60
    assert openbook("index", "plan", path).out.endswith(" on this machine\n")


def test_the_plan_of_openwebtext_needs_no_store(openbook):
    options = (9_040_000_000, "--workers", 1)
    said = openbook("index", "cost", *options, "--memory", 24).out
    assert said.startswith("9,040,000,000 tokens in 9 shards of up to 1,004,444,445, 1 at once: ")
    assert "12.1 GB of memory, 37.3 GB of disk (6.13 bytes a token with the text)" in said
    five = openbook("index", "cost", *options, "--memory", 24, "--shards", 5)
    refused(five, 4, "take 36.2 GB of memory", "24.0 GB may be used; ask for 9 shards")


def test_shards_that_do_not_fit_are_refused_before_anything_is_written(openbook, path):
    more = openbook("index", "build", path, "--shards", 1000)
    refused(more, 2, "1000 shards were asked for and there are", "documents")
    memory = openbook("index", "build", path, "--shards", 1, "--memory", 0.001)
    assert memory.code == 0  # 961 tokens take 12 kB


def test_the_index_of_another_store_or_version_is_refused(openbook, path, tiny_store, tmp_path):
    openbook("index", "build", path)
    other = tmp_path / "other"
    shutil.copytree(tiny_store.path, other, ignore=shutil.ignore_patterns("index"))
    shutil.copytree(path / "index", other / "index")
    refused(openbook("index", "count", other, "w1"), 2, "is of token store", "rebuild it with")
    listing = path / "index/index.json"
    rewritten = json.loads(listing.read_text())
    from train import storage

    storage.write_json(listing, storage.seal({**rewritten, "schema": 1}))
    earlier = openbook("index", "count", path, "k3")
    refused(earlier, 2, "is of version 1, this reads 2; build it again with `openbook index build")


@pytest.mark.parametrize("kind", ["suffixes.u32", "keys.u64", "buckets.i64"])
def test_a_truncated_or_flipped_shard_is_named(openbook, path, kind, monkeypatch):
    openbook("index", "build", path, "--shards", 2)
    file = path / "index" / f"shard-001.{kind}"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    refused(openbook("index", "count", path, "k3"), 3, f"shard-001.{kind}", "were written")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    file.write_bytes(flipped)
    refused(openbook("index", "count", path, "k3"), 3, f"shard-001.{kind}", "its sha256 is not")
    monkeypatch.setattr(digest_memory, "HASHED", 0)  # as if every file were a large one
    for command in (("count", path, "k3"), ("verify", path)):
        refused(openbook("index", *command), 3, f"shard-001.{kind}", "its sha256 is not")


@pytest.mark.parametrize("name", ["documents.u16", "offsets.u32"])
def test_a_flipped_bm25_index_is_named_by_verify(openbook, path, name, monkeypatch):
    openbook("index", "build", path)
    openbook("index", "bm25", path)
    file = path / "bm25" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(digest_memory, "HASHED", 0)
    refused(openbook("index", "verify", path), 3, name, "rebuild it with `openbook index bm25")


def test_changed_tokens_are_refused(openbook, path):
    content = bytearray((path / "tokens.bin").read_bytes())
    content[100] ^= 1
    (path / "tokens.bin").write_bytes(content)
    refused(openbook("index", "build", path), 3, "tokens.bin: its sha256 is not the one")
    assert not list(path.glob("*index*"))


@pytest.mark.parametrize("name", ["tokens.bin", "documents.parquet"])
def test_an_index_over_changed_tokens_or_another_table_answers_nothing(openbook, path, name):
    openbook("index", "build", path)
    content = bytearray((path / name).read_bytes())
    content[100] ^= 1
    (path / name).write_bytes(content)
    for command in (("count", path, "k3"), ("find", path, "k3"), ("verify", path)):
        if (command[0], name) != ("count", "documents.parquet"):  # counting reads no table
            refused(openbook("index", *command), 3, f"{name}: its sha256 is not the one")


def test_the_listing_of_a_shard_is_not_taken_for_that_of_the_index(openbook, path):
    openbook("index", "build", path)
    shutil.copy(path / "index/shard-000.json", path / "index/index.json")
    for command in (("verify", path), ("count", path, "k3")):
        said = "index.json: backend is missing"
        refused(openbook("index", *command), 3, said, "rebuild it with `openbook index build")


def test_a_folder_that_may_not_be_written_is_refused(openbook, path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path.chmod(0o500)
    ended = openbook("index", "build", path)
    path.chmod(0o700)
    refused(ended, 2, "permission denied")


def test_the_index_of_a_copied_store_is_its_own(openbook, path, tmp_path):
    openbook("index", "build", path)
    shutil.copytree(path, tmp_path / "copy")
    assert token_index.open(open_store(tmp_path / "copy")).count("k3").count == 20
