"""Behaviours: prompts with a right and a wrong answer, and how well a model does on them."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.behaviours.baselines import Baselines, measure_baselines
    from interp.behaviours.behaviour import (
        Behaviour,
        Check,
        check,
        measure,
        read,
        refuse_several,
    )
    from interp.behaviours.encoding import encoded_prompts, tokenizer_of
    from interp.behaviours.loading import PACKAGED, load, names
    from interp.behaviours.paired_prompts import Answers, from_strings, from_table
    from interp.behaviours.planted import planted_truth, truth_of
    from interp.behaviours.planted_facts import fact_query, tuned_fact
    from interp.behaviours.planted_names import refuse_unknown_name

__all__ = [
    "PACKAGED",
    "Answers",
    "Baselines",
    "Behaviour",
    "Check",
    "check",
    "encoded_prompts",
    "fact_query",
    "from_strings",
    "from_table",
    "load",
    "measure",
    "measure_baselines",
    "names",
    "planted_truth",
    "read",
    "refuse_several",
    "refuse_unknown_name",
    "tokenizer_of",
    "truth_of",
    "tuned_fact",
]

__getattr__ = names_on_first_use(__name__, __file__)
