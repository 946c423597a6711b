"""Demos: the whole pipeline on the planted corpus, and on the sources of Python."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.demo.code_demo import (
        CodeDemo,
        Completion,
        Formation,
        HeadEffects,
        finished_formation,
        formation_of,
        plan_code,
        play_code,
    )
    from data_attribution.demo.code_lines import (
        KnownLine,
        line_readings,
    )
    from data_attribution.demo.planted_demo import (
        Circuit,
        Demo,
        TracedFact,
        plan,
        play,
        play_released,
        refuse_other,
        trained,
    )
    from data_attribution.demo.stages import DemoPlan

__all__ = [
    "Circuit",
    "CodeDemo",
    "Completion",
    "Demo",
    "DemoPlan",
    "Formation",
    "HeadEffects",
    "KnownLine",
    "TracedFact",
    "finished_formation",
    "formation_of",
    "line_readings",
    "plan",
    "plan_code",
    "play",
    "play_code",
    "play_released",
    "refuse_other",
    "trained",
]

__getattr__ = names_on_first_use(__name__, __file__)
