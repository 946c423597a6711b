"""Storage: files and folders that are written whole or not at all, seals, locks, chained logs."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.storage.atomic import (
        canonical_json,
        check_room,
        disk_guard,
        new_folder,
        read_sealed,
        seal,
        sha256_file,
        sync_folder,
        writable,
        write_bytes,
        write_json,
        write_text,
    )
    from train.storage.chained_jsonl import ChainRow, ChainWriter, read_chain, write_chain
    from train.storage.lock import hold_build_lock, hold_lock

__all__ = [
    "ChainRow",
    "ChainWriter",
    "canonical_json",
    "check_room",
    "disk_guard",
    "hold_build_lock",
    "hold_lock",
    "new_folder",
    "read_chain",
    "read_sealed",
    "seal",
    "sha256_file",
    "sync_folder",
    "writable",
    "write_bytes",
    "write_chain",
    "write_json",
    "write_text",
]

__getattr__ = names_on_first_use(__name__, __file__)
