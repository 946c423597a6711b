"""The trained run that is shipped with openbook; `open` checks every digest."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.released.released_run import RELEASED_RUNS, cache_folder, measured, open, write

__all__ = ["RELEASED_RUNS", "cache_folder", "measured", "open", "write"]

__getattr__ = names_on_first_use(__name__, __file__)
