"""`verify` names the file: for every file of a run and of its store, and every way to damage it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train import runs, storage, trainer
from train.errors import DamagedError, StoreError, TrainError


pytestmark = pytest.mark.integration


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A run beside its store, free to be damaged; without what other tests computed from it."""
    computed = shutil.ignore_patterns("index", "bm25", ".*")
    shutil.copytree(tiny_run.store.path, tmp_path / "store", ignore=computed)
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def problems(path: Path) -> list[str]:
    """What `openbook run verify` would print; opening may refuse already."""
    try:
        return list(trainer.verify(runs.open(path, store=path.parent / "store"), spans=1).problems)
    except TrainError as error:
        return [str(error)]


def every_file(path: Path) -> list[Path]:
    both = [*path.rglob("*"), *(path.parent / "store").rglob("*")]
    return sorted(one for one in both if one.is_file() and one.name != ".lock")


def test_an_untouched_copy_verifies_bit_exact(copied):
    found = trainer.verify(runs.open(copied, store=copied.parent / "store"))
    assert found.ok
    assert found.level == "bit-exact"
    # Steps 0 and 16 kept their optimizer; a span of ten steps begins at each.
    assert found.spans == ((0, 9), (16, 23))


def test_one_flipped_bit_in_any_file_is_named(copied):
    draw = np.random.default_rng(0)
    for path in every_file(copied):
        whole = path.read_bytes()
        for place in draw.integers(len(whole) * 8, size=6):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << int(place % 8)
            path.write_bytes(damaged)
            found = problems(copied)
            assert any(path.name in problem for problem in found), (path, place, found)
        path.write_bytes(whole)
    assert problems(copied) == []


def test_a_flipped_bit_in_what_was_computed_from_the_store_or_the_run_is_named(copied):
    from data_attribution import token_index
    from train import trainer
    from train.data import DocumentRemoval

    run = runs.open(copied, store=copied.parent / "store")
    token_index.build(run.store)
    document = int(run.documents_read(20)[0])
    child = trainer.retrain_without(
        run, copied / "counterfactuals" / "child", DocumentRemoval((document,))
    )
    assert problems(copied) == []
    inside = [child.path / "ledger.jsonl", child.path / "manifest.json"]
    for path in [*inside, *(copied.parent / "store/index").iterdir()]:
        whole = path.read_bytes()
        path.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
        assert any(path.name in problem for problem in problems(copied)), path
        path.write_bytes(whole)


@pytest.fixture
def stopped(tiny_run, tmp_path):
    """A run that was interrupted after its checkpoint of step 8."""

    def stop(what: str, done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    how = tiny_run.numerics
    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            tiny_run.recipe, tiny_run.store, out=tmp_path / "r", numerics=how, progress=stop
        )
    return runs.open(tmp_path / "r", store=tiny_run.store.path)


def test_a_run_that_is_trained_while_it_is_verified_is_not_damaged(stopped, monkeypatch):
    """The optimizer of step 8 is deleted between the reading of the list and of the file."""
    whole, looked = runs.check_checkpoints, []
    assert stopped.saved_at(8).resumable

    def train_on(path, listed):
        if not looked:
            trainer.resume(stopped.path, store=stopped.store.path)
        looked.append(whole(path, listed))
        return looked[-1]

    monkeypatch.setattr(runs, "check_checkpoints", train_on)
    found = trainer.verify(stopped, spans=2)
    assert "step-00000008/optimizer.safetensors: the file is missing" in looked[0][0]
    assert (found.problems, found.level, found.spans) == ((), "bit-exact", ((0, 9), (16, 23)))


def test_damage_of_a_stopped_run_is_named_as_that_of_a_finished_one(stopped):
    place = stopped.path / stopped.saved_at(8).folder / "model.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    found = trainer.verify(stopped)
    assert found.level == "damaged"
    assert any("step-00000008/model.safetensors" in problem for problem in found.problems)


