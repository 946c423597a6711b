"""How large the pages are, and how soon a browser paints them from disk.

    python benchmarks/pages.py [PAGE ...]

Without arguments three pages of the released run are written first: those of two behaviours, which
take about ten seconds each, and that of a text that the run generates, as `openbook trace text
--generate 40 --page` writes it. Chromium (Debian's, or that of $CHROMIUM) opens every page several
times, each time in a new window; printed are bytes, first paint and the end of the script, as
medians with the slowest. Nothing is asserted: a time depends on what else the machine does.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median


sys.path.insert(0, str(Path(__file__).parents[1]))

import machine
from playwright.sync_api import Browser, sync_playwright

from data_attribution import report, token_index
from data_attribution.errors import IndexMismatch, IndexMissing
from interp import behaviours, models
from tests.worlds.browser import CHROMIUM, FLAGS
from train import released
from train.runs import Run


BEHAVIOURS = ("fact:runethi", "ioi")
PROMPT, TOKENS = "the capital of runethi", 40
OPENED = 7
PAINT = """() => new Promise((done) => {
  const painted = () => performance.getEntriesByName("first-contentful-paint")[0];
  const look = () => (painted() ? done([
    painted().startTime, performance.getEntriesByType("navigation")[0].domComplete,
  ]) : setTimeout(look, 5));
  look();
})"""


def main() -> int:
    """Print a line for every page."""
    parser = argparse.ArgumentParser(description="Sizes and first paint of the pages.")
    parser.add_argument("pages", nargs="*", type=Path)
    given = parser.parse_args().pages
    print(machine.described("playwright"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = given or written(Path(folder))
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*FLAGS])
        print(f"chromium {browser.version}, each page opened {OPENED} times")
        for page in pages:
            times = [opened(browser, page) for _ in range(OPENED)]
            paint, done = ([one[k] for one in times] for k in (0, 1))
            print(
                f"{page.name:<28} {page.stat().st_size / 1000:6.0f} kB  first paint "
                f"{median(paint):4.0f} ms (slowest {max(paint):.0f})  complete "
                f"{median(done):4.0f} ms (slowest {max(done):.0f})"
            )
        browser.close()
    return 0


def written(folder: Path) -> list[Path]:
    """Write the pages of two behaviours of the released run, and of a text that it generates."""
    run = released.open("planted")
    try:
        token_index.open(run.store)
    except (IndexMissing, IndexMismatch):
        token_index.build(run.store)
    makers = {name: partial(write_behaviour, run, name) for name in BEHAVIOURS}
    makers["generated text"] = partial(write_generation, run)
    pages = []
    for name, write in makers.items():
        begin = time.perf_counter()
        pages.append(write(folder / f"{name.replace(':', '-').replace(' ', '-')}.html"))
        print(f"{name}: measured and written in {time.perf_counter() - begin:.1f} s")
    return pages


def write_behaviour(run: Run, name: str, page: Path) -> Path:
    """Write the page of a behaviour."""
    return report.write_behaviour_page(report.gather(run, behaviours.load(name, run)), page)


def write_generation(run: Run, page: Path) -> Path:
    """Write the page of what the run adds to a prompt, token by token the most probable one."""
    text = models.load(run).generate(PROMPT, TOKENS, temperature=0)
    return report.write_text_page(report.trace_for_page(run, text, prompt=PROMPT), page)


def opened(browser: Browser, page: Path) -> tuple[float, float]:
    """Return the milliseconds to the first paint and to the complete page, in a new window."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    paint, done = tab.evaluate(PAINT)
    context.close()
    return paint, done


if __name__ == "__main__":
    sys.exit(main())
