"""Projected gradients of documents and of prompts, component by component.

For every linear map y = W x of the selection, the gradient of one document's loss is a sum over
positions of (output gradient) (input)^T. Both factors are projected where they appear, in the
forward and in the backward pass, and only the sum over positions of the small outer products is
formed: **no weight gradient ever exists**, neither of a document nor of a batch. Below the lowest
selected site nothing is recorded, and the backward pass stops there.

* `document_features`: gradients of the loss, summed over a document's targets, in nats. A document
  is presented as end-of-text and its tokens, and its targets are its tokens and the end-of-text
  behind it: exactly what `train.data.DocumentRemoval` removes. A document longer than the context
  is cut into windows of `n_ctx` targets, whose gradients add up.
  The prompt of an example for tuning carries no loss. For a preference it is the gradient of minus
  the margin, log p(chosen) - log p(rejected), which is the log-odds with which DPO prefers the
  chosen response, up to a constant and its factor beta.
* `query_features`: gradients of each prompt's score.

Removing a document with gradient d from the last step changes a query with gradient q by +lr <d,
q>, so the score of d as evidence *for* q is -<d, q>. Documents of different lengths are padded at
the end, where a causal model sends neither activation nor gradient back; results do not depend on
which documents share a batch (1e-5 relative, fp32 rounding).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.gradients import losses, projection
from data_attribution.gradients.projection import RANK, Sides
from data_attribution.gradients.tape import Tape
from data_attribution.gradients.weight_selection import Selection
from data_attribution.queries import Query
from interp.patching.engine import fast_fp32
from train.data import IGNORED, TokenStore
from train.model import GPT, attachments, with_gradients
from train.progress import Progress
from train.short_repr import short_repr


__all__ = ["BATCH_TOKENS", "Features", "document_features", "frozen", "query_features"]

BATCH_TOKENS = 2048

Block = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Features:
    """Projected gradients, one row per document or prompt.

    Attributes:
        rows: Index of each row's document in the store, or of its prompt in the query.
        values: Gradients in fp32; the sites side by side, each a matrix [outputs inputs] flattened.
        blocks: Name, first column and end column (exclusive) of every site.
        rank: Rank of the projections.
        seed: Seed of the projections; features of different seeds cannot be compared.
    """

    rows: Int64[np.ndarray, " row"]
    values: Float[np.ndarray, "row dim"]
    blocks: tuple[Block, ...]
    rank: int = RANK
    seed: int = 0

    __repr__ = short_repr

    def of(self, site: str) -> Float[np.ndarray, "row part"]:
        """Return the columns of one site.

        Raises:
            EvidenceError: The site was not collected.
        """
        for name, start, stop in self.blocks:
            if name == site:
                return self.values[:, start:stop]
        raise EvidenceError(
            f"no gradient of {site!r} was collected; there are {', '.join(self.sites)}"
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the sites, in the order of the columns."""
        return tuple(name for name, _, _ in self.blocks)