def test_a_run_whose_files_change_whenever_they_are_verified_is_not_called_damaged(
    stopped, monkeypatch
):
    listing = stopped.path / runs.CHECKPOINTS / runs.CHECKPOINT_INDEX
    content = storage.read_sealed(listing)

    def changing(run_path, saved):
        content["again"] = content.get("again", 0) + 1
        storage.write_json(listing, storage.seal(content))
        return ["optimizer.safetensors: the file is missing"]

    monkeypatch.setattr(runs, "check_checkpoints", changing)
    with pytest.raises(TrainError, match="is being trained and changed 5 times while it was"):
        trainer.verify(stopped)


def test_a_sealed_file_of_another_kind_is_taken_for_none_of_a_run_or_its_store(copied):
    """Its own seal is right, so the seal alone does not show that it was put there."""
    from data_attribution import token_index

    store, listing = copied.parent / "store", copied / "checkpoints/index.json"
    token_index.build(runs.open(copied, store=store).store)
    assert problems(copied) == []
    sealed = [store / "store.json", store / "index/index.json", store / "index/shard-000.json"]
    sealed += [listing, copied / "manifest.json"]
    contents = {path: path.read_bytes() for path in sealed}
    for path in sealed:
        for other in sealed:
            path.write_bytes(contents[other])
            found = problems(copied)
            assert (found == []) == (path == other), (path, other)
            assert all(len(one.splitlines()) == 1 for one in found)
        path.write_bytes(contents[path])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "../../ledger.jsonl"]
)
def test_a_terabyte_in_place_of_a_file_is_named_and_not_hashed(name, copied):
    path = (copied / runs.CHECKPOINTS / "step-00000024" / name).resolve()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    found = problems(copied)
    assert found
    assert all(one.startswith(f"{path}: ") for one in found)


def test_a_file_of_a_checkpoint_is_hashed_once(copied, monkeypatch):
    digest, hashed = storage.sha256_file, []

    def counted(path, *arguments):
        hashed.append(path)
        return digest(path, *arguments)

    monkeypatch.setattr(storage, "sha256_file", counted)
    assert trainer.verify(runs.open(copied, store=copied.parent / "store"), spans=0).ok
    weights = [path for path in hashed if path.suffix == ".safetensors"]
    assert len(weights) == len(set(weights)) > 0


def test_truncated_and_missing_files_are_named(copied):
    for path in every_file(copied):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert any(path.name in problem for problem in problems(copied)), path
        path.unlink()
        assert any(path.name in problem for problem in problems(copied)), path
        path.write_bytes(whole)


def test_weights_that_nothing_lists_are_named_and_other_files_are_left_alone(copied):
    folder = copied / "checkpoints/step-00000008"
    (folder / "other.safetensors").write_bytes(b"weights")
    (folder / ".DS_Store").write_bytes(b"of the system")
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    found = f"{folder / 'other.safetensors'}: the index does not list this file"
    assert problems(copied) == [found]
    (folder / "other.safetensors").unlink()
    # What a process leaves that is killed while it writes the next checkpoint.
    (folder / "optimizer.safetensors").write_bytes(b"left")
    assert problems(copied) == []
    runs.drop_unlisted(copied)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "state.json", ".DS_Store", "notes.txt", "mine"}


def test_names_that_lead_out_of_a_run_are_refused(copied):
    for name in ("../elsewhere/a", "/etc/passwd", "checkpoints/../../a"):
        assert "leads out of the run" in runs.outside(copied, name)
    assert runs.outside(copied, "checkpoints/index.json") == ""


def test_a_retrained_run_that_lost_its_manifest_is_damaged_and_not_absent(copied, tmp_path):
    shutil.copytree(copied, tmp_path / "child")
    (copied / "counterfactuals").mkdir()
    (tmp_path / "child").rename(copied / "counterfactuals" / "0123")
    (copied / "counterfactuals" / "0123" / "manifest.json").unlink()
    assert "counterfactuals/0123" in "\n".join(problems(copied))


def test_two_swapped_checkpoints_are_named_with_whose_they_are(copied):
    early, late = (copied / f"checkpoints/step-{step:08d}" for step in (8, 16))
    os.rename(early, copied / "away")
    os.rename(late, early)
    os.rename(copied / "away", late)
    found = "\n".join(problems(copied))
    assert "step-00000008/model.safetensors" in found
    assert "it is the file of step 16" in found


