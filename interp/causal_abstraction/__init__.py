"""Interchange interventions and distributed alignment search (DAS)."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.causal_abstraction.das import align
    from interp.causal_abstraction.interventions import interchange
    from interp.causal_abstraction.pairs import Pairs, crossed, halves, swaps

__all__ = ["Pairs", "align", "crossed", "halves", "interchange", "swaps"]

__getattr__ = names_on_first_use(__name__, __file__)
