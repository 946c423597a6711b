"""Attribution: rank the training documents behind a text or a behaviour."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.attribution.attribute import (
        choose_methods,
        documents,
        make_request,
        rank_many,
    )
    from data_attribution.attribution.fusion import fuse
    from data_attribution.attribution.lineage import (
        LineageSource,
        LineageSources,
        StageChange,
        across_stages,
    )
    from data_attribution.attribution.method_names import FUSED, refuse_unknown_method
    from data_attribution.attribution.methods import (
        BM25,
        DEFAULT,
        NAMED,
        Gradient,
        Lexical,
        Method,
        Replay,
        default_methods,
        parse,
        spelled,
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
    "LineageSource",
    "LineageSources",
    "Method",
    "Replay",
    "Source",
    "Sources",
    "StageChange",
    "across_stages",
    "choose_methods",
    "default_methods",
    "documents",
    "excerpt",
    "fuse",
    "make_request",
    "parse",
    "rank_many",
    "refuse_unknown_method",
    "spelled",
]

__getattr__ = names_on_first_use(__name__, __file__)