def test_a_checkpoint_copied_over_another_step_is_named(copied):
    source = copied / "checkpoints/step-00000024/model.safetensors"
    shutil.copy(source, copied / "checkpoints/step-00000008/model.safetensors")
    (found,) = problems(copied)
    assert "step-00000008/model.safetensors" in found
    assert "it is the file of step 24" in found


def test_a_checkpoint_copied_with_a_forged_index_is_still_found(copied):
    """Whoever recomputes the digests is caught by the manifest, or by the numbers."""
    source = copied / "checkpoints/step-00000024/model.safetensors"
    target = copied / "checkpoints/step-00000008/model.safetensors"
    shutil.copy(source, target)
    index = json.loads((copied / "checkpoints/index.json").read_text())
    for one in index["checkpoints"]:
        if one["step"] == 8:
            one["files"]["model.safetensors"] = storage.sha256_file(target)
    storage.write_json(copied / "checkpoints/index.json", storage.seal(index))
    assert any("checkpoints/index.json" in problem for problem in problems(copied))
    manifest = json.loads((copied / runs.MANIFEST).read_text())
    for one in manifest["subject"]:
        one["digest"]["sha256"] = storage.sha256_file(copied / one["name"])
    storage.write_json(copied / runs.MANIFEST, storage.seal(manifest))
    assert any("holds the weights of step 8" in problem for problem in problems(copied))


def forge(path: Path, step: int, change, *, fixed_loss: float | None = None) -> str:
    """Change the weights of a step, and every digest over them up to the manifest's seal."""
    from safetensors.torch import load_file, save_file

    place = path / f"checkpoints/step-{step:08d}"
    weights = load_file(place / "model.safetensors")
    save_file({name: change(one) for name, one in weights.items()}, place / "model.safetensors")
    if fixed_loss is not None:
        state = json.loads((place / "state.json").read_text())
        (place / "state.json").write_text(
            storage.canonical_json({**state, "fixed_loss": fixed_loss})
        )
    reseal(path)
    return str(place / "model.safetensors")


def reseal(path: Path) -> None:
    """Every digest of a run computed again from what lies there now."""
    index = json.loads((path / "checkpoints/index.json").read_text())
    for one in index["checkpoints"]:
        folder = path / f"checkpoints/step-{one['step']:08d}"
        one["files"] = {name: storage.sha256_file(folder / name) for name in one["files"]}
    storage.write_json(path / "checkpoints/index.json", storage.seal(index))
    manifest = json.loads((path / runs.MANIFEST).read_text())
    for one in manifest["subject"]:
        one["digest"]["sha256"] = storage.sha256_file(path / one["name"])
    storage.write_json(path / runs.MANIFEST, storage.seal(manifest))


@pytest.mark.parametrize("fixed_loss", [None, float("nan")])
@pytest.mark.parametrize("step", [16, 24])
def test_weights_that_are_no_numbers_are_named_however_well_sealed(copied, step, fixed_loss):
    """NaN differs from nothing by NaN, which no comparison finds large."""
    named = forge(copied, step, lambda one: one * float("nan"), fixed_loss=fixed_loss)
    assert any(named in problem for problem in problems(copied))


@pytest.mark.parametrize("step", [16, 24])
def test_other_weights_under_forged_seals_are_named_by_their_loss(copied, step):
    named = forge(copied, step, lambda one: one * 3)
    (found,) = problems(copied)
    assert found.startswith(f"{named}: its loss on the fixed batch is ")


def test_a_run_without_the_checkpoint_it_began_with_is_named(copied):
    listing = copied / "checkpoints/index.json"
    saved = json.loads(listing.read_text())["checkpoints"]
    shutil.rmtree(copied / "checkpoints/step-00000000")
    content = {"schema": 1, "checkpoints": [one for one in saved if one["step"] != 0]}
    storage.write_json(listing, storage.seal(content))
    manifest = json.loads((copied / runs.MANIFEST).read_text())
    manifest["subject"] = [one for one in manifest["subject"] if "step-00000000" not in one["name"]]
    storage.write_json(copied / runs.MANIFEST, storage.seal(manifest))
    reseal(copied)
    assert problems(copied) == [
        f"{listing}: lists no checkpoint of step 0, with which the run begins"
    ]


