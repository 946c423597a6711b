"""Log-probabilities of texts, and greedy continuations, many rows at a time.

The rules are those of lm-evaluation-harness 0.4.13 (`lm_eval/api/model.py`, `models/huggingface.py`
and `utils.py`), so that its scores are reproduced:

* A continuation is encoded together with its context, and its tokens are those behind the tokens of
  the context alone. Spaces at the end of the context count as part of the continuation. An empty
  context is one end-of-text.
* If both do not fit the model's context, the first tokens are dropped.
* A long text is cut into windows that begin with its end-of-text and share one token. The last
  window is full: it begins earlier, and only its new tokens count.

Rows of similar length are computed together, filled up at the end, where a causal model cannot see
it. Only the positions that count are unembedded. Batches depend on the rows alone, so the same rows
give the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from interp.errors import EvaluationError
from train.data import Tokenizer
from train.model import GPT
from train.progress import Progress
from train.short_repr import short_repr


__all__ = [
    "ScoredRow",
    "TokenRow",
    "continuation_row",
    "greedy_texts",
    "rolling_rows",
    "score_rows",
]

TOKENS_AT_ONCE = 4096  # of one forward pass, padding included
# 4 MB in fp32 on a CPU: logits that stay in its cache take two thirds of the time.
LOGITS_AT_ONCE = {"cpu": 1 << 20}
ON_DEVICE = 1 << 26  # on any other device: 256 MB


@dataclass(frozen=True)
class TokenRow:
    """Tokens that a model reads, of which the last `n_scored` are predicted and scored.

    Raises:
        EvaluationError: No token is scored, or the first one, which nothing stands before.
    """

    tokens: tuple[int, ...]
    n_scored: int

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not 1 <= self.n_scored < len(self.tokens):
            raise EvaluationError(
                f"{self.n_scored} of {len(self.tokens)} tokens are to be scored; at least 1 can "
                "be, and at most all but the first one"
            )


@dataclass(frozen=True)
class ScoredRow:
    """Log-probability of each scored token, in nats, and whether it had the highest logit."""

    log_probabilities: Float64[np.ndarray, " token"]
    highest: Bool[np.ndarray, " token"]

    __repr__ = short_repr


def continuation_row(tokenizer: Tokenizer, context: str, continuation: str, n_ctx: int) -> TokenRow:
    """Encode a continuation behind its context.

    Raises:
        EvaluationError: The continuation alone has more tokens than the model's context, or none.
        TokenizerError: A word is not in the vocabulary.

    Examples:
        >>> row = model_evaluation.continuation_row(store.tokenizer, "the capital of", " is", 64)
        >>> row.tokens, row.n_scored
        ((794, 112, 562, 349), 1)
    """
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    whole = [int(one) for one in tokenizer.encode(context + continuation)]
    n_context = len(tokenizer.encode(context)) if context else 0
    if not context:
        whole, n_context = [tokenizer.eot, *whole], 1
    n_scored = len(whole) - n_context
    if n_scored < 1:
        raise EvaluationError(
            f"{continuation[:40]!r} adds no token to its context {context[-40:]!r}, so there is "
            "nothing to score; give a longer continuation"
        )
    if n_scored > n_ctx:
        raise EvaluationError(
            f"{continuation[:40]!r} has {n_scored} tokens behind its context, and a context of "
            f"{n_ctx} holds at most {n_ctx}; evaluate a model with a longer context"
        )
    return TokenRow(tuple(whole[-(n_ctx + 1) :]), n_scored)


def rolling_rows(tokenizer: Tokenizer, text: str, n_ctx: int) -> list[TokenRow]:
    """Cut a text into windows in which each of its tokens is scored once.

    Examples:
        >>> text = "the capital of runethi is koreskul ."
        >>> [row.n_scored for row in model_evaluation.rolling_rows(store.tokenizer, text, 3)]
        [3, 3, 1]
    """
    tokens = [tokenizer.eot, *(int(one) for one in tokenizer.encode(text))]
    ends = [*range(n_ctx, len(tokens), n_ctx)]
    if ends[-1:] != [len(tokens) - 1]:
        ends.append(len(tokens) - 1)
    return [
        TokenRow(tuple(tokens[max(end - n_ctx, 0) : end + 1]), (end - 1) % n_ctx + 1)
        for end in ends
        if end > 0
    ]


@torch.inference_mode()
def score_rows(
    model: GPT, rows: Sequence[TokenRow], *, progress: Progress | None = None
) -> list[ScoredRow]:
    """Score the last tokens of each row, in order of the rows.

    Costs one forward pass over all rows, on the device of the model.

    Raises:
        EvaluationError: The model reads ahead, so its losses are not those of the next token; or
            its logits are not finite.

    Examples:
        >>> tokens = model.to_tokens("the capital of runethi is koreskul")[0].tolist()
        >>> row = model_evaluation.TokenRow(tuple(tokens), n_scored=1)
        >>> scored = model_evaluation.score_rows(model, [row])[0]
        >>> scored.highest.tolist(), bool(scored.log_probabilities.sum() > -1)
        ([True], True)
    """
    if model.cfg.reads_ahead:
        raise EvaluationError(
            f"attention {model.cfg.attention!r} lets a position read later ones, so the model's "
            "losses are not those of the next token; evaluate a causal model"
        )
    scored: list[ScoredRow | None] = [None] * len(rows)
    done = 0
    for batch in _batches([len(row.tokens) for row in rows]):
        for number, result in zip(batch, _scores(model, [rows[k] for k in batch]), strict=True):
            scored[number] = result
        done += len(batch)
        if progress:
            progress("rows", done, len(rows))
    return [one for one in scored if one is not None]


@torch.inference_mode()
def greedy_texts(
    model: GPT,
    prompts: Sequence[str],
    *,
    until: Sequence[str],
    n_new: int,
    progress: Progress | None = None,
) -> list[str]:
    """Continue each prompt by its most probable tokens, up to one of the texts in `until`.

    Generation also ends at end-of-text, and after `n_new` tokens. An empty prompt is one
    end-of-text, as an empty context is. The first tokens of a prompt that
    leaves no room for them are dropped. Costs a forward pass per token, because nothing is cached.

    Raises:
        EvaluationError: The model's context has no room for a prompt and `n_new` tokens, or its
            logits are not finite.

    Examples:
        >>> prompts = ["the capital of runethi is", "of"]
        >>> texts = model_evaluation.greedy_texts(model, prompts, until=["."], n_new=8)
        >>> len(texts), any("." in text for text in texts)
        (2, False)
    """
    n_ctx, tokenizer = model.cfg.n_ctx, model.tokenizer
    if n_ctx <= n_new or model.cfg.reads_ahead:
        raise EvaluationError(
            f"{n_new} tokens are generated behind a prompt, and the model's context has {n_ctx}; "
            "evaluate a causal model with a longer context"
        )
    starts = [
        [int(one) for one in ids][-(n_ctx - n_new) :] or [tokenizer.eot]
        for ids in map(tokenizer.encode, prompts)
    ]
    texts, done = [""] * len(prompts), 0
    for batch in _batches([len(start) + n_new for start in starts]):
        rows = {number: list(starts[number]) for number in batch}
        for _ in range(n_new):
            for number, token in zip(rows, _next_tokens(model, list(rows.values())), strict=True):
                rows[number].append(token)
            for number in list(rows):
                new = rows[number][len(starts[number]) :]
                text = tokenizer.decode([one for one in new if one != tokenizer.eot])
                if new[-1] == tokenizer.eot or any(stop in text for stop in until):
                    texts[number] = text
                    del rows[number]
            if not rows:
                break
        for number, row in rows.items():
            texts[number] = tokenizer.decode(row[len(starts[number]) :])
        done += len(batch)
        if progress:
            progress("texts", done, len(prompts))
    for stop in until:
        texts = [text.split(stop)[0] for text in texts]
    return texts


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of rows that are computed together: longest first, similar lengths."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _padded(model: GPT, rows: Sequence[Sequence[int]]) -> Tensor:
    inputs = np.full((len(rows), max(map(len, rows))), 0, np.int64)
    for row, tokens in zip(inputs, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(inputs).to(model.device)


def _scores(model: GPT, rows: Sequence[TokenRow]) -> Iterator[ScoredRow]:
    inputs = _padded(model, [row.tokens[:-1] for row in rows])
    streams = model.run_blocks(model.embed_tokens(inputs))
    counts = [row.n_scored for row in rows]
    chosen = torch.cat(
        [
            stream[len(row.tokens) - 1 - row.n_scored : len(row.tokens) - 1]
            for stream, row in zip(streams, rows, strict=True)
        ]
    )
    targets = torch.tensor(
        [one for row in rows for one in row.tokens[-row.n_scored :]], device=model.device
    )
    size = max(1, LOGITS_AT_ONCE.get(model.device.type, ON_DEVICE) // model.cfg.d_vocab)
    values, highest = [], []
    for stream, target in zip(chosen.split(size), targets.split(size), strict=True):
        logits = model.to_logits(stream[None])[0].float()
        own, top = logits.gather(1, target[:, None])[:, 0], logits.amax(1)
        _refuse_diverged(top)
        # The first of equal logits counts as the highest, as argmax has it.
        ties = (own == top).nonzero()[:, 0]
        first = torch.zeros_like(target, dtype=torch.bool)
        first[ties] = logits[ties].argmax(1) == target[ties]
        normaliser = top + logits.sub_(top[:, None]).exp_().sum(1).log()
        values.append((own - normaliser).double().cpu())
        highest.append(first.cpu())
    ends = np.cumsum(counts)[:-1]
    for value, top in zip(
        np.split(torch.cat(values).numpy(), ends),
        np.split(torch.cat(highest).numpy(), ends),
        strict=True,
    ):
        yield ScoredRow(value, top)


def _next_tokens(model: GPT, rows: Sequence[Sequence[int]]) -> list[int]:
    streams = model.run_blocks(model.embed_tokens(_padded(model, rows)))
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    chosen = streams[torch.arange(len(rows), device=model.device), last]
    logits = model.to_logits(chosen[None])[0]
    _refuse_diverged(logits.amax(1))
    return logits.argmax(1).tolist()


def _refuse_diverged(highest: Float[Tensor, " row"]) -> None:
    """Refuse a model whose highest logit is not finite; the argmax would look like an answer."""
    if not highest.isfinite().all():
        raise EvaluationError(
            "the model's logits are not finite, so it has diverged and predicts nothing; evaluate "
            "an earlier checkpoint"
        )
