"""A store and a run small enough to be trained in a second."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """120 documents of 1 to 40 of 50 words, stream layout, a tenth held out."""
    from train import token_store
    from train.corpora import Corpus, Document

    draw = np.random.default_rng(0)

    def read():
        for row in range(120):
            words = draw_rows[row]
            yield Document(f"tiny@0/{row}", " ".join(words), "tiny", "0", row)

    draw_rows = [
        [f"w{draw.integers(50)}" for _ in range(draw.integers(1, 40))] + [f"d{row}"]
        for row in range(120)
    ]
    corpus = Corpus(name="tiny", source="tiny", revision="0", read=read, tokenizer="word")
    return token_store.build(corpus, out=tmp_path_factory.mktemp("data") / "tiny", held_out=0.1)


@pytest.fixture(scope="session")
def tiny_recipe():
    """One layer of 16, 24 steps, a checkpoint every 8."""
    from train.model import GPTConfig
    from train.recipes import Recipe

    return Recipe(
        name="tiny",
        model=GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=1),
        batch_size=4,
        steps=24,
        lr=1e-2,
        min_lr=1e-3,
        warmup_steps=2,
        checkpoint_every=8,
        optimizer_every=16,
    )


@pytest.fixture(scope="session")
def one_thread_numerics():
    """fp32 on one thread: what the tests train with."""
    from train.numerics import Numerics

    return Numerics("cpu", "fp32", 1)


@pytest.fixture(scope="session")
def tiny_run(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """The recipe trained on the store."""
    from train import loop

    out: Path = tmp_path_factory.mktemp("runs") / "tiny"
    return loop.run(tiny_recipe, tiny_store, out=out, numerics=one_thread_numerics)
