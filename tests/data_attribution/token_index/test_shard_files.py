"""An index cut into shards is the same index, whoever sorts it and whatever stops it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_attribution.errors import AttributionError, IndexMissing, IndexSpaceError, SorterError
from data_attribution.token_index import (
    builder,
    prefix_table,
    shard_files,
    sort_workers,
    suffix_array,
)
from tests.data_attribution.prefix_doubling import sorted_suffixes
from tests.worlds import disks
from tests.worlds.known import known
from tests.worlds.stores import store_of
from train.data import open_store
from train.errors import DiskError
from train.storage import atomic


pytestmark = pytest.mark.integration
ROOT = Path(builder.__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """200 documents, 30 of them held out or so, with words in common and words of their own."""
    draw = np.random.default_rng(0)
    texts = [
        " ".join(f"w{k}" for k in draw.zipf(1.5, draw.integers(1, 400)).clip(0, 300))
        for _ in range(200)
    ]
    return store_of(tmp_path_factory.mktemp("shards") / "store", texts, held_out=0.15)


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "store")
    shutil.rmtree(tmp_path / "store/index", ignore_errors=True)
    return open_store(tmp_path / "store")


def contents(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.path / "index").iterdir()}


def places(index, pattern: list[int]) -> list[int]:
    found = []
    for part in index.parts:
        (low,), (high,) = part.search([np.array(pattern)])
        found += part.positions(slice(int(low), int(high))).tolist()
    return sorted(found)


@pytest.mark.parametrize("n_shards", [1, 2, 7])
def test_any_number_of_shards_finds_the_same_places(store, n_shards):
    index = builder.build(store, shards=n_shards)
    tokens = np.array(store.tokens)
    assert len([part for part in index.parts if not part.held_out]) == n_shards
    for at in range(1, len(tokens) - 4, 997):
        pattern = tokens[at : at + 2]
        if store.eot in pattern:
            continue
        hits = np.flatnonzero((tokens[:-1] == pattern[0]) & (tokens[1:] == pattern[1]))
        assert places(index, pattern.tolist()) == hits.tolist()


def test_every_shard_holds_the_sorted_suffixes_of_its_stretch(store):
    for part in builder.build(store, shards=3).parts:
        tokens = np.array(part.tokens)
        assert np.array_equal(part.suffixes, suffix_array.build(tokens))
        assert np.array_equal(part.buckets, suffix_array.buckets(tokens, store.vocab_size))
        assert np.array_equal(known(part.keys), prefix_table.build(tokens, np.array(part.suffixes)))
        assert np.array_equal(part.tokens, store.tokens[part.start :][: len(tokens)])


@pytest.mark.parametrize("tokens", [np.uint16, np.uint32])
def test_a_key_is_the_first_tokens_of_every_64th_suffix_and_zeros_past_the_end(tokens):
    text = np.random.default_rng(0).integers(0, 4, 300).astype(tokens)
    suffixes = suffix_array.build(text)
    keys, span = prefix_table.build(text, suffixes), 8 // text.itemsize
    for key, at in zip(keys.tolist(), suffixes[::64].tolist(), strict=True):
        held = text[at : at + span].tolist() + [0] * span
        packed = sum(one << (64 // span * (span - 1 - k)) for k, one in enumerate(held[:span]))
        assert key == packed
    assert (np.diff(keys.astype(object)) >= 0).all()


def test_two_processes_write_the_same_files_as_one(store):
    builder.build(store, shards=4)
    alone = contents(store)
    builder.build(store, shards=4, workers=2)
    assert contents(store) == alone


def test_an_index_that_numpy_sorted_has_the_same_arrays_and_opens(store, monkeypatch):
    """As earlier versions of openbook could write it."""
    builder.build(store, shards=2)
    wheel = contents(store)
    monkeypatch.setattr(suffix_array, "build", lambda tokens, **_: sorted_suffixes(tokens))
    monkeypatch.setattr(suffix_array, "SORTER", "numpy")
    assert builder.build(store, shards=2).backend == builder.open(store).backend == "numpy"
    for name, content in contents(store).items():
        assert content == wheel[name] or name.endswith(".json")
    listing = json.loads((store.path / "index/index.json").read_text())
    assert listing["schema"] == 2


def test_a_build_that_is_killed_goes_on_and_ends_with_the_same_bytes(store):
    code = (
        "from data_attribution import token_index; from train.data import open_store;"
        "print(flush=True);"
        f"token_index.build(open_store({str(store.path)!r}), shards=12, workers=2)"
    )
    partial, left = store.path / ".index.partial", []

    def finished() -> int:
        return len(list(partial.glob("shard-*.json")))

    # Killed when so many of the twelve shards are on the disk; the first one before there is any.
    for n_shards in (0, 2, 5):
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout.readline() == b"\n"  # What it imports is imported.
            while child.poll() is None and finished() < n_shards:
                time.sleep(0.001)
            child.kill()
        if (store.path / "index").is_dir():
            break  # it was faster than this test looked
        with pytest.raises(IndexMissing):
            builder.open(store)
        left.append(finished())
    assert left, "the first build was over before it was killed"
    assert left == sorted(left), "a later build lost what an earlier one had finished"
    builder.build(store, shards=12, workers=2)
    killed = contents(store)
    assert not list(store.path.glob(".index*"))
    shutil.rmtree(store.path / "index")
    builder.build(store, shards=12, workers=2)
    assert contents(store) == killed


def stopped_after(monkeypatch, store, n_shards: int, **options) -> None:
    """A build that is interrupted when so many shards are on the disk."""
    sort, done = shard_files.sort, []

    def counted(task):
        if len(done) == n_shards:
            raise KeyboardInterrupt
        done.append(task)
        sort(task)

    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "sort", counted)
        with pytest.raises(KeyboardInterrupt):
            builder.build(store, **options)


def sorted_again(monkeypatch, store, **options) -> list[str]:
    sort, names = shard_files.sort, []
    monkeypatch.setattr(
        shard_files, "sort", lambda task: (names.append(task.shard.name), sort(task))
    )
    builder.build(store, **options)
    return names


def test_the_next_build_sorts_only_what_is_missing_and_keeps_the_cuts(store, monkeypatch):
    stopped_after(monkeypatch, store, 3, shards=5)
    # No shards are asked for now: those of the build that was stopped are gone on with.
    names = sorted_again(monkeypatch, store)
    assert names == ["shard-003", "shard-004", "shard-005"]
    builder.verify(store)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_finished_shard_that_was_damaged_is_sorted_again(store, monkeypatch, damage):
    stopped_after(monkeypatch, store, 3, shards=5)
    path = store.path / ".index.partial/shard-001.suffixes.u32"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    if damage != "missing":
        path.write_bytes(content if damage == "flipped" else content[:-4])
    names = sorted_again(monkeypatch, store)
    assert names == ["shard-001", "shard-003", "shard-004", "shard-005"]
    builder.verify(store)


def test_shards_of_another_store_are_not_gone_on_with(store, made, tmp_path, monkeypatch):
    other = store_of(tmp_path / "other", ["a b c", "d e f", "g h"])
    stopped_after(monkeypatch, other, 1, shards=3)
    os.rename(other.path / ".index.partial", store.path / ".index.partial")
    assert "shard-000" in sorted_again(monkeypatch, store, shards=3)
    builder.verify(store)


def test_an_older_index_answers_until_the_new_one_is_whole(store, monkeypatch):
    builder.build(store)
    before = contents(store)
    stopped_after(monkeypatch, store, 2, shards=4)
    assert contents(store) == before
    builder.build(store, shards=4)
    assert len(builder.open(store).parts) == 5


def test_two_builds_at_once_are_refused(store, monkeypatch):
    sort, said = shard_files.sort, []

    def meanwhile(task):
        with pytest.raises(AttributionError, match="is being built by another process") as refused:
            builder.build(store)
        said.append(refused)
        sort(task)

    monkeypatch.setattr(shard_files, "sort", meanwhile)
    builder.build(store)
    assert said


# --- workers -------------------------------------------------------------------------------------


def task_of(store, folder: Path, **changed) -> shard_files.Task:
    held = {
        "shard": shard_files.Shard("shard-000", 0, store.train_tokens, False),
        "folder": str(folder), "tokens": str(store.path / "tokens.bin"),
        "dtype": store.tokens.dtype.str, "vocab_size": store.vocab_size,
        "store": store.fingerprint, "sha256": "0" * 64,
    }  # fmt: skip
    return shard_files.Task(**{**held, **changed})


def test_ids_of_four_bytes_are_sorted_and_read_as_those_of_two(store, tmp_path):
    """As in a store whose vocabulary has more than 65,536 ids."""
    tokens = np.array(store.tokens[: store.train_tokens], np.uint32) * 300
    tokens.tofile(tmp_path / "tokens.bin")
    vocab_size = int(tokens.max()) + 1
    task = task_of(
        store, tmp_path, tokens=str(tmp_path / "tokens.bin"), dtype="<u4", vocab_size=vocab_size
    )
    shard_files.sort(task)
    held = shard_files.read(tmp_path, "shard-000", len(tokens), vocab_size)
    assert np.array_equal(held.suffixes, suffix_array.build(np.array(store.tokens)[: len(tokens)]))
    assert len(held.buckets) == vocab_size + 1
    at = int(held.suffixes[64])
    assert int(held.keys[1]) == int(tokens[at]) << 32 | int(tokens[at + 1])
    assert shard_files.finished(task) is not None


def test_what_a_worker_refuses_is_raised_here(store, tmp_path, monkeypatch):
    few = "from data_attribution.token_index import suffix_array; suffix_array.LARGEST = 3;"
    start = sort_workers.START.replace("sort_workers.answer", f"{few} sort_workers.answer")
    task = task_of(store, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(sort_workers, "START", start)
        with pytest.raises(SorterError, match="at most 3 tokens can be sorted at once"):
            list(sort_workers.sort_all([task, task], 2))
    with pytest.raises(RuntimeError, match="the process that sorted shard-000 failed: Traceback"):
        list(sort_workers.sort_all([task_of(store, tmp_path, vocab_size=-1)], 2))
    with pytest.raises(FileNotFoundError) as refused:
        list(sort_workers.sort_all([task_of(store, tmp_path / "nowhere")], 2))
    assert "nowhere/.shard-000.suffixes.u32" in refused.value.filename


@pytest.mark.parametrize(
    ("signal_sent", "error", "advice"),
    [
        (signal.SIGKILL, IndexSpaceError, "memory runs out; ask for more shards or fewer workers"),
        (signal.SIGSEGV, SorterError, "what is sorted is kept: run the same command"),
        (signal.SIGTERM, SorterError, "what is sorted is kept: run the same command"),
    ],
)
def test_only_a_worker_that_was_killed_is_said_to_lack_memory(
    store, tmp_path, monkeypatch, signal_sent, error, advice
):
    code = f"import os, sys; sys.stdin.readline(); os.kill(os.getpid(), {int(signal_sent)})"
    monkeypatch.setattr(sort_workers, "START", code)
    with pytest.raises(error, match=f"shard-000 was ended by {signal_sent.name}.*{advice}"):
        list(sort_workers.sort_all([task_of(store, tmp_path)], 2))


def test_workers_end_when_their_parent_is_killed(store, tmp_path):
    """Else they would go on writing beside the workers of the next build."""
    slow = (
        "import time; from data_attribution.token_index import shard_files;"
        "shard_files.sort = lambda _: {};"
    )
    start = sort_workers.START.replace(
        "sort_workers.answer", f"{slow.format('time.sleep(240)')} sort_workers.answer"
    )
    code = (
        "import sys; from data_attribution.token_index import sort_workers, shard_files;"
        f"sort_workers.START = {start!r};"
        f"task = shard_files.Task(**{task_of(store, tmp_path).__dict__ | {'shard': None}!r});"
        "started = sort_workers.start_worker(task);"
        "sys.stdout.write(f'{started.process.pid}\\n'); sys.stdout.flush();"
        "import time; time.sleep(240)"
    )
    code = code.replace("'shard': None", "'shard': shard_files.Shard('shard-000', 0, 10, False)")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 240
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- disk ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", "600k") as place:
        yield place


@pytest.fixture
def store_on_small_disk(made, small_disk):
    shutil.copytree(made.path, small_disk / "store", ignore=shutil.ignore_patterns("index"))
    return open_store(small_disk / "store")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_sorted(store_on_small_disk):
    store = store_on_small_disk
    filler = store.path.parent / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(store.path).free - 100_000))
    with pytest.raises(DiskError, match=r"index takes .* kB more and .* kB are free on its disk"):
        builder.build(store)
    assert not list(store.path.glob("*index*"))
    filler.unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_while_sorting_leaves_whole_shards_or_nothing(
    store_on_small_disk, monkeypatch, workers
):
    store = store_on_small_disk
    filler = store.path.parent / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(store.path).free - 90_000))
    monkeypatch.setattr(atomic, "check_room", lambda *_, **__: None)
    with pytest.raises(DiskError, match="the disk is full while writing"):
        builder.build(store, shards=6, workers=workers)
    partial = store.path / ".index.partial"
    assert not list(partial.glob(".*"))
    filler.unlink()
    builder.build(store, shards=6)
    builder.verify(store)
    assert not list(store.path.glob(".index*"))
