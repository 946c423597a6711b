"""The course, and the pages for those who come from another library, run as they stand.

All Python blocks of a page are executed in one session, in their order, solutions included, in a
folder that the lessons of the course share. The released run is that of the other tests.
"""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.play_notebooks import solutions
from tests.worlds import nanogpt


DOCS = Path(__file__).parents[1] / "docs"
LESSONS = sorted((DOCS / "course").glob("[1-9]-*.md"))
PAGES = [DOCS / f"how-to/come-from-{name}.md" for name in ("transformerlens", "nnsight", "nanogpt")]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a student; it also holds a checkpoint that nanoGPT wrote."""
    folder: Path = tmp_path_factory.mktemp("student")
    nanogpt.write_checkpoint(folder / "ckpt.pt")
    return folder


@pytest.mark.parametrize("page", [*LESSONS, *PAGES], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, folder, released_run, monkeypatch):
    monkeypatch.setenv("OPENBOOK_CACHE", str(released_run.path.parents[1]))
    monkeypatch.chdir(folder)
    text, session = page.read_text(), ModuleType("session")
    with torch.enable_grad():  # a page may turn gradients off for the whole session
        for block in PYTHON.finditer(text):
            line = text[: block.start()].count("\n") + 2
            exec(compile("\n" * (line - 1) + block[1], page, "exec"), session.__dict__)


def test_every_lesson_has_a_goal_exercises_with_solutions_and_what_to_read_next():
    assert len(LESSONS) == 5
    for page in LESSONS:
        text = page.read_text()
        exercises = re.findall(r"^\*\*\d\.\*\*", text, re.MULTILINE)
        folded = re.findall(r"^<details markdown=\"1\"><summary>Solution</summary>$", text, re.M)
        assert len(exercises) == len(folded) in range(3, 6), page.name
        assert all("assert" in code for code in solutions(text)), page.name
        assert "\n**Goal.** " in text, page.name
        assert "\n**Read next.** " in text, page.name