@torch.inference_mode(False)  # also inside a caller's inference mode
def document_features(
    model: GPT,
    store: TokenStore,
    documents: Sequence[int] | Int64[np.ndarray, " document"],
    selection: Selection,
    *,
    rank: int = RANK,
    seed: int = 0,
    sides: Mapping[str, Sides] | None = None,
    log_odds: float | None = None,
    drawn: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    product: str | None = None,
    progress: Progress | None = None,
) -> Features:
    """Return the projected gradient of every document's loss, summed over its targets, in nats.

    Costs one forward pass and a backward pass without weight gradients, down to the lowest site.

    Args:
        documents: Indices in the document table, in the order of the rows of the result.
        selection: Sites, as `weight_selection.select_weights(model.cfg, within)` returns them.
        rank: Rank of the two projections of every site; most sites take `rank` squared numbers.
        seed: Seed of the projections; it must be the same for documents and query.
        sides: Factors that multiply both sides of a site before they are projected, see
            `projection`.
        log_odds: Follow minus the log-odds of every target instead of its loss, see `losses`.
        drawn: Seed for targets that the model itself draws at every position, in place of those of
            the corpus. The second moment of such gradients is the curvature of the loss, see
            `preconditioner`.
        batch_tokens: Number of positions processed at a time.
        product: Precision of matrix products, as torch names it (None: the fastest true fp32
            product that this process measured). Bit-identical results need the same precision.

    Raises:
        EvidenceError: There is no such document, or the model is not causal.

    Examples:
        >>> selection = gradients.select_weights(model.cfg, ["L0.mlp"])
        >>> features = gradients.document_features(model, store, [28867, 2456], selection, rank=16)
        >>> features.values.shape, features.blocks
        ((2, 512), (('L0.mlp.up', 0, 256), ('L0.mlp.down', 256, 512)))
    """
    documents = np.asarray(documents, dtype=np.int64)
    _refuse(model, store, documents)
    preferences = store.tuning == "preferences"
    if preferences and drawn is not None:
        raise EvidenceError(
            f"the curvature of preferences is not estimated ({store.path}); compare by 'cosine'"
        )
    tape = _tape(model, selection, rank, seed, sides)
    values = torch.zeros(len(documents), tape.dim, dtype=torch.float32)
    done = 0
    with _taping(model, tape, product):
        for rows, start, length in document_batches(
            store, documents, store.example_length or model.cfg.n_ctx, batch_tokens
        ):
            tokens, targets = (
                one.to(model.device) for one in inputs_and_targets(store, start, length)
            )
            tape.start(tokens)
            logits = model(tokens)
            if drawn is not None:
                targets = losses.drawn(logits, targets, _chances(drawn, start, targets))
            loss = losses.summed(logits, targets, None if preferences else log_odds)
            found = tape.features(loss).cpu()
            if preferences:
                rejected = torch.from_numpy(start >= store.starts[documents][rows])
                found[rejected] *= -1
            values.index_add_(0, torch.from_numpy(rows), found)
            done += len(np.unique(rows))
            if progress:
                progress("gradients", min(done, len(documents)), len(documents))
    return Features(documents, values.numpy(), tuple(tape.blocks), rank, seed)


