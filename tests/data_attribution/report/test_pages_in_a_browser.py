"""A browser shows every panel, runs nothing that a text brings along, and asks for nothing.

The page is that of a run that learned twelve pairs by heart; what stands in its hostile twin was
written to run.
"""

import html
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
import typer

from data_attribution import report
from data_attribution.cli.app import app
from data_attribution.errors import CounterfactualError, EvidenceError
from data_attribution.report import behaviour_page, page
from data_attribution.report.page import Panel
from interp import behaviours
from interp.errors import InterpError
from tests.worlds.browser import SCREENSHOTS, chromium, visit
from tests.worlds.retrained import proof_of
from tests.worlds.stores import indexed_copy
from train import runs, storage
from train.data import TokenStore
from train.errors import DamagedError, TrainError
from train.progress import visible


pytestmark = pytest.mark.integration
WIDTHS, THEMES = (1280, 390), ("light", "dark")
PAPER = 718  # pixels of A4 between its margins
# What scrolls on a screen, and would be cut off on paper.
CUT = """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
  && one instanceof HTMLElement && getComputedStyle(one).overflowX !== "visible"
  && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)
).map((one) => one.outerHTML.slice(0, 200))"""
PANELS = ("behaviour", "components", "documents", "proof")

# What a text can try, each with a mark of its own: %d.
TRIES = (
    "<script>window.hit=%d</script>",
    "</script><script>window.hit=%d</script>",
    "</style><script>window.hit=%d</script>",
    "</title><script>window.hit=%d</script>",
    "--><script>window.hit=%d</script><!--",
    "]]><script>window.hit=%d</script>",
    "<img src=x onerror=window.hit=%d>",
    "\"><img src=x onerror='window.hit=%d'>",
    "' onmouseover='window.hit=%d' x='",
    "\" autofocus onfocus=\"window.hit=%d\" x=\"",
    "<a href=\"javascript:window.hit=%d\">go</a>",
    "<a href='data:text/html,<script>window.hit=%d</script>'>go</a>",
    "<svg onload=window.hit=%d>",
    "<svg><script>window.hit=%d</script></svg>",
    "<math><mtext><img src=x onerror=window.hit=%d></mtext></math>",
    "<iframe srcdoc='<script>parent.hit=%d</script>'></iframe>",
    "<object data='javascript:window.hit=%d'></object>",
    "<form action='javascript:window.hit=%d'><button>go</button></form>",
    "<details open ontoggle=window.hit=%d>",
    "<style>@import 'https://example.invalid/%d.css';</style>",
    "<link rel=stylesheet href='https://example.invalid/%d.css'>",
    "<img src='https://example.invalid/%d.png'>",
    "<meta http-equiv=refresh content='0;url=https://example.invalid/%d'>",
    "<base href='https://example.invalid/%d/'>",
    "&lt;script&gt;window.hit=%d&lt;/script&gt;",
    "&#60;img src=x onerror=window.hit=%d&#62;",
    "\\u003cscript\\u003ewindow.hit=%d\\u003c/script\\u003e",
    "${window.hit=%d} {{constructor.constructor('window.hit=1')()}}",
    "<template><script>window.hit=%d</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=%d>'>",
    "\u202e<script>window.hit=%d</script>\u202c",
    "\u2066\u2067<img src=x onerror=window.hit=%d>\u2069",
    "\x00<script>window.hit=%d</script>",
    "<scr\x00ipt>window.hit=%d</scr\x00ipt>",
    "\x1b[31m<script>window.hit=%d</script>\x07\x9b",
    "\u2028window.hit=%d\u2029",
    "\ud800<script>window.hit=%d</script>\udfff",
    "\ufeff<!--<script>window.hit=%d",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def results(lookup_run, lookup_store, lookup_behaviour, tmp_path_factory):
    """The results of the pairs, with a proof made up of the numbers of two trainings."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    store = indexed_copy(lookup_store, folder / "store")
    shutil.copytree(lookup_run.path, folder / "my run")
    run = runs.open(folder / "my run", store=store)
    behaviour = behaviours.read(lookup_behaviour)
    return report.gather(run, behaviour, limit=12, proof=proof_of(run.id))


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    return report.write_behaviour_page(results, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def pages(results, path, tmp_path_factory):
    """The pages of a behaviour and of a text, by the names of their screenshots."""
    text = "k1 is v1 k2 is v3 is k5 is v5 v4 k4"
    found = report.trace_for_page(results.run, text, minimum=2, prompt="k1 is")
    assert found.traced is not None
    assert len(found.traced.spans) > 2
    return {
        "report": path,
        "text": report.write_text_page(found, tmp_path_factory.mktemp("page") / "text.html"),
    }


def test_all_panels_answer_to_a_reader_who_clicks(browser, path, results):
    head, other = "L0H0", "L0H1"
    with visit(browser, path) as seen:
        tab = seen.page
        for name in PANELS:
            tab.click(f".bar nav a[href='#{name}']")
            assert tab.locator(f"#{name}").is_visible()
        for one, hidden in ((head, other), (other, head)):
            tab.click(f".grid a[href='#part-{one}']")
            assert tab.locator(f"#part-{one} h3").inner_text() == one
            assert not tab.locator(f"#part-{hidden}").is_visible()
            assert tab.locator(f".timeline g[data-with='part-{one}']").is_visible()
        third = results.sources.items[2]
        tab.click(f".card[href='#document-{third.document}']")
        assert third.text.strip() in tab.locator(f"#document-{third.document}").inner_text()
        ticks = tab.locator(f".timeline g[data-with='document-{third.document}']")
        assert ticks.is_visible()
        assert str(third.document) in ticks.text_content()
        tab.click("a[href='#prompt-1']")
        assert tab.locator("#prompt-1").is_visible()
        box = tab.locator(f"[data-attention='{other}']")
        assert box.locator("button").all_inner_texts()[1].startswith(results.examples[1].clean[1])
        box.locator("button").nth(0).click()
        assert box.locator("button").nth(0).inner_text().endswith("\n100")  # it sees itself alone
        assert "1 of prompt 2" in tab.locator(f"#part-{other} [data-about=attention]").inner_text()
        tab.locator("#components .command button").first.click()
        tab.locator(".status:not(:empty)").wait_for(state="attached")
        tab.click("#theme")
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)


def test_the_grid_is_walked_by_arrows_and_chosen_by_enter_and_space(browser, path):
    with visit(browser, path) as seen:
        tab = seen.page
        focused = "document.activeElement.getAttribute('href')"
        tab.focus(".grid a[href='#part-L0H0']")
        for key, place in (
            ("ArrowRight", "#part-L0H1"), ("ArrowRight", "#part-L0-mlp"),
            ("ArrowRight", "#part-L0-mlp"), ("Home", "#part-L0H0"), ("ArrowDown", "#part-L0H0"),
            ("End", "#part-L0-mlp"), ("ArrowLeft", "#part-L0H1"),
        ):  # fmt: skip
            tab.keyboard.press(key)
            assert tab.evaluate(focused) == place
        tab.keyboard.press("Enter")
        assert tab.locator("#part-L0H1").is_visible()
        assert tab.get_attribute(".grid a[href='#part-L0H1']", "aria-pressed") == "true"
        tab.keyboard.press("Home")
        tab.keyboard.press(" ")
        assert tab.locator("#part-L0H0").is_visible()
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_without_its_script_every_number_can_be_read(browser, path, results):
    with visit(browser, path, java_script_enabled=False) as seen:
        text = seen.page.text_content("body")
        assert seen.page.locator("button").count() == 0
        assert not seen.page.locator("#part-L0H0 h3").is_visible()
        seen.page.locator("#part-L0H0 > summary").click()
        assert seen.page.locator("#part-L0H0 h3").is_visible()
    heads = results.heads
    for name in heads.names:
        low, high = heads.interval(name)
        assert f"{heads[name]:.2f} [{low:.2f}, {high:.2f}], n = 12 prompts" in text
    for one in results.sources:
        assert f"document {one.document}" in text


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["report", "text"])
def test_a_page_is_usable_for_everyone_and_fits_its_window(browser, pages, name, theme):
    """No serious finding of axe-core; a screenshot of every width is kept for people to look at."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    SCREENSHOTS.mkdir(exist_ok=True)
    for width in WIDTHS:
        with visit(browser, pages[name], width=width, color_scheme=theme) as seen:
            assert seen.page.evaluate("document.documentElement.scrollWidth") == width
            shot = SCREENSHOTS / f"{name}-{width}-{theme}.png"
            seen.page.screenshot(path=shot, full_page=True)
            # What depends on the width does not depend on the colours.
            checked = width == WIDTHS[0] or theme == THEMES[0]
            found = axe.run(seen.page).response["violations"] if checked else []
            serious = [
                (one["id"], node["target"], node["failureSummary"])
                for one in found
                if one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            ]
            assert serious == []
            assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)


