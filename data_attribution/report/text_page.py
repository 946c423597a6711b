"""The page of a text: every span of it that stands in what the run read, and how often it did.

As OLMoTrace shows it for OLMo (Liu et al. 2025, https://arxiv.org/abs/2504.07096), spans of the
text are coloured and lead to documents. Here the colour is the exact exposure: how often the run
had read the span. Beside it stands how much of shuffled and of held-out text is found in the same
way, so that a reader sees what chance does. The page can be read without its script, by links from
the text to the list of spans; with it, pointing at a span shows its documents and a click keeps
them there.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data_attribution.report import highlighting, page, svg
from data_attribution.report.chance_panel import chance_panel
from data_attribution.report.page import Panel, command, excerpt, shown, strength, table
from data_attribution.report.text import read_line, steps_line, typed_text
from data_attribution.report.text_parts import TextPart
from data_attribution.report.text_results import HOLDERS, TextPage
from data_attribution.tracing import Holder, TracedSpan
from train import storage
from train.progress import count


__all__ = ["text_html", "write_text_page"]

LETTERS = 20_000  # of the text
PASSAGE = 400  # letters of a document around a span
TITLE = 3  # documents named when a reader points at a span
SENTENCES = 100  # rows of the table of sentences
LEAST = 0.001  # of what chance makes; smaller numbers are said to be less


def write_text_page(found: TextPage, path: str | Path) -> Path:
    """Write the page of `text_html`; the file is written whole or not at all.

    Examples:
        >>> found = report.trace_for_page(run, "the capital of runethi is koreskul .")
        >>> page = report.write_text_page(found, folder / "text.html")
        >>> "the capital of" in page.read_text()
        True
    """
    storage.write_text(Path(path), text_html(found))
    return Path(path)


def text_html(found: TextPage) -> str:
    """Return the page as text."""
    return page.document(
        "What the model had read of a text",
        [_text(found), _sentences(found), _spans(found), chance_panel(found)],
        provenance=_provenance(found),
        lead=_lead(found),
    )


def _lead(found: TextPage) -> str:
    whose = (
        f"The model (run {shown(found.run.id)}) was given the slanted words and wrote the rest. "
        if _prompt_letters(found)
        else f"The model is run {shown(found.run.id)}. "
    )
    parts = (*found.spans, found.whole, *found.sentences)
    sampled = any(one.sampled for one in parts)
    counted = (
        "counted or, where there are over a million places, estimated" if sampled else "counted"
    )
    return (
        f"<p>{whose}Every coloured part stands, word for word, in the text that it was trained on. "
        f"The darker it is, the more often the model had read it: {counted} from the order of its "
        "training data. Lengths are in tokens, the words or pieces of words that it reads.</p>"
        f"<p>{shown(found.read_as_a_whole)} A coloured part ends where the training text goes on "
        "otherwise: a sentence in which the colour changes was read as a whole only if a single "
        'span holds all of it. <a href="#sentences">Its sentences</a> are counted below.</p>'
    )


# --- the text ------------------------------------------------------------------------------------


def _text(found: TextPage) -> Panel:
    spans = found.spans
    marked = _marked(found)
    cards = "".join(_card(k, one, found) for k, one in enumerate(spans, start=1))
    if spans:
        body = (
            '<p class="small screen">Point at a coloured part, or move to it with the Tab key, to '
            "see how often, in which documents and at which steps it was read. A click keeps it "
            'there, and a second click lets it go.</p><div class="pair">'
            f'<div><div class="text traced" data-peek="span" data-stay>{marked}</div>'
            f'{_legend(found)}</div><div data-group="span" data-paper>{cards}</div></div>'
        )
    else:
        body = (
            f'<div class="text traced">{marked}</div><p class="claim">No '
            f"{count(found.minimum, 'token')} in a row of it stand in what the run read.</p>"
        )
    share = found.at_minimum(found.chance.text)
    answer = (
        f"{share:.0%} of its {count(found.n_tokens, 'token')}"
        f"<small>in {count(found.n_found, 'span')} of at least "
        f"{count(found.minimum, 'token')}</small>"
    )
    return Panel(
        "text",
        "The text",
        body,
        question="How much of the text stands in the training text?",
        answer=answer,
    )


def _marked(found: TextPage) -> str:
    """Return the text as markup, with a link on every part that some span covers.

    Where spans overlap, the link leads to the longest of them, and a dotted line says so.
    """
    text, spans = found.text, found.spans
    places = highlighting.places(found.traced, found.run.store.tokenizer) if found.traced else []
    there = [(*place, k) for k, place in enumerate(places) if place is not None]
    prompt = _prompt_letters(found)
    last = min(len(text), LETTERS)
    cuts = {0, prompt, last, *(cut for start, stop, _ in there for cut in (start, stop))}
    most = max((one.readings for one in spans), default=0.0)
    parts = []
    for start, stop in pairwise(sorted(cut for cut in cuts if cut <= last)):
        over = [k for begin, end, k in there if begin <= start and stop <= end]
        part = shown(text[start:stop])
        if over:
            part = _link(part, sorted(over, key=lambda k: -_length(spans[k])), spans, most)
        parts.append(f"<i>{part}</i>" if stop <= prompt else part)
    if last < len(text):
        parts.append(f" … ({last:,} of {len(text):,} letters)")
    return "".join(parts)


def _prompt_letters(found: TextPage) -> int:
    """Return how many letters of the text are the prompt."""
    return len(found.prompt) if found.prompt and found.text.startswith(found.prompt) else 0


def _link(part: str, over: Sequence[int], spans: Sequence[TracedSpan], most: float) -> str:
    one = spans[over[0]]
    several = " several" if len(over) > 1 else ""
    also = f"; overlaps with {_numbers(over[1:])}" if len(over) > 1 else ""
    return (
        f'<a class="span heat {_tint(one.readings, most)}{several}" href="#span-{over[0] + 1}" '
        f'data-pick="span" title="{shown(_said(one) + also)}">{part}</a>'
    )


def _tint(readings: float | int, most: float | int) -> str:
    """Return the class of the colour of a span, by the logarithm of its readings."""
    return strength(math.log1p(readings) / math.log1p(most)) if most else ""


def _said(one: TracedSpan) -> str:
    """Return what a reader sees who points at a span without the script."""
    documents = ", ".join(str(holder.document) for holder in one.documents[:TITLE])
    steps = one.documents[0].steps if one.documents else ()
    where = f" in documents such as {documents}; the first: {steps_line(steps)}" if steps else ""
    return f"{_read(one)}{where}"


def _read(one: TracedSpan) -> str:
    return read_line(one.readings, sampled=one.sampled)


def _legend(found: TextPage) -> str:
    spans = found.spans
    most, left_out = max(one.readings for one in spans), _left_out(found)
    begin = f'<span class="heat {_tint(1, most)}">read once</span> to ' if most > 1 else ""
    lines = [
        f'Colour: {begin}<span class="heat {_tint(most, most)}">read {count(most, "time")}</span>, '
        "by the logarithm." if most else "",
        '<span class="span several">A dotted line</span>: spans overlap there, and the colour is '
        "that of the longest." if any(_others(spans, k) for k in range(len(spans))) else "",
        "Underlined without colour: stands in the training text, but this run has not read it."
        if any(not one.readings for one in spans) else "",
        f"The rest: in no span of at least {count(found.minimum, 'token')}"
        f"{', or in one that is not shown' * bool(left_out)}; shorter ones may have been read.",
        left_out,
        "Slanted: the prompt, which was given to the model." if _prompt_letters(found) else "",
    ]  # fmt: skip
    return f'<p class="small">{" ".join(filter(None, lines))}</p>'


def _left_out(found: TextPage) -> str:
    """Say that a text has more spans than the page shows, if it has."""
    n, n_found = len(found.spans), found.n_found
    if n == n_found:
        return ""
    return f"Shown are {n:,} of {n_found:,} spans, those least likely by chance."


def _card(number: int, one: TracedSpan, found: TextPage) -> str:
    said = one.span.text.strip()
    documents = "".join(_holder(holder, one.span.text) for holder in one.documents[:HOLDERS])
    # With the spaces at its ends, which are parts of its tokens.
    exposure = f"openbook exposure text {found.place} {typed_text(one.span.text)}"
    return (
        f'<details id="span-{number}"{" open" * (number == 1)}><summary>span {number}: '
        f"“{shown(excerpt(said, 80))}”, {_read(one)}</summary>"
        f'<blockquote class="said">{shown(excerpt(said, PASSAGE))}</blockquote>'
        f"{table((), _facts(number, one, found), markup=True)}"
        f"<h4>{_listed(one)}</h4>{documents}"
        f"{command(exposure) if exposure.isprintable() else ''}</details>"
    )


def _facts(number: int, one: TracedSpan, found: TextPage) -> list[tuple[str, str]]:
    """Return the rows that say how often a span was read, where it stands, and what chance does."""
    span, (steps, readings) = one.span, one.curve
    curve = svg.spark(readings, said=f"readings until checkpoint {steps[-1]:,}") if steps else ""
    documents = "" if one.n_documents is None else f" in {count(one.n_documents, 'document')}"
    part = "; estimated, because only a million of its places were followed" if one.sampled else ""
    rows = [
        ("read", f"<b>{_read(one).removeprefix('read ')}</b>{part} {curve}"),
        ("at steps", f"{_first_and_last(one)} of {found.run.steps_done:,}"),
        ("stands in", f"{count(span.count, 'place')}{documents} of the training text"),
        ("length", count(_length(one), "token")),
        ("by chance", f"{_expected(one, found)} times, if the tokens of the training text were "
         "drawn independently"),
    ]  # fmt: skip
    if found.has_held_out:
        rows.insert(3, ("held out", f"{count(span.held_out, 'place')} that no run reads"))
    others = _others(found.spans, number - 1)
    return rows + ([("overlaps with", _numbers(others))] if others else [])


def _listed(one: TracedSpan) -> str:
    """Return what the list of documents of a span is."""
    listed, of = one.documents[:HOLDERS], one.n_documents
    n = len(listed)
    if not n:
        return "No document with it was read"
    drawn = "drawn at random, with a preference for those that hold more of the text"
    if of is None:
        return f"{count(n, 'document')} of many that hold it, {drawn}"
    if n + len({copy for holder in listed for copy in holder.copies}) == of:
        return "All documents that hold it" if of > 1 else "The document that holds it"
    return f"{n:,} of the {count(of, 'document')} that hold it, {drawn}"


def _holder(one: Holder, span: str) -> str:
    passage = excerpt(one.text, PASSAGE, around=span.strip())
    others = count(len(one.copies), "other document")
    copies = f"; {others} {_have(len(one.copies))} the same text" if one.copies else ""
    return (
        f'<div class="text">{highlighting.within(passage, span)}</div>'
        f'<p class="small">document {one.document} (<code>{shown(excerpt(one.id, 120))}</code>), '
        f"from its token {one.offset:,} on; {shown(steps_line(one.steps))}{copies}</p>"
    )


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _others(spans: Sequence[TracedSpan], at: int) -> list[int]:
    """Return the spans with which a span overlaps."""
    span = spans[at].span
    return [
        k
        for k, one in enumerate(spans)
        if k != at and one.span.start < span.stop and span.start < one.span.stop
    ]


def _numbers(spans: Sequence[int]) -> str:
    return f"span{'s' if len(spans) > 1 else ''} {', '.join(str(k + 1) for k in spans)}"


def _expected(one: TracedSpan, found: TextPage) -> str:
    """Return, as markup, how often the tokens of a span would stand together if drawn freely."""
    times = math.exp(one.span.log_probability) * found.run.store.train_tokens
    if times < LEAST:
        return f"&lt;&nbsp;{LEAST:g}"
    return f"{times:,.0f}" if times >= 10 else f"{times:.1g}"


# --- the text and its sentences as wholes ---------------------------------------------------------


def _sentences(found: TextPage) -> Panel:
    """Return the panel that tells whether the text and its sentences were read as wholes."""
    whole, several = found.whole, len(found.sentences) > 1
    parts = [("the text", whole)]
    if several:
        parts += [(shown(excerpt(one.text, 200)), one) for one in found.sentences[:SENTENCES]]
    rows = [
        (name, f"{one.n_tokens:,}", _read_whole(one), f"{one.places:,}", f"{one.longest:,}")
        for name, one in parts
    ]
    heads = ("as a whole", "tokens", "times read", "places", "longest span, tokens")
    n_left = len(found.sentences) - SENTENCES
    notes = [
        f"Not shown are {n_left:,} more sentences." if n_left > 0 else "",
        "Counted exactly, word for word, wherever it stands in the training text; a sentence that "
        "was read in other words is not counted.",
        "A sentence ends behind each . ! or ? that white space follows, so also behind an "
        "abbreviation, and at an empty line." if several else "",
    ]  # fmt: skip
    n = found.n_sentences_read
    read = f"; {n:,} of its {len(found.sentences):,} sentences read as a whole" if several else ""
    return Panel(
        "sentences",
        "Its sentences" if several else "As a whole",
        f'{table(heads, rows, markup=True)}<p class="limit">{" ".join(filter(None, notes))}</p>',
        question="Was the text ever read as a whole?",
        answer=f"{_read_whole(whole)}<small>longest span: {whole.longest:,} of its "
        f"{count(whole.n_tokens, 'token')}{read}</small>",
    )


def _read_whole(one: TextPart) -> str:
    if not one.readings:
        return "not by this run" if one.places else "never"
    return read_line(one.readings, sampled=one.sampled).removeprefix("read ")


# --- the list of spans ---------------------------------------------------------------------------


def _spans(found: TextPage) -> Panel:
    spans, held_out = found.spans, found.has_held_out
    rows = [
        (
            f'<a href="#span-{k}" data-pick="span">{k}</a> '
            f"{shown(excerpt(one.span.text.strip(), 80))}",
            f"{_length(one):,}",
            _read(one).split(" ", 1)[1].rsplit(" ", 1)[0],
            _first_and_last(one),
            f"{one.span.count:,}",
            "–" if one.n_documents is None else f"{one.n_documents:,}",
            *([f"{one.span.held_out:,}"] if held_out else []),
            _expected(one, found),
        )
        for k, one in enumerate(spans, start=1)
    ]
    heads = ("span", "tokens", "times read", "at steps", "places", "documents")
    heads += (*(["held out"] if held_out else []), "by chance")
    body = table(heads, rows, markup=True) if rows else "<p>There is none.</p>"
    notes = [
        _left_out(found),
        "A span is maximal: with one more token of the text on either side it does not stand in "
        "the training text.",
        "Places and documents are those of the training text that hold it.",
        "Places held out are in documents that no run reads." if held_out else "",
        "“By chance” is how often its tokens would stand in this order in the training text if "
        "each were drawn independently.",
        "Of a span with over a million places, a million are followed: its readings are estimated, "
        "and its documents are not counted." if any(one.sampled for one in spans) else "",
    ]  # fmt: skip
    body += f'<p class="limit">{" ".join(filter(None, notes))}</p>' if rows else ""
    best = max(spans, key=lambda one: one.readings, default=None)
    if best is None or not best.readings:
        answer = "none"
    else:
        answer = (
            f"“{shown(excerpt(best.span.text.strip(), 60))}”<small>"
            f"{_read(best).removeprefix('read ')}, at steps {_first_and_last(best)}"
            f"{', of the spans that are shown' * bool(_left_out(found))}</small>"
        )
    return Panel(
        "spans", "Its spans", body, question="Which part was read most often?", answer=answer
    )


def _first_and_last(one: TracedSpan) -> str:
    if one.first_step is None or one.last_step is None:
        return "–"
    return f"{one.first_step:,}&nbsp;to&nbsp;{one.last_step:,}"


def _length(one: TracedSpan) -> int:
    return one.span.stop - one.span.start


def _provenance(found: TextPage) -> list[tuple[str, str]]:
    run = found.run
    rows = [
        ("run", run.id),
        ("knowledge", run.knowledge),
        ("corpus", f"{run.store.n_documents:,} documents, fingerprint {run.store.fingerprint}"),
        ("training", f"{run.steps_done:,} steps"),
        *found.origin,
    ]
    return [(name, excerpt(value, 400)) for name, value in rows]