def test_a_run_of_a_gpu_is_verified_and_replayed_on_a_machine_without_one(copied, monkeypatch):
    import torch

    from train import numerics, trainer
    from train.errors import RecipeError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    manifest = json.loads((copied / runs.MANIFEST).read_text())
    manifest["predicate"]["numerics"]["device"] = "cuda"
    storage.write_json(copied / runs.MANIFEST, storage.seal(manifest))
    run = runs.open(copied, store=copied.parent / "store")
    assert numerics.on_this_machine(run.numerics) == replace(run.numerics, device="cpu")
    found = trainer.verify(run, spans=1)
    # This one was in truth trained on a CPU, so nothing differs, and still it is not called exact.
    assert (found.problems, found.level, found.difference) == ((), "within tolerance", 0.0)
    assert trainer.replay(run, 17, 20).same_order
    manifest["predicate"]["finished"] = False
    storage.write_json(copied / runs.MANIFEST, storage.seal(manifest))
    with pytest.raises(RecipeError, match="'cuda' was asked for and this machine has no CUDA"):
        trainer.resume(copied, store=copied.parent / "store")


def test_a_ledger_of_losses_that_are_no_numbers_is_named(copied):
    rows = runs.read_ledger(copied / runs.LEDGER)
    with_nan = [replace(row, loss=float("nan")) if row.step == 10 else row for row in rows]
    runs.write_ledger(copied / runs.LEDGER, with_nan)
    reseal(copied)
    assert any("ledger.jsonl: the loss of step 10" in problem for problem in problems(copied))


def test_an_edited_document_is_named(copied):
    """One token of the stream, with every digest of the store recomputed by the forger."""
    store = copied.parent / "store"
    tokens = np.fromfile(store / "tokens.bin", dtype="<u2")
    tokens[5] = tokens[5] % 40 + 1
    tokens.tofile(store / "tokens.bin")
    assert any("tokens.bin" in problem for problem in problems(copied))
    content = json.loads((store / "store.json").read_text())
    content["files"]["tokens.bin"] = storage.sha256_file(store / "tokens.bin")
    storage.write_json(store / "store.json", storage.seal(content))
    assert any("store.json" in problem for problem in problems(copied))


@pytest.mark.parametrize("field", ["loss", "digest", "tokens"])
def test_an_edited_ledger_row_is_named(copied, field):
    lines = (copied / runs.LEDGER).read_text().splitlines()
    row = json.loads(lines[10])
    row[field] = {"loss": 1.0, "digest": "0" * 16, "tokens": 1}[field]
    lines[10] = json.dumps(row, sort_keys=True)
    (copied / runs.LEDGER).write_text("\n".join(lines) + "\n")
    found = "\n".join(problems(copied))
    assert "ledger.jsonl" in found
    assert "row of step 10" in found


@pytest.mark.parametrize("key", ["beta2", "init_seed", "steps"])
def test_a_missing_key_of_the_recipe_is_named_even_when_resealed(copied, key):
    manifest = json.loads((copied / runs.MANIFEST).read_text())
    del manifest["predicate"]["recipe"][key]
    storage.write_json(copied / runs.MANIFEST, storage.seal(manifest))
    with pytest.raises(DamagedError, match=rf"manifest\.json: the recipe lacks the key '{key}'"):
        runs.open(copied)


def test_a_pickle_is_never_opened(copied):
    import torch

    place = copied / "checkpoints/step-00000024/model.safetensors"
    torch.save({"weight": torch.zeros(1)}, place)
    with pytest.raises(DamagedError, match="this is a pickle, which can run code"):
        runs.open(copied, store=copied.parent / "store").load()


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path):
    import torch

    tensors = {"w" * 580: torch.ones(1)}  # makes a header of 0x0280 bytes
    saved = runs.write_checkpoint(
        tmp_path, 0, model=tensors, optimizer=None, state={}, keep_optimizer_of=set()
    )
    content = (tmp_path / saved.folder / "model.safetensors").read_bytes()
    assert content.startswith(b"\x80\x02")
    assert runs.read_tensors(tmp_path, saved, "model.safetensors").keys() == tensors.keys()


