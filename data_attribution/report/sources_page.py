"""HTML page of the sources of a behaviour or a text, in one file.

Ranked documents are cards: the text with the passage that is the evidence, the grade of the
evidence and the result of each method, when the run read it, its copies, and the effect of
retraining without it. A generated text is shown with the spans that occur in the corpus. The page
needs no network, and every figure in it is a few kilobytes of SVG.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from data_attribution import tracing
from data_attribution.attribution import GRADES, Effect, Source, Sources
from data_attribution.counterfactuals import Counterfactual
from data_attribution.report import highlighting, page, svg, text
from data_attribution.report.page import Panel
from data_attribution.report.svg import Line, Point
from data_attribution.tracing import Exposure, Generation, Holder, TracedSpan
from train import storage
from train.progress import count
from train.runs import ReadableRun


__all__ = ["retraining_results", "source_card", "sources_html", "write_sources_page"]

# Largest numbers of document cards and span cards, and points of a curve; longer lists are for
# programs to read.
CARDS, SPANS, CURVE = 100, 200, 101
MEANS = {
    "none": "it ranks, and nothing that was asked speaks for it",
    "lexical": "it shares words with what was asked, and no more",
    "gradient": "its loss pulls the weights the way the question does",
    "replay": "the exact derivative through training, by the document's weight",
    "counterfactual": "the model was trained again without it",
}


def write_sources_page(
    found: Sources | Generation,
    path: str | Path,
    *,
    run: ReadableRun,
    spans: Generation | None = None,
    counterfactual: Counterfactual | None = None,
) -> Path:
    """Write the page of `sources_html`; the file is written whole or not at all.

    Examples:
        >>> sources = attribution.documents(run, fact, methods="lexical", limit=3)
        >>> page = report.write_sources_page(sources, folder / "sources.html", run=run)
        >>> "runethi is governed from koreskul" in page.read_text()
        True
    """
    text = sources_html(found, run=run, spans=spans, counterfactual=counterfactual)
    storage.write_text(Path(path), text)
    return Path(path)


def sources_html(
    found: Sources | Generation,
    *,
    run: ReadableRun,
    spans: Generation | None = None,
    counterfactual: Counterfactual | None = None,
) -> str:
    """Return the page as text.

    Args:
        found: Ranked documents, or a text traced span by span.
        run: Run that read the documents; it gives the reading steps and the tokenizer.
        spans: The text traced span by span, shown above ranked documents.
        counterfactual: Result of retraining without some of the documents.
    """
    sources = found if isinstance(found, Sources) else None
    generation = spans if sources is not None else found
    panels = []
    if isinstance(generation, Generation):
        panels.append(Panel("text", "The text", "".join(_generation(generation, run))))
    if sources is not None:
        panels.append(Panel("documents", "Documents", "".join(_documents(sources, run))))
    if counterfactual is not None:
        body = "".join(_retraining(counterfactual))
        panels.append(Panel("retraining", "What retraining showed", body))
    title, lead = _head(found)
    return page.document(title, panels, provenance=_provenance(found), lead=lead)


def _head(found: Sources | Generation) -> tuple[str, str]:
    """Return title and lead."""
    if isinstance(found, Generation):
        return (
            f"Where a text of {count(found.n_tokens, 'token')} stands in what the model read",
            f"<p>{len(found.spans):,} of its {found.found:,} longest verbatim stretches, the least "
            f"likely to stand there by chance; they cover {found.covered:.0%} of it.</p>",
        )
    counts = [(grade, sum(one.grade == grade for one in found)) for grade in reversed(GRADES)]
    graded = ", ".join(f"{n} {_badge(grade)}" for grade, n in counts if n)
    return (
        f"Documents behind “{_shortened(found.query, 120)}”",
        f"<p>{count(len(found), 'document')} by {escape(found.method)} evidence: "
        f"{graded or 'none'}. Evidence is no cause: only training again without a document shows "
        "what it did, and then only for this model, seed and order.</p>",
    )


def _generation(found: Generation, run: ReadableRun) -> Iterable[str]:
    """Yield the text with its spans, and one card per span."""
    ranked = sorted(range(len(found.spans)), key=lambda k: found.spans[k].span.log_probability)
    shown = sorted(ranked[:SPANS])
    drawn = {*shown}
    most = max((-one.span.log_probability for one in found.spans), default=0.0)
    marks = [
        highlighting.Mark(
            *place,
            strength=-one.span.log_probability / most if most else 0.0,
            href=f"span-{k}",
            said=f"{count(one.span.count, 'time')} in the training text, {_read(one)}",
        )
        for k, (one, place) in enumerate(
            zip(found.spans, highlighting.places(found, run.store.tokenizer), strict=True)
        )
        if place is not None and k in drawn
    ]
    yield f"<div class=text>{highlighting.html(found.text, marks)}</div>"
    yield (
        "<p class=limit>The darker, the less probable by its words alone. That a stretch stands "
        "in the training text does not say that it was copied from there.</p>"
    )
    yield f"<h3>Its stretches, {len(shown):,} of {found.found:,}</h3>"
    yield from (_span(k, found.spans[k]) for k in shown)


def _span(number: int, one: TracedSpan) -> str:
    span, (steps, readings) = one.span, one.curve
    held = f", {span.held_out:,} more held out" if span.held_out else ""
    documents_of = "" if one.n_documents is None else f"{count(one.n_documents, 'document')} of "
    curve = svg.spark(readings, said=f"readings until step {steps[-1]:,}") if steps else ""
    documents = "".join(_holder(holder, span.text) for holder in one.documents)
    return (
        f'<div class="card lexical" id="span-{number}"><b>“{escape(span.text.strip())}”</b>'
        f"<p class=small>{count(span.stop - span.start, 'token')}, {-span.log_probability:.1f} "
        "nats; "
        f"{count(span.count, 'time')} in {documents_of}the training text{held}; {_read(one)} "
        f"{curve}</p>{documents}</div>"
    )


def _read(one: TracedSpan) -> str:
    return text.read_line(one.readings, sampled=one.sampled)


def _holder(one: Holder, span: str) -> str:
    copies = f", {count(len(one.copies), 'copy', 'copies')}" if one.copies else ""
    return (
        f"<div class=text>{highlighting.within(one.text, span)}</div>"
        f"<p class=small>document {one.document} (<code>{escape(one.id)}</code>) offset "
        f"{one.offset:,}{copies}; holds {count(one.held, 'token')} of the text; "
        f"{escape(text.steps_line(one.steps))}</p>"
    )


def _documents(sources: Sources, run: ReadableRun) -> Iterable[str]:
    """Yield the ranking, the readings over training, and one card per document."""
    if not len(sources):
        yield "<p class=claim>No document that the run read speaks for it.</p>"
        return
    shown = sources.items[:CARDS]
    yield svg.points(
        [Point(f"{k}. {one.text}", one.score, one.low, one.high)
         for k, one in enumerate(shown[:20], start=1)],
        across=f"score ({sources.unit or sources.method}); 95 % over prompts where there is a line",
    )  # fmt: skip
    together = tracing.exposure_of_documents(run, [one for item in shown for one in item.group])
    yield _exposure(together)
    grades = [grade for grade in GRADES if any(one.grade == grade for one in shown)]
    yield _table(("grade", "what it says"), [(_badge(one), MEANS[one]) for one in grades])
    yield from (source_card(k, one, run) for k, one in enumerate(shown, start=1))
    if len(sources) > CARDS:
        yield f"<p class=limit>{len(sources) - CARDS:,} more are not shown.</p>"


def _exposure(found: Exposure) -> str:
    steps, readings = found.curve(CURVE)
    even = [found.even(int(step)) for step in steps]
    figure = svg.lines(
        [
            Line("read", readings.tolist()),
            Line("spread evenly", even, dashed=True),
        ],
        [f"{step:,}" for step in steps.tolist()],
        across="checkpoint",
        up="readings",
    )
    return figure + (
        f"<p class=limit>{count(len(found.positions), 'document')}, copies among them, "
        f"{count(found.readings, 'reading')} before checkpoint {found.before:,}. Computed from the "
        "order of training, which is known.</p>"
    )


def source_card(rank: int, one: Source, run: ReadableRun) -> str:
    """Return the card of a source: its passage, its readings, the evidence and any effect."""
    exposure = tracing.exposure_of_documents(run, one.group)
    readings = exposure.curve(CURVE)[1].tolist()
    curve = svg.spark(readings, said=f"readings until step {exposure.before:,}")
    passage = highlighting.within(one.text, one.span)
    return (
        f'<div class="card {escape(one.grade)}" id="document-{one.document}">'
        f"<b>{rank}.</b> {_badge(one.grade)} score {_scored(one.score, one.low, one.high)}"
        f"<div class=text>{passage}</div>"
        f"<p class=small>document {one.document} (<code>{escape(one.id)}</code>), "
        f"{escape(text.steps_line(one.steps))}{_copies(one)}</p>"
        f"<p class=small>{count(exposure.readings, 'reading')} in all {curve}</p>"
        f"{_effect(one.effect)}{_evidence(one)}</div>"
    )


def _copies(one: Source) -> str:
    kinds = (("exact", one.duplicates), ("near", one.near))
    said = [f"{len(rows):,} {kind} ({_some(rows)})" for kind, rows in kinds if rows]
    return f"; copies: {', '.join(said)}" if said else ""


def _effect(effect: Effect | None) -> str:
    if effect is None:
        return ""
    alone = "it" if effect.together == 1 else f"it and {count(effect.together - 1, 'other')}"
    return (
        f"<p><b>Trained again without {alone}:</b> {escape(effect.question)} changes by "
        f"{_scored(effect.mean, effect.low, effect.high, sign=True)} {escape(effect.unit)}"
        f"{_beyond(effect.controls)}.</p>"
    )


def _beyond(controls: int) -> str:
    """Return the text that says which controls an effect was compared with."""
    if controls > 1:
        return f", beyond what {count(controls, 'removal')} of as many random ones did"
    if controls == 1:
        return (
            ", beyond what one removal of as many random ones did; how far chance alone moves it "
            "is unknown with one"
        )
    return "; no random ones were removed, so what chance does is unknown"


def _evidence(one: Source) -> str:
    if not one.evidence:
        return ""
    rows = [
        (escape(name), str(found.rank), _scored(found.score, found.low, found.high))
        for name, found in one.evidence.items()
    ]
    table = _table(("method", "rank", "score, 95 %"), rows)
    return f"<details><summary>what each method says</summary>{table}</details>"


def _retraining(found: Counterfactual) -> Iterable[str]:
    """Yield the results of retraining without the documents."""
    first = found.changes[0]
    effect, n = first.effect, len(found.removed)
    yield (
        f"<p class=claim>Trained again without {count(n, 'document')}, everything else the same "
        f"to the bit: {escape(first.name)} changes by "
        f"{_scored(effect.mean, effect.low, effect.high, sign=True)} {escape(first.unit)}"
        f"{_beyond(len(found.control))}.</p>"
    )
    yield from retraining_results(found)


def retraining_results(found: Counterfactual) -> Iterable[str]:
    """Yield a figure of the changes per unit, and the table of all trainings."""
    for unit in dict.fromkeys(one.unit for one in found.changes):
        rows = [
            Point(one.name if one.related else f"{one.name} (unrelated)", one.effect.mean,
                  one.effect.low, one.effect.high, faded=not one.related)
            for one in found.changes if one.unit == unit
        ]  # fmt: skip
        yield svg.points(rows, across=f"change, {unit}")
    rows = [
        (
            escape(one.name),
            f"{one.before.mean():.3f}",
            f"{one.after.mean():.3f}",
            ", ".join(f"{value:.3f}" for value in one.controls.mean(axis=1)) or "none",
            {True: "within", False: "beyond", None: "unknown"}[one.effect.within_noise],
            str(len(one.before)),
        )
        for one in found.changes
    ]
    heads = ("question", "full run", "without them", "without random ones", "its noise", "n")
    yield _table(heads, rows)
    yield (
        f"<p class=limit>{count(len(found.named), 'document')} named, {len(found.removed):,} "
        f"removed with their copies ({escape(str(found.together))}); mode {escape(found.mode)}. "
        "Intervals are over prompts and controls; one initial seed.</p>"
    )


def _provenance(found: Sources | Generation) -> list[tuple[str, str]]:
    return [
        (str(name), _shortened(str(value), 300))
        for name, value in found.provenance.items()
        if value not in (None, [])
    ]


def _badge(grade: str) -> str:
    return f'<span class="grade {escape(grade)}">{escape(grade)}</span>'


def _scored(value: float, low: float | None, high: float | None, *, sign: bool = False) -> str:
    form = "+.3g" if sign else ".3g"
    bounds = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{bounds}"


def _some(documents: Sequence[int], n: int = 8) -> str:
    more = len(documents) - n
    return ", ".join(map(str, documents[:n])) + (f" and {more:,} more" if more > 0 else "")


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are already markup."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
