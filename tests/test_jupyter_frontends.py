"""JupyterLab, Notebook 7 and (if installed) nbclassic show panels, figures and lines of progress.

One server of Jupyter on the loopback interface serves all three to Chromium, from a folder of its
own and with no settings of the user. A notebook is opened and run from the menu. A saved one is
opened and not run: Jupyter does not trust a file that it did not write, so this shows what readers
see. No page may ask another host for anything.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest

from interp.patching import Effects
from tests.saved_outputs import code_cells
from tests.worlds.browser import SCREENSHOTS, chromium


pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden/results/effects.json"
SAVED = "03_tracing_a_fact.ipynb"
PATIENCE = 120  # seconds of a busy machine
LIVE = (
    f"from interp.patching import Effects\n\nheads = Effects.load({str(GOLDEN)!r})\nheads.show()",
    "heads.plot()",
    "from train import progress\n\nwith progress.bar('counting') as advance:\n"
    "    for done in range(1, 4):\n        advance('cells', done, 3)\nprint('all cells ran')",
)  # fmt: skip


@dataclass(frozen=True)
class Frontend:
    """A program that shows notebooks.

    Attributes:
        package: Package that brings it.
        address: Address of a notebook, but for its name.
        menu: What is clicked, in this order, to run all cells.
        ready: JavaScript that says whether the kernel is connected and idle.
        outputs: Selector of the outputs of a cell.
    """

    package: str
    address: str
    menu: tuple[str, ...]
    ready: str
    outputs: str


LUMINO_READY = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""
LUMINO = (".lm-MenuBar-itemLabel:text-is('Run')", ".lm-Menu-itemLabel:text-is('Run All Cells')")
CLASSIC_READY = "() => Boolean(document.querySelector('#kernel_indicator_icon.kernel_idle_icon'))"
CLASSIC = ("#celllink", "#run_all_cells a")
OUTPUTS, CLASSIC_OUTPUTS = ".jp-Cell-outputArea", ".output"
FRONTENDS = {
    "JupyterLab": Frontend("jupyterlab", "lab/tree", LUMINO, LUMINO_READY, OUTPUTS),
    "Notebook 7": Frontend("notebook", "notebooks", LUMINO, LUMINO_READY, OUTPUTS),
    "nbclassic": Frontend(
        "nbclassic", "nbclassic/notebooks", CLASSIC, CLASSIC_READY, CLASSIC_OUTPUTS
    ),
}
each_frontend = pytest.mark.parametrize("name", FRONTENDS)


@dataclass(frozen=True)
class Server:
    """A running server: its address, its token, and the folder that it shows."""

    url: str
    token: str
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve notebooks from a new folder, with the kernel's code from this checkout."""
    pytest.importorskip(
        "jupyterlab", reason="jupyterlab is not installed: pip install '.[notebook]'"
    )
    shown, token = folder / "notebooks", secrets.token_hex(16)
    shown.mkdir()
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    places = {name: str(folder / name) for name in (*own, "JUPYTERLAB_SETTINGS_DIR")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    news = Path(places["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    settings = '{"fetchNews": "false", "checkForUpdates": false}'
    (news / "notification.jupyterlab-settings").write_text(settings)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = {
        "ServerApp.ip": "127.0.0.1",
        # The server tries others where this one is taken, and writes down which it took.
        "ServerApp.port": 20_000 + secrets.randbelow(10_000),
        "ServerApp.port_retries": 50,
        "ServerApp.root_dir": shown,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
        # Only a page's own program knows whether its kernel is connected; before, it loses cells.
        "LabApp.expose_app_in_browser": True,
        "JupyterNotebookApp.expose_app_in_browser": True,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                *(f"--{key}={value}" for key, value in options.items()),
            ],
            env={**_inherited(), **places, "PYTHONPATH": paths},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = _address(Path(places["JUPYTER_RUNTIME_DIR"]), token, process, folder / "log")
        yield Server(url, token, shown)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _inherited() -> dict[str, str]:
    """The environment without folders of Jupyter, whose extensions and settings are the user's."""
    return {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER")}


def _address(runtime: Path, token: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that the server wrote into its file, once the server answers there."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            (file,) = runtime.glob("jpserver-*.json")
            url = f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
            direct.open(f"{url}/api?token={token}", timeout=5).close()
        except (OSError, ValueError):  # no file, half of one, or no answer yet
            time.sleep(0.1)
        else:
            return url
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("jupyter")) as found:
        live = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(one) for one in LIVE],
            metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        )
        nbformat.write(live, found.folder / "live.ipynb")
        shutil.copy(ROOT / "notebooks" / SAVED, found.folder)
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@contextmanager
def opened(browser: Any, server: Server, name: str, notebook: str) -> Iterator[Any]:
    """Open a notebook in a program, in a window that is high enough to show all of it."""
    frontend = FRONTENDS[name]
    if find_spec(frontend.package) is None:
        pytest.skip(f"{frontend.package} is not installed: pip install {frontend.package}")
    context = browser.new_context(viewport={"width": 1100, "height": 3000})
    context.set_default_timeout(1000 * PATIENCE)
    asked = []
    context.on("request", lambda one: asked.append(one.url))
    page = context.new_page()
    page.on("websocket", lambda one: asked.append(one.url))
    try:
        page.goto(f"{server.url}/{frontend.address}/{notebook}?token={server.token}")
        yield page
        hosts = {urlsplit(one).netloc for one in asked if not one.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(server.url).netloc}
    finally:
        SCREENSHOTS.mkdir(exist_ok=True)
        shot = f"{frontend.package}-{notebook.removesuffix('.ipynb')}.png"
        page.screenshot(path=SCREENSHOTS / shot)
        context.close()


def sizes(place: Any) -> list[tuple[float, float]]:
    """Return width and height of every picture that can be seen in a place."""
    boxes = [one.bounding_box() for one in place.locator("img, svg").all() if one.is_visible()]
    return [(box["width"], box["height"]) for box in boxes if box]


@each_frontend
def test_a_notebook_that_is_run_shows_its_panel_its_figure_and_its_progress(browser, server, name):
    frontend = FRONTENDS[name]
    with opened(browser, server, name, "live.ipynb") as page:
        page.wait_for_function(frontend.ready)
        for place in frontend.menu:
            page.locator(place).first.click()
        panel, figure, last = (page.locator(frontend.outputs).nth(i) for i in range(3))
        last.filter(has_text="all cells ran").wait_for()
        heads = Effects.load(GOLDEN)
        for said in ("Effects", heads.meaning, *heads.top(3)):
            assert said in panel.inner_text()
        meaning = panel.locator(".openbook-panel p").first
        assert meaning.evaluate("one => getComputedStyle(one).borderLeftStyle") == "solid"
        figure.locator("svg, img").first.wait_for()
        assert any(width > 500 and height > 200 for width, height in sizes(figure))
        assert last.inner_text().lstrip().startswith("counting: cells 3 of 3")
        assert page.get_by_text("Traceback").count() == 0


@each_frontend
def test_a_saved_notebook_shows_its_outputs_before_it_is_trusted(browser, server, name):
    frontend = FRONTENDS[name]
    saved: Any = nbformat.read(server.folder / SAVED, as_version=4)
    outputs = [output for cell in code_cells(saved) for output in cell.outputs]
    n_pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    with opened(browser, server, name, SAVED) as page:
        shown = page.locator(f"{frontend.outputs}:has(img)")
        shown.nth(n_pictures - 1).wait_for()
        for place in shown.all():
            assert any(width > 400 and height > 150 for width, height in sizes(place))
        panel = page.locator(frontend.outputs).filter(has_text="accuracy").first
        assert panel.inner_text().lstrip().startswith("<eot> the capital of")
        assert "A check shows how often" in panel.inner_text()
