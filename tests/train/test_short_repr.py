"""What a notebook shows of a result is one short line, whatever the result holds."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from train.short_repr import LONGEST, short_repr


# Types whose own representation grows with the data, or names neither size nor content.
LONG = re.compile(
    r"Tensor|ndarray|\.GPT\b|HookedModel|tuple\[.*\.\.\.\]|\blist\[|\bdict\b|Mapping|Sequence\["
    r"|frozenset|\bset\["
)
# A few small numbers, such as a place in a model: the default representation shows all of them.
SMALL = {"Component", "FactChange", "Frame", "Layout", "Path", "Place", "Site"}


@dataclass(frozen=True)
class Words:
    words: str

    def __str__(self) -> str:
        return f"says\n{self.words}"


@dataclass(frozen=True)
class Measurement:
    name: str
    values: object
    n: int = 1
    notes: tuple[str, ...] = ()
    table: Mapping[str, object] = field(default_factory=dict)
    hidden: object = field(default=None, repr=False)

    __repr__ = short_repr


@dataclass(frozen=True)
class Sentence(Words):
    __repr__ = short_repr


VALUES = {
    "values=<float32[12, 64]>": torch.zeros(12, 64),
    "values=<int64[3]>": np.arange(3),
    "values=0.3333": torch.tensor(1 / 3),
    "values=12.35": np.float64(12.34567),
    "values=(1, 2)": [1, 2],
    "values=<900 float>": tuple(map(float, range(900))),
    "values=<2 ndarray>": [np.zeros(9), np.zeros(9)],
    "values=<1 keys>": {"a": torch.zeros(9)},
    "values=<Linear>": torch.nn.Linear(2, 2),
    "values=<Measurement>": Measurement("b", torch.zeros(3)),
    "values=<short_repr>": short_repr,
    "values=says\nno": Words("no"),
    "values='…/last'": Path("/" + "a" * 200 + "/last"),
}


@pytest.mark.parametrize(("shown", "value"), VALUES.items())
def test_a_value_is_shown_by_its_size_or_its_number(shown, value):
    text = repr(Measurement("a", value))
    head, _, tail = shown.partition("…")
    assert text.startswith(f"Measurement(name='a', {head}")
    assert text.endswith(f"{tail})")


def test_fields_with_their_default_and_hidden_fields_are_left_out():
    assert repr(Measurement("a", 1, hidden=2)) == "Measurement(name='a', values=1)"
    text = repr(Measurement("a", 1, n=2, notes=("x",), table={"y": 1}))
    assert text == "Measurement(name='a', values=1, n=2, notes=('x'), table=<1 keys>)"


def test_a_class_with_a_sentence_of_its_own_shows_it_on_one_line():
    assert repr(Sentence("so")) == "Sentence(says so)"


def test_no_representation_is_longer_than_the_limit():
    for one in (Measurement("a" * 999, "b" * 999, notes=("c" * 999,)), Sentence("d" * 999)):
        assert len(repr(one)) <= LONGEST
    assert len(repr(Sentence("d" * 999))) == LONGEST


def public_dataclasses() -> Iterator[type]:
    for package in ("train", "interp", "data_attribution"):
        for module in pkgutil.walk_packages([package], f"{package}."):
            if ".cli" in module.name:
                continue
            for name, one in vars(importlib.import_module(module.name)).items():
                own = inspect.isclass(one) and one.__module__ == module.name
                if own and is_dataclass(one) and not name.startswith("_"):
                    yield one


@pytest.mark.integration
def test_every_public_dataclass_that_holds_much_has_a_short_representation(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    long = [
        one
        for one in public_dataclasses()
        # The decorator compiles its method from text.
        if inspect.unwrap(one.__repr__).__code__.co_filename == "<string>"
        and any(each.repr and LONG.search(str(each.type)) for each in fields(one))
    ]
    assert {one.__name__ for one in long} <= SMALL
