"""A bar is for people: the caller's own wins, and where nobody looks nothing is written."""

import threading

from train import progress


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
    monkeypatch.setattr(progress, "SECONDS_WITHOUT", -1.0)
    with progress.shown("work", None) as advance:
        advance("part", 1, 2)
    assert "work: part" in capsys.readouterr().err


def test_in_a_notebook_no_thread_draws_a_bar(monkeypatch):
    """Two that did took each other's output; the terminal's bar is the control."""
    monkeypatch.setattr("rich.jupyter.display", lambda *_: None)
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    for notebook in (False, True):
        monkeypatch.setattr("rich.console._is_jupyter", lambda notebook=notebook: notebook)
        monkeypatch.setenv("FORCE_COLOR", "1")
        # Which threads, not how many: another test's may end meanwhile.
        before = set(threading.enumerate())
        with progress.bar("work") as advance:
            advance("part", 1, 2)
            assert (set(threading.enumerate()) <= before) == notebook
