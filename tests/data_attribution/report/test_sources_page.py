"""The page says what the sources say, marks the very letters, and needs nothing but itself."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from data_attribution import counterfactuals
from data_attribution.attribution import Effect, Source, Sources
from data_attribution.attribution.sources import Evidence
from data_attribution.counterfactuals import Counterfactual
from data_attribution.report import highlighting, sources_page
from data_attribution.report import svg as drawing
from data_attribution.report.sources_page import CARDS, SPANS
from data_attribution.report.svg import Point, spark
from data_attribution.token_index import Span
from data_attribution.tracing import Generation, Holder, TracedSpan
from tests.worlds.known import known
from train.data import Tokenizer


TEXT = "the moon & the sea <b> the moon over n3"
TEXTS = ["the moon & the sea", "the sea", "<b> the moon", "over n3 and n4", "the moon & the sea"]


class Page(HTMLParser):
    """A page as a reader sees it: text, marked text, links, and whether every tag is closed."""

    OPEN = ("meta", "br", "line", "circle", "polyline", "polygon", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], [], set(), []
        self.text, self.marked = "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids.add(dict(attrs).get("id"))
        self.links += [value for key, value in attrs if key in ("href", "src")]
        if tag not in self.OPEN:
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.OPEN:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked[-1] += data


@pytest.fixture
def run(make_store, make_run):
    return make_run(make_store(TEXTS))


def source(document: int, **others) -> Source:
    made = Source(
        document=document,
        id=f"made/{document}",
        text=TEXTS[document],
        span="moon",
        score=2.5,
        grade="lexical",
        steps=(1, 4),
        start=1,
        length=1,
    )
    return replace(made, **others)


def sources(*items: Source, query: str = "who <asks>?") -> Sources:
    return Sources(query, "fused", items, {"run": "0123456789ab", "formula": "a < b"})


def traced(run, start: int, stop: int, surprise: float) -> TracedSpan:
    ids = run.store.tokenizer.encode(TEXT)[start:stop]
    text = run.store.tokenizer.decode(ids)
    span = Span(start, stop, text, tuple(ids.tolist()), 3, 1, -surprise)
    holder = Holder(0, "made/0", start, TEXTS[0], (2, 3), stop - start, (4,))
    return TracedSpan(span, (holder,), 5.0, ((0, 5, 10), (0.0, 2.0, 5.0)), 2, 2, 8)


def generation(run) -> Generation:
    spans = (traced(run, 0, 5, 9.0), traced(run, 5, 8, 18.0), traced(run, 7, 9, 1.0))
    return Generation(TEXT, 10, 4, 0.9, spans, {"run": "0123456789ab", "before": None})


def change(name: str, after: float, related: bool) -> counterfactuals.Change:
    before = np.linspace(-1, -0.5, 6)
    return counterfactuals.Change(
        name, "nats", related, before, before + after, np.stack([before, before + 0.02])
    )


def counterfactual() -> Counterfactual:
    return Counterfactual(
        parent="0123456789ab",
        mode="blank",
        named=(0,),
        together="near",
        removed=(0, 4),
        control=((1, 2), (2, 3)),
        runs=("a", "b", "c"),
        choices=(None, None, None),
        before=(),
        after=(),
        controls=((), ()),
        changes=(change("capital <of>", -3.0, True), change("ioi", 0.01, False)),
        avoided=3,
    )


def test_a_page_opens_without_a_network_and_every_link_leads_to_something(run):
    page = sources_page.sources_html(
        sources(source(0)), run=run, spans=generation(run), counterfactual=counterfactual()
    )
    found = Page(page)
    assert not {"link", "img", "iframe"} & set(found.tags)
    assert found.tags.count("script") == 2  # the values of the page and its own script
    assert "://" not in page
    assert "@import" not in page
    assert found.links
    assert all(one.startswith("#") and one[1:] in found.ids for one in found.links)
    assert len(page) < 80_000


def test_what_texts_and_names_hold_is_text_and_never_markup(run):
    hostile = "<script>alert(1)</script>\" onmouseover='x'"
    item = source(2, id=hostile, text=f"a {hostile} b", span=hostile, steps=())
    effect = Effect(hostile, hostile, -1.0, None, None, 1, 0)
    item = replace(item, effect=effect, evidence={hostile: Evidence(1, 2.0)})
    found = Page(sources_page.sources_html(sources(item, query=hostile), run=run))
    assert found.tags.count("script") == 2
    assert found.text.count(hostile) >= 6
    assert found.marked == [hostile]
    made = generation(run)
    holder = replace(made.spans[0].documents[0], id=hostile, text=hostile)
    spans = (replace(made.spans[0], documents=(holder,)), *made.spans[1:])
    shown = Page(sources_page.sources_html(replace(made, spans=spans), run=run))
    assert shown.tags.count("script") == 2
    assert shown.text.count(hostile) == 2
    made = replace(made, text="<b> <b> the <b>")
    assert "<b> <b> the <b>" in Page(sources_page.sources_html(made, run=run)).text


def test_control_characters_of_texts_have_no_effect(run):
    odd = "moon \x1b[31m\x07 \u202e sea"
    found = sources(source(0), query=odd)
    html = sources_page.sources_html(found, run=run)
    assert "moon \\x1b[31m\\x07 U+202E sea" in html
    assert not set(odd) - set(" seamon[31") & set(html)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_a_card_says_grade_score_interval_steps_copies_evidence_and_effect(run):
    item = source(
        0,
        grade="counterfactual",
        low=1.25,
        high=3.75,
        duplicates=(4,),
        near=(1,),
        evidence={"gradient": Evidence(3, 0.5, 0.25, 0.75), "bm25": Evidence(1, 9.0)},
        effect=Effect("capital", "nats", -4.0, -4.5, -3.5, 10, 3),
    )
    found = Page(sources_page.sources_html(sources(item, source(1)), run=run))
    for said in (
        "1 counterfactual, 1 lexical",
        "score 2.5 [1.25, 3.75]",
        "read at steps 1, 4",
        "1 exact (4), 1 near (1)",
        "gradient30.5 [0.25, 0.75]",
        "Trained again without it and 9 others: capital changes by -4 [-4.5, -3.5] nats, "
        "beyond what 3 removals of as many random ones did.",
    ):
        assert said in found.text, said
    assert found.marked == ["moon"]
    assert {"document-0", "document-1"} <= found.ids


def test_the_figures_count_every_reading_of_the_documents_and_their_copies(run):
    item = source(0, duplicates=(4,))
    found = Page(sources_page.sources_html(sources(item), run=run))
    from data_attribution import tracing

    readings = tracing.exposure_of_documents(run, [0, 4]).readings
    assert readings > tracing.exposure_of_documents(run, [0]).readings
    said = f"{readings:.1f}".removesuffix(".0")
    assert f"2 documents, copies among them, {said} readings before" in found.text
    assert f"{said} readings in all" in found.text


def test_a_part_of_a_long_document_that_was_read_is_more_than_0_readings(make_store, make_run):
    """The only step reads two windows of 4 of its 2,000 tokens."""
    store = make_store([" ".join(f"w{k % 20}" for k in range(2000))])
    run = make_run(store, steps_done=1)
    steps = tuple(run.steps_learned(0).tolist())
    found = Page(sources_page.source_card(1, replace(source(0), document=0, steps=steps), run))
    assert "read at step 0" in found.text
    assert "0.004 readings in all" in found.text


def test_the_marked_letters_are_those_of_the_spans(run):
    found = generation(run)
    places = [known(place) for place in highlighting.places(found, run.store.tokenizer)]
    assert [TEXT[first:last] for first, last in places] == [
        "the moon & the sea", "<b> the moon", "moon over",
    ]  # fmt: skip
    page = Page(sources_page.sources_html(found, run=run))
    # Where two lie over each other the more surprising is shown.
    assert page.marked[:3] == ["the moon & the sea", "<b> the ", "moon"]
    assert page.marked[3] == " over"
    assert TEXT in page.text
    assert "#span-0" in page.links


def test_places_are_found_for_byte_pairs_with_and_without_a_leading_space(make_store):
    store = make_store(["one äöü day", "amber rain", "rain"] * 20, tokenizer="bpe", vocab_size=270)
    for text in ("amber  rain, one äöü", " amber rain\n one"):
        for spelling in (text, " " + text, text.removeprefix(" ")):
            ids = store.tokenizer.encode(spelling)
            for start in range(len(ids) - 1):
                for stop in range(start + 1, len(ids) + 1):
                    part = store.tokenizer.decode(ids[start:stop])
                    if "\ufffd" in part or not part.strip():
                        continue
                    span = Span(start, stop, part, tuple(ids[start:stop].tolist()), 1, 0, -1.0)
                    one = TracedSpan(span, (), 1.0, ((), ()), 1, 0, 0)
                    found = Generation(text, len(ids), 1, 1.0, (one,), {})
                    (place,) = highlighting.places(found, store.tokenizer)
                    assert text[slice(*place)].split() == part.split()


def spanned(text: str, tokenizer, every: int, length: int) -> Generation:
    """A text with a span of so many tokens at every so-manieth."""
    ids = tokenizer.encode(text)
    spans = [
        Span(at, at + length, tokenizer.decode(ids[at : at + length]),
             tuple(ids[at : at + length].tolist()), 1, 0, -1.0)
        for at in range(0, len(ids) - length, every)
    ]  # fmt: skip
    traced = tuple(TracedSpan(one, (), 1.0, ((), ()), 1, 0, 0) for one in spans)
    return Generation(text, len(ids), len(spans), 1.0, traced, {})


def test_finding_the_places_reads_a_long_text_once_and_not_once_a_span(run, monkeypatch):
    draw = np.random.default_rng(0)
    words = np.array(["the", "moon", "&", "sea", "<b>", "over", "n3"])
    found = spanned(" ".join(draw.choice(words, 20_000)), run.store.tokenizer, 13, 9)
    assert (found.n_tokens, len(found.spans)) == (20_000, 1_538)
    decode, read = Tokenizer.decode, []

    def counted(tokenizer, ids):
        read.append(len(ids))
        return decode(tokenizer, ids)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    places = [known(place) for place in highlighting.places(found, run.store.tokenizer)]
    assert sum(read) <= 20_000
    for one, (first, last) in zip(found.spans, places, strict=True):
        assert found.text[first:last] == one.span.text


def test_places_are_counted_on_over_letters_that_tokens_tear(make_store):
    """Spans end inside letters; every place is where the tokens before it, read as one, say."""
    store = make_store(["one äöü day", "amber rain", "rain"] * 20, tokenizer="bpe", vocab_size=262)
    text = "äöü one ü🌍 amber € rain 🌍🌍 day" * 3
    found = spanned(text, store.tokenizer, 1, 3)
    ids = store.tokenizer.encode(text)
    letters = [place for place, letter in enumerate(text) if not letter.isspace()]
    for one, place in zip(found.spans, highlighting.places(found, store.tokenizer), strict=True):
        first, last = (
            len("".join(store.tokenizer.decode(ids[:cut]).split()))
            for cut in (one.span.start, one.span.stop)
        )
        expected = (letters[first], letters[last - 1] + 1) if first < last else None
        assert place == expected


def test_a_text_of_other_tokens_is_shown_without_marks(run):
    found = replace(generation(run), text="the sea the sea the sea")
    assert highlighting.places(found, run.store.tokenizer) == [None] * 3
    page = Page(sources_page.sources_html(found, run=run))
    assert "the sea the sea the sea" in page.text


def test_only_the_first_place_of_a_span_is_marked_in_a_document():
    assert highlighting.within("a b a", "a") == "<mark>a</mark> b a"
    assert highlighting.within("a < b", " < ") == "a <mark>&lt;</mark> b"
    assert highlighting.within("a b", "") == "a b"
    assert highlighting.within("a b", "c") == "a b"


def test_retraining_is_shown_beside_what_is_unrelated(run):
    found = Page(
        sources_page.sources_html(sources(source(0)), run=run, counterfactual=counterfactual())
    )
    assert "Trained again without 2 documents" in found.text
    assert "capital <of> changes by -3.01 [" in found.text
    assert "beyond what 2 removals of as many random ones did" in found.text
    assert "ioi (unrelated)" in found.text
    assert "1 document named, 2 removed with their copies (near)" in found.text


@pytest.mark.parametrize(
    ("controls", "said", "noise"),
    [
        (2, "beyond what 2 removals of as many random ones did.", "beyond"),
        (1, "how far chance alone moves it is unknown with one.", "unknown"),
        (0, "no random ones were removed, so what chance does is unknown.", "unknown"),
    ],
)
def test_noise_that_was_not_measured_is_said_to_be_unknown(run, controls, said, noise):
    made = counterfactual()
    kept = [replace(one, controls=one.controls[:controls]) for one in made.changes]
    made = replace(made, changes=tuple(kept), control=made.control[:controls])
    effect = Effect("capital", "nats", -4.0, None, None, 1, controls)
    found = Page(
        sources_page.sources_html(sources(source(0, effect=effect)), run=run, counterfactual=made)
    )
    assert found.text.count(said) == 2  # on the card, and where retraining is shown
    assert re.search(rf"capital <of>-0\.750-3\.750[-0-9., none]*{noise}6", found.text)


def test_no_sources_are_said_to_be_none(run):
    found = Page(sources_page.sources_html(sources(), run=run))
    assert "No document that the run read speaks for it." in found.text


def test_more_than_a_page_holds_is_counted(make_store, make_run):
    run = make_run(make_store(TEXTS * 21))
    items = [source(document % 5) for document in range(CARDS + 2)]
    items = [replace(one, document=document) for document, one in enumerate(items)]
    unlikely, likely = traced(run, 0, 5, 9.0), traced(run, 5, 8, 1.0)
    spans = replace(generation(run), spans=(likely, *[unlikely] * SPANS), found=SPANS + 3)
    found = Page(sources_page.sources_html(sources(*items), run=run, spans=spans))
    assert "2 more are not shown." in found.text
    cards = {one for one in found.ids if one and one.startswith("document-")}
    assert cards == {f"document-{document}" for document in range(CARDS)}
    assert f"Its stretches, {SPANS} of {SPANS + 3}" in found.text
    shown = {one for one in found.ids if one and one.startswith("span")}
    assert shown == {f"span-{k}" for k in range(1, SPANS + 1)}


def test_the_page_is_written_whole(run, tmp_path):
    path = sources_page.write_sources_page(sources(source(0)), tmp_path / "page.html", run=run)
    assert path.read_text() == sources_page.sources_html(sources(source(0)), run=run)


def test_a_figure_of_points_is_sound_and_scaled_with_zero():
    svg = drawing.points(
        [Point("a <long> name " * 5, 2.0, 1.0, 3.0), Point("b", -1.0, faded=True)], across="x & y"
    )
    root = ElementTree.fromstring(svg)

    def number(element: ElementTree.Element, name: str) -> float:
        return float(known(element.get(name)))

    circles = [one for one in root.iter("circle")]
    (zero, bar), (left, right) = (
        [one for one in root.iter("line")],
        [number(one, "cx") for one in circles][::-1],
    )
    assert left < number(zero, "x1") < right
    assert number(bar, "x1") < right < number(bar, "x2")
    assert re.search(r"-1 *$", "".join(circles[1].itertext()))
    assert ElementTree.fromstring(drawing.points([Point("none", 0.0)], across="")) is not None


def test_a_spark_ends_at_its_height():
    root = ElementTree.fromstring(spark([0.0, 1.0, 4.0], said="a & b"))
    points = [tuple(map(float, one.split(","))) for one in root[2].get("points").split()]
    assert points[0] == (2, 28)
    assert points[-1] == (168, 4)
    assert ElementTree.fromstring(spark([], said="")) is not None