@torch.inference_mode(False)  # also inside a caller's inference mode
def query_features(
    model: GPT,
    question: Query,
    selection: Selection,
    *,
    rank: int = RANK,
    seed: int = 0,
    sides: Mapping[str, Sides] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Features:
    """Return the projected gradient of every prompt's score; arguments as for `document_features`.

    Raises:
        EvidenceError: The score depends on none of the sites.

    Examples:
        >>> selection = gradients.select_weights(model.cfg, ["L0.mlp"])
        >>> query = queries.query_of_behaviour(fact)
        >>> gradients.query_features(model, query, selection, rank=16).values.shape
        (50, 512)
    """
    tape = _tape(model, selection, rank, seed, sides)
    n_prompts, n_pos = question.tokens.shape
    values = np.zeros((n_prompts, tape.dim), dtype=np.float32)
    depends = False
    with _taping(model, tape):
        for prompt in torch.arange(n_prompts).split(max(batch_tokens // n_pos, 1)):
            tape.start(question.tokens[prompt].to(model.device))
            score = queries.query_scores(model, question, prompt)
            depends |= score.requires_grad
            values[prompt.numpy()] = tape.features(score).cpu().numpy()
            if progress:
                progress("prompts", int(prompt[-1]) + 1, n_prompts)
    if not depends:
        raise EvidenceError(
            f"{question.name!r} depends on none of {', '.join(name for name, _, _ in tape.blocks)}:"
            " it is read below them; name components that come before it"
        )
    return Features(np.arange(n_prompts), values, tuple(tape.blocks), rank, seed)


def _tape(
    model: GPT, selection: Selection, rank: int, seed: int, sides: Mapping[str, Sides] | None
) -> Tape:
    # Hooks at hook points are passed on the way there and back, as the tape's own are.
    if found := attachments(model, hook_points=False):
        raise EvidenceError(f"{found[0]}, which gradients do not see; take the model without it")
    made = projection.projections(selection, rank=rank, seed=seed, sides=sides, device=model.device)
    return Tape(model.cfg, selection, made, rank)


@contextmanager
def _taping(model: GPT, tape: Tape, product: str | None = None) -> Iterator[None]:
    multiplied = fast_fp32(model.device, product)
    with with_gradients(model), frozen(model), multiplied, tape.laid(model):
        yield


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Stop all weights from collecting gradients inside the block."""
    learning = [one for one in model.parameters() if one.requires_grad]
    try:
        for one in learning:
            one.requires_grad_(False)
        yield
    finally:
        for one in learning:
            one.requires_grad_(True)


def _refuse(model: GPT, store: TokenStore, documents: np.ndarray) -> None:
    if not model.cfg.causal:
        raise EvidenceError("documents have a loss under a causal model only, and this one is not")
    if not len(documents):
        raise EvidenceError("no document was named; name at least one")
    outside = documents[(documents < 0) | (documents >= store.n_documents)]
    if len(outside):
        raise EvidenceError(
            f"document {outside[0]} is not one of the {store.n_documents} of the store"
        )


def document_batches(
    store: TokenStore, documents: np.ndarray, n_ctx: int, batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches of windows of similar length: result row, first input, number of targets."""
    row, start, length = _windows(store, documents, n_ctx)
    order = np.argsort(length, kind="stable")
    first = 0
    while first < len(order):
        # Lengths ascend, so a batch's last window sets the width of all: k windows take k * (length
        # of the k-th) positions. Take the largest k that fits.
        widths = length[order[first:]] * np.arange(1, len(order) - first + 1)
        count = max(int(np.searchsorted(widths, batch_tokens, side="right")), 1)
        chosen = order[first : first + count]
        yield row[chosen], start[chosen], length[chosen]
        first += count


def _windows(
    store: TokenStore, documents: np.ndarray, n_ctx: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, first input and number of targets of every window of every document."""
    targets = store.lengths[documents] + 1
    pieces = -(-targets // n_ctx)
    row = np.repeat(np.arange(len(documents)), pieces)
    number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    # The token before a document is always an end-of-text. Window number i of a document begins i *
    # n_ctx tokens after it.
    start = store.starts[documents][row] - 1 + number * n_ctx
    length = np.minimum(targets[row] - number * n_ctx, n_ctx)
    return row, start, length


def inputs_and_targets(
    store: TokenStore, start: np.ndarray, length: np.ndarray
) -> tuple[Int[Tensor, "window pos"], Int[Tensor, "window pos"]]:
    column = np.arange(int(length.max()) + 1)
    offsets = np.minimum(start[:, None] + column, store.n_tokens - 1)
    tokens = torch.from_numpy(np.asarray(store.tokens[offsets]).astype(np.int64))
    inside = torch.from_numpy(column[:-1] < length[:, None])
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    learned = torch.from_numpy(store.carries_loss(offsets[:, 1:]))
    padding = (inputs == store.eot) & (targets == store.eot)  # as in `train.data.batches`
    counted = inside & learned & ~padding
    return torch.where(inside, inputs, store.eot), torch.where(counted, targets, IGNORED)


def _chances(seed: int, start: np.ndarray, targets: Tensor) -> Float[Tensor, "window pos"]:
    """Return uniform draws keyed by seed and position in the store, independent of the batch."""
    width = targets.shape[1]
    rows = [np.random.Generator(np.random.Philox(key=[seed, one])).random(width) for one in start]
    return torch.from_numpy(np.stack(rows)).float().to(targets.device)
