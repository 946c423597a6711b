"""Rank the training documents behind a text or a behaviour."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.attribution.attribute import (
        DEFAULT,
        FUSED,
        METHODS,
        Request,
        ask,
        documents,
    )
    from data_attribution.attribution.fusion import fuse
    from data_attribution.attribution.passages import excerpt
    from data_attribution.attribution.sources import GRADES, Effect, Source, Sources

__all__ = [
    "DEFAULT",
    "FUSED",
    "GRADES",
    "METHODS",
    "Effect",
    "Request",
    "Source",
    "Sources",
    "ask",
    "documents",
    "excerpt",
    "fuse",
]

__getattr__ = names_on_first_use(__name__, __file__)
