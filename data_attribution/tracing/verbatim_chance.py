"""The share of a text that the training text holds by chance: a control for verbatim spans.

Short spans of any text occur in a large corpus. So the share of a text that stands in spans of at
least L tokens is compared, for each L, with that of two kinds of control texts of the same length:

* `shuffled`  the tokens of the text in random order, which keeps the tokens and loses their order
* `held-out`  documents of the same corpus that the run never read: what ordinary text shares with
  the training text without having been copied from it. No document is in two of these texts, and
  copies count once, so they are independent if documents are, and their interval is that of text
  of this kind. Where there is little held-out text, there are fewer of them

The *shortest length beyond chance* is the least L at which shuffled texts have on average at most
5 % of their tokens in such spans. It tells order from no order. It is chosen by one half of the
shuffled texts, and the shares that are reported are those of the other half: the shares of the half
that chose would be too small. Whether a text holds more than other text of its kind is what the
held-out texts tell; where the corpus has no held-out documents it is unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution import queries
from data_attribution.token_index import Span, TokenIndex
from train.data import TokenStore
from train.short_repr import short_repr
from train.statistics import Estimate, mean_interval, wilson


__all__ = ["SpansByChance", "spans_by_chance"]

MOST_BY_CHANCE = 0.05  # share of shuffled text in spans of the shortest length beyond chance
LONGEST_CONTROL = 2_000  # tokens; of a longer text, the controls are as long as a part of it
# Texts of each kind of control if no number is given: as many as have this many tokens together.
TOKENS_OF_CONTROLS, FEWEST, MOST = 20_000, 10, 50


@dataclass(frozen=True)
class SpansByChance:
    """The share of a text in spans of at least each length, and that of its controls.

    Attributes:
        lengths: Lengths in tokens, from 1 to one more than that of the longest span of any text.
        text: Share of the text's tokens in a maximal span of at least that length.
        shuffled: The same of the shuffled texts that did not choose `minimum`: mean and 95 %
            interval over them. The interval is None if there is a single text.
        held_out: The same of the held-out texts; () if the corpus has less held-out text than one.
        n: Number of shuffled texts that are reported.
        n_choosing: Number of further shuffled texts, by which `minimum` was chosen.
        n_held_out: Number of held-out texts, of which no two share a document.
        n_tokens: Number of tokens of each control.
        minimum: Shortest length beyond chance, in tokens.
    """

    meaning: ClassVar[str] = (
        "A control of spans shows how much of texts that were not copied stands in the training "
        "text; it does not show where a span of the text comes from."
    )

    lengths: tuple[int, ...]
    text: tuple[float, ...]
    shuffled: tuple[Estimate, ...]
    held_out: tuple[Estimate, ...]
    n: int
    n_choosing: int
    n_held_out: int
    n_tokens: int
    minimum: int

    __repr__ = short_repr


def spans_by_chance(
    index: TokenIndex, text: str, *, draws: int | None = None, seed: int = 0
) -> SpansByChance:
    """Measure how much of a text, and of its controls, stands in the training text.

    Args:
        draws: Number of shuffled texts that choose the shortest length, number of those that are
            reported, and largest number of held-out texts; default: 10 to 50, more of shorter
            texts.
        seed: Seed of the shuffling, and of the choice of held-out documents.

    Raises:
        QueryError: The text is empty, or longer than a million tokens.

    Examples:
        >>> index = token_index.open(run.store)
        >>> found = tracing.spans_by_chance(index, "the capital of runethi is koreskul .")
        >>> found.lengths[0], found.text[0], found.minimum > 1
        (1, 1.0, True)
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    store = index.store
    text = store.tokenizer.without_eot(text)
    ids = np.asarray(queries.encoded(text, store.tokenizer))
    spans = index.maximal_spans(text)
    n_tokens = min(len(ids), LONGEST_CONTROL)
    draws = draws or min(max(TOKENS_OF_CONTROLS // n_tokens, FEWEST), MOST)
    first = generator.integers(len(ids) - n_tokens + 1, size=2 * draws)
    shuffled = [generator.permutation(ids[at : at + n_tokens]) for at in first.tolist()]
    held_out = _held_out(store, n_tokens, draws, generator)
    controls = index.maximal_spans_each([*shuffled, *held_out])
    longest = max((one.stop - one.start for row in (spans, *controls) for one in row), default=0)
    lengths = range(1, longest + 2)
    shares = np.array([_shares(row, n_tokens, lengths) for row in controls])
    choosing, reported, held_out_shares = np.split(shares, [draws, 2 * draws])
    minimum = next(
        length
        for length, share in zip(lengths, choosing.mean(axis=0), strict=True)
        if share <= MOST_BY_CHANCE
    )
    return SpansByChance(
        lengths=tuple(lengths),
        text=tuple(_shares(spans, len(ids), lengths).tolist()),
        shuffled=_estimates(reported),
        held_out=_estimates(held_out_shares) if held_out else (),
        n=draws,
        n_choosing=draws,
        n_held_out=len(held_out),
        n_tokens=n_tokens,
        minimum=minimum,
    )


def _shares(spans: Sequence[Span], n_tokens: int, lengths: range) -> Float64[np.ndarray, " length"]:
    """Return the share of tokens whose longest span has at least each length."""
    longest = np.zeros(n_tokens, np.int64)
    for one in spans:
        inside = longest[one.start : one.stop]
        np.maximum(inside, one.stop - one.start, out=inside)
    return np.array([np.mean(longest >= length) for length in lengths], np.float64)


def _estimates(shares: Float64[np.ndarray, "text length"]) -> tuple[Estimate, ...]:
    """Return the mean share at each length, with its interval if there are two texts or more."""
    return tuple(_estimate(column) for column in shares.T)


def _estimate(shares: Float64[np.ndarray, " text"]) -> Estimate:
    """Return the mean of shares from 0 to 1, with its interval also where all are the same.

    Of n texts that all have the share s, Wilson's bound p of 0 in n is the largest part of texts
    that may have another one. Its share is 0 at least and 1 at most, so the mean lies between
    (1 - p) s and (1 - p) s + p.
    """
    value = float(shares.mean())
    if len(shares) < 2:
        return Estimate(value, None, None)
    if (found := mean_interval(shares)) is None:
        _, others = wilson(0.0, len(shares))
        found = (1 - others) * value, (1 - others) * value + others
    low, high = found
    return Estimate(value, max(low, 0.0), min(high, 1.0))


def _held_out(
    store: TokenStore, n_tokens: int, draws: int, generator: np.random.Generator
) -> list[Int64[np.ndarray, " pos"]]:
    """Return at most `draws` texts of held-out documents; no two share a document or a copy of it.

    A text is the beginning of a document, or of several one behind another, without ends of texts.
    What is left of its last document is not used.
    """
    texts: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    seen: set[bytes] = set()
    missing = n_tokens
    for document in generator.permutation(np.flatnonzero(store.starts >= store.train_tokens)):
        start = int(store.starts[document])
        row = np.asarray(store.tokens[start : start + int(store.lengths[document])], np.int64)
        if (content := row.tobytes()) in seen:
            continue
        seen.add(content)
        parts.append(row[row != store.eot][:missing])
        missing -= len(parts[-1])
        if not missing:
            texts.append(np.concatenate(parts))
            parts, missing = [], n_tokens
        if len(texts) == draws:
            break
    return texts
