"""The page of a text has every span with its exact exposure, by pointing and by keys."""

import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from data_attribution import report, token_index, tracing
from data_attribution.report import text_results
from data_attribution.report.text_page import text_html
from data_attribution.tracing import exposure_of_text, generated_text
from tests.data_attribution.report.test_pages_in_a_browser import TRIES
from tests.worlds.browser import chromium, visit


FILLER = [f"the moon is over the n{k} of the sea ." for k in range(20)]
QUOTED = "envoys from Arnost ride to Belmar"
TEXTS = [*FILLER, f"{QUOTED} .", f"they say {QUOTED} .", f"{QUOTED} .", "Belmar is cold ."]
SAID = f"{QUOTED} is cold . moon they the"


IN_VIEW = "(one) => one.getBoundingClientRect().top < innerHeight"


class Links(HTMLParser):
    """The coloured parts of the traced text: where each leads, what it says, how dark it is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inside = tag == "a" and "span" in given.get("class", "").split()
        if self.inside:
            self.found.append({**given, "text": ""})

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1]["text"] += data


@pytest.fixture
def run(make_store, make_run):
    store = make_store(TEXTS)
    token_index.build(store)
    return make_run(store)


def test_a_planted_span_is_coloured_with_its_exact_count(run, tmp_path):
    found = report.trace_for_page(run, SAID, minimum=3)
    written = report.write_text_page(found, tmp_path / "page.html").read_text()
    links = Links(written).found
    assert [(one["href"], one["text"]) for one in links] == [
        ("#span-1", QUOTED.removesuffix("Belmar")),
        ("#span-1", "Belmar"),
        ("#span-2", " is cold ."),
    ]
    # Three documents hold it, and every document was read twice.
    assert links[0]["title"].startswith("read 6 times in documents such as ")
    assert "several" in links[1]["class"]
    assert "<td>overlaps with</td><td>span 2</td>" in written
    assert found.traced is not None
    for one in found.traced.spans:
        exposure = exposure_of_text(run, one.span.tokens)
        assert one.readings == exposure.readings
        assert one.span.count == exposure.places
        cells = (len(one.span.tokens), f"{one.readings:.0f}",
                 f"{exposure.steps[0]}&nbsp;to&nbsp;{exposure.steps[-1]}", one.span.count,
                 len({*exposure.documents.tolist()}))  # fmt: skip
        row = f"</a> {one.span.text}" + "".join(f"</td><td>{cell}" for cell in cells)
        assert row in written


def test_the_darkest_span_is_the_one_read_most(run):
    html = text_html(report.trace_for_page(run, f"{QUOTED} the moon is over", minimum=2))
    darkness = {one["text"].strip(): one["class"].split()[2] for one in Links(html).found}
    assert darkness["the moon is over"] == "s9" > darkness[QUOTED]


def test_the_legend_has_the_colours_of_the_spans(run):
    """Where the most is 6 readings, a single one is log 2 / log 7 as dark, and not the least."""
    html = text_html(report.trace_for_page(run, QUOTED, minimum=3))
    (link,) = Links(html).found
    assert link["title"].startswith("read 6 times")
    assert link["class"].split()[2] == "s9"
    shades = re.findall(r'class="heat (s\d)">read (once|6 times)<', html)
    assert shades == [("s3", "once"), ("s9", "6 times")]


def test_spans_as_short_as_chance_makes_them_are_left_out_and_chance_is_shown(run):
    found = report.trace_for_page(run, SAID)
    chance = tracing.spans_by_chance(token_index.open(run.store), SAID)
    assert found.minimum == chance.minimum
    html = unescape(text_html(found))
    assert f"<td>{chance.minimum}</td><td>{chance.text[chance.minimum - 1]:.0%}</td>" in html
    assert f"from {chance.minimum} tokens on" in html
    assert "The corpus has no held-out text" in html
    assert "held out" not in html


def test_held_out_text_has_a_column_and_a_control_where_there_is_some(make_store, make_run):
    store = make_store([f"{QUOTED} k{k} ." for k in range(40)], held_out=0.25)
    token_index.build(store)
    html = text_html(report.trace_for_page(make_run(store), f"{QUOTED} .", minimum=3))
    aside = int((store.starts >= store.train_tokens).sum())
    assert 2 <= aside <= 10
    assert '<th scope="col">held out</th>' in html
    assert f"<td>{40 - aside}</td><td>{40 - aside}</td><td>{aside}</td>" in html
    assert f"held out, n = {aside}</th>" in html
    assert f"<td>held out</td><td>{aside} places that no run reads</td>" in html
    assert f"4 of the {40 - aside} documents that hold it" in html


def test_what_a_page_leaves_out_is_counted(run, monkeypatch):
    monkeypatch.setattr(text_results, "SPANS", 1)
    html = text_html(report.trace_for_page(run, SAID, minimum=3))
    assert "<small>in 2 spans of at least 3 tokens</small>" in html
    assert html.count("Shown are 1 of 2 spans, those least likely by chance.") == 2
    assert "or in one that is not shown; shorter ones may have been read" in html
    assert "of the spans that are shown</small>" in html
    found = report.trace_for_page(run, " ".join(TEXTS), minimum=3)
    html = text_html(found)
    assert f"<tr><td>{found.chance.lengths[-1]}</td><td>0%</td>" in html
    assert found.traced is not None
    (least,) = found.traced.spans  # the whole text would be too long for a command
    assert f"{shlex.quote(least.span.text.strip())} --prove 2" in unescape(html)


def test_numbers_from_a_part_of_the_places_are_said_to_be_estimates(run, monkeypatch):
    monkeypatch.setattr(generated_text, "MOST", 2)
    html = text_html(report.trace_for_page(run, QUOTED, minimum=3))
    (link,) = Links(html).found
    assert link["title"].startswith("read about 6 times in documents such as ")
    assert "<b>about 6 times</b>; estimated, because only a million" in html
    assert "documents of many that hold it" in html
    assert "counted or, where there are over a million places, estimated" in html
    assert "its documents are not counted" in html


def test_a_span_that_the_run_has_not_come_to_is_not_said_to_be_read(run):
    html = text_html(report.trace_for_page(replace(run, steps_done=0), QUOTED, minimum=3))
    (link,) = Links(html).found
    assert link["title"] == "read 0 times"
    assert link["class"].split() == ["span", "heat"]
    assert "stands in the training text, but this run has not read it" in html
    assert "No document with it was read" in html
    assert "Which part was read most often?</span><strong>none</strong>" in html


def test_a_text_that_was_never_read_has_a_page_that_says_so(run):
    found = report.trace_for_page(run, "moon sea Belmar cold they over", minimum=4)
    html = text_html(found)
    assert found.traced.spans == ()
    assert Links(html).found == []
    assert "No 4 tokens in a row of it stand in what the run read." in html


CAPITALS = ("the capital of Runethi is Koreskul .", "the capital of Timozhu is Linavrul .")
SWAPPED = ("the capital of Runethi is Linavrul .", "the capital of Timozhu is Koreskul .")


@pytest.fixture
def capitals(make_store, make_run):
    """Two capitals, in three documents each, of which none names both."""
    store = make_store([*FILLER, *(f"{one} n{k}" for one in CAPITALS for k in range(3))])
    token_index.build(store)
    return make_run(store)


def test_a_text_that_swaps_two_facts_does_not_look_like_the_true_one(capitals):
    """Coloured spans are nearly the same; only sentences that are looked for whole differ."""
    true, swapped = (
        report.trace_for_page(capitals, " ".join(said), minimum=3) for said in (CAPITALS, SWAPPED)
    )
    assert [(one.text, one.places, one.readings) for one in true.sentences] == [
        (one, 3, 6) for one in CAPITALS
    ]
    assert [(one.places, one.readings, one.longest) for one in swapped.sentences] == [(0, 0, 5)] * 2
    assert true.whole.places == swapped.whole.places == 0
    assert (true.whole.longest, true.whole.n_tokens) == (7, 14)
    assert true.read_as_a_whole.endswith("was never read; its longest span has 7 of its 14 tokens."
                                         " 2 of its 2 sentences were read as a whole.")  # fmt: skip
    assert swapped.read_as_a_whole.endswith("its longest span has 5 of its 14 tokens. 0 of its 2 "
                                            "sentences were read as a whole.")  # fmt: skip
    for found, times, longest in ((true, "6 times", 7), (swapped, "never", 5)):
        html = text_html(found)
        assert f"<p>{found.read_as_a_whole} A coloured part ends" in html
        for one in found.sentences:
            places = one.places
            cells = (one.text, 7, times, places, longest)
            assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in html
        n = found.n_sentences_read
        assert (
            f"<strong>never<small>longest span: {longest} of its 14 tokens; {n} of its 2 "
            "sentences read as a whole</small></strong>"
        ) in html


def test_a_text_that_was_read_as_a_whole_is_said_to_be(run):
    found = report.trace_for_page(run, QUOTED, minimum=3)
    assert found.read_as_a_whole == "As a whole, the text was read 6 times."
    assert (found.whole.places, found.whole.longest, found.whole.n_tokens) == (3, 6, 6)
    assert "<strong>6 times<small>longest span: 6 of its 6 tokens</small>" in text_html(found)
    unread = report.trace_for_page(replace(run, steps_done=0), QUOTED, minimum=3)
    assert "stands in 3 places of the training text, but this run has not" in text_html(unread)
    assert "<strong>not by this run<small>" in text_html(unread)


def test_a_sentence_in_which_colours_change_may_have_been_read_as_a_whole(make_store, make_run):
    """The longer span takes the begin of a sentence that another span holds whole."""
    store = make_store([*FILLER, "we went home . they ride to", "they ride to Belmar ."])
    token_index.build(store)
    text = "went home . they ride to Belmar ."
    found = report.trace_for_page(make_run(store), text, minimum=3)
    parts = [(one["href"], one["text"]) for one in Links(text_html(found)).found]
    assert ("#span-1", "they ride to") in parts
    assert ("#span-2", " Belmar .") in parts
    assert [one.places for one in found.sentences] == [1, 1]
    assert found.whole.places == 0


def test_the_page_gives_n_of_its_controls_and_who_chose_the_shortest_length(run):
    found = report.trace_for_page(run, SAID)
    html = text_html(found)
    shuffled = found.at_minimum(found.chance.shuffled)
    assert f"[{shuffled.low:.0%}, {shuffled.high:.0%}] of shuffled text (n = 50), against" in html
    assert "at which 50 shuffled texts have on average at most 5 %" in html
    assert "Reported are 50 others, which did not choose that length" in html
    rows = re.findall(r"<td>\d+</td><td>\d+%</td><td>(.*?)</td>", html)
    assert len(rows) == len(found.chance.lengths)
    assert all(re.fullmatch(r"\d+% \[\d+%, \d+%\]", one) for one in rows)
    tables = html.split("<table>")[:-1]
    assert all(before.endswith('<div class="wide">') for before in tables)


def test_the_prompt_is_slanted(run):
    found = report.trace_for_page(run, f"{QUOTED} is cold .", prompt="envoys from", minimum=3)
    html = text_html(found)
    assert html.count("<i>") == 1
    assert "<i><a" in html
    assert Links(html).found[0]["text"] == "envoys from"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.integration
def test_pointing_shows_documents_and_a_click_keeps_them(browser, run, tmp_path):
    path = report.write_text_page(
        report.trace_for_page(run, SAID, minimum=3), tmp_path / "page.html"
    )
    first, second = (f".traced a[href='#span-{k}']" for k in (1, 2))
    with visit(browser, path) as seen:
        tab = seen.page

        def shown() -> list[str]:
            parts = tab.locator("[data-group='span'] > details").all()
            return [str(one.get_attribute("id")) for one in parts if one.is_visible()]

        assert shown() == ["span-1"]
        tab.hover(second)
        assert shown() == ["span-2"]
        tab.focus(first)
        assert shown() == ["span-1"]
        assert "document " in tab.locator("#span-1").inner_text()
        tab.locator(first).first.press("Enter")
        tab.hover(second)
        assert shown() == ["span-1"]  # pinned
        tab.keyboard.press("Escape")
        tab.hover(first)
        tab.hover(second)
        assert shown() == ["span-2"]
        tab.click("#spans a[href='#span-1']")
        assert shown() == ["span-1"]
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)
    with visit(browser, path, java_script_enabled=False) as seen:
        assert seen.page.locator("[data-group='span'] > details").count() == 2
        seen.page.click("#span-2 summary")
        assert "read at steps" in seen.page.locator("#span-2").inner_text()


@pytest.mark.integration
def test_on_a_phone_a_click_leads_to_the_documents_below_the_text(browser, run, tmp_path):
    long = f"{QUOTED} {' '.join(FILLER)}"
    path = report.write_text_page(
        report.trace_for_page(run, long, minimum=3), tmp_path / "page.html"
    )
    for width, scrolls in ((390, True), (1280, False)):
        with visit(browser, path, width=width, reduced_motion="reduce") as seen:
            seen.page.locator(".traced a[href='#span-1']").first.scroll_into_view_if_needed()
            before = seen.page.evaluate("scrollY")
            seen.page.locator(".traced a[href='#span-1']").first.click()
            assert seen.page.locator("#span-1").evaluate(IN_VIEW)
            assert (seen.page.evaluate("scrollY") > before) is scrolls


@pytest.mark.integration
def test_nothing_that_a_traced_text_holds_runs(browser, make_store, make_run, tmp_path):
    """Every payload stands in the text, and in documents from which it comes."""
    payloads = [one.replace("%d", str(k)).encode("utf-8", "replace").decode()
                for k, one in enumerate(TRIES)]  # fmt: skip
    store = make_store([*FILLER, *(f"{one} {k}" for k, one in enumerate(payloads))])
    token_index.build(store)
    found = report.trace_for_page(make_run(store), " moon ".join(payloads), minimum=1)
    assert found.traced is not None
    assert len(found.traced.spans) >= len(payloads)
    path = report.write_text_page(found, tmp_path / "page.html")
    assert path.stat().st_size < 2_000_000
    with visit(browser, path) as seen:
        for link in seen.page.locator("a[data-pick]").all()[:100]:
            link.dispatch_event("click")
        assert seen.page.evaluate("window.hit") is None
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)
        assert seen.page.locator("script").count() == 2
        assert seen.page.locator("iframe, object, form, base, link, img").count() == 0
