"""No flipped bit of any file changes an answer without a word: the short form of bit_flips.py."""

from collections import Counter

import pytest

from tests.worlds.scripts import benchmark
from train import storage
from train.storage import digest_memory


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def script():
    return benchmark("bit_flips")


@pytest.fixture(scope="module")
def world(script, tmp_path_factory):
    """Every kind of file, made once."""
    return script.build_world(tmp_path_factory.mktemp("flips"))


def flipped(script, world, n_flips: int, seed: int) -> tuple[Counter[str], list[str]]:
    said: list[str] = []
    return sum(script.flip_bits(world, n_flips, seed, said.append).values(), Counter()), said


def test_a_flip_of_any_file_is_refused_in_one_line_or_changes_nothing(script, world):
    found, said = flipped(script, world, 150, seed=0)
    assert said == []
    assert (found["silent"], found["traceback"], found.total()) == (0, 0, 150)
    assert len(world.kinds) >= 44
    assert found["refused"] >= 135  # two kinds of 44 are not read by the questions


def test_a_flip_of_a_large_file_is_refused_though_its_digest_was_remembered(
    script, world, monkeypatch, tmp_path
):
    monkeypatch.setenv("OPENBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_memory, "HASHED", 0)
    monkeypatch.setattr(digest_memory, "SETTLED_NS", -(10**18))
    found, said = flipped(script, world, 44, seed=1)
    assert said == []
    assert found["silent"] + found["traceback"] == 0
    assert list((tmp_path / "cache/checked").iterdir())


def test_a_flip_that_nothing_checks_is_counted_as_silent(script, world, monkeypatch):
    monkeypatch.setattr(digest_memory, "check_once", lambda *arguments: None)
    found, said = flipped(script, world, 88, seed=2)
    assert found["silent"] >= 5
    assert any("store/tokens.bin: another answer" in line for line in said)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda path: path.read_bytes().hex(), "silent"),
        (lambda path: "the same", "unchanged"),
        (lambda path: storage.check_digest(path, "0", "m", "mend it"), "refused"),
        (lambda path: _refuse("two\nlines"), "traceback"),
        (lambda path: 1 // 0, "traceback"),
    ],
)
def test_each_end_of_a_trial_is_told_apart_and_the_file_put_back(script, tmp_path, end, outcome):
    path, whole = tmp_path / "file", b"some bytes"
    path.write_bytes(whole)

    def ask() -> str:
        return "the same" if path.read_bytes() == whole and outcome != "silent" else end(path)

    world = script.World(tmp_path, {path: ("file", ask)})
    found, said = flipped(script, world, 8, seed=0)
    assert found == {outcome: 8}
    assert len(said) == (8 if outcome in ("silent", "traceback") else 0)
    assert path.read_bytes() == whole


class UncutError(ValueError):
    """A refusal whose message is left as it is, as openbook's own errors are not."""

    exit_code = 3


def _refuse(text: str) -> str:
    raise UncutError(text)
