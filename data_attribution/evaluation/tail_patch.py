"""Tail patch: the effect of one more training step on a document on the answer to a query.

The tail patch of Chang et al. 2024 (TrackStar, https://arxiv.org/abs/2410.17413): the last
checkpoint takes one step of its own optimizer, at the last learning rate, on one document alone,
and the query is measured again. The optimizer also moves without any gradient, by its momentum, so
the effect of a step on nothing is subtracted. A document that taught the answer raises the number.
This tests rankings without a truth table and without retraining; in return it measures what the
document *would* teach now, not what it taught.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from train import trainer
from train.data import IGNORED, TokenStore
from train.model import GPT
from train.numerics import Numerics, applied, on_this_machine
from train.progress import Progress
from train.runs import Run
from train.trainer import TrainState


__all__ = ["tail_patch_changes"]

Values = Float64[np.ndarray, "_"]  # by document; queries have any number of documents


def tail_patch_changes(
    run: Run,
    asked: Sequence[tuple[Query, Sequence[int]]],
    *,
    progress: Progress | None = None,
) -> list[Values]:
    """Return for each query the change of its mean over prompts by a step on each document.

    Costs one step and one forward pass over the query's prompts per document.

    Raises:
        TrainError: The run kept no optimizer.
        EvidenceError: The run was trained with more than the loss of the next token.
    """
    if run.recipe.objective == "dpo":
        raise EvidenceError(
            f"the run {run.path} was tuned by dpo, and a tail patch makes a step on the loss of "
            "next tokens; compare by gradients"
        )
    if run.recipe.methods:
        raise EvidenceError(
            f"the run {run.path} was trained with {', '.join(run.recipe.methods)}; a tail patch "
            "takes a step of the loss of the next token only: skip it with --tail-patch 0"
        )
    # One thread suffices: results need not match the trainer to the bit, and a step is a few
    # tokens.
    numerics = replace(on_this_machine(run.numerics), threads=1)
    state = trainer.load_state(run, run.saved_at(None).step, numerics)
    lr = trainer.lr_at(run.recipe, max(state.step - 1, 0))
    nothing = _stepped(run, state, numerics, lr, None)
    found, done, total = [], 0, sum(len(documents) for _, documents in asked)
    for question, documents in asked:
        base = queries.measure_query(nothing, question).mean()
        values = np.empty(len(documents))
        for place, document in enumerate(documents):
            model = _stepped(run, state, numerics, lr, int(document))
            values[place] = queries.measure_query(model, question).mean() - base
            done += 1
            if progress:
                progress("tail patches", done, total)
        found.append(values)
    return found


def _stepped(
    run: Run, state: TrainState, numerics: Numerics, lr: float, document: int | None
) -> GPT:
    """Return the model after one step on a document (None: on nothing); `state` is not changed."""
    state = copy.deepcopy(state)
    parameters = list(state.model.parameters())
    trainer.set_lr(state.optimizer, lr)
    last = max(state.step - 1, 0)
    trainer.set_weight_decay(state.optimizer, trainer.weight_decay_at(run.recipe, last))
    with applied(numerics):
        for one in parameters:
            one.grad = torch.zeros_like(one)
        if document is not None:
            for inputs, targets, n in document_windows(run.store, document, run.config.n_ctx):
                inputs, targets = inputs.to(numerics.device), targets.to(numerics.device)
                with numerics.autocast():
                    loss = trainer.next_token_loss(state.model(inputs), targets, n)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.recipe.grad_clip)
        state.optimizer.step()
    return state.model.eval()


def document_windows(
    store: TokenStore, document: int, n_ctx: int
) -> Iterator[tuple[Int64[Tensor, "row pos"], Int64[Tensor, "row pos"], int]]:
    """Yield inputs, targets and the number of all targets of a document between end-of-texts."""
    start, n = int(store.starts[document]), int(store.lengths[document])
    tokens = np.full(n + 2, store.eot, np.int64)
    tokens[1:-1] = store.tokens[start : start + n]
    learned = store.carries_loss(start + np.arange(n + 1))
    targets = np.where(learned, tokens[1:], IGNORED)
    for first in range(0, n + 1, n_ctx):
        piece = slice(first, first + n_ctx)
        inputs, wanted = torch.from_numpy(tokens[:-1][piece]), torch.from_numpy(targets[piece])
        yield inputs[None], wanted[None], int(learned.sum())
