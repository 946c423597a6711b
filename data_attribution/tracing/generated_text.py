"""Tracing of a generated text: the spans of it that occur in what the model read.

As in OLMoTrace (Liu et al. 2025, https://arxiv.org/abs/2504.07096), the maximal verbatim spans of
the text are found. Of every hundred tokens the five least probable spans by unigram log-probability
are kept, because they are the least likely to occur by chance. Each comes with documents that hold
it, ordered by how many tokens of the text they hold in all its kept spans. Unlike with a closed
corpus, each also comes with how often, and when, this run had read it.

That a span occurs in the training text does not prove that it was copied from there.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data_attribution import attribution, queries, token_index
from data_attribution.errors import EvidenceError
from data_attribution.token_index import Hit, Span, TokenIndex
from data_attribution.tracing.exposure import exposure_of_text
from train import storage
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

    `offset` counts tokens of the document; `text` is the span with the text around it; `steps` are
    those at which a token of this occurrence was a target; `held` is how many tokens of the traced
    text occur in this document, in all kept spans; `copies` are other documents with the same text.
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
        readings: How often the run read it, over all occurrences.
        curve: Checkpoints, and how often it had been read before each.
    """

    span: Span
    documents: tuple[Holder, ...]
    readings: float
    curve: tuple[tuple[int, ...], tuple[float, ...]]

    __repr__ = short_repr


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
        seed: Random seed for sampling occurrences of a span with many.

    Raises:
        QueryError: The text is empty, or longer than a million tokens.
        EvidenceError: No span of it occurs in what the run read.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> traced = tracing.trace_text(run, "the capital of runethi is koreskul .")
        >>> traced.found, traced.covered
        (4, 1.0)
        >>> [span.span.text for span in traced.spans]
        ['the capital of', 'of runethi', 'runethi is', 'is koreskul .']
    """
    index = index or token_index.open(run.store)
    text = run.store.tokenizer.without_eot(text)
    n_tokens = len(queries.encoded(text, run.store.tokenizer))
    found = index.maximal_spans(text, minimum=minimum)
    if not found:
        raise EvidenceError(
            f"no {minimum} tokens in a row of the {n_tokens:,} of the text stand in what run "
            f"{run.id} was trained on; gradient evidence needs no words in common"
        )
    wanted = keep or max(math.ceil(SHARE * n_tokens), FEWEST)
    kept = sorted(sorted(found, key=lambda span: span.log_probability)[:wanted], key=_start)
    hits = [tuple(index.find(one.tokens, limit=limit * DRAWN, seed=seed)) for one in kept]
    held = _held(kept, hits)
    traced = []
    for done, (span, places) in enumerate(zip(kept, hits, strict=True)):
        if progress:
            progress("spans", done, len(kept))
        traced.append(_traced(run, index, span, places, held, limit, before))
    covered = {token for one in kept for token in range(one.start, one.stop)}
    provenance = {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": index.backend,
        "before": before,
        "seed": seed,
    }
    return Generation(
        text, n_tokens, len(found), len(covered) / n_tokens, tuple(traced), provenance
    )


def _start(span: Span) -> int:
    return span.start


def _held(spans: Sequence[Span], hits: Sequence[tuple[Hit, ...]]) -> Counter[int]:
    """Return how many tokens of the text each document holds, by the occurrences drawn."""
    held: Counter[int] = Counter()
    for span, places in zip(spans, hits, strict=True):
        for document in {hit.document for hit in places}:
            held[document] += span.stop - span.start
    return held


def _traced(
    run: ReadableRun,
    index: TokenIndex,
    span: Span,
    places: tuple[Hit, ...],
    held: Counter[int],
    limit: int,
    before: int | None,
) -> TracedSpan:
    exposure = exposure_of_text(run, span.tokens, before=before, index=index)
    steps, readings = exposure.curve(CURVE)
    shown: dict[str, Holder] = {}
    for hit in sorted(places, key=lambda one: -held[one.document]):
        read = hit.steps(run)
        read = read[read < exposure.before]
        if not len(read):
            continue
        stored = index.store.document(hit.document)
        if twin := shown.get(stored.sha256):
            shown[stored.sha256] = replace(twin, copies=(*twin.copies, hit.document))
        elif len(shown) < limit:
            shown[stored.sha256] = Holder(
                document=hit.document,
                id=stored.id,
                offset=hit.offset,
                text=attribution.excerpt(index.store, hit.document, hit.offset, hit.length),
                steps=tuple(read.tolist()),
                held=held[hit.document],
            )
    curve = (tuple(steps.tolist()), tuple(readings.tolist()))
    return TracedSpan(span, tuple(shown.values()), exposure.readings, curve)