def test_the_store_of_another_run_is_refused_with_both_fingerprints(copied, tmp_path):
    from train.data import Corpus, Document, build_store

    text = "w1 w2 w3 " * 30
    corpus = Corpus(
        name="other", source="other", revision="0", tokenizer="word",
        read=lambda: iter([Document("other/0", text, "other", "0", 0)]),
    )  # fmt: skip
    other = build_store(corpus, out=tmp_path / "other")
    with pytest.raises(StoreError, match=r"the run .* was trained on [0-9a-f]{12}"):
        _ = runs.open(copied, store=other.path).store


def test_steps_that_do_not_exist_are_refused_with_the_nearest(tiny_run):
    with pytest.raises(TrainError, match="no checkpoint at step 9; nearest is 8"):
        tiny_run.load(9)
    with pytest.raises(TrainError, match="step 24 is not one of the 24"):
        tiny_run.documents_read(24)
    with pytest.raises(TrainError, match="no run at"):
        runs.open("nowhere")


def test_documents_and_steps_agree_with_a_scan_of_every_batch(tiny_run):
    owner = tiny_run.store.document_at(np.arange(tiny_run.store.n_tokens))
    read = {}
    for step in range(24):
        targets = tiny_run.order.starts(step)[:, None] + 1 + np.arange(16)
        read[step] = set(owner[targets].ravel().tolist()) - {-1}
        assert set(tiny_run.documents_read(step).tolist()) == read[step]
    for document in range(tiny_run.store.n_documents):
        expected = [step for step in range(24) if document in read[step]]
        assert tiny_run.steps_reading(document).tolist() == expected


def test_tokens_of_a_removed_document_were_read_at_no_step(tiny_run, tmp_path):
    """By hand: what a batch gives a loss to, for spans that lie over removed documents too."""
    from train import trainer
    from train.data import IGNORED, DocumentRemoval, read_batch

    removal = DocumentRemoval(tuple(sorted(int(one) for one in tiny_run.documents_read(0)[:6])))
    child = trainer.retrain_without(tiny_run, tmp_path / "child", removal)
    seen = np.zeros((24, child.store.n_tokens), dtype=bool)
    owner = child.store.document_at(np.arange(child.store.n_tokens))
    for step in range(24):
        targets = read_batch(child.store, child.order, step, removal).targets.numpy()
        offsets = child.order.starts(step)[:, None] + 1 + np.arange(16)
        seen[step, offsets[targets != IGNORED]] = True
        documents = set(owner[seen[step]].tolist()) - {-1}
        assert set(child.documents_read(step).tolist()) == documents
    draw = np.random.default_rng(0)
    for _ in range(300):
        start = int(draw.integers(child.store.train_tokens - 60))
        stop = start + int(draw.integers(1, 60))
        expected = np.flatnonzero(seen[:, start:stop].any(axis=1))
        assert child.steps_reading_tokens(start, stop).tolist() == expected.tolist()
    for document in removal.documents:
        assert child.steps_reading(document).tolist() == []


def test_a_stopped_run_has_not_read_the_future(tiny_run, tiny_store, tmp_path):
    from train import trainer

    def progress(what, done, total):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            tiny_run.recipe, tiny_store, out=tmp_path / "r", numerics=tiny_run.numerics,
            progress=progress,
        )  # fmt: skip
    stopped = runs.open(tmp_path / "r")
    assert stopped.documents_read(10).tolist() == tiny_run.documents_read(10).tolist()
    with pytest.raises(TrainError, match="step 11 has read nothing: 11 of the 24 steps"):
        stopped.documents_read(11)
    for document in range(0, tiny_store.n_documents, 7):
        whole = tiny_run.steps_reading(document)
        assert stopped.steps_reading(document).tolist() == whole[whole < 11].tolist()
