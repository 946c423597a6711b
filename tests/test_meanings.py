"""Every kind of result says in one sentence what it shows and what it does not show.

The sentence stands in one place, the class, and commands print it as text and as JSON.
"""

import importlib
import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from interp.results import Result
from train.cli.output import emit


FOLDERS = ("attribution_patching", "causal_abstraction", "circuits", "heads", "lenses", "patching")
FOLDERS += ("model_evaluation", "probing", "steering", "training_dynamics")
OTHERS = {  # results that are no `Result`
    "interp.training_dynamics": ["Recall"],
    "data_attribution.attribution": ["LineageSources", "Sources"],
    "data_attribution.counterfactuals": ["Counterfactual", "Forgetting"],
    "data_attribution.evaluation": ["Evaluation"],
    "data_attribution.tracing": ["Exposure", "Generation"],
}


def results() -> list[type]:
    for folder in FOLDERS:
        package = importlib.import_module(f"interp.{folder}")
        for name in package.__all__:
            getattr(package, name)
    own = [one for one in Result.__subclasses__() if one.__module__.startswith("interp.")]
    named = [getattr(importlib.import_module(at), one) for at in OTHERS for one in OTHERS[at]]
    return [*own, *named]


def test_every_result_says_what_it_shows_and_what_it_does_not():
    kinds = results()
    assert len(kinds) > 25
    pattern = r"An? [^.;]+ shows? [^.;]+; it (does not show|shows no) [^.;]+\."
    unfit = [one.__name__ for one in kinds if not re.fullmatch(pattern, one.meaning)]
    assert unfit == []
    assert len({one.meaning for one in kinds}) == len(kinds)


@dataclass(frozen=True)
class Weather:
    meaning: ClassVar[str] = "A cloud shows rain; it does not show when."

    def save(self, path): ...

    def to_dict(self):
        return {"cloud": 1}


@pytest.mark.parametrize(("result", "meaning"), [(Weather(), ""), ({"cloud": 1}, Weather.meaning)])
def test_commands_print_the_sentence_as_text_and_as_json(capsys, result, meaning):
    emit(result, "one cloud", as_json=False, meaning=meaning)
    assert capsys.readouterr().out == "one cloud\nA cloud shows rain; it does not show when.\n"
    emit(result, "one cloud", as_json=True, meaning=meaning)
    assert json.loads(capsys.readouterr().out) == {"cloud": 1, "meaning": Weather.meaning}