@pytest.mark.parametrize("name", ["report", "text"])
def test_paper_has_everything_open_nothing_cut_off_and_no_control(browser, pages, name):
    """Of each group the chosen part is printed, or all that stand nowhere else on the page."""
    SCREENSHOTS.mkdir(exist_ok=True)
    with visit(browser, pages[name], width=PAPER, color_scheme="dark") as seen:
        tab = seen.page
        assert tab.pdf().startswith(b"%PDF-")  # tells the page that it is printed
        tab.emulate_media(media="print")
        assert tab.locator("details:visible").count() > 0
        assert tab.locator("details:visible:not([open])").count() == 0
        whole = tab.locator("[data-paper] > *")
        assert all(one.is_visible() for one in whole.all())
        assert whole.count() > 0
        assert tab.evaluate("document.documentElement.scrollWidth") == PAPER
        assert tab.evaluate(CUT) == []
        for control in (".bar", ".picks", ".screen", "button:not(.token)"):
            assert not any(one.is_visible() for one in tab.locator(control).all()), control
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 33)"  # light
        tab.screenshot(path=SCREENSHOTS / f"{name}-paper.png", full_page=True)
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)


def test_what_scrolls_on_a_screen_is_whole_on_paper(browser, tmp_path):
    lines = "a line of text\n" * 200
    body = (
        f'<div class="text">{lines}</div><div class="text traced">{lines}</div>'
        f'<div class="cards"><p>{"<br>".join(lines.splitlines())}</p></div>'
        + page.table(["head"] * 30, [["a long word"] * 30])
    )
    made = tmp_path / "page.html"
    made.write_text(page.document("a", [Panel("one", "b", body)]))
    with visit(browser, made, width=PAPER) as seen:
        assert len(seen.page.evaluate(CUT)) == 4
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate(CUT) == []


