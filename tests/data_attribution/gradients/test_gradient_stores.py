"""Gradients on disk are those that were collected, whole or absent, and of one run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_attribution import gradients
from data_attribution.errors import EvidenceError
from data_attribution.gradients import store, store_size
from data_attribution.gradients.features import Features
from interp.patching.engine import base_run
from train import storage
from train.errors import DamagedError, DiskError


pytestmark = pytest.mark.integration
WITHIN = ("L0H1", "L0.mlp", "unembed")
ASKED = {"within": WITHIN, "rank": 4, "metric": "plain", "log_odds": None}
FILES = (store.FEATURES, store.EXPONENTS, store.DOCUMENTS)


@pytest.fixture(scope="module")
def stored(tiny_run, tmp_path_factory) -> gradients.GradientStore:
    out = tmp_path_factory.mktemp("gradients") / "g"
    return gradients.build_gradient_store(tiny_run, out=out, **ASKED, piece=20)


def contents(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in FILES]


def test_what_is_read_is_what_was_collected(tiny_run, stored):
    model, documents = tiny_run.load(), np.array([7, 3, 90])
    selection = gradients.select_weights(model.cfg, WITHIN)
    direct = gradients.document_features(model, tiny_run.store, documents, selection, rank=4)
    found = stored.features(documents)
    assert found.blocks == direct.blocks
    assert found.rows.tolist() == [7, 3, 90]
    for site in found.sites:  # fp16 keeps 11 bits
        error = np.abs(found.of(site) - direct.of(site)).max(axis=1)
        assert (error <= 2**-11 * np.abs(direct.of(site)).max(axis=1)).all()
    assert stored.documents.tolist() == gradients.trained_documents(tiny_run).tolist()
    whole = np.concatenate([piece.values for piece in stored.pieces(13)])
    assert np.array_equal(whole[[7, 3, 90]], found.values)
    gradients.verify_gradient_store(stored)


def test_its_size_is_what_was_planned(tiny_run, stored):
    model = tiny_run.load()
    selection = gradients.select_weights(model.cfg, WITHIN)
    plan = store_size.plan_gradient_store(
        model, tiny_run.store, stored.documents, selection, rank=4
    )
    assert plan.bytes == sum((stored.path / name).stat().st_size for name in FILES)
    assert plan.seconds > 0
    assert f"{len(stored.documents)} documents" in str(plan)


def test_numbers_of_any_size_survive(tmp_path):
    values = np.array([[1e-30, -3e-31, 1e20, 2e20], [0, 0, 1e-3, -1]], dtype=np.float32)
    features = Features(np.arange(2), values, (("a", 0, 2), ("b", 2, 4)), 4, 0)
    store.append_features(tmp_path, features)
    np.arange(2).astype("<i8").tofile(tmp_path / store.DOCUMENTS)
    files = {name: storage.block_entry(tmp_path / name) for name in FILES}
    about = {"blocks": [["a", 0, 2], ["b", 2, 4]], "rank": 4, "seed": 0, "files": files}
    found = gradients.GradientStore(tmp_path, about).features(np.arange(2))
    np.testing.assert_allclose(found.values, values, rtol=1e-3)


# Behind `tests/killed.py`: a build that is killed three times, each time a fifth of the way on.
KILLER = """
import torch
from data_attribution import gradients
from train import runs

torch.set_num_threads(1)
run, out, asked = runs.open(sys.argv[1]), sys.argv[2], eval(sys.argv[3])

def build(place=out):
    gradients.build_gradient_store(run, out=place, **asked, piece=5)

