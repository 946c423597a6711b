"""Evidence from replay: exact influence, by differentiating training in reverse."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.metagradients.influences import (
        WHOLE,
        ReplayOptions,
        influence,
        rank_by_replay,
        span,
    )

__all__ = ["WHOLE", "ReplayOptions", "influence", "rank_by_replay", "span"]

__getattr__ = names_on_first_use(__name__, __file__)
