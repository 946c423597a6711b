"""What is on disk is what the model computed, at the token it says, however often it was stopped.

Values equal `run_with_cache` (to the last bit in fp32, for the same batch), rows know their token,
document and offset, and a process killed at any moment leaves a store that ends in the same bytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_attribution import token_index
from interp import activations
from interp.activations import store, writer
from interp.cli.cache import cache as cache_commands
from interp.errors import BehaviourError, ModelError
from train import convert, storage
from train.data import open_store
from train.errors import DamagedError, DiskError, HookError, StoreError
from train.model import GPT, GPTConfig, init_gpt


pytestmark = pytest.mark.integration
SITES = ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z"]
CONTEXT = 16


@pytest.fixture(scope="module")
def gpt(tiny_run):
    return tiny_run.load()


@pytest.fixture(scope="module")
def alone(tiny_store):
    """Every document alone, further windows repeating three tokens."""
    return activations.document_windows(tiny_store, context=CONTEXT, overlap=3)


@pytest.fixture
def written(gpt, alone, tmp_path):
    return activations.write_store(
        gpt, alone, sites=SITES, out=tmp_path / "kept", dtype="fp32", batch=4, shard_bytes=60_000
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# --- rows and windows ----------------------------------------------------------------------------


def test_every_token_of_every_document_has_one_row_and_its_own_end_of_text(tiny_store, alone):
    rows = alone.rows(0, len(alone))
    owned = rows[rows["document"] >= 0]
    assert alone.n_rows == len(rows) == (tiny_store.lengths + 1).sum()
    places = list(zip(owned["document"].tolist(), owned["offset"].tolist(), strict=True))
    assert places == [
        (document, offset)
        for document, length in enumerate(tiny_store.lengths.tolist())
        for offset in range(length)
    ]
    positions = tiny_store.starts[owned["document"]] + owned["offset"]
    assert (owned["position"] == positions).all()
    assert (owned["token"] == tiny_store.tokens[positions]).all()
    ends = rows[rows["document"] < 0]
    assert (ends["token"] == tiny_store.eot).all()
    assert (ends["pos"] == 0).all()
    assert (ends["offset"] == -1).all()


def test_a_long_document_is_cut_and_its_further_windows_repeat_the_overlap(tiny_store):
    longest = int(tiny_store.lengths.argmax())
    length, start = int(tiny_store.lengths[longest]), int(tiny_store.starts[longest])
    assert length > CONTEXT
    cut = activations.document_windows(tiny_store, context=CONTEXT, documents=[longest], overlap=3)
    first = cut.inputs(np.array([0]))[0]
    second = cut.inputs(np.array([1]))[0]
    assert first.tolist() == tiny_store.tokens[start - 1 : start - 1 + CONTEXT].tolist()
    assert second[:3].tolist() == first[-3:].tolist()
    assert cut.repeated.tolist() == [0] + [3] * (len(cut) - 1)
    assert cut.rows(1, 2)["pos"][0] == 3
    assert cut.n_rows == length + 1


@pytest.mark.parametrize("overlap", [-1, CONTEXT])
def test_an_overlap_that_leaves_nothing_new_is_refused(tiny_store, overlap):
    with pytest.raises(StoreError, match="leaves a window of 16 tokens nothing of its own"):
        activations.document_windows(tiny_store, context=CONTEXT, overlap=overlap)


def test_trained_windows_are_the_inputs_of_the_trainer(tiny_run):
    from train.data import read_batch

    windows = activations.training_windows(tiny_run.store, context=CONTEXT)
    assert len(windows) == tiny_run.order.n_windows
    for step in range(3):
        chosen = tiny_run.order.starts(step) // CONTEXT
        read = read_batch(tiny_run.store, tiny_run.order, step)
        assert (windows.inputs(chosen) == read.inputs.numpy()).all()


def test_trained_windows_of_a_document_hold_all_of_it(tiny_store):
    document = 17
    windows = activations.training_windows(tiny_store, context=CONTEXT, documents=[document])
    rows = windows.rows(0, len(windows))
    assert (rows["document"] == document).sum() == tiny_store.lengths[document]
    assert len(windows) <= tiny_store.lengths[document] // CONTEXT + 2


def test_a_held_out_document_is_in_no_trained_window(tiny_store):
    held_out = tiny_store.n_documents - 1
    with pytest.raises(StoreError, match=f"document {held_out} is in none of the .* windows of 16"):
        activations.training_windows(tiny_store, context=CONTEXT, documents=[held_out])


def test_documents_that_are_not_there_are_refused(tiny_store):
    with pytest.raises(StoreError, match="documents 5 to 120 were asked of a store with 120"):
        activations.document_windows(tiny_store, context=CONTEXT, documents=[5, 120])
    with pytest.raises(StoreError, match="none of the 120 documents"):
        activations.document_windows(tiny_store, context=CONTEXT, documents=[])


# --- values --------------------------------------------------------------------------------------


def test_values_in_fp32_are_run_with_cache_to_the_last_bit(gpt, alone, written):
    per_shard = written.manifest["windows_per_shard"]
    assert len(written.manifest["shards"]) > 2
    compared = 0
    for start in range(0, len(alone), per_shard):
        stop = min(start + per_shard, len(alone))
        for chosen in writer.batches(alone, start, stop, 4):
            inputs = torch.from_numpy(alone.inputs(chosen))
            # These sites and no others: to look at a pattern is to compute it in another way.
            _, cache = gpt.run_with_cache(inputs, names_filter=SITES)
            for row, window in enumerate(chosen.tolist()):
                low, high = written.window(window)
                for site in SITES:
                    expected = cache[site][row, int(alone.repeated[window]) :]
                    assert torch.equal(written.read(site, low, high), expected)
                compared += high - low
    assert compared == len(written)


def test_windows_of_a_pass_have_one_length_and_each_is_read_once(alone):
    passes = list(writer.batches(alone, 10, 90, 4))
    assert all(len(set(alone.length[chosen].tolist())) == 1 for chosen in passes)
    assert sorted(np.concatenate(passes).tolist()) == list(range(10, 90))
    assert max(map(len, passes)) == 4


# 8, 11 and 24 bits of a value: half a unit in the last place, relative.
@pytest.mark.parametrize(("dtype", "relative"), [("bf16", 2**-8), ("fp16", 2**-11), ("fp32", 0.0)])
def test_a_narrow_store_rounds_each_value_once(gpt, alone, tmp_path, dtype, relative):
    both = {
        kind: activations.write_store(
            gpt, alone, sites=SITES, out=tmp_path / kind, dtype=kind, batch=4
        )
        for kind in {dtype, "fp32"}
    }
    exact, narrow = both["fp32"].read(SITES[0]), both[dtype].read(SITES[0])
    assert narrow.dtype == store.DTYPES[dtype][0]
    assert torch.equal(narrow, exact.to(narrow.dtype))
    # fp16 has no smaller step than 2**-24.
    assert ((narrow.float() - exact).abs() <= relative * exact.abs() + 2**-25).all()


def test_prompts_are_kept_as_they_are(gpt, tmp_path):
    tokens = torch.arange(1, 13).reshape(3, 4)
    kept = activations.write_store(gpt, tokens, sites=SITES, out=tmp_path / "kept", dtype="fp32")
    _, cache = gpt.run_with_cache(tokens, names_filter=SITES)
    for prompt in range(3):
        low, high = kept.window(prompt)
        assert torch.equal(kept.read(SITES[0], low, high), cache[SITES[0]][prompt])
    assert kept.rows()["token"].tolist() == list(range(1, 13))
    assert set(kept.rows()["document"].tolist()) == {-1}
    with pytest.raises(StoreError, match="made of prompts, which are no documents; use window"):
        kept.find([0], [0])
    with pytest.raises(BehaviourError, match="0 prompts of 4 tokens"):
        activations.prompt_windows(tokens[:0])


def test_a_head_is_a_slice_of_its_hook_point(gpt, alone, tmp_path):
    kept = activations.write_store(
        gpt, alone, sites=["L0H1", "L*.mlp"], out=tmp_path / "a", dtype="fp32"
    )
    whole = activations.write_store(gpt, alone, sites=[SITES[1]], out=tmp_path / "b", dtype="fp32")
    assert kept.sites == ["L0H1", "blocks.0.hook_mlp_out"]
    assert torch.equal(kept.read("L0H1"), whole.read(SITES[1])[:, 1])
    assert kept.shape("L0.mlp") == (16,)
    with pytest.raises(StoreError, match=r"read blocks.0.attn.hook_z and take \[:, 1\]"):
        whole.read("L0H1")


def test_layers_above_the_last_site_are_not_computed(tmp_path):
    deep = init_gpt(GPTConfig(n_layers=3, n_heads=2, d_model=8, n_ctx=8, d_vocab=9), seed=0)
    deep.blocks[1].register_forward_hook(lambda *_: pytest.fail("layer 1 was computed"))
    tokens = torch.arange(1, 9).reshape(2, 4)
    activations.write_store(deep, tokens, sites=["L0.resid_post", "L0H0"], out=tmp_path / "kept")
    assert not any(point.hooked for point in deep.hook_dict.values())


# --- finding -------------------------------------------------------------------------------------


def test_a_hit_of_the_token_index_finds_its_activations(tiny_store, gpt, tmp_path):
    store = shutil.copytree(tiny_store.path, tmp_path / "store")
    index = token_index.build(open_store(store))
    windows = activations.document_windows(index.store, context=CONTEXT)
    kept = activations.write_store(gpt, windows, sites=SITES, out=tmp_path / "kept", dtype="fp32")
    hits = index.find("w7", limit=100)
    assert len(hits) > 10
    documents, offsets = zip(*((hit.document, hit.offset) for hit in hits), strict=True)
    rows = kept.find(documents, offsets)
    places = [kept.rows(row, row + 1)[0] for row in rows.tolist()]
    assert [int(one["position"]) for one in places] == [hit.position for hit in hits]
    assert {int(one["token"]) for one in places} == {int(index.store.tokenizer.encode("w7")[0])}
    values = kept.at(SITES[0], documents, offsets)
    assert torch.equal(
        values, torch.stack([kept.read(SITES[0], r, r + 1)[0] for r in rows.tolist()])
    )


def test_every_document_and_offset_is_found_in_any_order(written, tiny_store):
    rows = written.rows()
    owned = np.flatnonzero(rows["document"] >= 0)
    order = np.random.default_rng(0).permutation(owned)
    assert (written.find(rows["document"][order], rows["offset"][order]) == order).all()
    absent = written.find([0, tiny_store.n_documents, 3], [int(tiny_store.lengths[0]), 0, -1])
    assert absent.tolist() == [-1, -1, -1]
    with pytest.raises(StoreError, match=r"token 99 of document 3 is not in .* \(1 of 2 places"):
        written.at(SITES[0], [3, 3], [0, 99])


def test_a_row_range_over_shards_is_the_concatenation(written):
    whole = written.read(SITES[1])
    assert torch.equal(written.read(SITES[1], 7, 700), whole[7:700])
    assert torch.equal(written.take(SITES[1], [500, 3, 500]), whole[[500, 3, 500]])
    assert len(written.to_frame(5, 9)) == 4
    for start, stop in ((5, 5), (0, len(written) + 1), (-1, 3)):
        with pytest.raises(StoreError, match=rf"rows {start} to {stop} were asked of"):
            written.read(SITES[0], start, stop)
    with pytest.raises(StoreError, match=r"'blocks.0.hook_resid_pre' was not kept in .* did you"):
        written.read("blocks.0.hook_resid_pre")
    with pytest.raises(StoreError, match="window 9999 was asked of"):
        written.window(9999)


def test_reading_a_few_rows_touches_no_other_file(written, monkeypatch):
    opened = []
    memmap = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda path, **k: opened.append(path.name) or memmap(path, **k)
    )
    written.read(SITES[0], 0, 5)
    assert opened == [f"{SITES[0]}.bin"]


# --- whole or resumable --------------------------------------------------------------------------


def test_the_manifest_says_what_was_read_by_whom(written, tiny_run, tiny_store):
    about = written.manifest
    assert about["model"]["run_id"] == tiny_run.id
    assert about["model"]["step"] == 24
    assert about["model"]["checkpoint_sha256"] == tiny_run.saved[-1].files["model.safetensors"]
    assert about["model"]["config"]["d_model"] == 16
    assert about["source"]["store_fingerprint"] == tiny_store.fingerprint
    assert about["source"]["tokenizer_sha256"] == tiny_store.tokenizer.sha256
    assert (about["source"]["kind"], about["source"]["overlap"]) == ("documents", 3)
    assert about["sites"][1] == {"name": SITES[1], "hook": SITES[1], "shape": [2, 8]}
    assert about["bytes"] == sum(len(c) for n, c in bytes_of(written.path).items() if "bin" in n)


def stop_after(rows: int) -> Callable[[str, int, int | None], None]:
    def progress(what: str, done: int, total: int | None) -> None:
        if done > rows:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_store_goes_on_and_ends_in_the_same_bytes(gpt, alone, written, tmp_path):
    out = tmp_path / "other"
    options = {"sites": SITES, "out": out, "dtype": "fp32", "batch": 4, "shard_bytes": 60_000}
    with pytest.raises(KeyboardInterrupt):
        activations.write_store(gpt, alone, **options, progress=stop_after(300))
    assert not any(point.hooked for point in gpt.hook_dict.values())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    with pytest.raises(StoreError, match=r"is not complete .* goes on with --resume"):
        activations.open_store(out)
    with pytest.raises(StoreError, match="was begun; go on with it by --resume"):
        activations.write_store(gpt, alone, **options)
    activations.verify_store(activations.write_store(gpt, alone, **options, resume=True))
    assert bytes_of(out) == bytes_of(written.path)
    # Once more: nothing is left to do, and nothing is done.
    before = (out / "shard-00000" / "rows.bin").stat().st_mtime_ns
    activations.write_store(gpt, alone, **options, resume=True)
    assert (out / "shard-00000" / "rows.bin").stat().st_mtime_ns == before


def test_a_complete_store_is_never_written_over(gpt, alone, written):
    with pytest.raises(StoreError, match="this store is complete, or choose another folder"):
        activations.write_store(
            gpt, alone, sites=SITES, out=written.path, dtype="fp32", batch=4, shard_bytes=60_000
        )


def test_a_folder_that_is_no_store_is_left_alone(gpt, alone, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists already and is no activation store"):
        activations.write_store(gpt, alone, sites=SITES, out=tmp_path)


def test_going_on_as_something_else_is_refused_with_what_differs(gpt, tiny_run, alone, written):
    base = {"sites": SITES, "dtype": "fp32", "batch": 4, "shard_bytes": 60_000}
    changes = {
        "dtype fp32 and not bf16": (gpt, alone, {"dtype": "bf16"}),
        "sites": (gpt, alone, {"sites": SITES[:1]}),
        "batch 4 and not 2": (gpt, alone, {"batch": 2}),
        "model.checkpoint_sha256": (tiny_run.load(8), alone, {}),
        "source.kind documents and not trained": (
            gpt, activations.training_windows(tiny_run.store, context=CONTEXT), {},
        ),
    }  # fmt: skip
    for said, (other, source, change) in changes.items():
        with pytest.raises(StoreError, match=said):
            activations.write_store(
                other, source, out=written.path, resume=True, **{**base, **change}
            )


def test_a_store_of_another_model_or_of_other_tokens_is_not_opened_with_these(
    gpt, written, tiny_run, lookup_store
):
    assert len(activations.open_store(written.path, model=gpt, store=tiny_run.store)) == len(
        written
    )
    with pytest.raises(StoreError, match=r"was made with model.weights_sha256 \w{12}... and not"):
        activations.open_store(written.path, model=tiny_run.load(8))
    edited = tiny_run.load()
    with torch.no_grad():
        edited.embed.weight[0, 0] += 1
    with pytest.raises(StoreError, match="weights_sha256"):
        activations.open_store(written.path, model=edited)
    with pytest.raises(StoreError, match=r"source\.store_fingerprint"):
        activations.open_store(written.path, store=lookup_store)


def test_a_second_writer_is_refused(gpt, alone, tmp_path):
    out = tmp_path / "kept"

    def again(what: str, done: int, total: int | None) -> None:
        if done:
            with pytest.raises(StoreError, match="is being written by another process"):
                activations.write_store(gpt, alone, sites=SITES, out=out, resume=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activations.write_store(gpt, alone, sites=SITES, out=out, progress=again)


@pytest.mark.parametrize("name", ["rows.bin", f"{SITES[0]}.bin", "shard.json"])
def test_every_damaged_file_is_named(written, name):
    path = written.path / "shard-00001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=re.escape(f"shard-00001/{name}")):
        activations.verify_store(written)
    path.write_bytes(bytes(content[:-1]))
    if name.endswith(".bin"):
        with pytest.raises(DamagedError, match=rf"{name}: the file has \d+ bytes, \d+ bytes were"):
            activations.open_store(written.path)


READERS = {
    "rows.bin": [
        lambda store: store.rows(),
        lambda store: store.find([0], [0]),
        lambda store: store.window(0),
    ],
    f"{SITES[0]}.bin": [
        lambda store: store.read(SITES[0]),
        lambda store: store.take(SITES[0], np.arange(len(store))),
    ],
}


@pytest.mark.parametrize("by_block", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_refused_by_whoever_reads_it(written, name, by_block):
    manifest = storage.read_sealed(written.path / "manifest.json")
    if not by_block:  # as an earlier version wrote it
        for shard in manifest["shards"]:
            for entry in shard["files"].values():
                del entry["xxh3"], entry["block_bytes"]
        storage.write_json(written.path / "manifest.json", storage.seal(manifest))
    path = written.path / "shard-00000" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for read in READERS[name]:
        opened = activations.open_store(written.path)
        assert opened.by_block == by_block
        read(opened)
    path.write_bytes(content)
    for read in READERS[name]:
        with pytest.raises(DamagedError, match=rf"shard-00000/{name}: its (bytes|sha256) .* not"):
            read(activations.open_store(written.path))
    assert len(activations.open_store(written.path).read(SITES[1])) == len(written)  # undamaged


def test_swapped_shards_are_found(written):
    one, other = written.path / "shard-00001", written.path / "shard-00002"
    one.rename(written.path / "aside")
    other.rename(one)
    (written.path / "aside").rename(other)
    with pytest.raises(DamagedError, match=r"shard-0000[12]"):
        activations.verify_store(written)


def test_a_damaged_manifest_is_named(written):
    path = written.path / "manifest.json"
    path.write_text(path.read_text().replace('"batch": 4', '"batch": 5'))
    with pytest.raises(DamagedError, match="does not match its own digest"):
        activations.open_store(written.path)


def test_going_on_over_a_damaged_shard_names_it(gpt, alone, tmp_path):
    options = {"sites": SITES, "out": tmp_path / "kept", "batch": 4, "shard_bytes": 60_000}
    with pytest.raises(KeyboardInterrupt):
        activations.write_store(gpt, alone, **options, progress=stop_after(300))
    path = tmp_path / "kept" / "shard-00000" / f"{SITES[0]}.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    changed = r"shard-00000/.*: its sha256 is not the one in shard\.json; remove"
    with pytest.raises(DamagedError, match=changed):
        activations.write_store(gpt, alone, **options, resume=True)
    shutil.rmtree(path.parent)
    activations.verify_store(activations.write_store(gpt, alone, **options, resume=True))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "error", "line"),
    [
        ("blocks.0.hook_resid_pots", HookError, "did you mean 'blocks.0.hook_resid_post'"),
        ("L7.mlp", HookError, "no hook point is called 'blocks.7.hook_mlp_out'"),
        ("blocks.*.hook_nothing", HookError, "matches no hook point, did you mean"),
        ("L0H2", ModelError, r"L0H2 does not exist: the value there has shape \(1, 1, 2, 8\)"),
        ("L0H1.pattern", ModelError, "no value per token"),
        ("blocks.0.attn.hook_attn_scores", ModelError, "no value per token"),
        ("L0.mlp@3", ModelError, "a store keeps every position"),
    ],
)
def test_a_site_that_cannot_be_kept_is_refused_before_anything_is_written(
    gpt, alone, tmp_path, site, error, line
):
    with pytest.raises(error, match=line):
        activations.write_store(gpt, alone, sites=[SITES[0], site], out=tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_no_site_no_such_dtype_and_no_windows_are_refused(gpt, alone):
    with pytest.raises(HookError, match="no site was named"):
        activations.plan_store(gpt, alone, sites=[])
    with pytest.raises(StoreError, match="no dtype 'fp61', did you mean 'fp16'"):
        activations.plan_store(gpt, alone, sites=SITES, dtype="fp61")
    with pytest.raises(StoreError, match="0 windows in a forward pass are none"):
        activations.plan_store(gpt, alone, sites=SITES, batch=0)


def test_a_store_of_another_vocabulary_is_refused(gpt, lookup_store):
    windows = activations.document_windows(lookup_store, context=CONTEXT)
    with pytest.raises(ModelError, match=r"the model's word tokenizer \(.*\) is not the word"):
        activations.plan_store(gpt, windows, sites=SITES)
    with pytest.raises(ModelError, match=r"token ids up to 100000, the model a vocabulary of \d+"):
        activations.plan_store(gpt, torch.tensor([[100_000]]), sites=SITES)


@pytest.mark.parametrize(
    ("value", "dtype", "line"),
    [
        (1e5, "fp16", "holds 1e.05, which fp16 cannot; use fp32"),
        (float("nan"), "fp32", "no number"),
        (float("inf"), "bf16", "no number"),
    ],
)
def test_a_value_that_would_be_lost_is_refused_and_nothing_of_its_shard_kept(
    gpt, alone, tmp_path, value, dtype, line
):
    loud = GPT(gpt.cfg)
    loud.load_state_dict(gpt.state_dict())
    with torch.no_grad():
        loud.embed.weight[:, 0] = value
    with pytest.raises(ModelError, match=line):
        activations.write_store(
            loud, alone, sites=["hook_embed"], out=tmp_path / "kept", dtype=dtype
        )
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["manifest.json"]


def test_a_disk_that_is_too_small_is_refused_with_numbers_before_anything_is_written(
    gpt, alone, tmp_path, monkeypatch
):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 50_000, 50_000))
    with pytest.raises(
        DiskError, match=r"kept takes .* kB more and 50\.0 kB are free .* 2 sites in bf16"
    ):
        activations.write_store(gpt, alone, sites=SITES, out=tmp_path / "kept")
    assert DiskError("").exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_foreseen_are_the_bytes_written(gpt, alone, written):
    foreseen = activations.plan_store(
        gpt, alone, sites=SITES, dtype="fp32", batch=4, shard_bytes=60_000
    ).n_bytes
    values = [c for name, c in bytes_of(written.path).items() if name.endswith(".bin")]
    assert sum(map(len, values)) == foreseen == written.n_bytes


def test_every_failing_write_sync_or_rename_leaves_a_store_that_goes_on(
    gpt, tiny_store, tmp_path, monkeypatch
):
    windows = activations.document_windows(tiny_store, context=CONTEXT, documents=range(12))
    options = {"sites": SITES, "dtype": "fp32", "batch": 4, "shard_bytes": 10_000}
    whole = activations.write_store(gpt, windows, **options, out=tmp_path / "whole")
    # Not synced really: that is most of a second a time, and counts only when the power fails.
    real = {"fsync": lambda _: None, "replace": os.replace}
    calls = {"n": 0, "fail": -1}

    def counted(name):
        def call(*arguments):
            calls["n"] += 1
            if calls["n"] == calls["fail"]:
                raise OSError(28, "No space left on device")
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    activations.write_store(gpt, windows, **options, out=tmp_path / "counted")
    n_calls, out = calls["n"], tmp_path / "other"
    assert n_calls > 20
    # The first manifest and shard, and the last manifest; the shards between repeat the first.
    for fail in [*range(1, 15), *range(n_calls - 2, n_calls + 1)]:
        calls.update(n=0, fail=fail)
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(DiskError, match="the disk is full while writing"):
            activations.write_store(gpt, windows, **options, out=out)
        assert not list(out.glob(".*")), f"call {fail} left {list(out.iterdir())}"
        calls.update(fail=-1)
        activations.write_store(gpt, windows, **options, out=out, resume=True)
        assert bytes_of(out) == bytes_of(whole.path), f"after failing call {fail}"


# --- SIGKILL -------------------------------------------------------------------------------------

# Behind `killed.py`. Imports once, then forks writers that are killed before one of the first, the
# last, or other changes of a file, and once more while they go on; each ends in the end.
KILLER = """
import shutil
from pathlib import Path
import torch
from interp import activations
from train import storage
from train.model import init_gpt
from train.data import open_store
from train.model import GPTConfig