n_changes = changes_of(lambda: build(out + "-whole"))
assert all(killed_at(build, n_changes // 5) for _ in range(3))
assert not killed_at(build, 0)
"""


def test_a_killed_build_goes_on_and_writes_the_same_bytes(tiny_run, tmp_path, killed):
    out = tmp_path / "g"
    command = [sys.executable, "-c", killed + KILLER, str(tiny_run.path), str(out), repr(ASKED)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert contents(out) == contents(tmp_path / "g-whole")
    assert not (tmp_path / ".g.partial").exists()


def done(partial: Path) -> int:
    try:
        return storage.read_sealed(partial / store.DONE)["rows"]
    except DamagedError:
        return 0


def test_nothing_of_the_plan_is_left_in_a_folder_that_has_its_name(
    tiny_run, stored, tmp_path, monkeypatch
):
    """A process that is killed behind the last renaming leaves what it leaves for ever."""
    rename, names = store.os.replace, []

    def look(source, target):
        if target == tmp_path / "g":
            names.extend(file.name for file in Path(source).iterdir())
        rename(source, target)

    monkeypatch.setattr(store.os, "replace", look)
    gradients.build_gradient_store(tiny_run, out=tmp_path / "g", **ASKED)
    assert sorted(names) == sorted((*FILES, store.MANIFEST))
    assert contents(tmp_path / "g") == contents(stored.path)


def test_bytes_behind_the_last_whole_piece_are_written_again(tiny_run, stored, tmp_path):
    """What a kill in the middle of a piece leaves: rows that nobody vouched for."""
    out = tmp_path / "g"

    class Stopped(Exception):
        pass

    def stop(what: str, rows: int, total: int | None) -> None:
        if rows > 40:
            raise Stopped

    options = {**ASKED, "out": out, "piece": 20}
    with pytest.raises(Stopped):
        gradients.build_gradient_store(tiny_run, **options, progress=stop)
    partial = tmp_path / ".g.partial"
    assert done(partial) == 40
    with (partial / store.FEATURES).open("ab") as file:
        file.write(b"half a row")
    with pytest.raises(EvidenceError, match="begun with other choices \\(rank"):
        gradients.build_gradient_store(tiny_run, **{**options, "rank": 3})
    assert contents(gradients.build_gradient_store(tiny_run, **options).path) == contents(
        stored.path
    )


def test_a_build_goes_on_with_the_product_that_it_began_with(tiny_run, tmp_path, monkeypatch):
    """Which of torch's two fp32 products is faster is measured in every process anew."""

    def begin(out: Path) -> None:
        def stop(what: str, rows: int, total: int | None) -> None:
            if rows > 40:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            gradients.build_gradient_store(tiny_run, out=out, **ASKED, piece=20, progress=stop)

    def measured(product: str) -> None:
        monkeypatch.setattr(base_run, "fast_product", lambda: product)

    measured("highest")
    whole = gradients.build_gradient_store(tiny_run, out=tmp_path / "whole", **ASKED, piece=20)
    begin(tmp_path / "g")
    measured("medium")
    found = gradients.build_gradient_store(tiny_run, out=tmp_path / "g", **ASKED, piece=20)
    assert found.manifest["product"] == "highest"
    assert contents(found.path) == contents(whole.path)


def test_gradients_that_another_process_collects_are_refused(tiny_run, tmp_path):
    out, refused = tmp_path / "g", []

    def meanwhile(what: str, rows: int, total: int | None) -> None:
        if not refused:
            with pytest.raises(EvidenceError, match="is being collected by another process") as by:
                gradients.build_gradient_store(tiny_run, out=out, within=("L0H0.q",), rank=2)
            refused.append(by)

    gradients.build_gradient_store(
        tiny_run, out=out, within=("L0H0.q",), rank=2, progress=meanwhile
    )
    assert refused
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_what_was_changed_is_refused(tiny_run, tmp_path):
    path = gradients.build_gradient_store(
        tiny_run, out=tmp_path / "g", within=("L0H0.q",), rank=2
    ).path
    with pytest.raises(EvidenceError, match="exists already"):
        gradients.build_gradient_store(tiny_run, out=path, within=("L0H0.q",), rank=2)
    whole = (path / store.FEATURES).read_bytes()
    (path / store.FEATURES).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DamagedError, match=r"features\.f16"):
        gradients.verify_gradient_store(gradients.open_gradient_store(path))
    (path / store.FEATURES).write_bytes(whole[:-1])
    with pytest.raises(DamagedError, match="bytes"):
        gradients.open_gradient_store(path)
    text = (path / store.MANIFEST).read_text()
    (path / store.MANIFEST).write_text(text.replace('"rank": 2', '"rank": 3'))
    with pytest.raises(DamagedError, match="digest"):
        gradients.open_gradient_store(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("by_block", [True, False])
def test_a_flipped_bit_is_refused_by_whoever_reads_it(stored, tmp_path, name, by_block):
    path = shutil.copytree(stored.path, tmp_path / "g")
    manifest = storage.read_sealed(path / store.MANIFEST)
    if not by_block:  # as an earlier version wrote it
        manifest["files"] = {
            one: {key: entry[key] for key in ("bytes", "sha256")}
            for one, entry in manifest["files"].items()
        }
        storage.write_json(path / store.MANIFEST, storage.seal(manifest))
    opened = gradients.open_gradient_store(path)
    assert opened.by_block == by_block
    assert np.array_equal(opened.features([3]).values, stored.features([3]).values)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(DamagedError, match=name):
        for _ in gradients.open_gradient_store(path).pieces(13):
            pass
    with pytest.raises(DamagedError, match=name):
        gradients.verify_gradient_store(gradients.open_gradient_store(path))


def test_another_sealed_file_in_place_of_the_manifest_is_refused(stored, tmp_path):
    path = shutil.copytree(stored.path, tmp_path / "g")
    plan = {"schema": 1, "run": "r"}
    storage.write_json(path / store.MANIFEST, storage.seal(plan))
    with pytest.raises(DamagedError, match=r"gradients\.json: documents is missing"):
        gradients.open_gradient_store(path)


def test_gradients_of_another_run_are_refused(stored, tiny_run, lookup_run):
    assert gradients.open_gradient_store(stored.path, run=tiny_run).documents.size
    with pytest.raises(EvidenceError, match=f"this is run {lookup_run.id}"):
        gradients.open_gradient_store(stored.path, run=lookup_run)
    with pytest.raises(EvidenceError, match="gradients build"):
        gradients.open_gradient_store(stored.path / "nothing")
    with pytest.raises(EvidenceError, match=f"document {tiny_run.store.n_documents - 1} is none"):
        stored.features([tiny_run.store.n_documents - 1])  # held out


def test_a_disk_without_room_is_refused_before_anything_is_collected(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(store_size, "size", lambda *_, **__: 1 << 60)
    with pytest.raises(DiskError, match=r"TB more and .* are free on its disk; choose fewer"):
        gradients.build_gradient_store(tiny_run, out=tmp_path / "g", within=WITHIN)
    assert list(tmp_path.iterdir()) == []


def test_it_is_collected_by_a_command(openbook, tiny_run, tmp_path):
    out = tmp_path / "g"
    options = (tiny_run.path, "--within", "L0H1", "--rank", 4)
    common = ("gradients", "build", *options)
    planned = openbook("gradients", "plan", *options, "--json")
    assert planned.code == 0
    assert json.loads(planned.out)["bytes"] > 0
    assert not (tiny_run.path / gradients.GRADIENT_FOLDER).exists()
    made = openbook(*common, "--folder", out)
    assert made.code == 0, made.err
    assert gradients.open_gradient_store(out, run=tiny_run).manifest["metric"] == "adam"
    again = openbook(*common, "--folder", out)
    assert again.code == 2
    assert "exists already" in again.err
    verifying = ("gradients", "verify", tiny_run.path, "--folder", out)
    verified = openbook(*verifying)
    assert (verified.code, str(out) in verified.out) == (0, True)
    kept = (out / store.EXPONENTS).read_bytes()
    (out / store.EXPONENTS).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    damaged = openbook(*verifying)
    assert damaged.code == 3
    assert "exponents.i8: its sha256 is not the one in" in damaged.err
