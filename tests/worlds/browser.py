"""Debian's Chromium, started as a reader's browser that may reach nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


__all__ = ["CHROMIUM", "FLAGS", "SCREENSHOTS", "Visit", "chromium", "visit"]

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
# What a policy forbids is told by an event, which no page of ours listens to.
WATCH = """
window.forbidden = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.forbidden.push(`${event.violatedDirective}: ${event.sample || event.blockedURI}`);
});
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start one browser with an empty profile; skip the test where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium, or set CHROMIUM")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*FLAGS])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, and everything that a browser says of it.

    Attributes:
        page: The page, as Playwright has it.
        said: Messages of the console that are warnings or errors, and errors of the script.
        requests: Addresses that were asked for, but for the page's own and those that its policy
            stopped.
    """

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.said, self.requests = page, [], []
        own = path.resolve().as_uri()
        page.on(
            "console",
            lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda one: self.said.append(str(one)))
        page.on("dialog", lambda one: (self.said.append(f"dialog {one.message}"), one.dismiss()))
        page.on("request", lambda one: self.requests.append(one.url) if one.url != own else None)
        # A request that the policy stops is announced, and does not leave the page.
        page.on(
            "requestfailed",
            lambda one: self.requests.remove(one.url) if one.failure == "csp" else None,
        )
        page.add_init_script(WATCH)
        page.goto(own)

    @property
    def forbidden(self) -> list[str]:
        """Return what the page tried and its policy did not allow."""
        return self.page.evaluate("window.forbidden")

    def quiet(self) -> bool:
        """Return whether nothing was said, asked for or forbidden."""
        return not (self.said or self.requests or self.forbidden)


@contextmanager
def visit(browser: Any, path: Path, *, width: int = 1280, **options: Any) -> Iterator[Visit]:
    """Open a page from disk in a window of its own."""
    height = 900 if width > 500 else 844
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        yield Visit(context.new_page(), path)
    finally:
        context.close()
