"""Small tuning sets in the words of the fixture `tiny_store`."""

from pathlib import Path

import numpy as np

from train.data import Tokenizer, TokenStore, tuning
from train.data.tuning import Example, TuningSet


def tiny_examples(kind: str, n: int = 24) -> TuningSet:
    """Return examples of different lengths, of which no two are equal."""
    draw = np.random.default_rng(1)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.integers(50)}" for _ in range(draw.integers(low, high)))

    rows = []
    for row in range(n):
        prompt, response, rejected = words(1, 6), words(1, 8), words(1, 8)
        if kind == "instructions":
            rows.append(Example(row, prompt, response))
        else:
            rows.append(Example(row, prompt, f"{response} w1", f"{rejected} w2"))
    return TuningSet("tiny", kind, "0", lambda: iter(rows))


def tiny_tuning_store(kind: str, tokenizer: Tokenizer, out: Path) -> TokenStore:
    """Build the store of `tiny_examples` for models with a context of 16."""
    examples = tiny_examples(kind)
    return tuning.build_tuning_store(examples, out=out, tokenizer=tokenizer, context=16)
