"""Measurements during training: induction, copying, in-context loss, and behaviours.

Measuring does not change a run: it reads no random state, needs no gradient, and leaves weights,
mode and hooks unchanged. The model runs in fp32 on its fp32 weights, so a measurement at the step
of a checkpoint equals one made later from that checkpoint. A task is plain data; behaviours are
passed in by the caller as prompts with answers and foils.

Scores (Olsson et al. 2022, https://arxiv.org/abs/2209.11895):

    induction LxHy        attention from a token in the second copy of random tokens to the token
                          that followed its first occurrence
    previous token LxHy   attention to the previous token
    copying gap           loss on the first copy minus loss on the second, in nats per token
    in-context            loss late in a window minus loss early in it, in nats per token; negative
                          if context helps. Olsson et al. use tokens 500 and 50 of 512; we use the
                          last and the second sixteenth of the window (480..511 and 32..63 of 512).
                          It says little if a window holds several documents, as packed rows do.
    <name> logit difference, <name> accuracy    for prompts with an answer and a foil

`induction` and `previous token` without layer and head are the highest value of any head at that
step.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from train import storage
from train.data import TokenStore
from train.errors import TrainError
from train.model import GPT
from train.runs import (
    MONITOR_LOG,
    MonitorScore,
    MonitorTask,
    parse_log,
    six_digits,
)
from train.trainer import evaluation


__all__ = [
    "COPY_LENGTH",
    "Monitor",
    "context_task",
    "copying_task",
    "measure_tasks",
    "monitor_words",
    "store_tasks",
]

COPY_LENGTH, SEQUENCES, WINDOWS = 24, 8, 8


def store_tasks(store: TokenStore, context: int) -> list[MonitorTask]:
    """Return the tasks that need only a store: copying, and loss in context.

    The copying task is left out if the context or the vocabulary is too small for it.

    Examples:
        >>> [task.name for task in trainer.store_tasks(store, 64)]
        ['copies', 'context']
    """
    known = monitor_words(store)
    length = min(COPY_LENGTH, (context - 1) // 2, len(known))
    found = [copying_task(known, store.eot, length=length)] if length > 1 else []
    return [*found, context_task(store, context)]


def monitor_words(store: TokenStore) -> list[int]:
    """Return the tokens for repeated sequences: those of the planted corpus, or all but the eot.

    Examples:
        >>> len(trainer.monitor_words(store)), store.vocab_size
        (975, 976)
    """
    named = (store.truth or {}).get("induction", {}).get("words")
    if named:
        return [int(store.tokenizer.encode(word)[0]) for word in named]
    return [token for token in range(store.vocab_size) if token != store.eot]


def copying_task(
    words: Sequence[int], eot: int, *, n: int = SEQUENCES, length: int = COPY_LENGTH, seed: int = 0
) -> MonitorTask:
    """Return a task of n sequences: an end-of-text and twice the same `length` random tokens.

    The tokens of a sequence are all different.

    Raises:
        TrainError: There are fewer than `length` tokens in `words`.

    Examples:
        >>> task = trainer.copying_task(range(1, 50), eot=0, n=2, length=3)
        >>> task.reads, tuple(task.tokens.shape)
        ('copies', (2, 7))
    """
    if len(words) < length:
        raise TrainError(f"{length} different tokens cannot be drawn from {len(words)}")
    draw = np.random.Generator(np.random.Philox(key=seed))
    run = torch.tensor(np.stack([draw.choice(words, length, replace=False) for _ in range(n)]))
    return MonitorTask("copies", "copies", torch.cat([torch.full((n, 1), eot), run, run], dim=1))


def context_task(store: TokenStore, context: int, *, n: int = WINDOWS) -> MonitorTask:
    """Return a task of the first n held-out windows, or training windows if there are none.

    Examples:
        >>> task = trainer.context_task(store, 64, n=2)
        >>> task.reads, tuple(task.tokens.shape)
        ('context', (2, 65))
    """
    held_out = (store.n_tokens - store.train_tokens) // context
    first = store.train_tokens - 1 if held_out else 0
    there = held_out or (store.train_tokens - 1) // context
    starts = first + np.arange(min(n, there)) * context
    rows = np.asarray(store.tokens[starts[:, None] + np.arange(context + 1)])
    return MonitorTask("context", "context", torch.from_numpy(rows.astype(np.int64)), eot=store.eot)


@torch.no_grad()
def measure_tasks(model: GPT, watches: Iterable[MonitorTask]) -> dict[str, MonitorScore]:
    """Measure all scores of the tasks, with one forward pass per task.

    The model's mode is restored afterwards.

    Examples:
        >>> scores = trainer.measure_tasks(model, trainer.store_tasks(store, 64))
        >>> scores["induction"].value > 0.5, scores["induction"].n
        (True, 8)
    """
    training, found = model.training, {}
    model.eval()
    try:
        for one in watches:
            found |= _READERS[one.reads](model, one)
    finally:
        model.train(training)
    return found


def _copies(model: GPT, watch: MonitorTask) -> dict[str, MonitorScore]:
    tokens = watch.tokens.to(model.device)
    length = (tokens.shape[1] - 1) // 2
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    pattern = torch.stack([cache[name].float() for name in names])
    second = torch.arange(length + 1, 2 * length + 1)
    every = torch.arange(1, 2 * length + 1)
    # The first occurrence of a token in the second copy is `length` positions earlier, so the token
    # after that occurrence is `length - 1` positions earlier.
    found = _of_heads("induction", pattern[..., second, second - length + 1].mean(dim=-1))
    found |= _of_heads("previous token", pattern[..., every, every - 1].mean(dim=-1))
    losses = _losses(logits[:, :-1], tokens[:, 1:])
    # Neither can the first token of the second copy be predicted, so it is left out.
    gap = losses[:, :length].mean(dim=1) - losses[:, length + 1 :].mean(dim=1)
    return found | {"copying gap": _mean(gap)}


def _of_heads(name: str, attention: Float[Tensor, "layer prompt head"]) -> dict[str, MonitorScore]:
    scores = {
        f"{name} L{layer}H{head}": _mean(attention[layer, :, head])
        for layer in range(attention.shape[0])
        for head in range(attention.shape[2])
    }
    return {name: max(scores.values(), key=lambda one: one.value), **scores}


def _context(model: GPT, watch: MonitorTask) -> dict[str, MonitorScore]:
    tokens = watch.tokens.to(model.device)
    losses = _losses(model(tokens[:, :-1]), tokens[:, 1:])
    eot = -1 if watch.eot is None else watch.eot  # No token is -1, so nothing is padding.
    counted = (tokens[:, 1:] != eot) | (tokens[:, :-1] != eot)
    n_pos = losses.shape[1]
    part = max(n_pos // 16, 1)
    places = (slice(part, 2 * part), slice(n_pos - part, n_pos))
    early, late = (_mean(losses[:, at][counted[:, at]]) for at in places)
    if not (early.n and late.n):
        return {}
    if early.error is None or late.error is None:
        error = None
    else:
        error = (early.error**2 + late.error**2) ** 0.5
    return {"in-context": MonitorScore(late.value - early.value, error, min(early.n, late.n))}


def _answers(model: GPT, watch: MonitorTask) -> dict[str, MonitorScore]:
    assert watch.answer is not None  # MonitorTask refuses `answers` without answer and foil.
    assert watch.foil is not None
    tokens = watch.tokens.to(model.device)
    answer, foil = watch.answer.to(model.device), watch.foil.to(model.device)
    last, row = model(tokens)[:, -1].float(), torch.arange(len(tokens), device=model.device)
    difference = last[row, answer] - last[row, foil]
    right = difference > 0
    if watch.candidates is not None:
        right = evaluation.is_highest(last, answer, watch.candidates)
    # A prompt with several foils counts as one case.
    n = len(watch.tokens.unique(dim=0))
    return {
        f"{watch.name} logit difference": _mean(difference, n),
        f"{watch.name} accuracy": _mean(right.float(), n),
    }


_READERS = {"copies": _copies, "context": _context, "answers": _answers}


def _losses(
    logits: Float[Tensor, "prompt pos vocab"], targets: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "prompt pos"]:
    # Flattened, because there is no deterministic GPU kernel for [batch vocab pos].
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    return flat.view(targets.shape)


def _mean(values: Float[Tensor, " case"], n: int | None = None) -> MonitorScore:
    n = len(values) if n is None else n
    mean = values.mean().item() if len(values) else 0.0
    return MonitorScore(mean, values.std().item() / n**0.5 if n > 1 else None, n)


class Monitor:
    """A monitor that measures when due and writes the log; without a log it does nothing."""

    def __init__(self, run_path: Path, step: int, device: str) -> None:
        """Continue at `step`; later measurements in the log are dropped and taken again."""
        self.due: set[int] = set()
        self._writer: storage.ChainWriter | None = None
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self._begun, self._spent = self._clock(), 0.0
        if not (run_path / MONITOR_LOG).exists():
            return
        self._writer = storage.ChainWriter(
            run_path / MONITOR_LOG, lambda row: row.get("step", 0) <= step
        )
        log = parse_log(run_path / MONITOR_LOG, self._writer.rows)
        self._watches, done = log.watches, {one.step for one in log.looks}
        self.due = {one for one in log.steps if one >= step} - done

    def look(self, model: GPT, step: int, tokens: int) -> None:
        """Measure and log the scores if `step` is due.

        Scores that are not finite are not logged; the next step or checkpoint reports the problem.
        """
        if self._writer is None or step not in self.due:
            return
        begin = self._clock()
        scores = measure_tasks(model, self._watches)
        seconds = self._clock() - begin
        self._spent += seconds
        share = self._spent / max(self._clock() - self._begun, 1e-9)
        if all(math.isfinite(one.value + (one.error or 0.0)) for one in scores.values()):
            written = {
                name: [six_digits(one.value), six_digits(one.error), one.n]
                for name, one in scores.items()
            }
            self._writer.append(
                {"step": step, "tokens": tokens, "scores": written}
                | {"seconds": round(seconds, 6), "share": six_digits(share)}
            )

    def close(self) -> None:
        """Close the log; its rows stay."""
        if self._writer:
            self._writer.close()
