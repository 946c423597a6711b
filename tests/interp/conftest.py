"""A planted corpus without a model: its truth table and its tokenizer, in place of a run."""

from types import SimpleNamespace

import pytest

from train import planted, tokenization


@pytest.fixture(scope="session")
def store() -> SimpleNamespace:
    """What behaviours need of a token store."""
    corpus = planted.corpus(0)
    assert corpus.truth is not None
    words = tokenization.train_words([document.text for document in corpus.read()])
    return SimpleNamespace(truth=corpus.truth(), tokenizer=words)
