"""An artifact is whole, belongs to its store, and is built by one process at a time."""

import os
from dataclasses import replace

import pytest

from train import storage
from train.errors import DamagedError
from train.storage import digest_memory
from train.storage.atomic import restore_folder


class Missing(Exception):
    pass


class Mismatch(Exception):
    pass


class Busy(Exception):
    pass


@pytest.fixture
def artifact(tmp_path):
    """A built folder with one small file."""
    described = storage.Artifact(
        path=tmp_path / "index",
        schema=2,
        source={"store": "a" * 64, "tokens": "b" * 64},
        name="index",
        command="openbook index build STORE",
        missing=Missing,
        mismatch=Mismatch,
        busy=Busy,
    )
    write(described, b"content")
    return described


def write(artifact, content: bytes) -> None:
    with (
        storage.lock_artifact(artifact),
        storage.new_folder(artifact.path, replace=True, locked=True) as folder,
    ):
        (folder / "data").write_bytes(content)
        files = {"data": storage.file_entry(folder / "data")}
        manifest = {"schema": artifact.schema, **artifact.source, "files": files}
        storage.write_json(folder / storage.ARTIFACT_MANIFEST, storage.seal(manifest))


def test_the_manifest_lists_every_file(artifact):
    assert storage.artifact_manifest(artifact)["files"]["data"]["bytes"] == 7
    storage.verify_artifact(artifact)


def test_a_folder_is_replaced_as_a_whole(artifact, tmp_path):
    write(artifact, b"newer content")
    assert (artifact.path / "data").read_bytes() == b"newer content"
    assert os.listdir(tmp_path) == ["index"]


def test_what_is_missing_or_of_another_store_or_version_is_refused(artifact, tmp_path):
    with pytest.raises(Missing, match="has no index yet; build it with `openbook index build"):
        storage.artifact_manifest(replace(artifact, path=tmp_path / "none"))
    with pytest.raises(Mismatch, match="is of version 2, this reads 3; build it again"):
        storage.artifact_manifest(replace(artifact, schema=3))
    for source in ({"store": "c" * 64, "tokens": "b" * 64}, {"store": "a" * 64, "tokens": "c"}):
        with pytest.raises(Mismatch, match=r"is of token store aaaaaaaaaaaa.*; rebuild it with"):
            storage.artifact_manifest(replace(artifact, source=source))


def test_a_sealed_file_of_another_kind_in_place_of_the_manifest_is_refused(artifact):
    """The .json of an index's shard has the same version and store as the index's own."""
    manifest = storage.read_sealed(artifact.path / storage.ARTIFACT_MANIFEST)
    described = replace(artifact, entries=("parts",))
    for check in (storage.artifact_manifest, storage.verify_artifact):
        with pytest.raises(DamagedError, match=r"index\.json: parts is missing; rebuild it"):
            check(described)
    del manifest["tokens"]
    storage.write_json(artifact.path / storage.ARTIFACT_MANIFEST, storage.seal(manifest))
    with pytest.raises(DamagedError, match=r"index\.json: tokens is missing; rebuild it"):
        storage.artifact_manifest(artifact)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"files is list, and an object is expected"),
        ({"data": {"bytes": "7", "sha256": ""}}, r"files\.data\.bytes is '7', and a whole number"),
        ({"../data": {"bytes": 7, "sha256": ""}}, r"names '\.\./data', which is no file of its"),
    ],
)
def test_a_sealed_manifest_with_other_values_is_refused(artifact, files, said):
    place = artifact.path / storage.ARTIFACT_MANIFEST
    storage.write_json(place, storage.seal({**storage.read_sealed(place), "files": files}))
    for check in (storage.artifact_manifest, storage.verify_artifact):
        with pytest.raises(DamagedError, match=rf"index\.json: {said}"):
            check(artifact)


def test_damage_is_named(artifact, monkeypatch):
    path = artifact.path / "data"
    path.write_bytes(b"conten!")
    with pytest.raises(DamagedError, match=r"data: its sha256 is not the one in index\.json"):
        storage.artifact_manifest(artifact)
    monkeypatch.setattr(digest_memory, "HASHED", 6)  # as if it were too large for every opening
    for check in (storage.artifact_manifest, storage.verify_artifact):
        with pytest.raises(DamagedError, match=r"data: its sha256 is not the one in index\.json"):
            check(artifact)
    path.write_bytes(b"short")
    with pytest.raises(DamagedError, match="data: the file has 5 bytes, 7 bytes were written"):
        storage.artifact_manifest(artifact)
    path.unlink()
    with pytest.raises(DamagedError, match="data: the file is missing"):
        storage.artifact_manifest(artifact)


def test_one_process_builds_at_a_time(artifact):
    with (
        storage.lock_artifact(artifact),
        pytest.raises(Busy, match=r"the index of .* is being built by another process; wait"),
    ):
        write(artifact, b"other")
    assert (artifact.path / "data").read_bytes() == b"content"


def test_a_folder_that_a_killed_process_moved_aside_comes_back(artifact, tmp_path):
    artifact.path.rename(tmp_path / ".index.replaced")
    with storage.lock_artifact(artifact):
        storage.verify_artifact(artifact)
    restore_folder(artifact.path)  # nothing lies aside any more
    storage.verify_artifact(artifact)


def test_a_failed_build_keeps_the_older_folder(artifact, tmp_path):
    def fail() -> None:
        with storage.new_folder(artifact.path, replace=True, locked=True) as folder:
            (folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    storage.verify_artifact(artifact)
    assert os.listdir(tmp_path) == ["index"]
