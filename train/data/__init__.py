"""Corpora, tokenizers, token stores, and the order in which training reads their tokens."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.data.batches import IGNORED, Batch, batches_ahead, read_batch
    from train.data.corpora import open_corpus
    from train.data.data_order import (
        DataOrder,
        InvertibleOrder,
        LateOrder,
        Order,
        RecordedOrder,
        documents_read,
        first_steps_reading,
        record_nanogpt_order,
    )
    from train.data.document_removal import DocumentRemoval, RemovalChoice
    from train.data.documents import Corpus, Document
    from train.data.duplicates import Together, document_sha256s, near_duplicates, with_duplicates
    from train.data.packing import pack
    from train.data.published_order import OrderClaim, PublishedOrder, open_published_order
    from train.data.readers import SkippedRow
    from train.data.store_builder import build_store
    from train.data.token_store import STORE_MANIFEST, TokenStore, open_store, verify_store
    from train.data.tokenizers import (
        TOKENIZER_FILES,
        Tokenizer,
        gpt2_tokenizer,
        load_tokenizer,
        parse_tokenizer,
        train_bpe,
        train_words,
    )

__all__ = [
    "IGNORED",
    "STORE_MANIFEST",
    "TOKENIZER_FILES",
    "Batch",
    "Corpus",
    "DataOrder",
    "Document",
    "DocumentRemoval",
    "InvertibleOrder",
    "LateOrder",
    "Order",
    "OrderClaim",
    "PublishedOrder",
    "RecordedOrder",
    "RemovalChoice",
    "SkippedRow",
    "Together",
    "TokenStore",
    "Tokenizer",
    "batches_ahead",
    "build_store",
    "document_sha256s",
    "documents_read",
    "first_steps_reading",
    "gpt2_tokenizer",
    "load_tokenizer",
    "near_duplicates",
    "open_corpus",
    "open_published_order",
    "open_store",
    "pack",
    "parse_tokenizer",
    "read_batch",
    "record_nanogpt_order",
    "train_bpe",
    "train_words",
    "verify_store",
    "with_duplicates",
]

__getattr__ = names_on_first_use(__name__, __file__)
