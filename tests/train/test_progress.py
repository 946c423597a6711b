"""A bar is for people: the caller's own wins, and where nobody looks nothing is written."""

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
