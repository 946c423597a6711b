"""A planted corpus without a model: its truth table and its tokenizer, in place of a run."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def store(planted_corpus, planted_words) -> SimpleNamespace:
    """What behaviours need of a token store."""
    return SimpleNamespace(truth=planted_corpus.truth(), tokenizer=planted_words)
