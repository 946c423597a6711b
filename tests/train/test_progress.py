"""A bar is for people: the caller's own wins, and where nobody looks nothing is written."""

import threading
from pathlib import Path

import pytest
from rich.console import Console

from train import progress


ROOT = Path(__file__).parents[2]


def test_the_callers_own_is_what_is_told():
    told = []
    with progress.shown("work", lambda *step: told.append(step)) as advance:
        advance("part", 1, 2)
    assert told == [("part", 1, 2)]


def test_a_log_sees_nothing(capsys):
    with progress.shown("work", None) as advance:
        advance("part", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_person_sees_a_bar_after_a_second(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.shown("work", None, delay=-1.0) as advance:
        advance("part", 1, 2)
    assert "work: part" in capsys.readouterr().err


class Shown:
    """A display of a notebook: what it held, one after another."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.texts.append(data["text/plain"])


@pytest.fixture
def notebook(monkeypatch) -> list[Shown]:
    """Pretend to be a notebook, and return its displays."""
    displays: list[Shown] = []

    def display(data: dict[str, str], **options: bool) -> Shown:
        displays.append(Shown())
        displays[-1].update(data, raw=options["raw"])
        return displays[-1]

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_DRAWINGS", 0.0)
    return displays


def test_in_a_notebook_no_thread_draws_a_bar(notebook):
    """Two that did took each other's output."""
    before = set(threading.enumerate())  # which, not how many: another test's may end meanwhile
    with progress.bar("work") as advance:
        advance("part", 1, 2)
        assert set(threading.enumerate()) <= before
    (shown,) = notebook
    assert shown.texts[1:] == [f"{'█' * 12}{'░' * 12} work: part 1 of 2, 0 s, 0 s left",
                               "work: part 1 of 2, 0 s"]  # fmt: skip


def test_a_librarys_bar_in_a_notebook_is_erased(notebook):
    with progress.shown("work", None, delay=-1.0) as advance:
        advance("part \x1b[31m", 3, None)
    assert [shown.texts[1:] for shown in notebook] == [["work: part \\x1b[31m 3, 0 s", ""]]


CELL = """
from train import progress
with progress.bar("training") as advance:
    for step in range(500):
        advance("step", step + 1, 500)
"""


@pytest.mark.integration
def test_an_executed_notebook_holds_one_line_for_a_bar():
    """As `jupyter nbconvert --execute` runs it; a bar that is printed anew leaves 500 lines."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    # A cell that prints is the control: all its lines are kept.
    cells = [CELL, "for step in range(500): print(step)"]
    book = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbclient.execute(book, timeout=60, kernel_name="python3", cwd=ROOT)
    bar, printed = (cell.outputs for cell in book.cells)
    (line,) = bar
    assert line["data"].keys() == {"text/plain"}
    assert line["data"]["text/plain"].startswith("training: step 500 of 500, ")
    assert len("".join(one["text"] for one in printed).splitlines()) == 500


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.0, "89 s"), (120.0, "2 min"), (5400.0, "1.5 h")]
)
def test_a_length_of_time_is_said_in_one_unit(seconds, said):
    assert progress.duration(seconds) == said


@pytest.fixture
def log(capsys):
    """Tell a log what is done at which second, and read what it wrote."""

    def written(*told: tuple[float, str, int, int | None]) -> list[str]:
        seconds = [0.0]
        advance = progress.log_lines("training", Console(stderr=True), clock=lambda: seconds[-1])
        for second, what, done, total in told:
            seconds.append(float(second))
            advance(what, done, total)
        return capsys.readouterr().err.splitlines()

    return written


def test_a_log_gets_at_most_a_line_in_ten_seconds_with_the_time_left(log):
    lines = log(*((second / 10, "loss 2.0", second + 1, 601) for second in range(601)))
    assert len(lines) == 6
    assert lines[0] == "training: loss 2.0 101 of 601, 50 s left"
    assert lines[-1] == "training: loss 2.0 601 of 601, 0 s left"


def test_no_command_of_a_test_logs_progress_on_a_slow_machine(openbook, log):
    """Each report comes an hour after the one before."""
    assert log((3600, "", 1, 3), (7200, "", 2, 3)) == []


def test_the_time_left_counts_only_what_was_done_here(log):
    """A training that is resumed at step 500 has done 10 steps in 20 seconds, not 510."""
    assert log((0, "", 500, 600), (20, "", 510, 600)) == ["training: 510 of 600, 3 min left"]


def test_a_second_piece_of_work_is_reckoned_by_itself(log):
    lines = log((0, "a", 1, 9), (5, "a", 9, 9), (6, "b", 1, 9), (16, "b", 2, 9), (17, "b", 3, None))
    assert lines == ["training: b 2 of 9, 70 s left"]


def test_work_of_unknown_length_has_no_time_left(log):
    assert log((0, "read", 1, None), (11, "read", 5, None)) == ["training: read 5"]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 spans"), (1, "1 span"), (1.0, "1 span"), (2, "2 spans"), (1200, "1,200 spans"),
        (0.5, "0.5 spans"), (2244.25, "2,244.2 spans"),
        (0.05, "0.1 spans"), (0.0078, "0.008 spans"),
    ],
)  # fmt: skip
def test_one_thing_is_singular_and_large_numbers_are_written_out(n, text):
    assert progress.count(n, "span") == text


def test_a_plural_of_its_own_is_used():
    assert [progress.count(n, "copy", "copies") for n in (1, 2)] == ["1 copy", "2 copies"]
