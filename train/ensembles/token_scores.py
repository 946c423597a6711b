"""Log-probabilities of every held-out token, by member and document.

The probability that an ensemble gives to a token needs only the probabilities that its members give
to that token. Members are therefore scored one after another, once, and any weights are tried
afterwards without a forward pass.

All held-out tokens are scored, in windows that tile them and are as long as the shortest context of
a member; the last window is as long as what is left. The end-of-text behind a document counts as
part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from train.data import IGNORED, RecordedOrder, TokenStore, document_sha256s, read_batch
from train.ensembles.ensemble import Member, log_probabilities
from train.errors import StoreError
from train.model import GPT
from train.progress import Progress
from train.short_repr import short_repr


__all__ = ["HeldOutScores", "held_out_scores", "scores_of"]

BATCH_TOKENS = 16_384


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """The probability that each member gives to each held-out token.

    Attributes:
        values: Log-probabilities in nats.
        documents: Index of the document that each token belongs to, counted from 0 among the
            held-out ones.
        halves: Half (0 or 1) that each document belongs to. Weights are learned on half 0 and
            reported on half 1. Copies of one text are in the same half.
    """

    values: Float[np.ndarray, "member token"]
    documents: Int64[np.ndarray, " token"]
    halves: Int64[np.ndarray, " document"]

    __repr__ = short_repr

    def half(self, number: int) -> "HeldOutScores":
        """Return the scores of the documents of one half."""
        kept = self.halves == number
        renumbered = np.cumsum(kept) - 1
        tokens = kept[self.documents]
        return HeldOutScores(
            self.values[:, tokens], renumbered[self.documents[tokens]], self.halves[kept]
        )

    def mixture(self, weights: Float64[np.ndarray, " member"]) -> Float64[np.ndarray, " token"]:
        """Return the log-probabilities of an ensemble with these weights.

        With one member they are those of the member, bit for bit.
        """
        with np.errstate(divide="ignore"):  # a weight of 0 leaves its member out
            terms = self.values.astype(np.float64) + np.log(weights)[:, None]
        return np.logaddexp.reduce(terms, axis=0)

    def losses(self, values: Float[np.ndarray, " token"]) -> Float64[np.ndarray, " document"]:
        """Return the summed loss of each document, in nats, of log-probabilities by token."""
        return np.bincount(self.documents, -values.astype(np.float64), len(self.halves))

    @property
    def tokens(self) -> Float64[np.ndarray, " document"]:
        """Number of tokens of each document."""
        return np.bincount(self.documents, minlength=len(self.halves)).astype(np.float64)


def held_out_scores(
    members: Sequence[Member], *, progress: Progress | None = None
) -> HeldOutScores:
    """Score all held-out tokens of a store with every member; one model is in memory at a time.

    Raises:
        StoreError: The store holds out fewer than two different documents.
    """
    store, rows = members[0].run.store, []
    halves, windows = _halves(store), _windows(members)
    for number, member in enumerate(members):
        if progress:
            progress(f"scoring {member}", number, len(members))
        rows.append(_scored(store, windows, member, member.load()))
    return HeldOutScores(np.stack(rows), _owners(store, windows), halves)


def scores_of(members: Sequence[Member], model: GPT) -> Float[np.ndarray, " token"]:
    """Return the log-probabilities that a model made of the members gives to the same tokens."""
    return _scored(members[0].run.store, _windows(members), members[0], model)


def _halves(store: TokenStore) -> Int64[np.ndarray, " document"]:
    """Deal the held-out texts, in the order of their hashes, to the two halves in turn."""
    first = int(np.searchsorted(store.starts, store.train_tokens))
    hashes = list(document_sha256s(store))[first:]
    if len(turns := {text: turn % 2 for turn, text in enumerate(sorted(set(hashes)))}) < 2:
        raise StoreError(
            f"the store {store.path} holds out {len(turns)} different documents; an ensemble is "
            "measured on at least 2: build the store with a larger --held-out"
        )
    return np.array([turns[text] for text in hashes], dtype=np.int64)


def _windows(members: Sequence[Member]) -> list[RecordedOrder]:
    """Return batches of windows that tile the held-out tokens; the last one may be shorter."""
    store, context = members[0].run.store, min(one.run.config.n_ctx for one in members)
    first, last = store.train_tokens - 1, store.n_tokens - 1  # inputs; targets are one later
    whole = np.arange(first, last - context + 1, context)
    size = max(BATCH_TOKENS // context, 1)
    batches = [whole[at : at + size] for at in range(0, len(whole), size)]
    orders = [RecordedOrder(starts[None], context) for starts in batches]
    if left := (last - first) % context:
        orders.append(RecordedOrder(np.array([[last - left]]), left))
    return orders


def _owners(store: TokenStore, windows: list[RecordedOrder]) -> Int64[np.ndarray, " token"]:
    """Return the held-out document of every target that carries loss, in the order of scoring."""
    owners = [np.empty(0, dtype=np.int64)]
    first = int(np.searchsorted(store.starts, store.train_tokens))
    for order in windows:
        batch = read_batch(store, order, 0)
        offsets = batch.starts[:, None] + 1 + torch.arange(order.context)
        counted = offsets[batch.targets != IGNORED].numpy()
        owners.append(store.table.last_begun(counted) - first)
    return np.concatenate(owners)


@torch.inference_mode()
def _scored(
    store: TokenStore, windows: list[RecordedOrder], member: Member, model: GPT
) -> Float[np.ndarray, " token"]:
    rows = [np.empty(0, dtype=np.float32)]
    for order in windows:
        batch = read_batch(store, order, 0)
        values = log_probabilities(member, model, batch.inputs)
        rows.append(_of_targets(values, batch.targets.to(values.device)).cpu().numpy())
    return np.concatenate(rows)


def _of_targets(
    values: Float[Tensor, "batch pos vocab"], targets: Int64[Tensor, "batch pos"]
) -> Float[Tensor, " token"]:
    counted = targets != IGNORED
    return values[counted].gather(-1, targets[counted][:, None])[:, 0]