# --- what texts may not do -----------------------------------------------------------------------


def hostile(results, text):
    """Results whose every text is a new payload; `text` gives the next."""
    sources = replace(
        results.sources,
        query=text(),
        items=tuple(
            replace(
                one,
                id=text(),
                span=(span := text()),
                text=f"before {span} {text()}",
                evidence={text(): next(iter(one.evidence.values()))},
            )
            for one in results.sources
        ),
    )
    examples = tuple(
        replace(
            one,
            clean=tuple(text() for _ in one.clean),
            corrupt=tuple(text() for _ in one.corrupt),
            sentence=text(),
            answer=text(),
            foil=text(),
            best=tuple((text(), share) for _, share in one.best),
        )
        for one in results.examples
    )
    proof = {
        **results.proof,
        "effects": [
            {**one, "question": text(), "unit": text()} for one in results.proof["effects"]
        ],
    }
    return replace(
        results,
        named=text(),
        options=text(),
        traced=text(),
        # A digest is taken of the name, which is why it never holds halves of a pair.
        behaviour=replace(
            results.behaviour, name=text().encode("utf-8", "replace").decode(), description=text()
        ),
        sources=sources,
        examples=examples,
        proof=proof,
    )


def test_nothing_that_a_text_holds_runs_or_is_fetched(browser, results, tmp_path, monkeypatch):
    """Payloads stand in every text, title and name; every document has ten million letters."""
    used = []
    numbers = count()

    def text() -> str:
        both = [TRIES[k % len(TRIES)].replace("%d", str(k)) for k in (next(numbers), next(numbers))]
        used.extend(both)
        return " ".join(both)

    found = hostile(results, text)
    long = "ten million letters " * 500_000
    monkeypatch.setattr(TokenStore, "text", lambda self, index: f"{text()} {long} {text()}")
    written = report.write_behaviour_page(found, tmp_path / "hostile.html")
    assert len(used) >= 200
    assert len(used) > 2 * len(TRIES)
    assert written.stat().st_size < 2_000_000
    with visit(browser, written) as seen:
        tab = seen.page
        for link in tab.locator("a[data-pick]").all():
            link.dispatch_event("click")
        for button in tab.locator("button:not([disabled])").all()[:40]:
            button.dispatch_event("click")
        assert tab.evaluate("window.hit") is None
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)
        assert tab.locator("script").count() == 2
        assert (
            tab.locator("iframe, object, form, base, link, img, style:not(head > style)").count()
            == 0
        )
        assert tab.evaluate(
            "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
            ".filter((name) => name.startsWith('on') || name === 'style')"
        ) == []  # fmt: skip
        links = tab.evaluate("[...document.links].map((one) => one.getAttribute('href'))")
        assert links
        assert all(one.startswith("#") for one in links)
        text_seen = " ".join(tab.text_content("body").split())
    shown = [" ".join(visible(one).encode("utf-8", "replace").decode().split()) for one in used]
    # Those of long documents and of passages that are cut are not all there.
    assert sum(one in text_seen for one in shown) >= 200