torch.set_num_threads(1)
out, others = sys.argv[2], 18
store = open_store(sys.argv[1])
gpt = init_gpt(GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=200), seed=0)
windows = activations.document_windows(store, context=16)

def write(place=out):
    activations.write_store(
        gpt, windows, sites=["L*.resid_post", "L0H1"], out=place, batch=8, shard_bytes=1,
        resume=True,
    )

def digests(place):
    files = sorted(file for file in Path(place).rglob("*") if file.is_file())
    return [(str(file.relative_to(place)), storage.sha256_file(file)) for file in files]

n_changes = changes_of(lambda: write(out + "-whole"))
whole, killed = digests(out + "-whole"), 0
moments = {*range(1, 7), *range(n_changes - 5, n_changes + 1)}
moments |= {1 + k * n_changes // others for k in range(others)}
for moment in sorted(moments):
    shutil.rmtree(out, ignore_errors=True)
    killed += killed_at(write, moment)
    killed += killed_at(write, n_changes // 4)
    assert not killed_at(write, 0)
    assert digests(out) == whole, moment
print(killed)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_goes_on_to_the_same_bytes(tiny_store, tmp_path, killed):
    command = [sys.executable, "-c", killed + KILLER, tiny_store.path, tmp_path / "kept"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) >= 45
    activations.verify_store(activations.open_store(tmp_path / "kept"))


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def cache():
    """`openbook cache ...` in this process."""
    return lambda *arguments: CliRunner().invoke(cache_commands, list(map(str, arguments)))


def test_the_command_says_what_it_takes_writes_it_and_says_what_it_wrote(cache, tiny_run, tmp_path):
    common = ("documents", tiny_run.path, "--sites", "L*.resid_post,L0H1", "--documents", 10)
    out = tmp_path / "kept"
    dry = cache(*common, "--out", out, "--dry-run")
    assert re.match(r"\d+ rows of \d+ windows, 2 sites in bf16: .* in 1 shard\n", dry.stdout)
    assert not out.exists()
    done = cache(*common, "--out", out)
    assert done.exit_code == 0
    assert "to be written to" in done.stderr
    assert done.stdout.startswith(f"{len(activations.open_store(out)):,} rows, bf16, ")
    assert done.stdout.endswith("knowledge full\n")
    again = cache(*common, "--out", out, "--resume", "--json")
    assert json.loads(again.stdout)["model"]["run_id"] == tiny_run.id
    refused = cache(*common, "--out", out)
    assert isinstance(refused.exception, StoreError)
    assert activations.open_store(out).find([9], [0]) > 0


def test_the_command_verifies_every_byte_and_names_the_file(cache, written):
    sound = cache("verify", written.path)
    assert (sound.exit_code, sound.stdout) == (
        0,
        f"all files match their digests: {written.path}\n",
    )
    manifest = storage.read_sealed(written.path / "manifest.json")
    for number, shard in enumerate(manifest["shards"]):  # as an earlier version wrote them
        for entry in shard["files"].values():
            del entry["xxh3"], entry["block_bytes"]
        path = written.path / store.shard_name(number) / "shard.json"
        storage.write_json(path, storage.seal(shard))
    storage.write_json(written.path / "manifest.json", storage.seal(manifest))
    older = cache("verify", written.path, "--json")
    assert json.loads(older.stdout)["by_block"] is False
    assert "it has no digests by block, so each file is" in cache("verify", written.path).stdout
    path = written.path / "shard-00002" / "rows.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    damaged = cache("verify", written.path)
    assert isinstance(damaged.exception, DamagedError)
    assert "shard-00002/rows.bin: its sha256 is not" in str(damaged.exception)


def test_the_command_keeps_windows_as_trained_and_the_prompts_of_a_behaviour(
    cache, lookup_run, lookup_behaviour, tmp_path
):
    run, options = lookup_run.path, ("--sites", "L0.mlp", "--json")
    trained = cache("windows", run, *options, "--out", tmp_path / "a", "--documents", 2)
    assert json.loads(trained.stdout)["source"]["kind"] == "trained"
    prompts = cache("prompts", run, lookup_behaviour, *options, "--out", tmp_path / "b")
    assert json.loads(prompts.stdout)["source"]["windows"] == 12
    many = cache("documents", run, *options, "--out", tmp_path / "c", "--documents", 1000)
    assert "documents 0 to 999 were asked of a store with 240" in str(many.exception)


def test_weights_without_a_store_need_one(cache, tiny_run, tmp_path):
    convert.export_huggingface(tiny_run.load(), tiny_run.store.tokenizer, tmp_path / "hf")
    base = ("documents", tmp_path / "hf", "--sites", "L0.mlp", "--documents", 5)
    base += ("--out", tmp_path / "kept")
    refused = cache(*base)
    assert "comes without a token store; give one with --store" in str(refused.exception)
    done = cache(*base, "--store", tiny_run.store.path, "--json")
    about = json.loads(done.stdout)
    assert about["model"]["knowledge"] == "weights-only"
    assert about["source"]["store_fingerprint"] == tiny_run.store.fingerprint
