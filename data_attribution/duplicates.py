"""Which documents of a store are the same text, by the sha256 in its document table.

A copy of a removed document teaches what the document taught, so no control may hold it. The column
is read in batches: all of it at once would be half a gigabyte for OpenWebText.
"""

from collections.abc import Collection, Iterator

from train import token_store
from train.token_store import TokenStore


__all__ = ["copies", "sha256s"]


def copies(store: TokenStore, documents: Collection[int]) -> set[int]:
    """Documents that have the text of one of `documents`, themselves included."""
    wanted = {store.document(one).sha256 for one in sorted(documents)}
    return {index for index, sha256 in enumerate(sha256s(store)) if sha256 in wanted}


def sha256s(store: TokenStore) -> Iterator[str]:
    """The sha256 of every document's text, in the order of the table."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(store.path / token_store.TABLE)
    for batch in file.iter_batches(columns=["sha256"]):
        yield from batch.column(0).to_pylist()
