"""How large the pages are, and how soon a browser paints them from disk.

    python benchmarks/pages.py [PAGE ...]

Without arguments the pages of two behaviours of the released run are written first, which takes
about ten seconds each. Chromium (Debian's, or that of $CHROMIUM) opens every page several times,
each time in a new window; printed are bytes, first paint and the end of the script, as medians
with the slowest. Nothing is asserted: a time depends on what else the machine does.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import machine
from playwright.sync_api import Browser, sync_playwright

from data_attribution import report, token_index
from data_attribution.errors import IndexMismatch, IndexMissing
from interp import behaviours
from train import released


BEHAVIOURS = ("fact:runethi", "ioi")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
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
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=[*FLAGS]
        )
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
    """Write the pages of two behaviours of the released run."""
    run = released.open("planted")
    try:
        token_index.open(run.store)
    except (IndexMissing, IndexMismatch):
        token_index.build(run.store)
    pages = []
    for name in BEHAVIOURS:
        begin = time.perf_counter()
        results = report.gather(run, behaviours.load(name, run))
        page = folder / f"{name.replace(':', '-')}.html"
        pages.append(report.write_behaviour_page(results, page))
        print(f"{name}: measured and written in {time.perf_counter() - begin:.1f} s")
    return pages


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