@pytest.mark.parametrize("place", ["title", "panel", "data", "provenance", "command", "cell"])
def test_the_shell_lets_no_payload_out(browser, tmp_path, place):
    """The same in each part of the shell, all payloads at once."""
    bad = [one.replace("%d", str(k)) for k, one in enumerate(TRIES)]
    parts = {
        "title": "a",
        "panel": "a",
        "data": "a",
        "provenance": "a",
        "command": "a",
        "cell": "a",
    }
    parts[place] = "\n".join(bad)
    made = page.document(
        parts["title"],
        [Panel(
            "one", parts["panel"],
            page.command(parts["command"]) + page.table((), [[parts["cell"]]]),
            question=parts["panel"], answer=page.shown(parts["panel"]),
        )],
        {"text": parts["data"], parts["data"]: [parts["data"]]},
        [(parts["provenance"], parts["provenance"])],
    )  # fmt: skip
    written = tmp_path / "page.html"
    written.write_text(made, encoding="utf-8")
    with visit(browser, written) as seen:
        assert seen.page.evaluate("window.hit") is None
        assert seen.quiet(), (seen.said, seen.requests, seen.forbidden)
        kept = seen.page.evaluate("JSON.parse(document.getElementById('data').textContent).text")
        assert kept == visible(parts["data"]).encode("utf-8", "replace").decode()


def test_the_policy_stops_what_the_shell_would_have_let_out(browser, tmp_path):
    """A body is markup, and a mistake in it would let texts in: even then nothing of them runs."""
    whole = ("<script>", "<img src", "<svg onload", "<iframe", "<object", "<style", "<link")
    bad = [one.replace("%d", "1") for one in TRIES if one.startswith(whole)]
    made = page.document("a", [Panel("one", "b", "".join(bad))])
    (tmp_path / "page.html").write_text(made, encoding="utf-8")
    with visit(browser, tmp_path / "page.html") as seen:
        # What was stopped is told in any order, and some time after the page has loaded.
        for kind in ("script-src-elem", "img-src", "style-src-elem"):
            told = f"window.forbidden.some((one) => one.startsWith('{kind}:'))"
            # `wait_for_function` evaluates code inside the page, which its policy forbids.
            while not seen.page.evaluate(told):
                seen.page.wait_for_timeout(20)
        assert seen.page.evaluate("window.hit") is None
        assert [one for one in seen.requests if not one.startswith(("about:", "file:"))] == []


