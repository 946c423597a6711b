"""The loss on all held-out documents of a token store.

Every held-out token that is no padding is a target once, in windows that begin where those of
`train.trainer.held_out_loss` begin; the last window may be shorter. A model with another tokenizer
reads the same documents, encoded anew and laid end to end. The end-of-text behind a document counts
as its last token, and has no bytes. Intervals take documents as cases.

Losses per token of two tokenizers cannot be compared; bits per byte can.
"""

import numpy as np
from jaxtyping import Float64, Int64

from interp.errors import EvaluationError
from interp.model_evaluation.items import EvaluationSet, identified
from interp.model_evaluation.likelihood import TokenRow, score_rows
from interp.model_evaluation.score import Measure
from train.data import TokenStore, open_store
from train.model import GPT
from train.progress import Progress


__all__ = ["read"]


def read(path: str, store: TokenStore | None, limit: int | None) -> EvaluationSet:
    """Return the held-out documents of the store at `path`, or of `store` if that is empty.

    Raises:
        EvaluationError: There is no store, it holds nothing out, or it is a tuning store.
        StoreError: There is no token store at `path`.
    """
    source = open_store(path) if path else store
    if source is None:
        raise EvaluationError(
            "heldout needs a token store, and this model came without one; give heldout=STORE"
        )
    if source.tuning:
        raise EvaluationError(
            f"{source.path} holds {source.tuning} for tuning, of which prompts carry no loss, and "
            "heldout scores all tokens; give heldout=STORE with the token store of a corpus"
        )
    documents = np.flatnonzero(source.starts >= source.train_tokens)[:limit]
    if not len(documents):
        raise EvaluationError(
            f"{source.path} holds out none of its {source.n_documents:,} documents; build a store "
            "with --held-out, or give heldout=STORE"
        )
    texts = tuple(source.text(int(one)) for one in documents)
    keys, sha256 = identified(texts)

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        tokens, owners = _stream(model, source, documents, texts)
        nats, counts = _losses(model, tokens, owners, len(documents), progress)
        n_bytes = np.array([float(len(text.encode())) for text in texts])
        return (
            Measure("bits per byte", "bits", nats, n_bytes),
            Measure("loss per token", "nats", nats, counts),
        )

    settings = (
        f"all tokens of held-out documents of store {source.fingerprint[:12]}, in disjoint windows"
    )
    return EvaluationSet("heldout", "1", settings, keys, sha256, texts, (), measure, source)


def _stream(
    model: GPT, store: TokenStore, documents: Int64[np.ndarray, " document"], texts: tuple[str, ...]
) -> tuple[Int64[np.ndarray, " token"], Int64[np.ndarray, " token"]]:
    """Return the tokens that the model reads, and the document that each counts for; -1: none."""
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer == store.tokenizer:
        if model.cfg.d_vocab < store.vocab_size:
            raise EvaluationError(
                f"the model knows {model.cfg.d_vocab} tokens and the store {store.path} has "
                f"{store.vocab_size}; evaluate a model of this vocabulary"
            )
        last = int(documents[-1])
        stop = int(store.starts[last] + store.lengths[last]) + 1
        first = store.train_tokens - 1
        tokens = np.asarray(store.tokens[first:stop]).astype(np.int64)
        places = np.arange(first, first + len(tokens))
        owners = np.searchsorted(store.starts[documents], places, side="right") - 1
        padding = np.append(False, (tokens[1:] == store.eot) & (tokens[:-1] == store.eot))
        owners[padding] = -1
        return tokens, owners
    rows = [np.append(ids.astype(np.int64), tokenizer.eot) for ids in map(tokenizer.encode, texts)]
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return np.concatenate([[tokenizer.eot], *rows]), np.append(-1, owners)


def _losses(
    model: GPT,
    tokens: Int64[np.ndarray, " token"],
    owners: Int64[np.ndarray, " token"],
    n_documents: int,
    progress: Progress | None,
) -> tuple[Float64[np.ndarray, " document"], Float64[np.ndarray, " document"]]:
    """Return the sum of losses and the number of targets of each document."""
    n_ctx = model.cfg.n_ctx
    starts = range(0, len(tokens) - 1, n_ctx)
    windows = [tokens[start : start + n_ctx + 1].tolist() for start in starts]
    rows = [TokenRow(tuple(window), len(window) - 1) for window in windows]
    scored = score_rows(model, rows, progress=progress)
    losses = -np.concatenate([one.log_probabilities for one in scored])
    counted = owners[1:] >= 0
    targets = owners[1:][counted]
    sums = np.bincount(targets, weights=losses[counted], minlength=n_documents)
    return sums, np.bincount(targets, minlength=n_documents).astype(np.float64)
