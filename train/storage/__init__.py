"""Storage: files and folders written whole or not at all, sealed, digested, locked or chained."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.storage.artifact import (
        ARTIFACT_MANIFEST,
        ARTIFACT_PLAN,
        Artifact,
        FileEntry,
        artifact_manifest,
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
        held_kind,
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
    from train.storage.block_digests import BlockCheck, block_entry
    from train.storage.chained_jsonl import (
        MOST_CHAIN_BYTES,
        ChainRow,
        ChainWriter,
        parse_chain,
        read_chain,
        write_chain,
    )
    from train.storage.compressed_files import COMPRESSIONS, open_uncompressed
    from train.storage.digest_memory import check_digest, check_once
    from train.storage.foreign_files import (
        damaged_json,
        parse_json,
        read_foreign_bytes,
        read_foreign_json,
        read_foreign_text,
        read_foreign_toml,
        stand_in,
    )
    from train.storage.lock import hold_build_lock, hold_lock, scratch_folder
    from train.storage.project_folder import project_root
    from train.storage.regular_files import open_foreign, reading
    from train.storage.shapes import check_shape
    from train.storage.tensor_file import TensorEntry, TensorFile, write_tensors
    from train.storage.user_cache import cache_folder

__all__ = [
    "ARTIFACT_MANIFEST",
    "ARTIFACT_PLAN",
    "COMPRESSIONS",
    "MOST_CHAIN_BYTES",
    "Artifact",
    "BlockCheck",
    "ChainRow",
    "ChainWriter",
    "FileEntry",
    "JsonObject",
    "TensorEntry",
    "TensorFile",
    "artifact_manifest",
    "block_entry",
    "cache_folder",
    "canonical_json",
    "check_digest",
    "check_once",
    "check_room",
    "check_shape",
    "check_size",
    "damaged_json",
    "disk_guard",
    "file_entry",
    "held_kind",
    "hold_build_lock",
    "hold_lock",
    "is_partial",
    "listed_file",
    "lock_artifact",
    "new_folder",
    "open_foreign",
    "open_uncompressed",
    "parse_chain",
    "parse_json",
    "partial_path",
    "project_root",
    "read_chain",
    "read_foreign_bytes",
    "read_foreign_json",
    "read_foreign_text",
    "read_foreign_toml",
    "read_sealed",
    "reading",
    "replace_folder",
    "scratch_folder",
    "seal",
    "sha256_file",
    "stand_in",
    "sync_folder",
    "verify_artifact",
    "writable",
    "write_bytes",
    "write_chain",
    "write_json",
    "write_tensors",
    "write_text",
]

__getattr__ = names_on_first_use(__name__, __file__)
