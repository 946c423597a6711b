"""Token stores of texts that can be read by eye."""

from collections.abc import Sequence
from pathlib import Path

from train.data import Corpus, Document, TokenStore, build_store


def store_of(out: Path, texts: Sequence[str], **options: object) -> TokenStore:
    """A store of whole words, a document a text; `options` are those of `build_store`."""
    documents = [
        Document(f"made@seed 0/all/{row}", text, "made", "all", row)
        for row, text in enumerate(texts)
    ]
    corpus = Corpus("made", "made", "seed 0", lambda: iter(documents))
    return build_store(corpus, out=out, **{"tokenizer": "word", **options})
