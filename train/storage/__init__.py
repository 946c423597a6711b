"""Files that are written whole or not at all, chained logs, and locked folders."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.storage.artifact import (
        ARTIFACT_MANIFEST,
        Artifact,
        artifact_listing,
        artifact_of,
        check_tokens,
        install_artifact,
        locked_artifact,
        verify_artifact,
    )
    from train.storage.atomic import (
        canonical_json,
        disk_guard,
        new_folder,
        read_sealed,
        seal,
        sha256_file,
        sync_folder,
        write_bytes,
        write_json,
        write_text,
    )
    from train.storage.chained_jsonl import ChainRow, ChainWriter, read_chain

__all__ = [
    "ARTIFACT_MANIFEST",
    "Artifact",
    "ChainRow",
    "ChainWriter",
    "artifact_listing",
    "artifact_of",
    "canonical_json",
    "check_tokens",
    "disk_guard",
    "install_artifact",
    "locked_artifact",
    "new_folder",
    "read_chain",
    "read_sealed",
    "seal",
    "sha256_file",
    "sync_folder",
    "verify_artifact",
    "write_bytes",
    "write_json",
    "write_text",
]

__getattr__ = names_on_first_use(__name__, __file__)
