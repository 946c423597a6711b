"""The page of `make demo` is whole, small, needs no network, and is played again for nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from train import runs


pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
OPENBOOK = Path(sys.executable).with_name("openbook")
PAGE, RUN = ROOT / "openbook-demo.html", ROOT / "runs" / "planted"


@pytest.fixture
def page() -> str:
    if not PAGE.is_file() or not (RUN / "manifest.json").is_file():
        pytest.skip("`make demo` has not been played in this checkout")
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"<td>run</td><td>(\w+)</td>", text)
    if shown != [runs.open(RUN).id]:
        pytest.skip(f"the page shows run {shown}, and {RUN.name} is {runs.open(RUN).id}")
    return text


def test_the_page_opens_from_disk_and_weighs_under_two_megabytes(page):
    assert PAGE.stat().st_size < 2_000_000
    assert page.endswith("</html>\n")
    assert not re.findall(r"<(?:script|link|img|iframe)|url\(|https?://", page)


def test_the_page_shows_every_part_of_the_sentence_with_its_commands(page):
    for part in (
        'Verification: <b class="good">bit-exact',
        "openbook run verify",
        "documents that state the fact",
        "openbook patch",
        "read at steps",
        "openbook trace documents",
        "matched random",
        "openbook forget",
    ):
        assert part in page, part
    assert page.count("<svg") >= 4


def test_the_fact_is_gone_on_the_page_and_stays_under_the_control(page):
    cell = r"<td>{}</td><td>removed</td><td>9</td><td>(\d\.\d\d) "
    recall = {
        setting: float(re.findall(cell.format(setting), page)[0])
        for setting in ("full run", "documents removed", "random removed")
    }
    assert recall["full run"] >= 0.95
    assert recall["documents removed"] <= 0.3  # a guess gives 1 or 2 of 27 answers, by facts
    assert recall["random removed"] >= 0.9


@pytest.mark.slow
def test_playing_again_trains_nothing(page):
    weights = {path: path.stat().st_mtime_ns for path in (ROOT / "runs").rglob("*.safetensors")}
    played = subprocess.run([OPENBOOK, "demo"], cwd=ROOT, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    again = {path: path.stat().st_mtime_ns for path in (ROOT / "runs").rglob("*.safetensors")}
    assert again == weights
    assert PAGE.read_text(encoding="utf-8") == page
