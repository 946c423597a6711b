"""Evaluation of document rankings: recall, LDS, removal curves, tail patches."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.evaluation.batch_rankings import by_method, shared_read
    from data_attribution.evaluation.facts import planted_facts
    from data_attribution.evaluation.lds import (
        Lds,
        draw_subsets,
        lds_score,
        predicted_change,
        retrained_on_subsets,
        spearman,
        spread,
    )
    from data_attribution.evaluation.method_evaluation import Asked, evaluate
    from data_attribution.evaluation.removal_curves import (
        CurvePoint,
        Ratio,
        RemovalCurves,
        apart,
        removal_curves_of,
    )
    from data_attribution.evaluation.result import Evaluation

__all__ = [
    "Asked",
    "CurvePoint",
    "Evaluation",
    "Lds",
    "Ratio",
    "RemovalCurves",
    "apart",
    "by_method",
    "draw_subsets",
    "evaluate",
    "lds_score",
    "planted_facts",
    "predicted_change",
    "removal_curves_of",
    "retrained_on_subsets",
    "shared_read",
    "spearman",
    "spread",
]

__getattr__ = names_on_first_use(__name__, __file__)
