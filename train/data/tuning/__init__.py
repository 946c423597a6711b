"""Examples for tuning a trained model: instructions with responses, and preferences."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.data.tuning.example_files import open_tuning_set
    from train.data.tuning.examples import KINDS, Example, TuningSet, example_problem
    from train.data.tuning.planted_sets import planted_instructions, planted_preferences
    from train.data.tuning.tuning_store import build_tuning_store

__all__ = [
    "KINDS",
    "Example",
    "TuningSet",
    "build_tuning_store",
    "example_problem",
    "open_tuning_set",
    "planted_instructions",
    "planted_preferences",
]

__getattr__ = names_on_first_use(__name__, __file__)
