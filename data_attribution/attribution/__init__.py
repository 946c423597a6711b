"""Attribution: rank the training documents behind a text or a behaviour."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.attribution.attribute import ask, chosen, documents
    from data_attribution.attribution.fusion import fuse
    from data_attribution.attribution.methods import (
        BM25,
        DEFAULT,
        FUSED,
        NAMED,
        Gradient,
        Lexical,
        Method,
        Replay,
        parse,
    )
    from data_attribution.attribution.passages import excerpt
    from data_attribution.attribution.sources import GRADES, Effect, Source, Sources

__all__ = [
    "BM25",
    "DEFAULT",
    "FUSED",
    "GRADES",
    "NAMED",
    "Effect",
    "Gradient",
    "Lexical",
    "Method",
    "Replay",
    "Source",
    "Sources",
    "ask",
    "chosen",
    "documents",
    "excerpt",
    "fuse",
    "parse",
]

__getattr__ = names_on_first_use(__name__, __file__)
