"""Storage: files and folders written whole or not at all, sealed artifacts, locks, chained logs."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.storage.artifact import (
        ARTIFACT_MANIFEST,
        Artifact,
        FileEntry,
        artifact_manifest,
        check_digest,
        check_size,
        file_entry,
        listed_file,
        lock_artifact,
        verify_artifact,
    )
    from train.storage.atomic import (
        JsonObject,
        canonical_json,
        check_room,
        disk_guard,
        is_partial,
        new_folder,
        partial_path,
        read_sealed,
        replace_folder,
        seal,
        sha256_file,
        sync_folder,
        writable,
        write_bytes,
        write_json,
        write_text,
    )
    from train.storage.chained_jsonl import ChainRow, ChainWriter, read_chain, write_chain
    from train.storage.foreign_files import (
        damaged_json,
        open_foreign,
        parse_json,
        read_foreign_bytes,
        read_foreign_json,
        read_foreign_text,
        reading,
        stand_in,
    )
    from train.storage.lock import hold_build_lock, hold_lock
    from train.storage.shapes import check_shape

__all__ = [
    "ARTIFACT_MANIFEST",
    "Artifact",
    "ChainRow",
    "ChainWriter",
    "FileEntry",
    "JsonObject",
    "artifact_manifest",
    "canonical_json",
    "check_digest",
    "check_room",
    "check_shape",
    "check_size",
    "damaged_json",
    "disk_guard",
    "file_entry",
    "hold_build_lock",
    "hold_lock",
    "is_partial",
    "listed_file",
    "lock_artifact",
    "new_folder",
    "open_foreign",
    "parse_json",
    "partial_path",
    "read_chain",
    "read_foreign_bytes",
    "read_foreign_json",
    "read_foreign_text",
    "read_sealed",
    "reading",
    "replace_folder",
    "seal",
    "sha256_file",
    "stand_in",
    "sync_folder",
    "verify_artifact",
    "writable",
    "write_bytes",
    "write_chain",
    "write_json",
    "write_text",
]

__getattr__ = names_on_first_use(__name__, __file__)
