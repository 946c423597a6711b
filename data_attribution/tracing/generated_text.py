"""Tracing of a generated text: the spans of it that occur in what the model read.

As in OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096), the maximal verbatim spans of
the text are found. Of every hundred tokens the five least probable spans by unigram log-probability
are kept, because they are the least likely to occur by chance. Unlike with a closed corpus, each
comes with how often, and when, this run had read it. Counts are those of the whole training text.
The documents that are listed are drawn from those that hold the span; those that hold more tokens
of the text in all its kept spans come first.

That a span occurs in the training text does not prove that it was copied from there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Int64

from data_attribution import attribution, queries, token_index
from data_attribution.errors import EvidenceError
from data_attribution.token_index import Hit, Span, TokenIndex
from data_attribution.tracing.exposure import MOST, Exposure, exposure_of_text
from train import storage
from train.data import TokenStore, first_steps_reading
from train.html_panel import html_repr
from train.progress import Progress
from train.runs import ReadableRun
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["Generation", "Holder", "TracedSpan", "trace_text"]

KIND, SCHEMA = "generation", 1
SPAN = ("start", "stop", "text", "tokens", "count", "held_out", "log_probability")
SHARE, FEWEST = 0.05, 5  # spans kept per token of the text, and the least number for a short text
CURVE = 101  # number of checkpoints of a curve
DRAWN = 4  # occurrences drawn per document that is shown


@dataclass(frozen=True)
class Holder:
    """A document that holds a span.

    Attributes:
        offset: Where the span begins in the document, in tokens.
        text: The span with the text around it.
        steps: Steps at which a token of this occurrence was a target.
        held: Number of tokens of the traced text that occur in this document, in any kept span.
        copies: All other documents with the same tokens that the run read, before the checkpoint if
            one was given.
    """

    document: int
    id: str
    offset: int
    text: str
    steps: tuple[int, ...]
    held: int
    copies: tuple[int, ...] = ()

    __repr__ = short_repr


@dataclass(frozen=True)
class TracedSpan:
    """A span of the text, with its documents and readings.

    Attributes:
        documents: Some of the documents that hold it and that the run read.
        readings: How often the run read it, over all occurrences.
        curve: Checkpoints, and how often it had been read before each.
        n_documents: Number of documents of the training text that hold it. None if it has over a
            million occurrences, of which a million are followed; readings and steps are then
            those of the part, and readings are scaled up to the whole.
        first_step, last_step: First and last step at which some of it was read; None if never.
    """

    span: Span
    documents: tuple[Holder, ...]
    readings: float
    curve: tuple[tuple[int, ...], tuple[float, ...]]
    n_documents: int | None
    first_step: int | None
    last_step: int | None

    __repr__ = short_repr

    @property
    def sampled(self) -> bool:
        """Return whether readings are estimates from a part of the occurrences."""
        return self.n_documents is None


@dataclass(frozen=True)
class Generation:
    """A text and its kept spans, in the order of the text.

    `found` is the number of maximal spans, `covered` the share of tokens inside a kept one.
    """

    meaning: ClassVar[str] = (
        "A traced text shows which of its spans the run had read and when; it does not show "
        "that the model copied them from there."
    )

    text: str
    n_tokens: int
    found: int
    covered: float
    spans: tuple[TracedSpan, ...]
    provenance: dict[str, object]

    __repr__ = short_repr
    _repr_html_ = html_repr

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        rows = [
            {**asdict(one), "span": {k: getattr(one.span, k) for k in SPAN}} for one in self.spans
        ]
        about = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"kind": KIND, "schema": SCHEMA, **about, "spans": rows}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON; the file is written whole or not at all."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    def to_frame(self) -> "pandas.DataFrame":
        """Return a table with one row per span: text, counts in the corpus, readings, documents."""
        import pandas

        rows = [
            {
                "span": one.span.text,
                "start": one.span.start,
                "tokens": one.span.stop - one.span.start,
                "surprise": -one.span.log_probability,
                "count": one.span.count,
                "readings": one.readings,
                "n_documents": one.n_documents,
                "documents": tuple(holder.document for holder in one.documents),
            }
            for one in self.spans
        ]
        return pandas.DataFrame(rows)


def trace_text(
    run: ReadableRun,
    text: str,
    *,
    keep: int | None = None,
    minimum: int = 1,
    limit: int = 10,
    before: int | None = None,
    required: bool = True,
    index: TokenIndex | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Generation:
    """Trace a text span by span; an end-of-text in front, as `to_string` shows it, is left out.

    Args:
        keep: Number of spans; default: one for each twenty tokens of the text, at least five.
        minimum: Length of the shortest span, in tokens.
        limit: Largest number of documents per span.
        before: Count readings before this checkpoint; default: all.
        required: Raise an error if there is no span; otherwise the result has none.
        seed: Random seed for sampling occurrences of a span with many.

    Raises:
        QueryError: The text is empty, or longer than a million tokens.
        EvidenceError: No span of it occurs in what the run read, and one is required; or `keep` is
            below 1.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> traced = tracing.trace_text(run, "the capital of runethi is koreskul .")
        >>> traced.found, traced.covered
        (4, 1.0)
        >>> [span.span.text for span in traced.spans]
        ['the capital of', 'of runethi', 'runethi is', 'is koreskul .']
    """
    if keep is not None and keep < 1:
        raise EvidenceError(f"{keep} spans are none; keep 1 or more")
    index = index or token_index.open(run.store)
    text = run.store.tokenizer.without_eot(text)
    n_tokens = len(queries.encoded(text, run.store.tokenizer))
    found = index.maximal_spans(text, minimum=minimum)
    if required and not found:
        raise EvidenceError(
            f"no {minimum} tokens in a row of the {n_tokens:,} of the text stand in what run "
            f"{run.id} was trained on; gradient evidence needs no words in common"
        )
    wanted = max(math.ceil(SHARE * n_tokens), FEWEST) if keep is None else keep
    kept = sorted(sorted(found, key=lambda span: span.log_probability)[:wanted], key=_start)
    hits = [tuple(index.find(one.tokens, limit=limit * DRAWN, seed=seed)) for one in kept]
    drawn = np.unique([hit.document for places in hits for hit in places])
    held, reached = np.zeros((2, len(drawn)), np.int64)
    spans = []
    for done, span in enumerate(kept):
        if progress:
            progress("spans", done, len(kept))
        exposure = exposure_of_text(run, span.tokens, before=before, index=index, limit=MOST)
        spans.append(_traced(span, exposure))
        there = _holding(drawn, span, exposure, index.store)
        # Spans begin and end in the same order, so what of this one is not counted yet is its end.
        held[there] += span.stop - np.maximum(span.start, reached[there])
        reached[there] = span.stop
    tokens_held = dict(zip(drawn.tolist(), held.tolist(), strict=True))
    traced = tuple(
        replace(one, documents=_holders(run, index, places, tokens_held, limit, before))
        for one, places in zip(spans, hits, strict=True)
    )
    covered = {token for one in kept for token in range(one.start, one.stop)}
    provenance = {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": index.backend,
        "minimum": minimum,
        "before": before,
        "seed": seed,
    }
    return Generation(text, n_tokens, len(found), len(covered) / n_tokens, traced, provenance)


def _start(span: Span) -> int:
    return span.start


def _traced(span: Span, exposure: Exposure) -> TracedSpan:
    """Return a span with its readings, and no documents yet."""
    steps, readings = exposure.curve(CURVE)
    ends = exposure.steps[[0, -1]].tolist() if len(exposure.steps) else (None, None)
    return TracedSpan(
        span,
        documents=(),
        readings=exposure.readings,
        curve=(tuple(steps.tolist()), tuple(readings.tolist())),
        n_documents=None if exposure.sampled else len(np.unique(exposure.documents)),
        first_step=ends[0],
        last_step=ends[1],
    )


def _holding(
    documents: Int64[np.ndarray, " document"], span: Span, exposure: Exposure, store: TokenStore
) -> Bool[np.ndarray, " document"]:
    """Return which documents hold a span; searched in their tokens if its exposure is a sample."""
    if not exposure.sampled:
        return np.isin(documents, exposure.documents)
    row = np.array(span.tokens)
    return np.array([_stands(row, store, document) for document in documents.tolist()])


def _stands(row: Int64[np.ndarray, " pos"], store: TokenStore, document: int) -> bool:
    start, length = int(store.starts[document]), int(store.lengths[document])
    if length < len(row):
        return False
    tokens = np.asarray(store.tokens[start : start + length])
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(row))
    return bool((windows == row).all(axis=1).any())


def _holders(
    run: ReadableRun,
    index: TokenIndex,
    places: Sequence[Hit],
    held: Mapping[int, int],
    limit: int,
    before: int | None,
) -> tuple[Holder, ...]:
    """Return documents that were read, the one that holds most of the text first, without copies.

    Args:
        places: Occurrences, at most one per document.
        held: Number of tokens of the text that each document holds.
    """
    found: list[Holder] = []
    known: set[int] = set()
    for hit in sorted(places, key=lambda one: -held[one.document]):
        if len(found) == limit:
            break
        steps = hit.steps(run, before=before)
        if not len(steps) or hit.document in known:
            continue
        copies = index.copies(hit.document)
        known.update(copies.tolist())
        found.append(
            Holder(
                document=hit.document,
                id=index.store.document(hit.document).id,
                offset=hit.offset,
                text=attribution.excerpt(index.store, hit.document, hit.offset, hit.length),
                steps=tuple(steps.tolist()),
                held=held[hit.document],
                copies=tuple(_read(run, copies, before).tolist()),
            )
        )
    return tuple(found)


def _read(
    run: ReadableRun, documents: Int64[np.ndarray, " document"], before: int | None
) -> Int64[np.ndarray, " read"]:
    """Return those of some documents that were read, and are not removed from the run."""
    left = np.setdiff1d(documents, run.removal.documents if run.removal else ())
    n_steps = run.steps_done if before is None else min(before, run.steps_done)
    starts = run.store.starts[left]
    firsts = first_steps_reading(run.order, starts, starts + run.store.lengths[left], n_steps)
    return left[firsts < n_steps]
