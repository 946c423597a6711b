"""The page of `make demo` is whole, small, needs no network, and is played again for nothing."""

import os
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
    assert not re.findall(r"<(?:link|img|iframe)|(?:src|href)=\"(?!#)", page)
    assert page.count("<script") == 2  # its values and its own script


def test_the_page_begins_with_the_four_panels(page):
    shown = re.findall(r'<section class="panel" id="([\w-]+)"', page)
    assert shown[:4] == ["behaviour", "components", "documents", "proof"]
    assert "Proved for this run: recall" in page


def test_the_page_shows_every_part_of_the_sentence_with_its_commands(page):
    for part in (
        "openbook run verify",
        "documents that state the fact",
        "openbook patch",
        "read at steps",
        "openbook trace documents",
        "as many other facts",
        "late</i> ones",
        "openbook forget",
    ):
        assert part in page, part
    assert page.count("<svg") >= 4
    # Bit-exact where the run was trained; a page that another processor wrote anew says the other.
    assert re.search(r'Verification: <b class="good">(bit-exact|within tolerance)</b>', page)


def test_the_fact_is_gone_on_the_page_and_stays_under_the_control(page):
    cell = r"<td>{}</td><td>removed</td><td>9</td><td>(\d\.\d\d) "
    recall = {
        setting: float(re.findall(cell.format(setting), page)[0])
        for setting in ("full run", "documents removed", "control removed")
    }
    assert recall["full run"] >= 0.95
    assert recall["documents removed"] <= 0.3  # a guess gives 1 or 2 of 27 answers, by facts
    assert recall["control removed"] >= 0.9


@pytest.mark.slow
def test_playing_again_trains_nothing(page):
    weights = {path: path.stat().st_mtime_ns for path in (ROOT / "runs").rglob("*.safetensors")}
    played = subprocess.run([OPENBOOK, "demo"], cwd=ROOT, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    again = {path: path.stat().st_mtime_ns for path in (ROOT / "runs").rglob("*.safetensors")}
    assert again == weights
    if "bit-exact" in played.stdout:  # on another processor than the page's the digits differ
        assert PAGE.read_text(encoding="utf-8") == page


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """`openbook demo --quick`, without a home and without a network that it could use."""
    folder = tmp_path_factory.mktemp("quick")
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    played = subprocess.run(
        [OPENBOOK, "demo", "--quick"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert played.returncode == 0, played.stderr
    return folder, played


@pytest.mark.slow
def test_the_quick_demo_trains_nothing_and_says_where_its_run_comes_from(quick, released_run):
    folder, played = quick
    page = (folder / "openbook-demo.html").read_text(encoding="utf-8")
    assert "This run was not trained here." in page
    assert "Part 6 was measured where it was trained" in page
    assert f"<td>run</td><td>{released_run.id}</td>" in page
    assert "runs/planted" not in page
    assert "openbook run verify runs/released/run" in page
    assert not list((folder / "runs" / "released" / "run").glob("counterfactuals"))
    assert f"run {released_run.id}" in played.stdout


@pytest.mark.slow
def test_a_command_of_the_quick_page_runs(quick):
    folder, _ = quick
    found = subprocess.run(
        [OPENBOOK, "detect", "runs/released/run"], cwd=folder, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "best induction" in found.stdout
