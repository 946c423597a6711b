"""Token stores of texts that can be read by eye."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from data_attribution import token_index
from train.data import Corpus, Document, TokenStore, build_store, open_store


def store_of(out: Path, texts: Sequence[str], **options: object) -> TokenStore:
    """A store of whole words, a document a text; `options` are those of `build_store`."""
    documents = [
        Document(f"made@seed 0/all/{row}", text, "made", "all", row)
        for row, text in enumerate(texts)
    ]
    corpus = Corpus("made", "made", "seed 0", lambda: iter(documents))
    return build_store(corpus, out=out, **{"tokenizer": "word", **options})


def indexed_copy(store: TokenStore, out: Path) -> Path:
    """A copy of a store with a token index of its own, without what other tests derived from it."""
    derived = shutil.ignore_patterns("index", "bm25", ".*")
    shutil.copytree(store.path, out, ignore=derived)
    token_index.build(open_store(out))
    return out
