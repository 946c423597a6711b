"""The builder of tuning stores: token stores in which every example has a row of its own.

A tuning store is an ordinary token store (`train.data.token_store`), so order, ledger, replay and
removal work on it without change. Its layout is `padded`: document k is alone in row k, and the
rest of the row is end-of-text. The column `prompt_tokens` of the document table says how many
tokens are prompt; these carry no loss.

    instructions  row: prompt, response, end-of-text ...
    preferences   row: prompt, chosen, end-of-text ... | prompt, rejected, end-of-text ...

The token before a row is an end-of-text, as before every document. In a preference the last token
of the first half is one too, so both halves begin alike. Prompt and response are encoded apart, so
no token holds letters of both.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train import storage
from train.data import token_store
from train.data.readers import SkippedRow
from train.data.store_writer import ROWS_PER_GROUP, SCHEMA, fingerprint
from train.data.token_store import TokenStore, open_store
from train.data.tokenizers import Tokenizer
from train.data.tuning.examples import Example, TuningSet, example_problem
from train.errors import CorpusError, StoreError, TokenizerError
from train.short_repr import short_repr


__all__ = ["build_tuning_store"]

TUNING_SCHEMA = SCHEMA.append(pa.field("prompt_tokens", pa.int32()))
SHORT_VOCABULARY = 1 << 16
# Rows are a multiple of this long, which suits the matrix products.
MULTIPLE = 8


@dataclass(frozen=True)
class _Encoded:
    """An example as tokens: the prompt, and one response, or the chosen and the rejected one."""

    example: Example
    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]

    __repr__ = short_repr

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(map(len, self.responses))


def build_tuning_store(
    examples: TuningSet,
    *,
    out: str | Path,
    tokenizer: Tokenizer,
    context: int,
    held_out: float = 0.0,
    drop: bool = False,
) -> TokenStore:
    """Encode tuning examples and write a token store.

    Args:
        tokenizer: The tokenizer of the run to be tuned.
        context: The context of that run's model, in tokens. Rows are only as long as the longest
            example needs.
        held_out: Share of examples, chosen by the hash of their prompt, to keep out of training.
        drop: Leave out examples that cannot be used (too long, empty, equal answers) and count
            them in store.json; by default the first one is an error. (Rows that are no examples
            are left out by `open_tuning_set(..., skip_bad=True)`.)

    Raises:
        CorpusError: An example teaches nothing, or none is left.
        StoreError: `out` exists, an example is longer than the context, or all are held out.
        TokenizerError: The tokenizer cannot encode an example.
        DiskError: The disk is full.

    Examples:
        >>> one = tuning.Example(0, "the capital of runethi is", "koreskul .")
        >>> examples = tuning.TuningSet("mine", "instructions", "0", lambda: iter([one]))
        >>> mine = tuning.build_tuning_store(
        ...     examples, out=folder / "mine", tokenizer=run.tokenizer, context=64
        ... )
        >>> mine.tuning, mine.text(0), mine.prompt_tokens.tolist()
        ('instructions', 'the capital of runethi is koreskul .', [5])
    """
    out = Path(out)
    if out.exists():
        raise StoreError(f"{out} exists already; choose another place or remove it")
    if not 0 <= held_out < 1:
        raise StoreError(f"held_out={held_out} is no share of examples within [0, 1)")
    skipped: list[SkippedRow] = []
    kept, dropped = _encoded(examples, tokenizer, context, drop, skipped)
    learned = [one for one in kept if not _is_held_out(one.example, held_out)]
    if not learned:
        raise StoreError(
            f"held_out={held_out} sets all {len(kept)} examples of {examples.name} aside and "
            "leaves none to train on; hold out less"
        )
    ordered = learned + [one for one in kept if _is_held_out(one.example, held_out)]
    longest = max(one.longest for one in kept)
    width = min(-(-(longest + 1) // MULTIPLE) * MULTIPLE, context)
    row_length = width * (2 if examples.kind == "preferences" else 1)
    tokens = np.full(1 + len(ordered) * row_length, tokenizer.eot, _dtype(tokenizer))
    for row, one in enumerate(ordered):
        for half, response in enumerate(one.responses):
            first = 1 + row * row_length + half * width
            sequence = np.concatenate([one.prompt, response])
            tokens[first : first + len(sequence)] = sequence
    with storage.new_folder(out) as folder:
        (folder / token_store.TOKENS).write_bytes(tokens.tobytes())
        table = _table(examples, ordered, tokens, tokenizer, row_length, width)
        pq.write_table(
            table,
            folder / token_store.TABLE,
            compression="zstd",
            row_group_size=ROWS_PER_GROUP,
        )
        tokenizer.save(folder / token_store.TOKENIZER)
        if examples.truth is not None:
            storage.write_json(folder / token_store.TRUTH, examples.truth)
        if examples.rows is not None:
            listed = "".join(one.json_line() for one in skipped)
            storage.write_text(folder / token_store.SKIPPED, listed)
        content = _manifest(folder, examples, tokenizer, width, row_length, held_out)
        n_learned = 1 + len(learned) * row_length
        content["counts"] = {
            "documents": len(ordered),
            "tokens": len(tokens),
            "train_documents": len(learned),
            "train_tokens": n_learned,
            "early_tokens": n_learned,
            "respaced_documents": 0,
            "dropped": dict(sorted(dropped.items())),
            **({} if examples.rows is None else {"skipped_rows": len(skipped)}),
        }
        storage.write_json(folder / token_store.STORE_MANIFEST, storage.seal(content))
    return open_store(out)


def _encoded(
    examples: TuningSet, tokenizer: Tokenizer, context: int, drop: bool, skipped: list[SkippedRow]
) -> tuple[list[_Encoded], Counter[str]]:
    """Return the usable examples as tokens, and how many were dropped for which reason.

    Rows that the set leaves out are appended to `skipped`.
    """
    kept, dropped = [], Counter[str]()
    for example in (examples.rows or examples.read)():
        if isinstance(example, SkippedRow):
            skipped.append(example)
            continue
        problem = example_problem(example)
        if problem and not drop:
            place = examples.place(example.row)
            raise CorpusError(f"{place} {problem}; mend it, or leave such examples out (--drop)")
        if problem:
            dropped[problem.removeprefix("has ").split(",")[0]] += 1
            continue
        one = _tokens(examples, example, tokenizer)
        if one.longest < context:
            kept.append(one)
        elif drop:
            dropped["too long"] += 1
        else:
            raise StoreError(
                f"{examples.place(example.row)} has {one.longest} tokens; a context of {context} "
                f"holds at most {context - 1} and no example is cut: leave long ones out (--drop)"
            )
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        bad = f"{len(skipped)} bad rows" if skipped else ""
        why = ", ".join(filter(None, [why, bad])) or "it is empty"
        raise CorpusError(f"{examples.name} holds no usable example: {why}")
    return kept, dropped


def _tokens(examples: TuningSet, example: Example, tokenizer: Tokenizer) -> _Encoded:
    answers = (example.response,)
    if example.rejected is not None:
        answers = (example.response, example.rejected)
    try:
        prompt, *responses = (tokenizer.encode(text) for text in (example.prompt, *answers))
    except TokenizerError as error:
        raise TokenizerError(f"{examples.place(example.row)}: {error}") from None
    return _Encoded(example, prompt, tuple(responses))


def _is_held_out(example: Example, share: float) -> bool:
    """Return whether an example is held out, by its prompt alone: copies are treated alike."""
    sha256 = hashlib.sha256(example.prompt.encode()).hexdigest()
    return int(sha256[:16], 16) / 2**64 < share


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= SHORT_VOCABULARY else "<u4")


def _table(
    examples: TuningSet,
    ordered: Sequence[_Encoded],
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    row_length: int,
    width: int,
) -> pa.Table:
    starts = 1 + np.arange(len(ordered)) * row_length
    last = [len(one.prompt) + len(one.responses[-1]) for one in ordered]
    lengths = np.array(last) + width * (len(ordered[0].responses) - 1)
    prefix = f"{examples.name}@{examples.revision[:12]}/{examples.kind}/"
    # The text that the store gives back, so that `verify_store` can compare them.
    texts = [
        token_store.decoded(tokens[start : start + length], tokenizer)
        for start, length in zip(starts, lengths, strict=True)
    ]
    return pa.Table.from_pydict(
        {
            "id": [f"{prefix}{one.example.row}" for one in ordered],
            "start": starts,
            "length": lengths.astype(np.int32),
            "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "source": [examples.name] * len(ordered),
            "shard": [examples.kind] * len(ordered),
            "row": [one.example.row for one in ordered],
            "title": [one.example.title for one in ordered],
            "url": [""] * len(ordered),
            "prompt_tokens": np.array([len(one.prompt) for one in ordered], dtype=np.int32),
        },
        schema=TUNING_SCHEMA,
    )


def _manifest(
    folder: Path,
    examples: TuningSet,
    tokenizer: Tokenizer,
    width: int,
    row_length: int,
    held_out: float,
) -> dict[str, object]:
    files = sorted(folder.iterdir())
    return {
        "schema": token_store.SCHEMA_VERSION,
        "layout": "padded",
        "tuning": examples.kind,
        "example_length": width,
        "row_length": row_length,
        "dtype": _dtype(tokenizer).str,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "tokenizer": {name: getattr(tokenizer, name) for name in ("kind", "sha256", "vocab_size")},
        "corpus": {"name": examples.name, "source": examples.name, "revision": examples.revision},
        "seed": 0,
        "held_out": held_out,
        "files": {file.name: storage.sha256_file(file) for file in files},
        "sizes": {file.name: file.stat().st_size for file in files},
        "fingerprint": fingerprint(folder / token_store.TABLE),
    }