def test_the_numbers_of_the_page_are_those_of_the_results(results):
    text = behaviour_page.behaviour_html(results)
    assert (
        "Proved for this run: -4.00 [-4.30, -3.70]<small>nats of log-probability, without 3 "
        "documents, beyond 2 random removals; recall 1.00 → 0.10"
    ) in text
    assert "-4.00 nats of log-probability [-4.30, -3.70], n = 12 prompts" in text
    assert f"{results.score.value:.2f} nats [" in text
    assert len(text) < 400_000


def test_controls_are_called_random_only_where_it_is_recorded(results):
    drawn = {"kind": "matched-random", "seed": 0, "matched_to": [1, 2, 3]}
    for choices, beyond in (
        ([{"kind": "named"}, drawn, drawn], "beyond 2 removals of as many random documents"),
        ([{"kind": "named"}, drawn, None], "beyond 2 removals of as many other documents"),
        ([{"kind": "named"}, {"kind": "named"}, drawn], "of as many other documents"),
    ):
        text = behaviour_page.behaviour_html(
            replace(results, proof={**results.proof, "choices": choices})
        )
        assert beyond in text
        assert ("were drawn at random is not recorded" in text) == ("other" in beyond)


def test_a_proof_of_another_run_or_of_another_question_is_refused(results, tmp_path):
    for changed, said in (
        ({"parent": "0" * 12}, "the proof is of run 000000000000, and the page is of run"),
        ({"effects": results.proof["effects"][1:]}, "'lookup' was not asked of the retrained run"),
    ):
        with pytest.raises(CounterfactualError, match=said):
            report.gather(results.run, results.behaviour, proof={**results.proof, **changed})
    storage.write_json(tmp_path / "proof.json", storage.seal(results.proof))
    kept = report.read_proof(tmp_path / "proof.json")
    assert isinstance(kept, dict)
    assert kept["effects"] == results.proof["effects"]
    storage.write_json(tmp_path / "proof.json", storage.seal({**results.proof, "rows": [{}]}))
    with pytest.raises(DamagedError, match="setting"):
        report.read_proof(tmp_path / "proof.json")
    storage.write_json(tmp_path / "proof.json", storage.seal({**results.proof, "choices": [{}]}))
    with pytest.raises(DamagedError, match=r"choices\[0\]"):
        report.read_proof(tmp_path / "proof.json")


def test_a_ranking_of_another_run_is_refused(results):
    """Its numbers of documents and steps would be read as those of this run."""
    other = replace(results.sources, provenance={**results.sources.provenance, "run": "0" * 12})
    with pytest.raises(EvidenceError, match="were ranked in run 000000000000, and the page is of"):
        report.gather(results.run, results.behaviour, sources=other, proof=results.proof)


def test_without_a_proof_the_page_names_the_commands_that_make_one(results):
    text = behaviour_page.behaviour_html(replace(results, proof=None))
    assert "nothing was trained again without them" in text
    assert f"openbook counterfactual {shlex.quote(str(results.run.path))} lookup --without" in (
        html.unescape(text)
    )


def test_every_command_of_a_page_parses(results, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = replace(
        results, named=shlex.quote("a reader's name.json"), options="--prompts 8 --seed 1"
    )
    pages = [behaviour_page.behaviour_html(one) for one in (asked, replace(results, proof=None))]
    block = re.compile(r'"command"><code>(.*?)</code>', re.DOTALL)
    blocks = [found for one in pages for found in block.findall(one)]
    lines = {line for block in blocks for line in html.unescape(block).splitlines()}
    assert {shlex.split(line)[1] for line in lines} == {
        "behaviours", "patch", "detect", "emergence", "trace", "run", "counterfactual", "report",
    }  # fmt: skip
    for line in lines:
        command: Any = typer.main.get_command(app)
        words = shlex.split(line)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert words[0] == str(results.run.path)
        # That a file is missing is said by the command, which has parsed by then.
        with suppress(TrainError, InterpError):
            command.make_context(command.name, words)
