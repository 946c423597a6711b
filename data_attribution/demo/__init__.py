"""The demo: the whole pipeline on the planted corpus."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
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
    "Demo",
    "DemoPlan",
    "TracedFact",
    "plan",
    "play",
    "play_released",
    "refuse_other",
    "trained",
]

__getattr__ = names_on_first_use(__name__, __file__)
