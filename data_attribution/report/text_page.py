"""The page of a text: every span of it that stands in what the run read, and how often it did.

As OLMoTrace shows it for OLMo (Liu et al. 2025, https://arxiv.org/abs/2504.07096), spans of the
text are coloured and lead to documents. Here the colour is the exact exposure: how often the run
had read the span. Beside it stands how much of shuffled and of held-out text is found in the same
way, so that a reader sees what chance does. The page can be read without its script, by links from
the text to the list of spans; with it, pointing at a span shows its documents and a click keeps
them there.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from data_attribution import token_index, tracing
from data_attribution.errors import EvidenceError
from data_attribution.report import highlighting, page, svg
from data_attribution.report.page import Panel, command, excerpt, shown, strength, table
from data_attribution.report.svg import Line
from data_attribution.report.text import steps_line
from data_attribution.token_index import TokenIndex
from data_attribution.tracing import Generation, Holder, SpansByChance, TracedSpan
from train import storage
from train.progress import Progress, count
from train.runs import ReadableRun, Run
from train.short_repr import short_repr
from train.statistics import Estimate


__all__ = ["TextPage", "text_html", "trace_for_page", "write_text_page"]

SPANS = 200  # spans with details, the least likely by chance; a page of more would be too long
HOLDERS = 4  # documents per span
LETTERS = 20_000  # of the text
PASSAGE = 400  # letters of a document around a span
TITLE = 3  # documents named when a reader points at a span
LENGTHS = 16  # rows of the table of lengths
T = TypeVar("T")


@dataclass(frozen=True)
class TextPage:
    """The contents of the page of a text.

    Attributes:
        run: Run that read the training text.
        text: The text, without an end of text in front.
        traced: Its spans of at least `minimum` tokens; None if there are none.
        chance: How much of the text and of control texts stands in spans of each length.
        minimum: Length of the shortest span that is shown, in tokens.
        prompt: Begin of the text that was given to the model; "" if nothing was generated.
        origin: Further rows of the footer.
    """

    run: ReadableRun
    text: str
    traced: Generation | None
    chance: SpansByChance
    minimum: int
    prompt: str = ""
    origin: tuple[tuple[str, str], ...] = ()

    __repr__ = short_repr


def trace_for_page(
    run: ReadableRun,
    text: str,
    *,
    minimum: int | None = None,
    prompt: str = "",
    origin: Sequence[tuple[str, str]] = (),
    index: TokenIndex | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TextPage:
    """Trace every span of a text that is longer than chance makes, and its controls.

    Args:
        minimum: Shortest span in tokens; default: `SpansByChance.minimum`.
        prompt: Begin of the text that was given to the model.
        origin: Rows of the footer, such as the seed of the generation.
        seed: Seed of the controls and of the sample of documents of each span.

    Raises:
        QueryError: The text is empty, or longer than a million tokens.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> found = report.trace_for_page(run, "the capital of runethi is koreskul .")
        >>> found.minimum, [one.span.text for one in found.traced.spans]
        (3, ['the capital of', 'is koreskul .'])
    """
    index = index or token_index.open(run.store)
    text = run.store.tokenizer.without_eot(text)
    chance = tracing.spans_by_chance(index, text, seed=seed)
    shortest = minimum or chance.minimum
    try:
        traced = tracing.trace_text(
            run, text, keep=SPANS, minimum=shortest, limit=HOLDERS, index=index, seed=seed,
            progress=progress,
        )  # fmt: skip
    except EvidenceError:  # no span is long enough, which the page says
        traced = None
    prompt = run.store.tokenizer.without_eot(prompt)
    return TextPage(run, text, traced, chance, shortest, prompt, tuple(origin))


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
    lead = (
        "<p>Every coloured span stands, word for word, in the text that the run was trained on. "
        "The darker it is, the more often the run had read it: counted from its data order, "
        "not estimated.</p>"
    )
    return page.document(
        f"Where a text stands in what {found.run.id} read",
        [_text(found), _spans(found), _chance(found)],
        provenance=_provenance(found),
        lead=lead,
    )


# --- the text ------------------------------------------------------------------------------------


def _text(found: TextPage) -> Panel:
    spans, chance = _traced(found), found.chance
    share = _at(chance.text, found.minimum, chance)
    marked = _marked(found)
    cards = "".join(_card(k, one, found) for k, one in enumerate(spans, start=1))
    if spans:
        hint = (
            "Point at a span, or move to it with the Tab key, to see its documents; a click keeps "
            "them, and a second one lets them go."
        )
        body = (
            f'<p class="small">{hint}</p><div class="pair">'
            f'<div class="text traced" data-peek="span" data-stay>{marked}</div>'
            f'<div data-group="span">{cards}</div></div>{_legend(spans, found.minimum)}'
        )
    else:
        body = (
            f'<div class="text traced">{marked}</div><p class="claim">No '
            f"{count(found.minimum, 'token')} in a row of it stand in what the run read.</p>"
        )
    said = f"{share:.0%} of its {count(_n_tokens(found), 'token')}"
    answer = (
        f"{said}<small>in {count(len(spans), 'span')} of at least "
        f"{count(found.minimum, 'token')}</small>"
    )
    return Panel(
        "text", "The text", body, question="How much of the text had the run read?", answer=answer
    )


def _marked(found: TextPage) -> str:
    """Return the text as markup, with a link on every part that some span covers.

    Where spans overlap, the link leads to the longest of them, and a dotted line says so.
    """
    text, spans = found.text, _traced(found)
    places = highlighting.places(found.traced, found.run.store.tokenizer) if found.traced else []
    there = [(*place, k) for k, place in enumerate(places) if place is not None]
    prompt = len(found.prompt) if found.prompt and text.startswith(found.prompt) else 0
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
    return f"read {count(one.readings, 'time')}{where}"


def _legend(spans: Sequence[TracedSpan], minimum: int) -> str:
    most = max(one.readings for one in spans)
    begin = f'<span class="heat {_tint(1, most)}">read once</span> to ' if most > 1 else ""
    return (
        f'<p class="small">Colour: {begin}<span class="heat {_tint(most, most)}">read '
        f"{count(most, 'time')}</span>, by the logarithm. "
        '<span class="span several">A dotted line</span>: spans overlap there, and the colour is '
        "that of the longest. Without colour: in no span of at least "
        f"{count(minimum, 'token')}; shorter ones may have been read. Slanted: the prompt, which "
        "was given to the model.</p>"
    )


def _card(number: int, one: TracedSpan, found: TextPage) -> str:
    span = one.span
    steps, readings = one.curve
    curve = svg.spark(readings, said=f"readings until checkpoint {steps[-1]:,}") if steps else ""
    held_out = f", {span.held_out:,} more in documents held out" if span.held_out else ""
    documents = "".join(_holder(holder, span.text) for holder in one.documents)
    expected = _expected(one, found)
    exposure = f"openbook exposure text {_place(found.run)} {shlex.quote(span.text.strip())}"
    return (
        f'<details id="span-{number}"{" open" * (number == 1)}><summary>span {number}: '
        f"“{shown(excerpt(span.text.strip(), 80))}”, read {count(one.readings, 'time')}</summary>"
        f'<blockquote class="said">{shown(excerpt(span.text.strip(), PASSAGE))}</blockquote>'
        f"<p>Read <b>{count(one.readings, 'time')}</b> {curve} "
        f"in {count(span.count, 'place')} of the training text{held_out}. "
        f"{count(_length(one), 'token')}; words drawn independently would make it {expected} in a "
        f"corpus of this size.{_overlaps(number, one, found)}</p>{documents}"
        f"{command(exposure) if exposure.isprintable() else ''}</details>"
    )


def _holder(one: Holder, span: str) -> str:
    copies = f", {count(len(one.copies), 'copy', 'copies')}" if one.copies else ""
    passage = excerpt(one.text, PASSAGE, around=span.strip())
    return (
        f'<div class="text">{highlighting.within(passage, span)}</div>'
        f'<p class="small">document {one.document} (<code>{shown(excerpt(one.id, 120))}</code>), '
        f"from its token {one.offset}{copies}; {shown(steps_line(one.steps))}</p>"
    )


def _overlaps(number: int, one: TracedSpan, found: TextPage) -> str:
    span = one.span
    others = [
        k
        for k, other in enumerate(_traced(found))
        if k != number - 1 and other.span.start < span.stop and span.start < other.span.stop
    ]
    return f" It overlaps with {_numbers(others)}." if others else ""


def _numbers(spans: Sequence[int]) -> str:
    return f"span{'s' if len(spans) > 1 else ''} {', '.join(str(k + 1) for k in spans)}"


def _expected(one: TracedSpan, found: TextPage) -> str:
    """Return how often the words of a span would follow each other if drawn independently."""
    times = math.exp(one.span.log_probability) * found.run.store.train_tokens
    return f"{count(round(times), 'time')}" if times >= 10 else f"{times:.1g} times"


# --- the list of spans ---------------------------------------------------------------------------


def _spans(found: TextPage) -> Panel:
    spans = _traced(found)
    rows = [
        (
            f'<a href="#span-{k}" data-pick="span">{k}</a>',
            shown(excerpt(one.span.text.strip(), 120)),
            f"{_length(one):,}",
            f"{one.span.count:,}",
            f"{one.span.held_out:,}",
            shown(count(one.readings, "time")),
            _first_and_last(one),
            shown(_expected(one, found)),
        )
        for k, one in enumerate(spans, start=1)
    ]
    heads = ("", "span", "tokens", "in the training text", "held out", "read", "steps", "by chance")
    body = table(heads, rows, markup=True) if rows else "<p>There is none.</p>"
    n_found = found.traced.found if found.traced else 0
    if n_found > len(spans):
        body += (
            f'<p class="limit">The {len(spans)} least likely by chance of {n_found:,} spans; '
            "the others are too common, or too many for a page.</p>"
        )
    body += (
        '<p class="limit">A span is maximal: with one more token on either side it does not occur. '
        "“By chance” is how often its tokens would stand in this order in the corpus if each were "
        "drawn independently. Of a span with over a million occurrences, readings are counted on "
        "a million of them.</p>"
    )
    best = max(spans, key=lambda one: one.readings, default=None)
    answer = "none" if best is None else (
        f"“{shown(excerpt(best.span.text.strip(), 60))}”"
        f"<small>{count(best.readings, 'time')}</small>"
    )  # fmt: skip
    return Panel(
        "spans", "Its spans", body, question="Which part was read most often?", answer=answer
    )


def _first_and_last(one: TracedSpan) -> str:
    steps, readings = one.curve
    changed = [step for step, (a, b) in zip(steps[1:], pairwise(readings), strict=True) if b > a]
    return f"{changed[0]:,} to {changed[-1]:,}" if changed else "–"


# --- chance --------------------------------------------------------------------------------------


def _chance(found: TextPage) -> Panel:
    chance = found.chance
    lengths = chance.lengths[:LENGTHS]
    kinds = [("this text", [f"{share:.0%}" for share in chance.text])]
    kinds += [(f"shuffled, n = {chance.n}", [_percent(one) for one in chance.shuffled])]
    curves = [Line("this text", chance.text[:LENGTHS])]
    if chance.held_out:
        kinds += [(f"held out, n = {chance.n}", [_percent(one) for one in chance.held_out])]
        curves += [Line("held-out text", [one.value for one in chance.held_out[:LENGTHS]])]
    curves += [Line("shuffled", [one.value for one in chance.shuffled[:LENGTHS]], dashed=True)]
    figure = svg.lines(
        curves,
        [str(length) for length in lengths],
        across="length of a span, at least, in tokens",
        up="share of tokens",
    )
    rows = [
        (f"{length:,}", *(values[k] for _, values in kinds)) for k, length in enumerate(lengths)
    ]
    numbers = table(("tokens, at least", *(name for name, _ in kinds)), rows)
    share = _at(chance.text, found.minimum, chance)
    shuffled = _at(chance.shuffled, found.minimum, chance)
    return Panel(
        "chance",
        "Chance",
        f'<div class="pair"><div>{figure}</div><div>{numbers}</div></div>{_explained(found)}',
        question="Would any text do that?",
        answer=f"{share:.0%}, shuffled {_percent(shuffled)}"
        f"<small>{_beside_held_out(found)}</small>",
    )


def _explained(found: TextPage) -> str:
    chance = found.chance
    if found.minimum == chance.minimum:
        why = (
            f"Spans are shown from {count(found.minimum, 'token')} on: the shortest length at "
            "which shuffled texts have at most 5 % of their tokens in such spans."
        )
    else:
        why = (
            f"Spans are shown from {count(found.minimum, 'token')} on, as was asked; shuffled "
            f"texts have at most 5 % of their tokens in spans from {chance.minimum} on."
        )
    held_out = (
        "Held-out texts are documents of the same corpus that the run never read: what this text "
        "shares with the training text beyond them is more than being of its kind. Several of them "
        "may hold the same documents."
        if chance.held_out
        else "The corpus has too little held-out text to say how much any text of this kind shares."
    )
    return (
        f"<p>{why} A shuffled text has the words of this one in random order. {held_out} Each "
        f"control has {count(chance.n_tokens, 'token')}; means and 95 % intervals over the n texts."
        '</p><p class="limit">That a span stands in the training text does not prove that the '
        "model copied it from there: only training again without the documents shows what they "
        f"did.</p>{command(*_retraining(found))}"
    )


def _beside_held_out(found: TextPage) -> str:
    chance = found.chance
    if not chance.held_out:
        return "no held-out text to compare with"
    return f"held-out text {_percent(_at(chance.held_out, found.minimum, chance))}"


def _retraining(found: TextPage) -> Sequence[str]:
    return (
        f"openbook trace sentence {_place(found.run)} "
        f"{shlex.quote(excerpt(' '.join(found.text.split()), 200))} --prove 2",
    )


def _percent(one: Estimate) -> str:
    ends = "" if one.low is None or one.high is None else f" [{one.low:.0%}, {one.high:.0%}]"
    return f"{one.value:.0%}{ends}"


def _at(column: Sequence[T], length: int, chance: SpansByChance) -> T:
    """Return the value of a column at a length; that of the last one beyond."""
    return column[min(length, len(chance.lengths)) - 1]


def _traced(found: TextPage) -> tuple[TracedSpan, ...]:
    return found.traced.spans if found.traced else ()


def _n_tokens(found: TextPage) -> int:
    return (
        found.traced.n_tokens if found.traced else len(found.run.store.tokenizer.encode(found.text))
    )


def _place(run: ReadableRun) -> str:
    """Return the run as a command of openbook names it."""
    return shlex.quote(str(run.path)) if isinstance(run, Run) else run.id


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
